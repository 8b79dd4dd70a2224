"""`craft` in the benchmark's form, with target images, and through a purifier."""

from flax import nnx
import numpy as np
import pytest

from jaxpurify.attack.catalogue import ATTACKS, Attack
from jaxpurify.cli.main import main
from jaxpurify.data import AdditiveTrigger, Poison, load_poison, load_source
from jaxpurify.data.interchange import Setup, read_benchmark, write_setups
from jaxpurify.networks.freeze import freeze
from jaxpurify.networks.resnet9 import ResNet9
from jaxpurify.networks.stored import save_network
from jaxpurify.purify.adaptive import Adaptive
from jaxpurify.purify.langevin import Langevin

BADNETS = ("craft", "badnets(count=3, size=2, target=1)")


def brighten(images, labels, key, *, target, targets, transform=None, amount=1):
    """A targeted attack without a surrogate, whose poisons show what it was given."""
    index = np.flatnonzero(labels == target)[:2]
    how = {"attack": "brighten", "adaptive": transform is not None}
    stored = np.clip(images[index].astype(int) + amount, 0, 255).astype(np.uint8)
    if transform is not None:
        assert isinstance(transform, Adaptive) and isinstance(transform.purifier, Langevin)
        how |= {
            "mode": transform.mode,
            "steps": transform.steps,
            "chain": transform.purifier.steps,
            "difference": transform.difference,
        }
    return Poison(stored, labels[index], index, target, None, how, targets)


@pytest.fixture
def targeted(monkeypatch):
    monkeypatch.setitem(ATTACKS, "brighten", Attack(brighten, "for tests", "nothing", True, False, "none"))


def test_a_patch_in_the_form_of_the_benchmark(photographs, here, capsys):
    options = ["--format", "benchmark", "--targets", photographs, "--target-index", "2"]
    assert main([*BADNETS, photographs, "--out", "trial/0", *options]) == 0
    assert "3 poisons of 13 images" in capsys.readouterr().out
    clean = load_source(photographs)
    poison = read_benchmark("trial/0", clean.images, clean.labels, epsilon=None)
    assert poison.target == 1 and len(poison) == 3 and poison.how["patch_corner"] == [10, 10]
    np.testing.assert_array_equal(poison.targets.images[0][:10], clean.images[2][:10])
    assert poison.targets.labels.tolist() == [0]
    assert main([*BADNETS, photographs, "--out", "poison.npz"]) == 0
    same = load_poison("poison.npz")
    np.testing.assert_array_equal(same.images, poison.images)
    np.testing.assert_array_equal(same.index, poison.index)


def test_targets_of_a_targeted_attack_keep_their_positions(photographs, targeted, here):
    command = ["craft", "brighten(target=0)", photographs, "--out", "poison.npz", "--targets", photographs]
    assert main([*command, "--target-index", "12", "8"]) == 0
    poison, clean = load_poison("poison.npz"), load_source(photographs)
    assert poison.targets.index.tolist() == [12, 8] and poison.targets.labels.tolist() == [1, 1]
    np.testing.assert_array_equal(poison.targets.images, clean.images[[12, 8]])


def marked(images, labels, key, *, target, targets, bases=None, count=None):
    """A targeted attack on given images."""
    poisons = np.clip(images[bases].astype(int) + 1, 0, 255).astype(np.uint8)
    return Poison(poisons, labels[bases], bases, target, None, {"attack": "marked"}, targets)


@pytest.fixture
def setups(monkeypatch, here):
    monkeypatch.setitem(ATTACKS, "marked", Attack(marked, "for tests", "nothing", True, False, "none"))
    trials = [Setup(1, 12, 0, np.array([2, 5])), Setup(1, 9, 0, np.array([1])), Setup(1, 0, 0, np.array([1]))]
    write_setups(here / "setups.pickle", trials)
    return ["--setup", "setups.pickle"]


