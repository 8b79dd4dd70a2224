"""Which training examples an attack takes, and the checks of what it was given."""

from typing import Any

import jax
from jaxtyping import Array, Int64, Integer, Key
import numpy as np

from jaxpurify.types import StoredImages

Index = Int64[np.ndarray, "_"]
StoredLabels = Integer[np.ndarray, "_"]


def check_dataset(images: StoredImages, labels: StoredLabels) -> None:
    """Refuses data that an attack cannot work on.

    Raises:
      ValueError: images are not uint8 [N, H, W, C], labels not integers [N], or negative, or none are given.
    """
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"images are {images.dtype} {images.shape}; stored images must be uint8 [N, H, W, C]")
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels are {labels.dtype} {labels.shape}; one integer for each of {len(images)} images")
    if not len(labels) or labels.min() < 0:
        raise ValueError("labels must hold at least one example, and none below 0")


def check_target(target: int, labels: StoredLabels) -> None:
    """Raises ValueError unless `target` is the label of at least one example."""
    if not np.any(labels == target):
        raise ValueError(f"target is {target!r}; the labels of this data are {_span(labels)}")


def check_whole(**values: Any) -> None:
    """Raises ValueError for the first of the named values that is not a whole number; None is left to the caller."""
    for name, value in values.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | np.integer)):
            raise ValueError(f"{name} is {value!r}; it must be a whole number")


def check_draws(transform_draws: int, *views: Any) -> None:
    """Refuses draws of `views`, the purifier and the augmentation, that would all be the same, since both are None.

    Raises:
      ValueError: not a whole number of at least 1, or above 1 without a view.
    """
    check_whole(transform_draws=transform_draws)
    if transform_draws < 1:
        raise ValueError(f"transform_draws is {transform_draws}; it must be at least 1")
    if transform_draws > 1 and all(view is None for view in views):
        raise ValueError(
            f"transform_draws is {transform_draws}; more than 1 needs noise to draw: a transform or augment"
        )


def poison_count(count: int | None, fraction: float | None, total: int) -> int:
    """The number of poisons from `count`, or from `fraction` of all `total` training examples (rounded).

    Raises:
      ValueError: both or neither are given, or the number is not a whole one of at least 1.
    """
    check_whole(count=count)
    if (count is None) == (fraction is None):
        raise ValueError(f"count is {count} and fraction is {fraction}; give exactly one of them")
    if fraction is not None:
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction <= 1:
            raise ValueError(f"fraction is {fraction!r}; it must be above 0 and at most 1")
        count = max(1, round(fraction * total))
    if count is None or count < 1:
        raise ValueError(f"count is {count}; it must be at least 1")
    return count


def choose(key: Key[Array, ""], candidates: Index, count: int, *, choice: str = "random", what: str) -> Index:
    """`count` of the `candidates`, in ascending order.

    Args:
      key: consumed for a `"random"` choice.
      candidates: positions in the training set, ascending.
      count: how many to take.
      choice: `"random"` without replacement, or `"last"`: the last ones in index order.
      what: what the candidates are, for the error message.

    Raises:
      ValueError: there are fewer candidates than `count`, or `choice` is unknown.
    """
    if count > len(candidates):
        raise ValueError(f"count is {count}; there are only {len(candidates)} {what}")
    if choice == "last":
        return candidates[len(candidates) - count :]
    if choice != "random":
        raise ValueError(f"choice is {choice!r}; it must be 'random' or 'last'")
    order = np.asarray(jax.random.permutation(key, len(candidates)))
    return np.sort(candidates[order[:count]])


def positions(mask: np.ndarray) -> Index:
    """The positions at which `mask` is true."""
    return np.flatnonzero(mask).astype(np.int64)


def _span(labels: StoredLabels) -> str:
    known = np.unique(labels)
    return f"{known[0]} … {known[-1]}" if len(known) > 8 else ", ".join(map(str, known))
