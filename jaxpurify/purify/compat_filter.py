"""PureGen-Filt as its published code computes it, so that both numbers can stand in a table."""

from collections.abc import Callable
from pathlib import Path

from jax.sharding import Mesh
from jaxtyping import Array, Integer, Key
import numpy as np

from jaxpurify.purify.dataset import purify
from jaxpurify.purify.filter import TopEnergy, energies, highest
from jaxpurify.sharding import data_mesh
from jaxpurify.types import StoredImages


def compat_filt(
    purifier: TopEnergy,
    images: StoredImages,
    poisons: Integer[np.ndarray, "_"],
    *,
    key: Key[Array, ""],
    index: Integer[np.ndarray, "_"] | None = None,
    batch_size: int = 128,
    mesh: Mesh | None = None,
    directory: Path | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> StoredImages:
    """What the published PureGen-Filt does: every poison is purified, whatever its energy.

    .. warning::
       No defence can do this: it needs to know the poisons. The published code (arXiv:2405.18627) builds its
       "unpurified" set from clean images and poisons that were purified already, ranks that set, and purifies its
       top. Published numbers of Filt are therefore probably optimistic; `TopEnergy` alone is what the paper describes.

    Args:
      purifier: its energy ranks; its fraction counts over all images.
      images: the poisoned data set, uint8 [N, H, W, C].
      poisons: positions of the poisons in `images` [P], distinct.
      key, index, batch_size, mesh, directory, progress: as in `purify`; images and keys go together as there.

    Returns:
      uint8 [N, H, W, C]: the poisons purified, and of the others those among the highest int(fraction · N).

    Raises:
      ValueError: positions outside of the data set or repeated, or as in `purify`.
    """
    if len(poisons) and (poisons.min() < 0 or poisons.max() >= len(images)):
        raise ValueError(f"poisons span {poisons.min()} … {poisons.max()}; positions are 0 … {len(images) - 1}")
    if len(np.unique(poisons)) != len(poisons):
        raise ValueError("poisons hold a position more than once; each poison is named once")
    index = np.arange(len(images)) if index is None else index
    mesh = data_mesh() if mesh is None else mesh
    result = images.copy()

    def write(rows, part, earlier):
        report = None if progress is None else lambda done, total: progress(earlier + done, earlier + total)
        result[rows] = purify(
            purifier.purifier,
            images[rows],
            key=key,
            index=index[rows],
            batch_size=batch_size,
            mesh=mesh,
            directory=None if directory is None else Path(directory) / part,
            progress=report,
        )

    write(poisons, "poisons", 0)
    top = highest(energies(purifier.energy, result, batch_size=batch_size, mesh=mesh), purifier.fraction)
    write(np.setdiff1d(top, poisons), "others", len(poisons))
    return result
