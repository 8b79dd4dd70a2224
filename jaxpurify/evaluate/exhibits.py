"""What a report shows beside its table: images before and after purification, and their energies."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxpurify.data.dataset import Dataset
from jaxpurify.data.poison import Poison, poison_dataset
from jaxpurify.evaluate.grid import kept_poison
from jaxpurify.evaluate.purified import purify_key
from jaxpurify.evaluate.purifiers import energy_for, make_purifier
from jaxpurify.evaluate.row import NONE
from jaxpurify.evaluate.scenario import Scenario
from jaxpurify.evaluate.statistics import auroc
from jaxpurify.purify.dataset import purify
from jaxpurify.purify.filter import TopEnergy, energies, highest
from jaxpurify.types import Purifier
from jaxpurify.weights.catalogue import BUNDLED

SHOWN = 6
MEASURED = 200


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
            poisoned_set = poison_dataset(train, poison)
            purified = _purified(make_purifier(defence, shape), poisoned_set, poison, rows, purify_key())
            series[defence] = purified
            grids.append({
                "title": f"{attack}: poisons before and after {defence}",
                "before": poisoned[:SHOWN], "after": purified[:SHOWN], "captions": captions,
            })  # fmt: skip
        if energy is not None:
            measured_energies = {name: energies(energy, images) for name, images in series.items()}
            area = auroc(measured_energies["clean"], measured_energies["poisoned"])
            histograms.append({
                "title": f"Energies, {attack}: AUROC of poisoned above clean {area:.3f}",
                "label": "energy (low means natural)",
                "series": measured_energies,
            })  # fmt: skip
    return grids, histograms


def _purified(purifier: Purifier, poisoned: Dataset, poison: Poison, rows: np.ndarray, key: Any) -> np.ndarray:
    """The poisons at `rows` as the defence left them; a filter ranks the whole data set for that."""
    images, index = poison.images[rows].copy(), poison.index[rows]
    changed = np.arange(len(rows))
    if isinstance(purifier, TopEnergy):
        if not purifier.compat:
            top = highest(energies(purifier.energy, poisoned.images), purifier.fraction)
            changed = np.flatnonzero(np.isin(index, top))
        purifier = purifier.purifier
    images[changed] = purify(purifier, images[changed], key=key, index=index[changed])
    return images
