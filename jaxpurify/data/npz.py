"""Labelled images in one NumPy .npz file: `images` [N, H, W, C], `labels` [N] and, if wanted, `classes`."""

from pathlib import Path

import numpy as np

from jaxpurify.data.damaged import DAMAGED
from jaxpurify.data.dataset import Dataset
from jaxpurify.data.image import to_uint8
from jaxpurify.destination import replacing

MOST_CLASSES = 100_000  # that are named after their numbers: a stray label must not make millions of names


def read_npz(path: str | Path, rows: slice = slice(None)) -> Dataset:
    """Reads `images` (uint8, or float in [0, 1], rounded to 8 bit), integer `labels`, and `classes` if present.

    Nothing in the file is unpickled. Without `classes` the classes are named "0", "1", … up to the largest label.

    Raises:
      ValueError: the file is missing or damaged, an array is missing, or holds values that are not accepted.
    """
    try:
        with open(path, "rb") as content, np.load(content, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("images", "labels", "classes") if name in file.files}
            present = ", ".join(file.files) or "nothing"
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist") from error
    except DAMAGED as error:
        raise ValueError(f"{path} is not a readable .npz file ({(str(error).splitlines() or [''])[0]})") from error
    for name in ("images", "labels"):
        if name not in arrays:
            raise ValueError(f"{path} has no array {name!r}; it holds {present}, images and labels are needed")
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # a member of the archive in another format comes as bytes
            raise ValueError(f"{path}: {name} is no array in NumPy's format")
    images, labels = arrays["images"], arrays["labels"]
    if not (np.issubdtype(labels.dtype, np.integer) and labels.ndim == 1):
        raise ValueError(f"{path}: labels are {labels.dtype} of shape {labels.shape}; one row of integers needed")
    if not images.ndim:
        raise ValueError(f"{path}: images are a single number; an array [N, H, W, C] is needed")
    if len(labels) != len(images):
        raise ValueError(f"{path}: {len(images)} images and {len(labels)} labels; their numbers must be equal")
    if "classes" in arrays:
        classes = tuple(str(name) for name in np.atleast_1d(arrays["classes"]))
    else:
        most = int(labels.max(initial=0))
        if most >= MOST_CLASSES:
            raise ValueError(f"{path}: labels reach {most}, without names of classes; at most {MOST_CLASSES - 1} then")
        classes = tuple(str(label) for label in range(most + 1))
    try:
        return Dataset(_stored(images[rows]), labels[rows], classes, source=f"npz:{path}")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_npz(dataset: Dataset, destination: Path, *, force: bool = False, source: Path | None = None) -> None:
    """Writes `images` uint8 [N, H, W, C], `labels` int32 [N] and `classes`; the file is complete or absent."""
    with replacing(destination, force=force, source=source) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, images=dataset.images, labels=dataset.labels, classes=np.array(dataset.classes))


def _stored(images: np.ndarray) -> np.ndarray:
    """Float images in [0, 1] as uint8; other types pass through, to be judged by `Dataset`."""
    if not np.issubdtype(images.dtype, np.floating) or not images.size:
        return images
    if np.isfinite(images).all() and (images.min() < 0 or images.max() > 1):
        raise ValueError(f"float images span {images.min():g} … {images.max():g}; they must lie in [0, 1]")
    return np.asarray(to_uint8(images))
