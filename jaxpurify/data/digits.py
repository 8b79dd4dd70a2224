"""The digits that come with scikit-learn: 1,797 scanned digits of 8 x 8 pixels, the default that needs no download."""

from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from jaxpurify.data.dataset import Dataset

# A fixed random order, cut where generators, victims and tests get disjoint images of all writers and classes.
SPLITS = {"public": slice(0, 897), "train": slice(897, 1347), "test": slice(1347, 1797)}


def read_digits(rows: slice = slice(None), *, split: str | None = None) -> Dataset:
    """The digits as they are shipped, or one fixed split of them; grey levels 0 … 16 become 0 … 255.

    Args:
      rows: which of them to keep.
      split: `public` (897 images, what the bundled purifiers were trained on), `train` (450) or `test` (450): parts
        of one fixed random order; None for all 1,797 in the order in which they are shipped.

    Raises:
      ValueError: unknown split.
    """
    if split is not None and split not in SPLITS:
        raise ValueError(f"digits has no split {split!r}; known: {', '.join(SPLITS)}")
    data: Any = load_digits()
    order = np.arange(len(data.images))
    if split is not None:
        order = np.random.default_rng(0).permutation(len(order))[SPLITS[split]]
    images = np.round(data.images[order] * (255 / 16)).astype(np.uint8)[..., None]
    labels = data.target[order].astype(np.int32)
    classes = tuple(str(name) for name in data.target_names)
    return Dataset(images[rows], labels[rows], classes, source="digits" if split is None else f"digits/{split}")
