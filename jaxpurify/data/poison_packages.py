"""Files of two attacks' own code: MetaPoison (arXiv:2004.00225) and Bullseye Polytope (arXiv:2005.00191)."""

import io
import math
from pathlib import Path
import pickle
from typing import Any
import zipfile

import numpy as np

from jaxpurify.data.dataset import Dataset
from jaxpurify.data.image import to_float, to_uint8
from jaxpurify.data.locate import check_made_for, check_same_shape, exact_positions, level_limit, locate
from jaxpurify.data.poison import Poison, Targets, poison_dataset
from jaxpurify.data.portable_pickle import dump_pickle
from jaxpurify.data.restricted_pickle import load_pickle
from jaxpurify.destination import replacing

CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_DEVIATION = (0.2023, 0.1994, 0.2010)
"""The normalisation of the tensors in Bullseye Polytope's files."""


def read_metapoison(
    path: str | Path,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    epsilon: float | None = 24 / 255,
    test_images: np.ndarray | None = None,
) -> Poison:
    """Reads a MetaPoison package: a whole training set, of which the images that are not in ours are the poisons.

    Args:
      path: the pickle with xtrain, ytrain, xtarget, ytarget and ytargetadv; values 0 … 255, rounded here.
      images: the clean training images, uint8 [N, H, W, C], in any order.
      labels: their labels [N].
      epsilon: how far a poison may be from its base, units of [0, 1]; published 8/255 and a change of colour of
        about 0.04 on top. None: no bound.
      test_images: the test set; given, the target's position in it is looked up.

    Returns:
      The poison; `index` counts in `images`, each poison's base being the nearest image of its label.

    Raises:
      ValueError: not such a file, no poison or no target in it, or a poison without a base within `epsilon`.
    """
    content = load_pickle(path)
    needed = ("xtrain", "ytrain", "xtarget", "ytarget", "ytargetadv")
    if not isinstance(content, dict) or any(name not in content for name in needed):
        raise ValueError(f"{path} is not a MetaPoison package; {', '.join(needed)} are needed")
    train, target_images = (_levels(path, name, content[name]) for name in ("xtrain", "xtarget"))
    train_labels, target_labels = (np.ravel(content[name]).astype(np.int32) for name in ("ytrain", "ytarget"))
    check_same_shape(train, images)
    if len(train_labels) != len(train) or len(target_labels) != len(target_images) or not len(target_images):
        raise ValueError(f"{path}: images and labels, or targets and their labels, differ in number")
    same = exact_positions(train, images)
    poisoned = same < 0
    if not poisoned.any():
        raise ValueError(f"{path} holds no poison; all {len(train)} training images are clean")
    left = np.setdiff1d(np.arange(len(images)), same[~poisoned])
    limit = level_limit(epsilon)
    index = left[locate(train[poisoned], train_labels[poisoned], images[left], labels[left], limit)]
    change = np.abs(train[poisoned].astype(np.int16) - images[index]).max()
    wanted = np.unique(content["ytargetadv"])
    if len(wanted) != 1 or not np.issubdtype(wanted.dtype, np.number) or wanted[0] in target_labels:
        raise ValueError(f"{path}: ytargetadv holds {wanted.tolist()}; it must be one class, and not the targets' own")
    target = int(wanted[0])
    targets = Targets(target_images, target_labels, _test_positions(path, target_images, test_images))
    how = {"attack": "metapoison", "labels_changed": False, "count": len(index), "norm": "linf", "epsilon": epsilon}
    how["largest_change"] = int(change)
    return Poison(train[poisoned], train_labels[poisoned], index, target, None, how, targets)


def write_metapoison(path: str | Path, poison: Poison, train: Dataset, test: Dataset, *, force: bool = False) -> None:
    """Writes a MetaPoison package: the poisoned training set sorted by class, poisons first in theirs.

    Raises:
      ValueError: the poison has no targets or no target class, or does not fit `train`.
    """
    if poison.targets is None or poison.target is None:
        raise ValueError("this poison has no target images or no target class; MetaPoison's packages need both")
    poisoned = poison_dataset(train, poison)
    order = np.lexsort((~np.isin(np.arange(len(poisoned)), poison.index), poisoned.labels))
    content = {
        "xtrain": poisoned.images[order].astype(np.float32),
        "ytrain": poisoned.labels[order],
        "xtarget": poison.targets.images.astype(np.float32),
        "ytarget": poison.targets.labels,
        "ytargetadv": np.full(len(poison.targets), poison.target, np.int32),
        "xvalid": test.images.astype(np.float32),
        "yvalid": test.labels,
    }
    with replacing(Path(path), force=force) as temporary:
        temporary.write_bytes(dump_pickle(content))


