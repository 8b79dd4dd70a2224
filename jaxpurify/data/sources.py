"""Where images come from, as one string: `digits/train`, `tfds:cifar10/train[:10000]`, `folder:PATH`, `npz:PATH`, …"""

from collections.abc import Callable
import dataclasses
from pathlib import Path
import re

import numpy as np

from jaxpurify.data.cinic10 import read_cinic10
from jaxpurify.data.dataset import Dataset
from jaxpurify.data.decode import check_size, resize
from jaxpurify.data.folder import read_folder, write_folder
from jaxpurify.data.npz import read_npz, write_npz
from jaxpurify.data.tiny_imagenet import read_tiny_imagenet
from jaxpurify.destination import check_destination

_SLICE = re.compile(r"\[([^\[\]]*:[^\[\]]*)\]$")


def load_source(source: str, *, size: int | None = None) -> Dataset:
    """Reads labelled images from a source string.

    `digits` or one of its splits (`digits/public`, `digits/train`, `digits/test`), `tfds:NAME/SPLIT`, `folder:PATH`
    (one sub-folder a class), `npz:PATH`, `cinic10:PATH/SPLIT` or `tiny-imagenet:PATH/SPLIT` (both as published and
    unpacked), each with an optional slice at its end: `[:500]`, `[500:]`, `[-100:]`, `[10:20]`, with the meaning it
    has in Python, without a step.

    Args:
      source: the source string; the data set remembers it.
      size: images are stretched to `size` x `size` pixels (Lanczos); None leaves them as they are.

    Raises:
      ValueError: the kind is unknown, the slice is not one, or what it names cannot be read.
    """
    check_size(size)
    kind, rest, rows = parse_source(source)
    dataset = _READERS[kind](rest, rows, size)
    if len(dataset) == 0:
        raise ValueError(f"source {source!r} selects no images")
    if size is not None and dataset.images.shape[1:3] != (size, size):
        dataset = dataset.replace_images(np.stack([resize(image, size) for image in dataset.images]))
    return dataclasses.replace(dataset, source=source)


def save_dataset(dataset: Dataset, destination: Path, *, force: bool = False) -> str:
    """Writes `dataset` as the kind of thing that it was read from, losslessly, and returns its new source string.

    A folder becomes a folder of PNGs with the same class folders and stems, and so do CINIC-10 and Tiny-ImageNet;
    .npz and `digits` become one .npz file; a TFDS data set becomes a TFDS directory with that one split, found with
    TFDS_DATA_DIR=`destination`. It is written beside `destination` and renamed at the end: after an error nothing
    is left behind.

    Raises:
      ValueError: `destination` exists and `force` is not given, or may not be replaced, or overlaps the source.
      OSError: the disk is full or the place cannot be written.
    """
    destination = Path(destination)
    check_save(dataset, destination, force=force)
    kind, rest, rows = parse_source(dataset.source) if dataset.source else ("npz", "", slice(None))
    if kind in _FOLDERS:
        write_folder(dataset, destination, force=force, source=_path(kind, rest))
        return f"folder:{destination}"
    if kind == "tfds":
        from jaxpurify.data.tfds import write_tfds  # importing TFDS takes about a second

        write_tfds(dataset, rest, destination, rows, force=force)
        return f"tfds:{rest}"
    write_npz(dataset, destination, force=force, source=_path(kind, rest))
    return f"npz:{destination}"


