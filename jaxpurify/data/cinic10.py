"""CINIC-10 as it is published: SPLIT/CLASS/NAME.png, where the name tells CIFAR-10's images from ImageNet's."""

from pathlib import Path

import numpy as np

from jaxpurify.data.dataset import Dataset
from jaxpurify.data.decode import check_size
from jaxpurify.data.folder import class_files, read_files

SPLITS = ("train", "valid", "test")
PARTS = ("imagenet", "cifar10")


def read_cinic10(path: str, rows: slice = slice(None), *, size: int | None = None) -> Dataset:
    """Reads PATH/SPLIT, or only the images of it that come from one source: PATH/SPLIT/imagenet, PATH/SPLIT/cifar10.

    The split has 90,000 images of 32 x 32 pixels (arXiv:1810.03505), 20,000 of them from CIFAR-10; their file names
    contain "cifar10". What is left of `train`, 70,000 images, is what PureGen (arXiv:2405.18627) trains on to purify
    CIFAR-10: it shares no image with it. Classes and files are sorted by name; all images are RGB.

    Args:
      path: the folder with `train`, `valid` and `test`, the split, and perhaps the part.
      rows: which of the sorted files to read, after the part is chosen.
      size: every image is stretched to `size` x `size` pixels; None leaves 32 x 32.

    Raises:
      ValueError: no such folder, split or part, or as in `read_folder`.
    """
    check_size(size)
    root, part = Path(path), None
    if root.name in PARTS and root.parent.name in SPLITS:
        root, part = root.parent, root.name
    if root.name not in SPLITS:
        raise ValueError(
            f"cinic10:{path} names no split; write cinic10:PATH/SPLIT with a split of {', '.join(SPLITS)}, and "
            f"/{' or /'.join(PARTS)} behind it for the images from there"
        )
    classes, labelled = class_files(root)
    if part is not None:
        labelled = [(file, label) for file, label in labelled if ("cifar10" in file.name) == (part == "cifar10")]
    chosen = labelled[rows]
    if not chosen:
        raise ValueError(f"cinic10:{path} selects none of its {len(labelled)} images")
    names = tuple(file.relative_to(root).as_posix() for file, _ in chosen)
    images = read_files([file for file, _ in chosen], names, size=size, colour=True)
    labels = np.array([label for _, label in chosen], np.int32)
    return Dataset(images, labels, classes, names, source=f"cinic10:{path}")
