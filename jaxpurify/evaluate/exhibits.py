"""What a report shows beside its table: images before and after purification, and their energies."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpurify.data.image import to_float
from jaxpurify.evaluate.purifiers import energy_for, make_purifier
from jaxpurify.evaluate.scenario import NONE, Scenario, kept_poison
from jaxpurify.purify.dataset import purify
from jaxpurify.random import named
from jaxpurify.types import Energy, StoredImages
from jaxpurify.weights.catalogue import BUNDLED

SHOWN = 6
MEASURED = 200


def energies(energy: Energy, images: StoredImages, *, batch_size: int = 200) -> np.ndarray:
    """The energy [N] of stored images [N, H, W, C]; low means natural."""
    parts = []
    for start in range(0, len(images), batch_size):
        rows = np.resize(np.arange(start, min(start + batch_size, len(images))), batch_size)
        parts.append(np.asarray(_energies(energy, images[rows]))[: len(images) - start])
    return np.concatenate(parts)


def exhibits(scenario: Scenario, directory: Path | str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Image grids and energy histograms for every attack of a finished scenario, from its first seed.

    Returns:
      Grids (one for each attack and defence) and histograms (one an attack: clean, poisoned and purified images,
      where a bundled energy fits their shape), in the form that `evaluate.report.demo_report` takes.
    """
    train, _ = scenario.protocol.load()
    shape = train.images.shape[1:]
    measured = any(known == ("energy", shape) for known in BUNDLED.values())
    energy = energy_for(shape) if measured else None
    grids, histograms = [], []
    seed = scenario.seeds[0]
    for attack in scenario.attacks:
        poison = kept_poison(directory, scenario, attack, seed)
        rows = np.arange(min(MEASURED, len(poison)))
        clean, poisoned, labels = train.images[poison.index[rows]], poison.images[rows], poison.labels[rows]
        series = {"clean": clean, "poisoned": poisoned}
        captions = [f"label {train.classes[label]}" for label in labels[:SHOWN]]
        grids.append({
            "title": f"{attack}: what the attacker changed",
            "before": clean[:SHOWN], "after": poisoned[:SHOWN], "captions": captions,
        })  # fmt: skip
        for defence in scenario.defences:
            if defence == NONE:
                continue
            key = named(jax.random.key(seed), f"purify {defence}")
            index = poison.index[rows]
            purified = purify(make_purifier(defence, shape), poisoned, key=key, index=index, batch_size=len(rows))
            series[defence] = purified
            grids.append({
                "title": f"{attack}: poisons before and after {defence}",
                "before": poisoned[:SHOWN], "after": purified[:SHOWN], "captions": captions,
            })  # fmt: skip
        if energy is not None:
            histograms.append({
                "title": f"Energies, {attack}",
                "label": "energy (low means natural)",
                "series": {name: energies(energy, images) for name, images in series.items()},
            })  # fmt: skip
    return grids, histograms


@jax.jit
def _energies(energy, images):
    return energy(to_float(jnp.asarray(images)))
