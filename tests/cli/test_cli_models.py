"""`generate`, `train` and `craft` write files that the other commands can use, and refuse what cannot work."""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.cli.main import main
from jaxpurify.cli.network import channel_statistics, constructor_parameters, network_options
from jaxpurify.data.augment import Flip
from jaxpurify.data.image import to_float
from jaxpurify.data.poison import load_poison
from jaxpurify.data.sources import load_source
from jaxpurify.evaluate.purifiers import make_purifier
from jaxpurify.generate.energy import HILL, PUREGEN
from jaxpurify.networks.catalogue import NETWORKS
from jaxpurify.networks.freeze import freeze
from jaxpurify.networks.stored import load_network
from jaxpurify.purify.schedule import Schedule
from jaxpurify.weights.catalogue import load_weights

ENERGY = ("generate", "energy", "digits[:40]", "--out", "energy.safetensors")
GENERATIVE = ("conv_energy", "residual_energy", "unet", "unet_s", "unet_m", "unet_l")
SMALL = ("--features", "2", "--batch-size", "8", "--langevin-steps", "1", "--bank-size", "16")


def test_an_interrupted_training_of_an_energy_continues(here, everything, monkeypatch, capsys):
    import jaxpurify.cli.generate as command

    whole = [*ENERGY, *SMALL, "--steps", "6", "--step-size", "0.02", "--seed", "1"]
    genuine = command.train_energy

    def interrupted(*arguments, progress, **options):
        def stop_after_four(taken, steps, metrics):
            progress(taken, steps, metrics)
            if taken == 4:
                raise KeyboardInterrupt

        return genuine(*arguments, progress=stop_after_four, interval=2, **options)

    monkeypatch.setattr(command, "train_energy", interrupted)
    assert main(whole) == 130
    assert "energy.safetensors" not in everything() and "energy.safetensors.checkpoints/4" in everything()
    assert main([*whole, "--temperature", "0.01"]) == 2
    assert "checkpoints of another recipe" in capsys.readouterr().err
    record = here / "energy.safetensors.checkpoints" / "run.json"
    kept = record.read_text()
    for content in ("{}", "[1]", "not JSON", '{"setting": 1, "seconds": 2}'):
        record.write_text(content)
        assert main(whole) == 2
        assert "run.json is in the way: it is no record of an earlier run" in capsys.readouterr().err
    record.write_text(kept)
    assert main(whole) == 0
    assert everything() == ["energy.safetensors"]
    assert "train energy: 6/6" in capsys.readouterr().out
    monkeypatch.setattr(command, "train_energy", genuine)
    assert main([*whole[:4], "once.safetensors", *whole[5:], "--resume-dir", "kept"]) == 0
    first, second = (jax.device_get(load_network(f"{name}.safetensors")[0].state) for name in ("energy", "once"))
    jax.tree.map(np.testing.assert_array_equal, first, second)

    card = load_weights("energy.safetensors")[1]
    assert card["langevin"] == {"step_size": 0.02, "temperature": 1e-4}
    assert card["source"] == "digits[:40]" and card["recipe"]["steps"] == 6 and np.isfinite(card["metrics"]["loss"])
    assert card["command"].startswith("jaxpurify generate energy 'digits[:40]' --out") and card["seconds"] > 0
    purifier = make_purifier("langevin(steps=1, weights='energy.safetensors')", (8, 8, 1))
    assert purifier.step_size == 0.02 and purifier.steps == 1


def test_a_generated_noise_predictor_says_how_far_it_was_trained(here, refused, monkeypatch, capfd):
    import jaxpurify.cli.generate as command

    # What the trainer does is tested with the trainer; here the untrained model stands for its result.
    trainer = mock.create_autospec(command.train_diffusion)
    trainer.side_effect = lambda model, *_, **__: (freeze(model), {"loss": np.ones(3)})
    monkeypatch.setattr(command, "train_diffusion", trainer)
    network = "unet(block_channels=(4,), layers_per_block=1, attention_levels=(), head_channels=4)"
    options = ["--network", network, "--steps", "1", "--batch-size", "8", "--max-timestep", "20", "--ema-decay", "0.9"]
    assert main(["generate", "diffusion", "digits[:16]", "--out", "noise.safetensors", "--flip", *options]) == 0
    assert "diffusion model on 16 images: loss 1" in capfd.readouterr().out
    recipe = trainer.call_args.kwargs["recipe"]
    assert (recipe.max_timestep, recipe.ema_decay, recipe.learning_rate) == (20, 0.9, 1e-4)
    assert trainer.call_args.kwargs["augment"] == Flip()
    assert load_weights("noise.safetensors")[1]["max_timestep"] == 20
    spec = "diffusion(timestep=21, weights='noise.safetensors')"
    assert "trained up to timestep 20" in refused("purify", "digits", "--out", "clean.npz", "--purifier", spec)


