"""Energies of stored images before and after purification, for reports."""

from typing import Any

import jax
from jaxtyping import Float32
import numpy as np

from jaxpurify.cli.progress import Report
from jaxpurify.data.image import to_float
from jaxpurify.types import Energy, StoredImages

BATCH = 256


def find_energy(purifier: Any) -> Any:
    """The first energy inside a purifier, however it is composed; None where there is none."""
    if getattr(purifier, "energy", None) is not None:
        return purifier.energy
    parts = (*getattr(purifier, "stages", ()), getattr(purifier, "purifier", None))
    found = (find_energy(part) for part in parts if part is not None)
    return next((energy for energy in found if energy is not None), None)


def energies(energy: Energy, images: StoredImages, what: str, progress: Report) -> Float32[np.ndarray, "count"]:
    """The energy of every stored image [N], in batches of one shape; `progress` is told under the name `what`."""
    values = np.zeros(len(images), np.float32)
    for start in range(0, len(images), BATCH):
        rows = np.arange(start, min(start + BATCH, len(images)))
        values[rows] = jax.device_get(_energies(energy, images[np.resize(rows, BATCH)]))[: len(rows)]
        progress(what, start + len(rows), len(images))
    return values


@jax.jit
def _energies(energy, images):
    return energy(to_float(images))