def check_save(dataset: Dataset, destination: Path, *, force: bool = False) -> None:
    """Raises the `ValueError` with which `save_dataset` would refuse `destination`: call it before long work."""
    kind, rest, _ = parse_source(dataset.source) if dataset.source else ("npz", "", slice(None))
    destination, source = Path(destination), _path(kind, rest)
    if kind == "tfds":
        from jaxpurify.data.tfds import stored_at  # importing TFDS takes about a second

        source = stored_at(rest)
    check_destination(destination, force=force, source=source)
    absent = np.flatnonzero(np.bincount(dataset.labels, minlength=len(dataset.classes)) == 0)
    if kind in _FOLDERS and len(absent):  # the labels of what is read again would be others
        raise ValueError(
            f"{dataset.source} holds no image of class {dataset.classes[absent[0]]!r}, and folders have no classes "
            "without images; take a slice with all of them"
        )
    if kind in (*_FOLDERS, "tfds") and destination.suffix == ".npz":
        raise ValueError(f"{destination} is named like one file; {kind} images are written to a folder")
    if kind not in (*_FOLDERS, "tfds") and destination.is_dir():
        raise ValueError(f"{destination} is a folder; {kind} images are written to one .npz file")


def parse_source(source: str) -> tuple[str, str, slice]:
    """Splits `kind:rest[a:b]` into the kind, the rest and the slice; raises `ValueError` for what it is not."""
    source = str(source)
    match = _SLICE.search(source)
    bare = source[: match.start()] if match else source
    kind, colon, rest = bare.partition(":")
    if bare.startswith("digits/"):
        kind, rest = "digits", bare.removeprefix("digits/")
    if kind not in _READERS:
        known = "digits, " + ", ".join(f"{name}:…" for name in _READERS if name != "digits")
        raise ValueError(f"source {source!r} is unknown; known are {known}, each with an optional [a:b]")
    if kind == "digits" and colon:
        raise ValueError(f"source {source!r}: digits takes a split or a slice, such as digits/train or digits[:500]")
    if kind != "digits" and not rest:
        raise ValueError(f"source {source!r} names nothing after {kind}:")
    return kind, rest, _parse_slice(match[1], source) if match else slice(None)


def _parse_slice(text: str, source: str) -> slice:
    bounds = [bound.strip() for bound in text.split(":")]
    if len(bounds) != 2 or not all(re.fullmatch(r"([+-]?\d+)?", bound, re.ASCII) for bound in bounds):
        raise ValueError(f"slice [{text}] of source {source!r} must be [a:b] with integers or nothing, without a step")
    return slice(*(int(bound) if bound else None for bound in bounds))


def source_path(source: str) -> Path | None:
    """The file or folder behind a source string, which must not be overwritten; None for digits and TFDS."""
    kind, _, rest = _SLICE.sub("", source).partition(":")
    return _path(kind, rest) if rest else None


def _path(kind: str, rest: str) -> Path | None:
    if kind == "cinic10" and Path(rest).name in ("imagenet", "cifar10"):
        return Path(rest).parent
    return Path(rest) if kind in (*_FOLDERS, "npz") else None


def _digits(rest: str, rows: slice, size: int | None) -> Dataset:
    from jaxpurify.data.digits import read_digits  # importing scikit-learn takes about a second

    return read_digits(rows, split=rest or None)


def _tfds(rest: str, rows: slice, size: int | None) -> Dataset:
    from jaxpurify.data.tfds import read_tfds  # importing TFDS takes about a second

    return read_tfds(rest, rows, size=size)


def _folder(rest: str, rows: slice, size: int | None) -> Dataset:
    return read_folder(rest, rows, size=size)


def _npz(rest: str, rows: slice, size: int | None) -> Dataset:
    return read_npz(rest, rows)


def _cinic10(rest: str, rows: slice, size: int | None) -> Dataset:
    return read_cinic10(rest, rows, size=size)


def _tiny_imagenet(rest: str, rows: slice, size: int | None) -> Dataset:
    return read_tiny_imagenet(rest, rows, size=size)


_FOLDERS = ("folder", "cinic10", "tiny-imagenet")
_READERS: dict[str, Callable[[str, slice, int | None], Dataset]] = {
    "digits": _digits,
    "tfds": _tfds,
    "folder": _folder,
    "npz": _npz,
    "cinic10": _cinic10,
    "tiny-imagenet": _tiny_imagenet,
}
