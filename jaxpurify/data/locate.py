"""Finds what an image was made from: which stored image lies within a bound of it, or equals it."""

import math

import numpy as np

_CELLS = 4


def locate(poisons: np.ndarray, poison_labels: np.ndarray, images: np.ndarray, labels: np.ndarray, limit: int):
    """The positions of the images that `poisons` were made from: of the same label, nearest in the maximum norm.

    Args:
      poisons: uint8 [P, H, W, C].
      poison_labels: integers [P].
      images: uint8 [N, H, W, C], among which to look.
      labels: integers [N].
      limit: how many 8-bit levels a value may differ.

    Returns:
      int64 [P], distinct: each image is the base of one poison, in the order of the poisons.

    Raises:
      ValueError: shapes differ, or a poison has no base within `limit` that is left.
    """
    check_same_shape(poisons, images)
    found = np.zeros(len(poisons), np.int64)
    coarse, coarse_poisons = _coarse(images), _coarse(poisons)
    left = np.ones(len(images), bool)
    for number, (poison, label) in enumerate(zip(poisons, poison_labels, strict=True)):
        candidates = np.flatnonzero(left & (labels == label))
        # A mean of values that each differ by at most the limit differs by no more: most images fall out here.
        distance = np.abs(coarse[candidates] - coarse_poisons[number][None]).max(1)
        candidates = candidates[distance <= limit + 1e-3]
        distance = np.abs(images[candidates].astype(np.int16) - poison[None]).max((1, 2, 3))
        if not len(candidates) or distance.min() > limit:
            nearest = f"the nearest differs by {distance.min()}" if len(candidates) else "none is near"
            raise ValueError(
                f"poison {number} has no base of label {label} within {limit} levels among the training images "
                f"({nearest}); is this the data set that it was made from?"
            )
        found[number] = candidates[distance.argmin()]
        left[found[number]] = False
    return found


def exact_positions(wanted: np.ndarray, images: np.ndarray) -> np.ndarray:
    """The position in `images` of each image in `wanted` (uint8 [·, H, W, C]); -1 where there is none.

    Of equal images each is found once, in ascending order.
    """
    places: dict[bytes, list[int]] = {}
    for position in range(len(images) - 1, -1, -1):
        places.setdefault(images[position].tobytes(), []).append(position)
    same = wanted.shape[1:] == images.shape[1:]
    return np.array([_take(places.get(image.tobytes())) if same else -1 for image in wanted], np.int64)


def check_same_shape(poisons: np.ndarray, images: np.ndarray) -> None:
    """Raises `ValueError` unless poisons and training images have one shape [H, W, C]."""
    if poisons.shape[1:] != images.shape[1:]:
        raise ValueError(
            f"poisons of shape {poisons.shape[1:]} do not match training images of shape {images.shape[1:]}"
        )


def level_limit(epsilon: float | None) -> int:
    """How many levels a poison in a file may be away from its base: floor(255 epsilon) and one for truncation.

    Raises:
      ValueError: `epsilon` is neither None (no limit) nor in (0, 1].
    """
    if epsilon is None:
        return 255
    if not 0 < epsilon <= 1:
        raise ValueError(f"epsilon is {epsilon}; it must be above 0 and at most 1, in units of [0, 1], or None")
    return min(math.floor(255 * epsilon + 1e-6) + 1, 255)


def check_made_for(what: object, poisons: np.ndarray, index: np.ndarray, images: np.ndarray, limit: int) -> int:
    """The largest change in levels of poisons [P, H, W, C] from the training images at `index` [P].

    Raises:
      ValueError: images of another shape, an index out of range, or a poison that is more than `limit` levels away from
        the image that it replaces; `what` is named in the message.
    """
    check_same_shape(poisons, images)
    if index.min() < 0 or index.max() >= len(images):
        wrong = index.min() if index.min() < 0 else index.max()
        raise ValueError(f"{what}: base index {wrong} is out of range; there are {len(images)} training images")
    change = np.abs(poisons.astype(np.int16) - images[index]).max((1, 2, 3))
    if change.max() > limit:
        raise ValueError(
            f"{what}: poison {change.argmax()} differs by {change.max()} levels from training image "
            f"{index[change.argmax()]}, {limit} are allowed; another data set, another order or a larger epsilon?"
        )
    return int(change.max())


def _coarse(images):
    """Means over 4 x 4 cells an image, flat, in float32."""
    rows = np.array_split(np.arange(images.shape[1]), min(_CELLS, images.shape[1]))
    columns = np.array_split(np.arange(images.shape[2]), min(_CELLS, images.shape[2]))
    cells = [
        images[:, row[0] : row[-1] + 1, column[0] : column[-1] + 1].mean((1, 2), np.float32)
        for row in rows
        for column in columns
    ]
    return np.stack(cells, 1).reshape(len(images), -1)


def _take(places):
    return places.pop() if places else -1
