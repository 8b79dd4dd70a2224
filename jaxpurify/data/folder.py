"""A folder of images, one sub-folder a class; what photographs and scraped sets usually look like."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from jaxpurify.data.dataset import Dataset
from jaxpurify.data.decode import check_size, decode, encode, stack
from jaxpurify.destination import replacing

_READ = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm")
# Images that are not read are an error: leaving them out silently would shrink the data set.
_NOT_READ = (".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".svg")


def read_folder(path: str | Path, rows: slice = slice(None), *, size: int | None = None) -> Dataset:
    """Reads PATH/CLASS/…/IMAGE; classes and files are sorted by name, `rows` slices the list of all files.

    Grey images become RGB if any other that is read has colour. Hidden files and files that are not images are
    passed over.

    Args:
      path: the folder.
      rows: which of the sorted files to read.
      size: every image is stretched to `size` x `size` pixels; None needs images of one size.

    Raises:
      ValueError: no such folder, fewer than two classes, a class without images, an image outside of the class
        folders, a file that cannot be read, or sizes that differ without `size`.
    """
    check_size(size)
    root = Path(path)
    classes, labelled = class_files(root)
    chosen = labelled[rows]
    if not chosen:
        raise ValueError(f"the slice selects none of the {len(labelled)} images in {path}")
    names = tuple(file.relative_to(root).as_posix() for file, _ in chosen)
    images = read_files([file for file, _ in chosen], names, size=size)
    labels = np.array([label for _, label in chosen], np.int32)
    return Dataset(images, labels, classes, names, source=f"folder:{path}")


def class_files(root: Path) -> tuple[tuple[str, ...], list[tuple[Path, int]]]:
    """The sorted class folders below `root`, and every image in them with its label.

    Raises:
      ValueError: as `read_folder` does for what is missing or in the wrong place.
    """
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; folder: needs a path with one sub-folder a class")
    classes = tuple(sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not _hidden(entry)))
    for entry in sorted(root.iterdir()):
        if _is_image(entry):
            raise ValueError(f"{entry} lies outside of a class folder; images are expected at {root}/CLASS/IMAGE")
    files = [_files(root / name) for name in classes]
    if not classes:
        raise ValueError(f"{root} has no class folders; images are expected at {root}/CLASS/IMAGE")
    for name, inside in zip(classes, files, strict=True):
        if not inside:
            raise ValueError(f"class folder {root / name} holds no images ({' '.join(_READ)})")
    if len(classes) < 2:
        raise ValueError(f"{root} has only one class, {classes[0]!r}; at least two class folders are needed")
    return classes, [(file, label) for label, inside in enumerate(files) for file in inside]


def read_files(
    files: Sequence[Path], names: Sequence[str], *, size: int | None = None, colour: bool = False
) -> np.ndarray:
    """The images in `files` as uint8 [N, H, W, C], stretched to `size`; with `colour` grey ones become RGB.

    Without `colour` they do so only if another image has colour. `names` are for the error when sizes differ.
    """
    images = [decode(_bytes(file), str(file), size=size) for file in files]
    if colour:
        images = [np.repeat(image, 3 // image.shape[-1], -1) for image in images]
    return stack(images, names)


def write_folder(dataset: Dataset, destination: Path, *, force: bool = False, source: Path | None = None) -> None:
    """Writes one PNG an image under the same class folders and file stems; the folder is complete or absent."""
    with replacing(destination, force=force, source=source) as temporary:
        for image, name in zip(dataset.images, output_names(dataset), strict=True):
            file = temporary / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encode(image))


def output_names(dataset: Dataset) -> list[str]:
    """The PNG of every image, relative to the folder: `CLASS/STEM.png`, distinct, sorted in the order of the images.

    A stem that occurs again in a class (`a.png` after `a.jpg`) keeps its old suffix (`a.png.png`). Should the
    names of a class then no longer sort as its images do, they are put behind a number. An image whose label was
    changed moves to the folder of its new class.
    """
    names = dataset.names or tuple(f"{position:06d}.png" for position in range(len(dataset)))
    written = [""] * len(names)
    for label, class_name in enumerate(dataset.classes):
        folder = PurePosixPath(class_name)
        if folder.is_absolute() or len(folder.parts) != 1 or ".." in folder.parts:
            raise ValueError(f"class name {class_name!r} cannot be the name of a folder")
        positions = np.flatnonzero(dataset.labels == label)
        inside = [_inside(names[position]) for position in positions]
        files, taken = [], set()
        for path in inside:
            file = path.with_suffix(".png")
            files.append(file if file not in taken else path.with_name(path.name + ".png"))
            taken.add(files[-1])
        if files != sorted(taken, key=_order):
            files = [PurePosixPath(f"{number:06d}-{path.name}.png") for number, path in enumerate(inside)]
        for position, file in zip(positions, files, strict=True):
            written[position] = (folder / file).as_posix()
    return written


def _inside(name: str) -> PurePosixPath:
    """The path below the class folder."""
    path = PurePosixPath(name)
    return PurePosixPath(*path.parts[1:]) if len(path.parts) > 1 else path


def _order(path: PurePosixPath) -> tuple[tuple[tuple[str, ...], ...], str]:
    """Sorts by stem before suffix, so that changing every suffix to .png keeps the order."""
    stems = (*path.parts[:-1], path.stem)
    return tuple(tuple(part.split(".")) for part in stems), path.suffix


def _files(folder: Path) -> list[Path]:
    """The images below one class folder in their fixed order."""
    found = [PurePosixPath(path.relative_to(folder).as_posix()) for path in folder.rglob("*") if _is_image(path)]
    visible = [path for path in found if not any(part.startswith(".") for part in path.parts)]
    return [folder / path for path in sorted(visible, key=_order)]


def _is_image(path: Path) -> bool:
    """Whether the file is read; an image of a kind that is not read is an error."""
    if _hidden(path) or not path.is_file():
        return False
    suffix = path.suffix.lower()
    if suffix in _NOT_READ:
        raise ValueError(f"{path} is an image of a kind that is not read; convert it to one of {' '.join(_READ)}")
    return suffix in _READ


def _hidden(path: Path) -> bool:
    return path.name.startswith(".")


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror})") from error
