"""The published settings (PureGen, arXiv:2405.18627), number by number, and their sources in small."""

import dataclasses

import pytest

from jaxpurify.data.sources import load_source
from jaxpurify.evaluate.presets import preset
from jaxpurify.evaluate.protocol import protocol
from jaxpurify.generate.diffusion import DiffusionRecipe
from jaxpurify.generate.energy_recipe import HILL, PUREGEN
from tests.data.test_published_folders import save

CIFAR10 = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2471, 0.2435, 0.2616)}
TINY = {"mean": (0.4802, 0.4481, 0.3975), "std": (0.2302, 0.2265, 0.2262), "size": 64}
SGD = {"batch_size": 128, "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "label_smoothing": 0.0}
VICTIMS = {
    "paper": ("resnet18", CIFAR10 | {"classes": 10}, SGD | {"epochs": 200, "schedule": "multistep"}),
    "paper-cinic10": ("resnet18", CIFAR10 | {"classes": 10}, SGD | {"epochs": 80, "schedule": "multistep80"}),
    "paper-tiny-imagenet": ("resnet34", TINY | {"classes": 200}, SGD | {"epochs": 200, "schedule": "multistep"}),
    "paper-hlb": (
        "resnet18",
        CIFAR10 | {"classes": 10},
        SGD | {"epochs": 25, "schedule": "triangular", "learning_rate": 0.2, "label_smoothing": 0.2},
    ),
    "paper-hlb-s": (
        "hlb_s",
        CIFAR10 | {"classes": 10},
        {
            "epochs": 15,
            "batch_size": 128,
            "learning_rate": 11.6,
            "momentum": 0.87,
            "weight_decay": 0.0157,
            "label_smoothing": 0.2,
        },
    ),
}
# Shift in pixels and with what the border is filled; size of the cutout.
AUGMENTATION = {"paper-hlb": (4, "reflect", 12), "paper-hlb-s": (2, "reflect", None)}


@pytest.mark.parametrize("name", VICTIMS)
def test_victims_are_the_published_ones(name):
    network, options, recipe = VICTIMS[name]
    found = protocol(name)
    assert found.network == network and found.options.items() >= options.items()
    assert dataclasses.asdict(found.recipe).items() >= recipe.items()
    padding, mode, cutout = AUGMENTATION.get(name, (4, "zero", None))
    crop, flip, *others = found.augment.stages
    assert (crop.padding, crop.mode, type(flip).__name__) == (padding, mode, "Flip")
    assert [stage.size for stage in others] == ([] if cutout is None else [cutout])
    assert found.recipe.nesterov is name.startswith("paper-hlb")


def test_generative_recipes_are_the_published_ones():
    # Steps, noise of the data and everything else in units of [0, 1]: half of the published numbers in [-1, 1].
    shared = {"langevin_steps": 100, "learning_rate": 1e-4, "schedule": "drops"}
    assert dataclasses.asdict(PUREGEN).items() >= (shared | {
        "steps": 65_600, "batch_size": 128, "drops": (40 / 120, 75 / 120, 100 / 120), "sgd_after": None,
        "step_size": 0.0125 / 2, "temperature": 1e-4, "data_noise": 0.015 / 2, "bank_size": 10_000,
        "bank_start": "data", "rejuvenation": 0.05,
    }).items()  # fmt: skip
    assert dataclasses.asdict(HILL).items() >= (shared | {
        "steps": 250_000, "batch_size": 100, "drops": (), "sgd_after": 0.5, "sgd_learning_rate": 5e-5,
        "step_size": 0.01 / 2, "temperature": 0.01**2 / 2, "data_noise": 0.02 / 2, "bank_size": 50_000,
        "bank_start": "noise", "rejuvenation": 0.0,
    }).items()  # fmt: skip
    assert dataclasses.asdict(DiffusionRecipe()).items() >= {
        "steps": 41_000, "batch_size": 256, "learning_rate": 1e-4, "warmup": 500, "weight_decay": 1e-2,
        "max_timestep": 250, "ema_decay": None,
    }.items()  # fmt: skip


@pytest.mark.parametrize(
    ("name", "seeds", "public", "attack"),
    [
        ("paper", 10, "cinic10-imagenet", "narcissus(epsilon=8/255, count=500, "),
        ("paper-cinic10", 10, "cifar10", "narcissus(epsilon=8/255, count=900, "),
        ("paper-tiny-imagenet", 100, "caltech256", "gradient_matching(epsilon=8/255, count=250)"),
    ],
)
def test_presets_of_the_paper(name, seeds, public, attack):
    grid = preset(name)
    assert grid.protocol.name == name and len(grid.seeds) == seeds and grid.trigger_scale == 1.0
    (found,) = grid.attacks
    assert found.startswith(attack)
    assert grid.defences == (
        f"langevin(steps=150, weights='ebm-{public}.safetensors')",
        f"diffusion(timestep=75, weights='ddpm-{public}.safetensors')",
    )


def test_sources_of_the_paper_are_the_published_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "test"):
        for name in ("airplane/cifar10-1.png", "airplane/n02690373_7.png", "dog/n02085272_1.png"):
            save(tmp_path / "CINIC-10" / split / name)
    for wnid in ("n01", "n02"):
        save(tmp_path / "tiny-imagenet-200/train" / wnid / "images" / f"{wnid}_0.JPEG", size=64)
    save(tmp_path / "tiny-imagenet-200/val/images/val_0.JPEG", size=64)
    (tmp_path / "tiny-imagenet-200/val/val_annotations.txt").write_text("val_0.JPEG\tn02\t0\t0\t63\t63\n")
    (tmp_path / "tiny-imagenet-200/wnids.txt").write_text("n01\nn02\n")
    for name in ("bear", "boat"):
        save(tmp_path / "caltech256-64" / name / "1.png", size=64)
    train, test = protocol("paper-cinic10").load()
    assert (len(train), len(test)) == (3, 3)
    assert load_source(protocol("paper").public).names == ("airplane/n02690373_7.png", "dog/n02085272_1.png")
    tiny = protocol("paper-tiny-imagenet")
    train, test = tiny.load()
    assert train.images.shape == (2, 64, 64, 3) and test.labels.tolist() == [1]
    assert load_source(tiny.surrogate_source).names == train.names
    assert load_source(tiny.public).images.shape == (2, 64, 64, 3)
