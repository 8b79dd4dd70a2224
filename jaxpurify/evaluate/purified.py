"""Purified images that many rows of a table share: every clean image goes through a purifier once."""

from collections.abc import Callable
import functools
from pathlib import Path
import shutil

import jax
from jaxtyping import Array, Key
import numpy as np

from jaxpurify.data.dataset import Dataset
from jaxpurify.data.poison import Poison, poison_dataset
from jaxpurify.destination import replacing
from jaxpurify.purify.compat_filter import compat_filt
from jaxpurify.purify.dataset import fingerprint, purify
from jaxpurify.purify.filter import TopEnergy, energies, highest
from jaxpurify.random import named
from jaxpurify.records import locked, run_id
from jaxpurify.types import Purifier, StoredImages

Progress = Callable[[int, int], None]


def purified_poisoned(
    purifier: Purifier, clean: Dataset, poison: Poison, directory: Path | str, *, progress: Progress | None = None
) -> StoredImages:
    """The images of `poison_dataset(clean, poison)` after `purifier`, with the clean ones taken from `directory`.

    An image and its position decide how it is purified, so what became of a clean image is the same in every row. Rows
    share the purifier's noise: it is not part of what differs between seeds. The result is that of
    `jaxpurify.purify` on the poisoned set with the same key.

    Args:
      purifier: any; of a `TopEnergy` the ranking is that of the poisoned set.
      clean: the training set before it was poisoned.
      poison: what replaces some of its images.
      directory: where purified clean images and unfinished work are kept, by purifier and images.
      progress: called with (finished images, all images that are missing).

    Returns:
      uint8 [N, H, W, C].
    """
    key = purify_key()
    images = poison_dataset(clean, poison).images.copy()
    if isinstance(purifier, TopEnergy) and purifier.compat:
        return compat_filt(purifier, images, poison.index, key=key, progress=progress)
    chosen = np.arange(len(images))
    if isinstance(purifier, TopEnergy):
        chosen = highest(energies(purifier.energy, images), purifier.fraction)
        purifier = purifier.purifier
    place = Path(directory) / run_id(fingerprint(purifier, clean.images, np.arange(len(images)), key))
    poisons = np.intersect1d(chosen, poison.index)
    others = np.setdiff1d(chosen, poison.index)
    images[others] = _CleanImages(place, clean.images)(others, functools.partial(purify, purifier, key=key), progress)
    if len(poisons):
        images[poisons] = purify(purifier, images[poisons], key=key, index=poisons)
    return images


def purify_key() -> Key[Array, ""]:
    """The key with which every row of a table purifies."""
    return named(jax.random.key(0), "purify")


class _CleanImages:
    """What became of the clean images, on disk; a row that is missing is purified when it is asked for."""

    def __init__(self, directory: Path, images: StoredImages):
        self.directory, self.images = directory, images
        self.file, self.unfinished = directory / "purified.npz", directory / "unfinished"

    def __call__(self, rows: np.ndarray, run: Callable[..., StoredImages], progress: Progress | None) -> StoredImages:
        with locked(self.directory / "lock"):  # a second process waits, and finds the work done
            result, finished = self._stored()
            missing = rows[~finished[rows]]
            if len(missing):
                partial = self.unfinished / run_id({"rows": missing.tolist()})
                result[missing] = run(self.images[missing], index=missing, directory=partial, progress=progress)
                finished[missing] = True
                with replacing(self.file, force=True) as temporary, open(temporary, "wb") as file:
                    np.savez(file, images=result, finished=finished)
                shutil.rmtree(self.unfinished)
        return result[rows]

    def _stored(self) -> tuple[StoredImages, np.ndarray]:
        if not self.file.exists():
            return np.zeros_like(self.images), np.zeros(len(self.images), bool)
        with np.load(self.file, allow_pickle=False) as stored:
            return stored["images"], stored["finished"]
