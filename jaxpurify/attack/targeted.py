"""What targeted attacks share: checks of their input, the choice of base images, and rows over devices."""

from collections.abc import Sequence
import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Integer, Key
import numpy as np

from jaxpurify.attack.choose import Index, StoredLabels, check_dataset, check_target, choose, poison_count, positions
from jaxpurify.attack.crafting import Crafting, Progress
from jaxpurify.attack.surrogate import class_count
from jaxpurify.data.poison import Targets
from jaxpurify.random import named
from jaxpurify.sharding import BATCH_AXES, replicate, shard
from jaxpurify.types import PyTree, StoredImages

ANY = "any"  # instead of a class: poisons of all of them


@dataclasses.dataclass(frozen=True, eq=False)
class Aim:
    """What one poison is for: the key that draws it, the intended class, and the images to be taken for it."""

    key: Key[Array, ""]
    target: int
    targets: Targets


def aims(
    images: StoredImages,
    labels: StoredLabels,
    key: Key[Array, ""],
    target: int | Sequence[int],
    targets: Targets,
    separately: bool,
) -> list[Aim]:
    """One aim at all targets, or `separately` one at each, with its own class (or one for all) and `fold_in(key, g)`.

    Raises:
      ValueError: as `check_targets`, or classes that are not one an aim.
    """
    sets = [_one(targets, row) for row in range(len(targets))] if separately else [targets]
    classes = [target] * len(sets) if isinstance(target, int | np.integer) else list(target)
    if len(classes) != len(sets):
        raise ValueError(f"target holds {len(classes)} classes; there are {len(sets)} groups of targets")
    for intended, aimed in zip(classes, sets, strict=True):
        check_targets(images, labels, int(intended), aimed)
    keys = [jax.random.fold_in(key, number) for number in range(len(sets))] if separately else [key]
    return [Aim(*each) for each in zip(keys, map(int, classes), sets, strict=True)]


def _one(targets: Targets, row: int) -> Targets:
    rows = slice(row, row + 1)
    return Targets(targets.images[rows], targets.labels[rows], targets.index[rows])


def check_targets(images: StoredImages, labels: StoredLabels, target: int, targets: Targets) -> None:
    """Refuses data, a class or target images that a targeted attack cannot work with.

    Raises:
      ValueError: a bad data set, an unknown class, target images of another shape or already of class `target`.
    """
    check_dataset(images, labels)
    check_target(target, labels)
    if targets.images.shape[1:] != images.shape[1:]:
        raise ValueError(f"targets have the shape {targets.images.shape[1:]}; training images have {images.shape[1:]}")
    if (targets.labels == target).any():
        raise ValueError(f"target is {target}; a target image has this label already, there is nothing to change")


def check_base(base: int | str, targets: Targets) -> None:
    """Raises ValueError where poisons of class `base` would teach what the targets are already."""
    if not isinstance(base, str) and (targets.labels == base).any():
        raise ValueError(f"base is {base}; a target image is of this class, and poisons must be of another one")


def check_outputs(applies: tuple, members: tuple, shape: tuple[int, ...], target: int) -> None:
    """Raises ValueError unless every member answers with logits and `target` is among them."""
    for apply, member in zip(applies, members, strict=True):
        classes = class_count(apply, member, shape)
        if not 0 <= target < classes:
            raise ValueError(f"target is {target}; the surrogate's outputs are 0 … {classes - 1}")


def choose_base(
    key: Key[Array, ""],
    labels: StoredLabels,
    base: int | str,
    count: int | None,
    fraction: float | None,
    bases: Integer[np.ndarray, "..."] | None = None,
) -> Index:
    """Positions of `count` random images of class `base`, or of "any", ascending, or the given `bases`, each once.

    The key is consumed where positions are drawn.

    Raises:
      ValueError: no image of the class or too few, bases beside a count, or out of range, or of another class.
    """
    of_base = np.full(len(labels), base == ANY) if isinstance(base, str) else labels == base
    if not of_base.any():
        raise ValueError(f"base is {base!r}; no training image has this label, and it is not {ANY!r}")
    if bases is not None:
        if count is not None or fraction is not None:
            raise ValueError(f"count is {count} and fraction is {fraction}; bases name the images already")
        return _given(np.asarray(bases), labels, of_base, base)
    number = poison_count(count, fraction, len(labels))
    return choose(key, positions(of_base), number, what="images" if base == ANY else f"images of class {base}")


def _given(bases, labels, of_base, base) -> Index:
    if not np.issubdtype(bases.dtype, np.integer):
        raise ValueError(f"bases are {bases.dtype}; positions of images are whole numbers")
    if bases.ndim != 1 or not len(bases) or bases.min() < 0 or bases.max() >= len(labels):
        raise ValueError(f"bases are {bases.shape} up to {bases.max(initial=0)}; positions are 0 … {len(labels) - 1}")
    if not of_base[bases].all():
        wrong = bases[np.argmin(of_base[bases])]
        raise ValueError(f"base {wrong} is of class {labels[wrong]}; poisons must be of class {base}")
    # Two of the benchmark's published setups name an image twice; a data set has room for one poison of it.
    first = np.sort(np.unique(bases, return_index=True)[1])
    return bases[first].astype(np.int64)


def make_crafting(
    images: StoredImages,
    labels: StoredLabels,
    index: Index,
    key: Key[Array, ""],
    epsilon: float,
    learning_rate: float,
    steps: int,
    decay: bool,
    optimizer: str,
    together: int = 0,
) -> Crafting:
    """The chosen rows and settings on the device."""
    return Crafting(
        jnp.asarray(images[index]),
        jnp.asarray(labels[index], jnp.int32),
        jnp.asarray(index, jnp.int32),
        named(key, "crafting"),
        jnp.float32(epsilon),
        jnp.float32(learning_rate),
        steps,
        decay,
        optimizer,
        together,
    )


def split_over(
    mesh: Mesh, objective: PyTree, crafting: Crafting, state: Progress, *, apart: bool
) -> tuple[PyTree, Crafting, Progress]:
    """The poisons split over the mesh's devices, everything else on all of them.

    `apart`: no row depends on another one but through what the objective sums over `Crafting.axes`. Every device then
    computes its own rows by itself. Otherwise the compiler lays out the program, which takes longer.

    Raises:
      ValueError: the number of poisons is no multiple of the number of devices.
    """
    rows = len(crafting.index)
    if rows % mesh.size:
        raise ValueError(f"count is {rows}; split over {mesh.size} devices it must be a multiple of them")

    def place(leaf):
        # Crafting holds rows on the first axis, the state of all restarts on the second; the rest are scalars.
        if leaf.ndim == 5:
            return shard(mesh, leaf, None, BATCH_AXES)
        return shard(mesh, leaf) if leaf.ndim else replicate(mesh, leaf)

    crafting = jax.tree.map(place, crafting)
    if apart:
        crafting = dataclasses.replace(crafting, mesh=mesh, split=True)
    return replicate(mesh, objective), crafting, jax.tree.map(place, state)