def test_a_trial_of_the_benchmark_names_target_and_poisons(photographs, setups):
    clean = load_source(photographs)
    for trial, (target, bases) in enumerate(((12, [2, 5]), (9, [1]))):
        command = ["craft", "marked", photographs, "--out", f"{trial}.npz", "--targets", photographs]
        assert main([*command, *setups, "--trial", str(trial)]) == 0
        poison = load_poison(f"{trial}.npz")
        assert poison.index.tolist() == bases and poison.target == 0
        assert poison.targets.index.tolist() == [target] and poison.targets.labels.tolist() == [1]
        np.testing.assert_array_equal(poison.targets.images, clean.images[[target]])


def test_a_trial_names_the_class_of_sources_too(photographs, setups, monkeypatch):
    seen = []

    def triggered(images, labels, key, *, target, source=None, bases=None):
        seen.append((target, source, bases.tolist()))
        trigger = AdditiveTrigger(np.zeros(images.shape[1:], np.float32))
        return Poison(images[bases], labels[bases], bases, target, trigger, {"attack": "triggered"})

    triggered_attack = Attack(triggered, "for tests", "nothing", True, False, "none")
    monkeypatch.setitem(ATTACKS, "triggered", triggered_attack)
    command = ["craft", "triggered", photographs, "--targets", photographs, "--format", "benchmark", *setups]
    assert main([*command, "--out", "trial"]) == 0 and seen == [(0, 1, [2, 5])]
    clean = load_source(photographs)
    poison = read_benchmark("trial", clean.images, clean.labels)
    assert poison.index.tolist() == [2, 5] and poison.target == 0 and poison.targets.index.tolist() == [12]


@pytest.mark.parametrize(
    ("attack", "options", "complaint"),
    [
        ("badnets(size=2)", (), "chooses its poisons itself; leave --setup out"),
        ("marked(count=2)", (), "--setup says what count says"),
        ("marked", ("--target-index", "3"), "--setup says what --target-index says"),
        ("marked", ("--target", "0"), "--setup says what target says"),
        ("marked", (), "--setup needs --targets SOURCE"),
        ("marked", ("--targets", "SOURCE", "--trial", "3"), "--trial 3; setups.pickle holds trials 0 … 2"),
        ("marked", ("--targets", "SOURCE", "--trial", "2"), "is of class 0, in setups.pickle of class 1"),
    ],
)
def test_trials_that_do_not_fit(photographs, setups, refused, attack, options, complaint):
    options = [photographs if each == "SOURCE" else each for each in options]
    assert complaint in refused("craft", attack, photographs, "--out", "poison.npz", *setups, *options)


def test_a_purifier_to_craft_through(archive, targeted, energy_weights):
    command = ["craft", "brighten(target=0)", archive, "--targets", archive, "--target-index", "1"]
    purifier = f"langevin(steps=7, weights={str(energy_weights)!r})"
    options = [
        "--through",
        purifier,
        "--gradient",
        "truncated",
        "--gradient-steps",
        "3",
        "--gradient-difference",
        "0.01",
    ]
    assert main([*command, "--out", "poison.npz", *options]) == 0
    how = load_poison("poison.npz").how
    assert how == {
        "attack": "brighten",
        "adaptive": True,
        "mode": "truncated",
        "steps": 3,
        "chain": 7,
        "difference": 0.01,
    }


def test_narcissus_through_two_steps_of_an_energy(archive, here, energy_weights):
    options = {"width": 2, "classes": 3, "channels": 1, "mean": 0.5, "std": 0.25}
    network = freeze(ResNet9(**options, rngs=nnx.Rngs(0)))
    save_network(here / "model.safetensors", network, network="resnet9", options=options)
    command = ["craft", "narcissus(count=2, steps=2, target=1)", archive, "--surrogate", "model.safetensors"]
    purifier = f"langevin(steps=2, weights={str(energy_weights)!r})"
    assert main([*command, "--out", "poison.npz", "--through", purifier, "--gradient", "straight_through"]) == 0
    assert load_poison("poison.npz").how["adaptive"] is True


FOLDER = ("--format", "benchmark", "--targets", "npz:data.npz", "--target-index", "3")