def test_published_recipes_are_presets_that_other_options_change(here, monkeypatch):
    import jaxpurify.cli.generate as command

    trainer = mock.create_autospec(command.train_energy)
    trainer.side_effect = lambda model, *_, **__: (freeze(model), {"loss": np.ones(3)})
    monkeypatch.setattr(command, "train_energy", trainer)
    small = ["--features", "2", "--batch-size", "8"]
    for preset, expected in (((), PUREGEN), (("--preset", "hill"), HILL), (("--preset=puregen",), PUREGEN)):
        assert main([*ENERGY, *small, *preset, "--force"]) == 0
        assert trainer.call_args.kwargs["recipe"] == dataclasses.replace(expected, batch_size=8)
    assert load_weights("energy.safetensors")[1]["langevin"] == {"step_size": 0.00625, "temperature": 1e-4}


def test_a_cosine_schedule_is_kept_with_the_weights(here, monkeypatch):
    import jaxpurify.cli.generate as command

    trainer = mock.create_autospec(command.train_diffusion)
    trainer.side_effect = lambda model, *_, **__: (freeze(model), {"loss": np.ones(3)})
    monkeypatch.setattr(command, "train_diffusion", trainer)
    network = "unet(block_channels=(4,), layers_per_block=1, attention_levels=(), head_channels=4)"
    options = ["--network", network, "--batch-size", "8", "--schedule.kind", "cosine"]
    assert main(["generate", "diffusion", "digits[:16]", "--out", "noise.safetensors", *options]) == 0
    purifier = make_purifier("diffusion(timestep=9, weights='noise.safetensors')", (8, 8, 1))
    assert purifier.schedule == Schedule("cosine")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "known: energy, diffusion"),
        (("gan", "digits"), "'gan'"),
        ((*ENERGY[1:4], "energy.bin"), "must end with .safetensors"),
        ((*ENERGY[1:], "--network", "resnet9", "--batch-size", "8"), "no energy network"),
        ((*ENERGY[1:], "--network", "transformer", "--batch-size", "8"), "unknown network 'transformer'"),
        ((*ENERGY[1:], "--network", "conv_energy(classes=3)", "--batch-size", "8"), "argument 'classes'"),
        (
            (*ENERGY[1:], "--network", "conv_energy(features=3)", "--features", "4", "--batch-size", "8"),
            "--features 4 say the same twice",
        ),
        ((*ENERGY[1:], "--batch-size", "50"), "fewer than one batch"),
        ((*ENERGY[1:], "--steps", "0"), "--steps 0; "),
        (("diffusion", *ENERGY[2:], "--batch-size", "8"), "multiples of 32"),
        ((*ENERGY[1:], "--preset", "chen"), "unknown preset 'chen' for a model of kind energy; known: puregen, hill"),
        (("diffusion", *ENERGY[2:], "--preset=hill"), "unknown preset 'hill' for a model of kind diffusion"),
    ],
)
def test_models_that_cannot_be_trained(here, refused, everything, arguments, complaint):
    assert complaint in refused("generate", *arguments)
    assert everything() == []


