"""Tiny-ImageNet as it is published: train/WORDNET_ID/images/NAME.JPEG, and val/images with a list of labels."""

from pathlib import Path

import numpy as np

from jaxpurify.data.dataset import Dataset
from jaxpurify.data.decode import check_size
from jaxpurify.data.folder import read_files

SPLITS = ("train", "val")
ANNOTATIONS = "val_annotations.txt"


def read_tiny_imagenet(path: str, rows: slice = slice(None), *, size: int | None = None) -> Dataset:
    """Reads PATH/train (100,000 images of 64 x 64 pixels, 200 classes) or PATH/val (10,000).

    Classes are the WordNet identifiers, sorted, the same for both splits; images are sorted by class and file name,
    whatever the order of the list of `val`. Grey images become RGB. The published test split has no
    labels and is not read.

    Args:
      path: the folder that is called tiny-imagenet-200 when unpacked, and the split.
      rows: which of the sorted files to read.
      size: every image is stretched to `size` x `size` pixels; None leaves 64 x 64.

    Raises:
      ValueError: no such folder or split, a label that is no class, a file that is absent or cannot be read.
    """
    check_size(size)
    folder = Path(path)
    if folder.name not in SPLITS:
        raise ValueError(f"tiny-imagenet:{path} names no split; write tiny-imagenet:PATH/train or …/val")
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; tiny-imagenet: needs the unpacked data set")
    classes = _classes(folder.parent)
    labelled = _train_files(folder, classes) if folder.name == "train" else _val_files(folder, classes)
    chosen = labelled[rows]
    if not chosen:
        raise ValueError(f"tiny-imagenet:{path} selects none of its {len(labelled)} images")
    names = tuple(f"{classes[label]}/{file.name}" for file, label in chosen)
    images = read_files([file for file, _ in chosen], names, size=size, colour=True)
    labels = np.array([label for _, label in chosen], np.int32)
    return Dataset(images, labels, classes, names, source=f"tiny-imagenet:{path}")


def _classes(root: Path) -> tuple[str, ...]:
    """All classes: those listed in wnids.txt, or without that file the folders of the training split."""
    listed = root / "wnids.txt"
    if listed.is_file():
        classes = tuple(sorted(set(listed.read_text().split())))
    else:
        train = root / "train"
        classes = tuple(sorted(entry.name for entry in train.iterdir() if entry.is_dir())) if train.is_dir() else ()
    if len(classes) < 2:
        raise ValueError(f"{root} has neither wnids.txt nor class folders in train, which name the classes")
    return classes


def _train_files(folder: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    labelled = []
    for label, name in enumerate(classes):
        files = sorted((folder / name / "images").glob("*.JPEG"))
        if not files:
            raise ValueError(f"{folder / name / 'images'} holds no .JPEG files")
        labelled += [(file, label) for file in files]
    return labelled


def _val_files(folder: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    annotations = folder / ANNOTATIONS
    if not annotations.is_file():
        raise ValueError(f"{annotations} is absent; it holds the labels of the images")
    numbers = {name: label for label, name in enumerate(classes)}
    labelled = []
    for number, line in enumerate(annotations.read_text().splitlines(), 1):
        fields = line.split("\t")
        if line.strip() == "":
            continue
        if len(fields) < 2 or fields[1] not in numbers:
            raise ValueError(f"{annotations} line {number} is not a file name and one of the {len(classes)} classes")
        labelled.append((folder / "images" / fields[0], numbers[fields[1]]))
    return sorted(labelled, key=lambda pair: (pair[1], pair[0].name))