@pytest.mark.parametrize(
    ("attack", "options", "complaint"),
    [
        ("badnets(count=1, target=1)", ("--format", "benchmark"), "--format benchmark needs --targets SOURCE and"),
        ("brighten(target=0)", (), "attack 'brighten(target=0)' needs --targets SOURCE and --target-index"),
        ("brighten(target=0)", ("--targets", "npz:data.npz"), "needs --targets SOURCE and --target-index"),
        ("badnets(count=1, target=1)", ("--target-index", "3"), "uses no --targets"),
        ("badnets(count=1, target=1)", ("--trial", "3"), "--trial 3 goes with --setup"),
        ("brighten(target=0)", ("--targets", "npz:data.npz", "--target-index", "3"), "of that class already"),
        ("brighten(target=0)", ("--targets", "npz:data.npz", "--target-index", "20"), "positions are 0 … 19"),
        ("brighten(target=0, targets=1)", (), "no option 'targets'; known: target, amount"),
        ("badnets(count=1, target=1)", ("--through", "jpeg(50)"), "follows no gradient; leave --through out"),
        ("narcissus(count=1, target=1)", ("--gradient", "truncated"), "those of --through"),
        (
            "narcissus(count=1, target=1)",
            ("--through", "jpeg(50)", "--gradient-steps", "3"),
            "gradient_steps=3 goes with gradient='truncated'",
        ),
        ("sleeper_agent(count=1, retrain_every=50)", (), "`jaxpurify evaluate` only; no retrain_every"),
        ("metapoison(count=1, refresh_every=2)", (), "takes no option 'refresh_every'"),
        ("class_noise(epsilon=0.1)", FOLDER, "use --format npz"),
        ("gradient_matching(target=1, base=2, count=1)", FOLDER, "use --format npz"),
        ("gradient_matching(target=1, criterion='unxent', count=1)", FOLDER, "use --format npz"),
    ],
)
def test_what_does_not_fit_is_one_line(archive, targeted, refused, everything, attack, options, complaint):
    place = "poison" if "benchmark" in options else "poison.npz"
    followed = attack.startswith(("narcissus", "gradient_matching"))
    surrogate = ("--surrogate", "model.safetensors") if followed else ()
    assert complaint in refused("craft", attack, archive, "--out", place, *options, *surrogate)
    assert everything() == ["data.npz"]


def test_what_is_read_is_not_replaced(archive, targeted, refused, everything, here):
    (here / "other.npz").write_bytes((here / "data.npz").read_bytes())
    files = everything()
    reads = ("--targets", "npz:other.npz", "--target-index", "3", "--force")
    attack = ("craft", "brighten(target=0)", archive)
    assert "other.npz is read and would be replaced" in refused(*attack, *reads, "--out", "other.npz")
    complaint = refused(*attack, *reads, "--out", "poison.npz", "--apply-to", "other.npz")
    assert "other.npz is read and would be replaced" in complaint
    stored = ("craft", "stored(path='other.npz')", archive, "--out", "other.npz", "--force")
    assert "other.npz is read and would be replaced" in refused(*stored)
    assert everything() == files


def test_a_surrogate_is_a_classifier(archive, refused, everything, energy_weights):
    attack = ("craft", "narcissus(count=1, target=1)", archive, "--out", "poison.npz")
    assert "holds no classifier of images of (8, 8, 1)" in refused(*attack, "--surrogate", str(energy_weights))
    assert everything() == ["data.npz"]


def test_target_images_are_stretched_as_the_training_images_are(archive, targeted, here):
    options = ["--targets", "digits[:9]", "--target-index", "1", "--size", "9"]
    assert main(["craft", "brighten(target=0)", archive, "--out", "poison.npz", *options]) == 0
    assert load_poison("poison.npz").targets.images.shape == (1, 9, 9, 1)


def test_target_images_of_another_shape(photographs, targeted, refused):
    options = ("--targets", "digits[:9]", "--target-index", "1")
    message = refused("craft", "brighten(target=0)", photographs, "--out", "poison.npz", *options)
    assert "--targets digits[:9] has images of (8, 8, 1); those of folder:photos are (12, 12, 3)" in message
