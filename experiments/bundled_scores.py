"""Scores of the bundled purifiers, written into their cards; `jaxpurify list` prints them.

    TFDS_DATA_DIR=../shared/tfds python -m experiments.bundled_scores

On 200 training images that no generative model saw, with and without an attacker's change: CIFAR-10 with the trigger of
a Narcissus attack at 8/255 that Table 1 under `cpu` reports too (seed 0; the trigger is crafted if runs/grid does not
hold it), digits with the demo's pattern at 0.15. The weights themselves are left as they are.

Receipt (22 November 2026): two minutes of one core of a Xeon (Sapphire Rapids) with other work beside it; the scores
are in the cards.
"""

from typing import Any

import jax
import numpy as np

from experiments.bundled_weights import CONFIGS
from experiments.puregen_table1 import Config as Table1
from jaxpurify.attack.pattern import pattern
from jaxpurify.data.poison import Poison
from jaxpurify.data.sources import load_source
from jaxpurify.evaluate.effect import effect
from jaxpurify.evaluate.grid import kept_poison
from jaxpurify.evaluate.purifiers import energy_for, make_purifier
from jaxpurify.evaluate.statistics import psnr
from jaxpurify.networks.stored import load_network, save_network
from jaxpurify.purify.dataset import purify
from jaxpurify.purify.filter import energies
from jaxpurify.weights.catalogue import BUNDLED, bundled_path

COUNT = 200
CHAINS, LONG = 16, 5000
SPECS = {
    "cifar10-ebm": "langevin(steps=150)",
    "cifar10-ddpm": "diffusion(timestep=75, steps=5)",
    "digits-ebm": "langevin(steps=150)",
    "digits-ddpm": "diffusion(timestep=75, steps=15)",
}


def changed_images(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """Clean and poisoned images, their positions, and what the attacker did."""
    if name.startswith("digits"):
        train = load_source("digits/train")
        poison: Poison = pattern(train.images, train.labels, jax.random.key(5), target=7, epsilon=0.15, count=COUNT)
        what = "pattern at 0.15 on digits/train"
    else:
        (scenario,) = Table1(defences=("none",), seeds=(0,)).scenarios()
        train, _ = scenario.protocol.load()
        poison = kept_poison("runs/grid", scenario, scenario.attacks[0], 0)
        what = f"Narcissus trigger at 8/255 on {scenario.protocol.train}"
    return train.images[poison.index[:COUNT]], poison.images[:COUNT], poison.index[:COUNT], what


def scores(name: str) -> dict[str, Any]:
    """What a user should know before choosing a model."""
    clean, poisoned, index, what = changed_images(name)
    kind, shape = BUNDLED[name]
    energy = energy_for(shape) if kind == "energy" else None
    measured = effect(
        make_purifier(SPECS[name], shape), clean, poisoned, key=jax.random.key(0), energy=energy, index=index
    )
    found: dict[str, Any] = {
        "images": f"{COUNT}, {what}",
        "purifier": SPECS[name],
        "survival of the perturbation": float(np.mean(measured.survival)),
        "PSNR of purified clean images, decibel": float(np.mean(measured.psnr["purified clean"])),
    }
    if energy is not None:
        far = purify(
            make_purifier(f"langevin(steps={LONG})", shape), clean[:CHAINS], key=jax.random.key(1), batch_size=CHAINS
        )
        found |= {
            "AUROC of poisoned above clean energy": measured.auroc,
            "mean energy of clean images": float(np.mean(measured.energies["clean"])),
            "mean energy of poisoned images": float(np.mean(measured.energies["poisoned"])),
            f"mean energy after {LONG} steps from clean images": float(np.mean(energies(energy, far))),
            f"PSNR after {LONG} steps, decibel": float(np.mean(psnr(clean[:CHAINS], far))),
        }
    return found


def main() -> None:
    """Measures every bundled model and rewrites its card."""
    for name in BUNDLED:
        path = bundled_path(name)
        network, card = load_network(path)
        card["protocol"] = "generative models see the public images only: digits/public, or train[25000:] of CIFAR-10"
        card["scores"] = scores(name)
        print(name, card["scores"], flush=True)
        save_network(path, network, network=CONFIGS[name].network, options=CONFIGS[name].options, card=card)


if __name__ == "__main__":
    main()
