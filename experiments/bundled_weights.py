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
from jaxpurify.networks.stored import build, save_network
from jaxpurify.sharding import batch_mesh
from jaxpurify.types import StoredImages
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


def train(name: str, config: Config, images: StoredImages, path: Path, command: str) -> None:
    """Trains one model and writes it with its card.

    Args:
      name: of the run; a killed one continues from runs/weights/NAME.
      config: network, recipe and seed; its source is only written into the card.
      images: what the model sees, uint8 [N, H, W, C].
      path: of the .safetensors file.
      command: how to do it again, for the card.
    """
    model = build(config.network, config.options, nnx.Rngs(config.seed))
    key = jax.random.key(config.seed)
    start = time.perf_counter()

    def progress(taken: int, steps: int, metrics: dict[str, float]) -> None:
        values = ", ".join(f"{metric} {value:.4g}" for metric, value in metrics.items())
        print(f"{name}: {taken}/{steps}, {time.perf_counter() - start:.0f} s, {values}", flush=True)

    trainer: Callable = train_energy if isinstance(config.recipe, EnergyRecipe) else train_diffusion
    shared = {"mesh": batch_mesh(config.recipe.batch_size)} if isinstance(config.recipe, EnergyRecipe) else {}
    frozen, history = trainer(
        model,
        images,
        key,
        recipe=config.recipe,
        interval=50,
        directory=Path("runs/weights") / name,
        progress=progress,
        **shared,
    )
    card: dict[str, Any] = {
        "source": config.source,
        "images": len(images),
        "command": command,
        "seconds": round(time.perf_counter() - start),
        "recipe": dataclasses.asdict(config.recipe),
        "metrics": {metric: float(values[-1]) for metric, values in history.items()},
    }
    if isinstance(config.recipe, EnergyRecipe):
        card["langevin"] = {"step_size": config.recipe.step_size, "temperature": config.recipe.temperature}
    else:
        card["max_timestep"] = config.recipe.max_timestep
    save_network(path, frozen, network=config.network, options=config.options, card=card)


def main(name: str) -> None:
    """Trains one bundled model and writes it into the package."""
    config = CONFIGS[name]
    images = load_source(config.source).images
    train(name, config, images, bundled_path(name), f"python -m experiments.bundled_weights {name}")


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    if len(sys.argv) != 2 or sys.argv[1] not in CONFIGS:
        raise SystemExit(f"usage: python -m experiments.bundled_weights {'|'.join(CONFIGS)}")
    main(sys.argv[1])
