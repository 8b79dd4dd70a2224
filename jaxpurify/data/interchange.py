"""Poison folders of the poisoning benchmark (arXiv:2006.12557), read and written.

A folder holds one trial: `poisons.pickle` (PIL images and labels), `base_indices.pickle` (the positions that they
replace) and `target.pickle` (the image that is to be misclassified, and for triggered attacks the patch).
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxpurify.data.damaged import DAMAGED
from jaxpurify.data.image import to_float, to_uint8
from jaxpurify.data.locate import check_made_for, check_same_shape, exact_positions, level_limit, locate
from jaxpurify.data.poison import PatchTrigger, Poison, Targets
from jaxpurify.data.poison_setups import Setup as Setup
from jaxpurify.data.poison_setups import read_setups as read_setups
from jaxpurify.data.poison_setups import write_setups as write_setups
from jaxpurify.data.portable_pickle import dump_pickle
from jaxpurify.data.restricted_pickle import load_pickle
from jaxpurify.destination import replacing


def read_benchmark(
    folder: str | Path,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    epsilon: float | None = 8 / 255,
    test_images: np.ndarray | None = None,
    search: bool = False,
) -> Poison:
    """Reads a poison folder, checked against the training set that it was made for.

    Args:
      folder: with `poisons.pickle`, `base_indices.pickle` and `target.pickle` (or Sleeper Agent's
        `source.pickle`; with several sources our `sources.npz`).
      images: the training images, uint8 [N, H, W, C], in the order of the indices.
      labels: their labels [N].
      epsilon: bound on every value, units of [0, 1]; files may exceed it by one level, because published
        crafters truncate to 8 bits where others round. None: no bound.
      test_images: the test set, uint8; given, the target's position in it is looked up. A source that carries its
        patch already is not found there; its position is that in the file.
      search: look for each poison's base among images of its label, instead of believing the indices. Needed
        where the training set is in another order; they are the order of CIFAR-10's own files, which TFDS changes.

    Returns:
      The poison. `target` is the poisons' label. With a patch, `trigger` is that patch, and `targets` hold the
      patched image. Without `test_images` the position of a target is its position in the file.
      A base that occurs twice keeps its first poison; `how["repeated_bases"]` counts the others. A trigger that is
      no opaque rectangle has no place in these files: `trigger` is None, and `targets` hold the triggered images.

    Raises:
      ValueError: a file is missing or damaged or holds anything but arrays and images; an index is out of range;
        a poison is further from the image at its index than `epsilon` allows; the target has another shape, is of
        the poisons' class, or is not in `test_images`.
    """
    folder = Path(folder)
    limit = level_limit(epsilon)
    poisons, poison_labels = _read_poisons(folder / "poisons.pickle")
    check_same_shape(poisons, images)
    index = np.asarray(load_pickle(folder / "base_indices.pickle"))
    if index.shape != (len(poisons),) or not np.issubdtype(index.dtype, np.integer):
        raise ValueError(f"{folder}: {len(poisons)} poisons and base indices of shape {index.shape}; one each needed")
    # In any order of the training set a repeated index is a repeated base, so it is looked up once.
    first = np.sort(np.unique(index, return_index=True)[1])
    repeated = len(index) - len(first)
    poisons, poison_labels, index = poisons[first], poison_labels[first], index[first]
    if search:
        index = locate(poisons, poison_labels, images, labels, limit)
    largest = check_made_for(folder, poisons, index, images, limit)
    targets, trigger, corner = _read_targets(folder, test_images, images.shape[1:])
    if (targets.labels == poison_labels[0]).any():
        raise ValueError(f"{folder}: target and poisons are both of class {poison_labels[0]}; nothing is to be changed")
    how: dict[str, Any] = {"attack": "benchmark", "labels_changed": bool((labels[index] != poison_labels).any())}
    how |= {"count": len(poisons), "norm": "linf", "epsilon": epsilon, "largest_change": largest}
    how |= {"repeated_bases": repeated, "patch_corner": corner}
    return Poison(poisons, poison_labels, index, int(poison_labels[0]), trigger, how, targets)


def write_benchmark(
    folder: str | Path, poison: Poison, *, positions: np.ndarray | None = None, force: bool = False
) -> None:
    """Writes a poison folder that the benchmark's code can read; 8-bit values are written as they are.

    Several targets are also written to `sources.npz`; the benchmark itself scores the first one only. A patch
    trigger is written beside the target; any other trigger is put on all targets, whose positions are then in
    `sources.npz` too.

    Args:
      folder: the folder to write, complete or absent.
      poison: with `targets`, because the benchmark scores target images only.
      positions: integers [P], the poisons' positions in the benchmark's order, if that is not the order of
        `poison.index`.
      force: replace the folder if it was written by this library.

    Raises:
      ValueError: no targets, no poison, poisons of another class than the attacker's, which these files take from
        them, or `positions` of another length.
    """
    targets = poison.targets
    if targets is None:
        raise ValueError("this poison has no target images; the benchmark's folders need at least one")
    index = poison.index if positions is None else np.asarray(positions)
    if index.shape != (len(poison),) or not len(poison):
        raise ValueError(f"positions have shape {index.shape}; one for each of {len(poison)} poisons, at least one")
    if (poison.labels != poison.target).any():
        of_class = ", ".join(map(str, np.unique(poison.labels)))
        classes = f"poisons of class {of_class} for the attacker's class {poison.target}"
        raise ValueError(f"{classes}; these files have one class for both")
    patch, shown = _patch_of(poison.trigger), targets.images
    if poison.trigger is not None and patch is None:
        shown = _triggered(poison.trigger, shown)
    target: tuple[Any, ...] = (_picture(shown[0]), int(targets.labels[0]), *(patch or ()))
    poisons = [(_picture(image), int(label)) for image, label in zip(poison.images, poison.labels, strict=True)]
    with replacing(Path(folder), force=force) as temporary:
        temporary.mkdir()
        contents = {"poisons": poisons, "base_indices": [int(position) for position in index], "target": target}
        for name, content in contents.items():
            (temporary / f"{name}.pickle").write_bytes(dump_pickle(content))
        if len(targets) > 1 or shown is not targets.images:
            arrays = {"images": shown, "labels": targets.labels, "index": targets.index}
            np.savez_compressed(temporary / "sources.npz", **arrays)


def _read_poisons(path):
    """The images uint8 [P, H, W, C] and labels of `poisons.pickle`."""
    pairs = load_pickle(path)
    try:
        images = np.stack([np.asarray(pair[0]) for pair in pairs])
        labels = np.array([int(pair[1]) for pair in pairs], np.int32)
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{path} does not hold images and labels ({error})") from error
    images = images[..., None] if images.ndim == 3 else images  # pictures without colour have no axis for it
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"{path} holds images of {images.dtype} {images.shape[1:]}; 8-bit pictures are needed")
    return images, labels


def _parse_target(file, content):
    """Image, class, and patch [C, h, w] with its corner [x, y] (or None and None) of an unpickled target."""
    try:
        image, label, *rest = content
        patch = np.asarray(rest[0], np.float32) if rest else None
        left, top = rest[1] if rest else (0, 0)
        image = np.asarray(image)
        if len(rest) not in (0, 2) or image.ndim not in (2, 3):
            raise ValueError("other entries")
        image = image if image.ndim == 3 else image[..., None]
        label, corner = np.int32(int(label)), [int(left), int(top)]
    except (TypeError, ValueError, IndexError, OverflowError) as error:
        raise ValueError(
            f"{file} is not an image and a class, with or without a patch and its corner ({error})"
        ) from error
    return image, label, patch, corner if rest else None


def _read_targets(folder, test_images, shape):
    """The targets, the trigger (or None) and the corner [x, y] of its patch (or None)."""
    file = next((folder / name for name in ("target.pickle", "source.pickle") if (folder / name).exists()), None)
    if file is None:
        raise ValueError(f"{folder} has neither target.pickle nor source.pickle")
    content = load_pickle(file)
    image, label, patch, corner = _parse_target(file, content)
    if image.shape != shape or image.dtype != np.uint8:
        raise ValueError(f"{file} holds a target of {image.dtype} {image.shape}; training images are uint8 {shape}")
    images, labels = image[None], np.array([label], np.int32)
    trigger = None if patch is None else _patch_trigger(file, patch, corner, shape)
    if (folder / "sources.npz").exists():
        try:
            with np.load(folder / "sources.npz", allow_pickle=False) as sources:
                images, labels, index = sources["images"], sources["labels"], sources["index"]
        except DAMAGED as error:
            raise ValueError(f"{folder / 'sources.npz'} is not a file of sources ({error})") from error
        if images.dtype != np.uint8 or images.shape[1:] != shape:
            raise ValueError(f"{folder / 'sources.npz'} holds {images.dtype} {images.shape}; uint8 {shape} are needed")
    else:
        index = np.arange(len(images)) if test_images is None else exact_positions(images, test_images)
        if index.min() < 0 and file.name == "source.pickle":  # the patch has been put on it
            index = np.arange(len(images))
        if index.min() < 0:
            raise ValueError(f"{file}: the target is not among the {len(test_images)} test images")
    if trigger is not None:
        images = _triggered(trigger, images)
    return Targets(images, labels, index), trigger, corner


def _triggered(trigger, images):
    """Stored images with the trigger on each, stored again: rounded."""
    return np.asarray(to_uint8(np.asarray(trigger(jnp.asarray(to_float(images))))))


def _patch_trigger(file, patch, corner, shape):
    """The patch [C, h, w] with its upper left pixel at `corner` (x, y) of images of `shape`."""
    height, width, channels = shape
    left, top = corner
    high, wide = patch.shape[1:] if patch.ndim == 3 else (0, 0)
    rows, columns = slice(top, top + high), slice(left, left + wide)
    outside = min(corner) < 0 or rows.stop > height or columns.stop > width
    if not high * wide or patch.shape[0] != channels or outside or not 0 <= patch.min() <= patch.max() <= 1:
        raise ValueError(f"{file}: a patch of shape {patch.shape} at {corner} does not fit images of {shape}")
    pattern, mask = np.zeros(shape, np.float32), np.zeros((height, width, 1), np.float32)
    pattern[rows, columns], mask[rows, columns] = patch.transpose(1, 2, 0), 1
    return PatchTrigger(pattern, mask)


def _patch_of(trigger):
    """The patch float [C, h, w] and its corner [x, y]; None for a trigger that is not one opaque rectangle."""
    if not isinstance(trigger, PatchTrigger):
        return None
    mask = np.asarray(trigger.mask)[..., 0]
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows) or (mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] != 1).any():
        return None
    inside = np.asarray(trigger.pattern, np.float32)[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return inside.transpose(2, 0, 1).copy(), [int(columns[0]), int(rows[0])]


def _picture(image):
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
