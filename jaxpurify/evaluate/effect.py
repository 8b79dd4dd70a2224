"""What a purifier does to poisons and to clean images: energies, distances, and what survives of a perturbation."""

from collections.abc import Callable, Mapping
import dataclasses

from jaxtyping import Array, Float, Float64, Integer, Key, UInt8
import numpy as np

from jaxpurify import loop
from jaxpurify.evaluate.statistics import auroc, perturbation_survival, psnr
from jaxpurify.purify.dataset import purify
from jaxpurify.purify.filter import energies
from jaxpurify.types import Energy, Purifier, StoredImages

CLEAN, POISONED, PURIFIED_CLEAN, PURIFIED_POISONED = "clean", "poisoned", "purified clean", "purified poisoned"


@dataclasses.dataclass(frozen=True, eq=False)
class Effect:
    """Measures of one purifier on N pairs of a clean and a poisoned image.

    Attributes:
      images: `clean`, `poisoned`, `purified clean` and `purified poisoned`, each uint8 [N, H, W, C].
      energies: of the same four [N]; empty without an energy.
      psnr: distance in decibel to the clean image, of the other three [N].
      survival: ‖Ψ(x + δ) − Ψ(x)‖ / ‖δ‖ [N] under the same noise.
    """

    images: Mapping[str, StoredImages]
    energies: Mapping[str, Float[np.ndarray, "images"]]
    psnr: Mapping[str, Float64[np.ndarray, "images"]]
    survival: Float64[np.ndarray, "images"]

    @property
    def auroc(self) -> float | None:
        """The chance that a poisoned image has a higher energy than a clean one; None without an energy."""
        return auroc(self.energies[CLEAN], self.energies[POISONED]) if self.energies else None

    @property
    def auroc_purified(self) -> float | None:
        """The same after purification of both; None without an energy."""
        return auroc(self.energies[PURIFIED_CLEAN], self.energies[PURIFIED_POISONED]) if self.energies else None


def effect(
    purifier: Purifier,
    clean: UInt8[np.ndarray, "_ _ _ _"],
    poisoned: UInt8[np.ndarray, "_ _ _ _"],
    *,
    key: Key[Array, ""],
    energy: Energy | None = None,
    index: Integer[np.ndarray, "_"] | None = None,
    batch_size: int = 128,
    progress: Callable[[int, int], None] | None = None,
) -> Effect:
    """Purifies clean and poisoned images with the same noise, and measures.

    Args:
      purifier: a filter (`TopEnergy`) would rank these images alone; give what is inside of it.
      clean: x, uint8 [N, H, W, C].
      poisoned: x + δ, uint8 [N, H, W, C], every image different from its clean one.
      key: consumed, as in `purify`.
      energy: images in [0, 1] to energies, or None.
      index: position of each image in its source [N]; default 0 … N-1.
      batch_size: images in flight, at most N.
      progress: called with (finished images, 2 N).

    Raises:
      ValueError: shapes that differ, no images, an image without a perturbation, or as in `purify`.
    """
    if clean.shape != poisoned.shape or not len(clean):
        raise ValueError(f"clean images {clean.shape} and poisoned ones {poisoned.shape} must be as many, and some")
    images = {CLEAN: clean, POISONED: poisoned}
    batch_size = min(batch_size, len(clean))
    for turn, name in enumerate((CLEAN, POISONED)):
        report = loop.part_of(progress, turn * len(clean), 2 * len(clean))
        images[f"purified {name}"] = purify(
            purifier, images[name], key=key, index=index, batch_size=batch_size, progress=report
        )
    delta = (poisoned.astype(np.float64) - clean) / 255
    return Effect(
        images=images,
        energies={} if energy is None else {name: energies(energy, each) for name, each in images.items()},
        psnr={name: psnr(clean, each) for name, each in images.items() if name != CLEAN},
        survival=perturbation_survival(images[PURIFIED_POISONED], images[PURIFIED_CLEAN], delta),
    )
