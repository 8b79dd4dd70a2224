"""Purifying only the images that an energy finds least natural (PureGen-Filt, arXiv:2405.18627)."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Float, Int64
import numpy as np

from jaxpurify.data.image import to_float
from jaxpurify.sharding import replicate, shard
from jaxpurify.struct import as_operand, make_operands, static, struct
from jaxpurify.types import Energy, Images, Keys, Purifier, StoredImages


@struct
class TopEnergy:
    """Purifies the int(fraction · N) images of highest energy and returns the others as they are.

    Ψ_{T,k}(D) = Ψ_T(D_max^k) ∪ D_min^{1−k}, in place: order and length stay. The ranking is over the images as they
    are, before any purification; of equal energies the earlier image counts as higher. `jaxpurify.purify` ranks the
    whole data set. A direct call takes the images it is given for the data set, so that it depends on the batch:
    only for sets that fit into one call. Keys go to `purifier` unchanged: a chosen image comes out as it does from
    `purifier` alone.

    Attributes:
      energy: ranks; images [B, H, W, C] in [0, 1] to energies [B].
      purifier: what the chosen images go through.
      fraction: k in [0, 1]; published 0.5.
      compat: the published code's mistake, see `compat_filt`, which is the only function that takes it.

    Raises:
      ValueError: `fraction` outside of [0, 1], or a `compat` that is not True or False.
    """

    energy: Energy
    purifier: Purifier
    fraction: float = static(default=0.5)
    compat: bool = static(default=False)

    def __post_init__(self):
        make_operands(self, "energy", "purifier")
        if isinstance(self.fraction, bool) or not isinstance(self.fraction, int | float) or not 0 <= self.fraction <= 1:
            raise ValueError(f"fraction={self.fraction!r}; it must be in [0, 1]")
        if not isinstance(self.compat, bool):
            raise ValueError(f"compat={self.compat!r}; it must be True or False")

    def __call__(self, keys: Keys, images: Images) -> Images:
        count = chosen_count(self.fraction, len(images))
        order = jnp.argsort(-self.energy(images), stable=True)
        chosen = jnp.zeros(len(images), bool).at[order[:count]].set(True)
        return jnp.where(chosen.reshape(-1, 1, 1, 1), self.purifier(keys, images), images)


def top_energy(energy: Energy, fraction: float, purifier: Purifier) -> TopEnergy:
    """The purifier that applies `purifier` to the share `fraction` of a data set whose energy is highest."""
    return TopEnergy(energy, purifier, fraction)


def check_filters(purifier: Purifier) -> None:
    """Raises `ValueError` if a `TopEnergy` lies inside of another purifier, where it cannot see the whole data set."""
    inside = purifier.purifier if isinstance(purifier, TopEnergy) else purifier
    parts = jax.tree.leaves(inside, is_leaf=lambda part: isinstance(part, TopEnergy))
    if any(isinstance(part, TopEnergy) for part in parts):
        raise ValueError("a filter ranks the whole data set, so it must be the outermost purifier; put others into it")


def chosen_count(fraction: float, count: int) -> int:
    """int(fraction · count): how many of `count` images are purified; truncated, as published."""
    return int(fraction * count)


def highest(values: Float[np.ndarray, "count"], fraction: float) -> Int64[np.ndarray, "chosen"]:
    """The positions of the int(fraction · N) highest of `values` [N], ascending; of equal ones the earlier.

    Raises:
      ValueError: a value is NaN, which has no rank.
    """
    if np.isnan(values).any():
        raise ValueError(f"the energy of image {int(np.isnan(values).argmax())} is NaN; it cannot be ranked")
    return np.sort(np.argsort(-values, kind="stable")[: chosen_count(fraction, len(values))]).astype(np.int64)


def energies(
    energy: Energy, images: StoredImages, *, batch_size: int = 200, mesh: Mesh | None = None
) -> Float[np.ndarray, "count"]:
    """The energy of every stored image; low means natural.

    Args:
      energy: images [B, H, W, C] in [0, 1] to energies [B].
      images: uint8 [N, H, W, C].
      batch_size: images a call, rounded up to a multiple of the number of devices; one static shape.
      mesh: splits each batch over these devices; None: the default device.
    """
    energy = as_operand(energy)
    if mesh is not None:
        batch_size = -(-batch_size // mesh.size) * mesh.size
        energy = replicate(mesh, energy)
    parts = [np.zeros(0, np.float32)]
    for start in range(0, len(images), batch_size):
        rows = np.resize(np.arange(start, min(start + batch_size, len(images))), batch_size)
        batch = images[rows] if mesh is None else shard(mesh, images[rows])
        parts.append(np.asarray(_energies(energy, batch))[: len(images) - start])
    return np.concatenate(parts)


@jax.jit
def _energies(energy, images):
    return energy(to_float(jnp.asarray(images)))
