"""Trains the purifiers that come with the package.

    python -m experiments.bundled_weights NAME      (digits-ebm, digits-ddpm, cifar10-ebm, cifar10-ddpm)

Each sees public images only: `digits/public`, or CIFAR-10's `train[25000:]` (set TFDS_DATA_DIR). A killed run continues
from runs/weights/NAME. Minutes on two cores that other work shared are in the card of each file, which
`jaxpurify list` prints. They are small models, trained for minutes (the CIFAR-10 energy: 106): far from the published
65,600 updates of 100-step chains (energy) and 41,000 updates of a 113 M parameter network (diffusion).
"""

from collections.abc import Callable
import dataclasses
import os
from pathlib import Path
import sys
import time
from typing import Any

from flax import nnx
import jax

from jaxpurify.data.sources import load_source
from jaxpurify.generate.diffusion import DiffusionRecipe, train_diffusion
from jaxpurify.generate.energy import EnergyRecipe, train_energy
from jaxpurify.networks.freeze import Frozen
from jaxpurify.networks.stored import build, save_network
from jaxpurify.sharding import batch_mesh
from jaxpurify.weights.catalogue import bundled_path


@dataclasses.dataclass(frozen=True)
class Config:
    """One bundled model: its images, its network and how it is trained."""

    source: str
    network: str
    options: dict[str, Any]
    recipe: EnergyRecipe | DiffusionRecipe
    seed: int = 0


CONFIGS = {
    "digits-ebm": Config(
        "digits/public",
        "conv_energy",
        {"features": 32, "channels": 1, "size": 8},
        EnergyRecipe(
            steps=1500, batch_size=64, learning_rate=1e-3, langevin_steps=20, step_size=0.02, temperature=1e-3,
            data_noise=0.02, bank_size=2000,
        ),
    ),
    "digits-ddpm": Config(
        "digits/public",
        "unet",
        {"block_channels": [32, 64], "attention_levels": [1], "layers_per_block": 1, "channels": 1},
        DiffusionRecipe(steps=6000, batch_size=64, learning_rate=2e-3, warmup=200, max_timestep=300, ema_decay=0.998),
    ),
    "cifar10-ebm": Config(
        "tfds:cifar10/train[25000:]",
        "conv_energy",
        {"features": 16, "channels": 3, "size": 32},
        EnergyRecipe(
            steps=8000, batch_size=64, learning_rate=5e-4, drops=(0.6, 0.85), langevin_steps=20, bank_size=4000
        ),
    ),
    "cifar10-ddpm": Config(
        "tfds:cifar10/train[25000:]",
        "unet",
        {"block_channels": [16, 32, 64], "attention_levels": [2], "layers_per_block": 1, "channels": 3},
        DiffusionRecipe(steps=1500, batch_size=64, learning_rate=2e-3, warmup=200, ema_decay=0.998),
    ),
}  # fmt: skip


def train(name: str) -> None:
    """Trains one bundled model and writes it with its card."""
    config = CONFIGS[name]
    images = load_source(config.source).images
    model = build(config.network, config.options, nnx.Rngs(config.seed))
    key = jax.random.key(config.seed)
    start = time.perf_counter()

    def progress(taken: int, steps: int, metrics: dict[str, float]) -> None:
        values = ", ".join(f"{metric} {value:.4g}" for metric, value in metrics.items())
        print(f"{name}: {taken}/{steps}, {time.perf_counter() - start:.0f} s, {values}", flush=True)

    trainer: Callable = train_energy if isinstance(config.recipe, EnergyRecipe) else train_diffusion
    directory = Path("runs/weights") / name
    shared = {"mesh": batch_mesh(config.recipe.batch_size)} if isinstance(config.recipe, EnergyRecipe) else {}
    frozen, history = trainer(
        model, images, key, recipe=config.recipe, interval=50, directory=directory, progress=progress, **shared
    )
    metrics = {metric: float(values[-1]) for metric, values in history.items()}
    write(name, frozen, images=len(images), seconds=time.perf_counter() - start, metrics=metrics)


def write(name: str, frozen: Frozen, *, images: int, seconds: float, metrics: dict[str, float]) -> None:
    """Writes the weights into the package, with what a user should know about them."""
    config = CONFIGS[name]
    card: dict[str, Any] = {
        "source": config.source,
        "images": images,
        "command": f"python -m experiments.bundled_weights {name}",
        "seconds": round(seconds),
        "recipe": dataclasses.asdict(config.recipe),
        "metrics": metrics,
    }
    if isinstance(config.recipe, EnergyRecipe):
        card["langevin"] = {"step_size": config.recipe.step_size, "temperature": config.recipe.temperature}
    else:
        card["max_timestep"] = config.recipe.max_timestep
    save_network(bundled_path(name), frozen, network=config.network, options=config.options, card=card)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    if len(sys.argv) != 2 or sys.argv[1] not in CONFIGS:
        raise SystemExit(f"usage: python -m experiments.bundled_weights {'|'.join(CONFIGS)}")
    train(sys.argv[1])