def read_bullseye(
    path: str | Path,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    epsilon: float | None = 0.1,
    search: bool = True,
    mean: tuple[float, ...] = CIFAR_MEAN,
    deviation: tuple[float, ...] = CIFAR_DEVIATION,
) -> Poison:
    """Reads a file of Convex or Bullseye Polytope: normalised tensors with labels under "poison", positions in "idx".

    Args:
      path: the torch file, of the old or the present form; torch is not needed.
      images: the training images, uint8 [N, H, W, C].
      labels: their labels [N].
      epsilon: how far a poison may be from its base, units of [0, 1]; published 0.1. None: no bound.
      search: look for the bases; the positions in the file count within a split of that code's own. False:
        believe them.
      mean: of the normalisation that is undone, one number a channel.
      deviation: its standard deviation.

    Returns:
      The poison, rounded to 8 bits; its files name no target image.

    Raises:
      ValueError: not such a file, or a poison that is not within `epsilon` of its base.
    """
    content = load_pickle(path)
    if not isinstance(content, dict) or not {"poison", "idx"} <= set(content):
        raise ValueError(f"{path} is not a file of Bullseye Polytope; poison and idx are needed")
    try:
        tensors = np.stack([np.asarray(tensor, np.float64) for tensor, _ in content["poison"]])
        poison_labels = np.array([int(label) for _, label in content["poison"]], np.int32)
        pixels = tensors.transpose(0, 2, 3, 1) * _row(deviation) + _row(mean)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: poisons are not normalised tensors with labels ({error})") from error
    poisons = np.asarray(to_uint8(pixels.astype(np.float32)))
    check_same_shape(poisons, images)
    limit = level_limit(epsilon)
    if search:
        index = locate(poisons, poison_labels, images, labels, limit)
    else:
        index = np.asarray(content["idx"])
        if index.shape != (len(poisons),) or not np.issubdtype(index.dtype, np.integer):
            raise ValueError(f"{path}: positions are {index.dtype} {index.shape}; a whole number a poison is needed")
    largest = check_made_for(path, poisons, index, images, limit)
    how: dict[str, Any] = {"attack": "bullseye", "labels_changed": bool((labels[index] != poison_labels).any())}
    how |= {"count": len(poisons), "norm": "linf", "epsilon": epsilon, "largest_change": largest}
    return Poison(poisons, poison_labels, index, int(poison_labels[0]), None, how)


def write_bullseye(
    path: str | Path,
    poison: Poison,
    *,
    positions: np.ndarray | None = None,
    mean: tuple[float, ...] = CIFAR_MEAN,
    deviation: tuple[float, ...] = CIFAR_DEVIATION,
    force: bool = False,
) -> None:
    """Writes such a file, readable with `torch.load`; torch is not needed.

    Args:
      path: the file to write.
      poison: its images and labels are written.
      positions: integers [P], positions in the split of the attack's code; None writes `poison.index`.
      mean: of the normalisation, one number a channel.
      deviation: its standard deviation.
      force: replace the file.

    Raises:
      ValueError: `positions` of another length, or images of other channels than `mean` has.
    """
    index = poison.index if positions is None else np.asarray(positions)
    if len(mean) != poison.images.shape[-1]:
        raise ValueError(f"mean has {len(mean)} numbers for images of {poison.images.shape[-1]} channels")
    if index.shape != (len(poison),):
        raise ValueError(f"positions have shape {index.shape}; one for each of {len(poison)} poisons is needed")
    pixels = (np.asarray(to_float(poison.images), np.float64) - _row(mean)) / _row(deviation)
    tensors = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32)
    pairs = b"".join(
        _tensor(str(number), tensor.shape) + _plain(int(label)) + b"\x86"
        for number, (tensor, label) in enumerate(zip(tensors, poison.labels, strict=True))
    )
    listed = _plain("poison") + b"](" + pairs + b"e" + _plain("idx") + _plain([int(each) for each in index])
    with replacing(Path(path), force=force) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}(" + listed + b"u.")
        archive.writestr("archive/byteorder", "little")
        for number, tensor in enumerate(tensors):
            archive.writestr(f"archive/data/{number}", tensor.astype("<f4").tobytes())
        archive.writestr("archive/version", "3\n")


def _tensor(key, shape):
    """The opcodes of a contiguous float32 tensor whose numbers are the archive's member `key`."""
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    storage = _plain("storage") + b"ctorch\nFloatStorage\n" + _plain(key) + _plain("cpu") + _plain(math.prod(shape))
    arguments = b"((" + storage + b"tQ" + _plain(0) + _plain(tuple(shape)) + _plain(strides)
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"\x89ccollections\nOrderedDict\n)RtR"


def _plain(value):
    """The opcodes of a plain value, without header and end."""
    buffer = io.BytesIO()
    pickle.Pickler(buffer, 2).dump(value)
    return buffer.getvalue()[2:-1]


def _levels(path, name, images):
    """Values 0 … 255 as uint8 [N, H, W, C], rounded."""
    images = np.asarray(images)
    images = images[None] if images.ndim == 3 else images
    if images.ndim != 4 or not images.size or not np.isfinite(images).all():
        raise ValueError(f"{path}: {name} has shape {images.shape}; finite values [count, height, width, channels]")
    if images.min() < -0.5 or images.max() > 255.5:
        raise ValueError(f"{path}: {name} spans {images.min():g} … {images.max():g}; 0 … 255 is accepted")
    return np.clip(np.rint(images), 0, 255).astype(np.uint8)


def _test_positions(path, targets, test_images):
    index = np.arange(len(targets)) if test_images is None else exact_positions(targets, test_images)
    if index.min() < 0:
        raise ValueError(f"{path}: target {index.argmin()} is not among the {len(test_images)} test images")
    return index


def _row(numbers):
    return np.asarray(numbers, np.float64).reshape(1, 1, 1, -1)
