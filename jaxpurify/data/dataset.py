"""A set of labelled images at rest. Every example keeps its position: purifying changes pixels, never the order."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images as NumPy arrays.

    Attributes:
      images: uint8 [N, H, W, C], C 1 or 3, values 0 … 255.
      labels: int32 [N], each in 0 … len(classes)-1.
      classes: the name of every class, in the order of the labels.
      names: relative file name of every image for folders, otherwise empty.
      source: what the images were read from, such as "tfds:cifar10/train[:10000]".

    Raises:
      ValueError: shapes, lengths, types or label values do not fit together.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    names: tuple[str, ...] = ()
    source: str = ""

    def __post_init__(self):
        check_images(self.images)
        object.__setattr__(self, "labels", check_labels(self.labels, len(self.images)))
        object.__setattr__(self, "classes", tuple(str(name) for name in self.classes))
        object.__setattr__(self, "names", tuple(self.names))
        if not self.classes:
            raise ValueError("classes is empty; at least one class name is needed")
        if len(self.labels) and self.labels.max() >= len(self.classes):
            raise ValueError(
                f"label {self.labels.max()} at position {self.labels.argmax()} is out of range; "
                f"with {len(self.classes)} classes labels are 0 … {len(self.classes) - 1}"
            )
        if self.names and len(self.names) != len(self.images):
            raise ValueError(f"{len(self.names)} names for {len(self.images)} images; give one name an image, or none")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Any) -> "Dataset":
        """The examples of a slice; `dataset[3]` is refused because one example is not a data set."""
        if not isinstance(rows, slice):
            raise ValueError(f"dataset[{rows!r}] is not a slice; use dataset[a:b] or dataset.select([…])")
        return self.select(np.arange(len(self))[rows])

    def select(self, index: Sequence | np.ndarray) -> "Dataset":
        """The examples at the positions `index`, in that order; a boolean mask [N] keeps the true positions."""
        index = np.asarray(index)
        if index.dtype == bool:
            if index.shape != (len(self),):
                raise ValueError(f"mask of shape {index.shape}; a mask has one entry an image, ({len(self)},)")
            index = np.flatnonzero(index)
        if index.size == 0:
            index = index.astype(np.int64)
        if index.ndim != 1 or not np.issubdtype(index.dtype, np.integer):
            raise ValueError(f"index of shape {index.shape} and type {index.dtype}; it must be one row of integers")
        if index.size and (index.min() < 0 or index.max() >= len(self)):
            raise ValueError(f"index spans {index.min()} … {index.max()}; positions are 0 … {len(self) - 1}")
        names = tuple(self.names[position] for position in index) if self.names else ()
        return dataclasses.replace(self, images=self.images[index], labels=self.labels[index], names=names)

    def replace_images(self, images: np.ndarray) -> "Dataset":
        """The same examples with other pixels: `images` uint8 of the same number; height and width may change."""
        check_images(images)
        if len(images) != len(self):
            raise ValueError(f"{len(images)} images for {len(self)} examples; order and length stay as they are")
        return dataclasses.replace(self, images=images)


def check_images(images: Any) -> None:
    """Raises `ValueError` unless `images` is a NumPy uint8 array [N, H, W, 1 or 3]."""
    if not isinstance(images, np.ndarray):
        raise ValueError(f"images is {type(images).__name__}; a NumPy array is needed (use np.asarray)")
    if images.dtype != np.uint8:
        raise ValueError(f"images are {images.dtype}; stored images are uint8 (jaxpurify.data.to_uint8 converts)")
    if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape[1:3]:
        raise ValueError(f"images have shape {images.shape}; [count, height, width, 1 or 3] is needed")


def check_labels(labels: Any, count: int) -> np.ndarray:
    """`labels` as int32 [count]; raises `ValueError` for another shape, type or a negative label."""
    labels = np.asarray(labels)
    if labels.size == 0:
        labels = labels.astype(np.int32)
    if labels.ndim != 1 or len(labels) != count:
        raise ValueError(f"labels have shape {labels.shape}; {count} images need one row of {count} labels")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels are {labels.dtype}; integers are needed")
    if count and (labels.min() < 0 or labels.max() > np.iinfo(np.int32).max):
        raise ValueError(f"labels span {labels.min()} … {labels.max()}; they must be 0 or more and fit in int32")
    return labels.astype(np.int32)