def test_train_says_how_often_it_is_right_on_average_and_in_the_worst_class(here, capsys):
    # The settings of the victims in test_cli_evaluate.py, so that their training step is compiled once.
    options = ["--network", "resnet9(mean=0.5, std=0.25)", "--width", "2", "--epochs", "1", "--batch-size", "50"]
    arguments = ["train", "digits[:200]", "--out", "model.safetensors", "--test", "digits[1500:]", *options]
    assert main(arguments) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("natural accuracy on 297 test images: average ") and "worst class " in line
    model, card = load_network("model.safetensors")
    test = load_source("digits[1500:]")
    right = np.asarray(model(to_float(jnp.asarray(test.images)))).argmax(1) == test.labels
    assert card["accuracy"] == {"on": "digits[1500:]", "average": right.mean(), "worst_class": worst(right, test)}
    assert f"average {100 * right.mean():.1f} %, worst class {100 * worst(right, test):.1f} %" in line

    craft = ["craft", "narcissus(count=5, steps=2, batch_size=16)", "digits[:200]", "--out", "poison.npz"]
    assert main([*craft, "--surrogate", "model.safetensors", "--target", "3"]) == 0
    assert load_poison("poison.npz").target == 3


def worst(right, dataset):
    return min(right[dataset.labels == label].mean() for label in range(10))


def test_train_refuses_what_does_not_fit(here, archive, refused, everything):
    train = ("train", archive, "--out", "model.safetensors")
    assert "other classes or image shapes" in refused(*train, "--test", "digits")
    assert "fewer than one batch" in refused(*train)
    assert "unknown schedule 'constant'" in refused(*train, "--batch-size", 10, "--schedule", "constant")
    assert "no classifier network" in refused(*train, "--network", "conv_energy")
    assert everything() == ["data.npz"]


def test_craft_writes_a_poison_and_the_poisoned_data(photographs, here, capsys):
    arguments = ["craft", "badnets(count=3, size=2)", photographs, "--out", "poison.npz", "--target", "1"]
    assert main([*arguments, "--apply-to", "poisoned"]) == 0
    poison, clean, poisoned = load_poison("poison.npz"), load_source(photographs), load_source("folder:poisoned")
    assert len(poison) == 3 and poison.target == 1
    assert (poisoned.labels == 1).sum() == (clean.labels == 1).sum() + 3
    assert "3 poisons of 13 images (attack badnets" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("attack", "options", "complaint"),
    [
        ("badnets(count=3)", (), "needs --target"),
        ("badnets(count=3, target=1)", ("--target", "2"), "two targets"),
        ("badnets(count=3, target=9)", (), "target is 9"),
        ("badnets(number=3, target=1)", (), "no option 'number'"),
        ("badnets(count='many', target=1)", (), "count is 'many'; it must be a whole number"),
        ("badnets(fraction='all', target=1)", (), "badnets(fraction='all', target=1)"),
        ("badnets(3)", (), "name=value"),
        ("class_noise(epsilon=2.0)", (), "epsilon is 2.0"),
        ("class_noise", ("--target", "1"), "has no target"),
        ("narcissus(count=3, target=1)", (), "needs --surrogate"),
        ("badnets(count=3, target=1)", ("--surrogate", "model.safetensors"), "uses no --surrogate"),
        ("venom", (), "'venom'; known: badnets"),
    ],
)
def test_poisons_that_cannot_be_made(archive, refused, everything, attack, options, complaint):
    assert complaint in refused("craft", attack, archive, "--out", "poison.npz", *options)
    assert everything() == ["data.npz"]


def test_networks_are_completed_from_the_data(archive):
    dataset = load_source(archive)
    assert network_options("conv_energy", dataset, features=4) == (
        "conv_energy",
        {"channels": 1, "size": 8, "features": 4},
    )
    name, options = network_options("resnet9(width=2)", dataset, width=None)
    assert (name, options["classes"], options["width"]) == ("resnet9", 3, 2)
    pixels = dataset.images / 255
    np.testing.assert_allclose([*options["mean"], *options["std"]], [pixels.mean(), pixels.std()], atol=1e-4)
    with pytest.raises(ValueError, match="for 3 classes; leave classes out, the data say it"):
        network_options("resnet9(classes=2)", dataset)
    assert channel_statistics(np.zeros((2, 4, 4, 3), np.uint8)) == ([0.0] * 3, [0.0039] * 3)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_takes_what_the_data_say(archive, name):
    options = network_options(name, load_source(archive))[1]
    parameters = constructor_parameters(name)
    passed_on = any(each.kind == each.VAR_KEYWORD for each in parameters.values())
    assert options["channels"] == 1 and (set(options) <= set(parameters) or passed_on)
    assert ("mean" in options) == ("classes" in options) == (name not in GENERATIVE)
