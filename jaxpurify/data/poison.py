"""Poisons as records, and the one place that writes poisons into training data."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxpurify.data.damaged import DAMAGED
from jaxpurify.data.dataset import Dataset, check_images, check_labels
from jaxpurify.data.image import to_float, to_uint8
from jaxpurify.data.triggers import TRIGGERS as TRIGGERS
from jaxpurify.data.triggers import AdditiveTrigger as AdditiveTrigger
from jaxpurify.data.triggers import PatchTrigger as PatchTrigger
from jaxpurify.data.triggers import ScatteredPatchTrigger as ScatteredPatchTrigger
from jaxpurify.data.triggers import WarpTrigger as WarpTrigger
from jaxpurify.data.triggers import check_fits
from jaxpurify.data.triggers import paste as paste
from jaxpurify.destination import replacing

_TRIGGER_BATCH = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class Targets:
    """The images that a targeted attack is to have misclassified; they are never trained on.

    Attributes:
      images: uint8 [T, H, W, C].
      labels: int32 [T], their true labels.
      index: int64 [T], their positions in the test set.

    Raises:
      ValueError: no image, or shapes, lengths or types that do not fit together.
    """

    images: np.ndarray
    labels: np.ndarray
    index: np.ndarray

    def __post_init__(self):
        check_images(self.images)
        if not len(self.images):
            raise ValueError("targets hold no image; at least one is needed")
        object.__setattr__(self, "labels", check_labels(self.labels, len(self.images)))
        object.__setattr__(self, "index", _positions(self.index, len(self.images)))

    def __len__(self) -> int:
        return len(self.images)


@dataclasses.dataclass(frozen=True, eq=False)
class Poison:
    """What an attacker puts into a training set, at rest.

    Attributes:
      images: uint8 [P, H, W, C].
      labels: int32 [P], the labels that the poisons carry in training.
      index: int64 [P], the distinct positions of the training set that they replace.
      target: the class that the attacker wants; None for attacks without one.
      trigger: a callable (images in [0, 1]) -> images; None for attacks without one.
      targets: the test images that are to be taken for `target`; None for attacks without any.
      how: how it was made (attack, epsilon, …); plain JSON values.

    Raises:
      ValueError: shapes, lengths, types or values do not fit together.
    """

    images: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    target: Any = None
    trigger: Any = None
    how: dict[str, Any] = dataclasses.field(default_factory=dict)
    targets: Targets | None = None

    def __post_init__(self):
        check_images(self.images)
        object.__setattr__(self, "labels", check_labels(self.labels, len(self.images)))
        object.__setattr__(self, "index", _positions(self.index, len(self.images)))
        if self.target is not None:
            if isinstance(self.target, bool) or not isinstance(self.target, int | np.integer) or self.target < 0:
                raise ValueError(f"target is {self.target!r}; it must be a class number, 0 or more, or None")
            object.__setattr__(self, "target", int(self.target))
        if self.trigger is not None and not callable(self.trigger):
            raise ValueError(f"trigger is {self.trigger!r}; it must be callable on images, or None")
        how = {name: value.item() if isinstance(value, np.generic) else value for name, value in self.how.items()}
        object.__setattr__(self, "how", how)
        try:
            json.dumps(self.how, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"how must hold plain JSON values only ({error})") from error

    def __len__(self) -> int:
        return len(self.images)


def _positions(index: np.ndarray, count: int) -> np.ndarray:
    """`index` as int64 [count]; ValueError unless it holds distinct positions, one an image."""
    index = np.asarray(index)
    if index.size == 0:
        index = index.astype(np.int64)
    if index.shape != (count,) or not np.issubdtype(index.dtype, np.integer):
        raise ValueError(f"index of shape {index.shape}, {index.dtype}; {count} integers are needed")
    if index.size and index.min() < 0:
        raise ValueError(f"index holds {index.min()}; positions are 0 or more")
    values, counts = np.unique(index, return_counts=True)
    if (counts > 1).any():
        raise ValueError(f"index holds {values[counts > 1][0]} more than once; positions are distinct")
    return index.astype(np.int64)


def poison_dataset(dataset: Dataset, poison: Poison) -> Dataset:
    """`dataset` with the images and labels at `poison.index` replaced; the only place that writes poisons.

    Raises:
      ValueError: a position is outside of the data set, or image shapes differ.
    """
    if len(poison) == 0:
        return dataset
    if poison.index.max() >= len(dataset):
        raise ValueError(f"poison index {poison.index.max()} is out of range; positions are 0 … {len(dataset) - 1}")
    if poison.images.shape[1:] != dataset.images.shape[1:]:
        raise ValueError(
            f"poisons of shape {poison.images.shape[1:]} do not fit images of shape {dataset.images.shape[1:]}"
        )
    images, labels = dataset.images.copy(), dataset.labels.copy()
    images[poison.index] = poison.images
    labels[poison.index] = poison.labels
    return dataclasses.replace(dataset, images=images, labels=labels)


def triggered_test_set(dataset: Dataset, poison: Poison, *, scale: float = 1.0) -> Dataset:
    """The test images on which the attacker's success is counted: the trigger is applied, labels stay the true ones.

    Images whose label already is `poison.target` are left out (all stay where there is no target).

    Args:
      dataset: the clean test set.
      poison: its trigger and target are used.
      scale: strength of an additive trigger relative to how it was crafted.

    Raises:
      ValueError: the poison has no trigger, the trigger does not fit, or no image remains.
    """
    if poison.trigger is None:
        raise ValueError("this poison has no trigger; its success is counted on its target images instead")
    trigger = poison.trigger
    if scale != 1.0:
        if not hasattr(trigger, "scaled"):
            raise ValueError(f"trigger {type(trigger).__name__} cannot be scaled by {scale}; it has no scaled()")
        trigger = trigger.scaled(scale)
    if poison.target is not None:
        dataset = dataset.select(dataset.labels != poison.target)
    if len(dataset) == 0:
        raise ValueError(f"no test image has another label than the target {poison.target}")
    check_fits(trigger, dataset.images.shape[1:])
    images = np.empty_like(dataset.images)
    for start in range(0, len(dataset), _TRIGGER_BATCH):
        rows = slice(start, start + _TRIGGER_BATCH)
        images[rows] = to_uint8(np.asarray(trigger(jnp.asarray(to_float(dataset.images[rows])))))
    return dataset.replace_images(images)


def save_poison(path: str | Path, poison: Poison, *, force: bool = False) -> None:
    """Writes `poison` as .npz without pickled objects; the file is complete or absent.

    Raises:
      ValueError: the file exists (without `force`), or the trigger is of a kind that has no file form.
    """
    arrays = {"images": poison.images, "labels": poison.labels, "index": poison.index}
    about: dict[str, Any] = {"target": poison.target, "how": poison.how, "trigger": None}
    if poison.targets is not None:
        for field in dataclasses.fields(poison.targets):
            arrays[f"targets.{field.name}"] = getattr(poison.targets, field.name)
    if poison.trigger is not None:
        about["trigger"] = type(poison.trigger).__name__
        if TRIGGERS.get(about["trigger"]) is not type(poison.trigger):
            raise ValueError(f"trigger {about['trigger']} cannot be saved; known triggers are {', '.join(TRIGGERS)}")
        for field in dataclasses.fields(poison.trigger):
            value = np.asarray(getattr(poison.trigger, field.name))
            whole = np.issubdtype(value.dtype, np.integer)
            arrays[f"trigger.{field.name}"] = value if whole else value.astype(np.float32)
    with replacing(Path(path), force=force) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, about=np.array(json.dumps(about)), **arrays)


def load_poison(path: str | Path) -> Poison:
    """Reads what `save_poison` wrote; nothing in the file is unpickled.

    Raises:
      ValueError: the file is missing or damaged, or is not a poison.
    """
    try:
        with open(path, "rb") as content, np.load(content, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        about = json.loads(str(arrays["about"]))
        trigger = about["trigger"]
        if trigger is not None:
            fields = {field.name: arrays[f"trigger.{field.name}"] for field in dataclasses.fields(TRIGGERS[trigger])}
            if "scale" in fields:
                fields["scale"] = float(fields["scale"])
            trigger = TRIGGERS[trigger](**fields)
        targets = None
        if "targets.images" in arrays:
            targets = Targets(*(arrays[f"targets.{field.name}"] for field in dataclasses.fields(Targets)))
        poison = (arrays["images"], arrays["labels"], arrays["index"], about["target"], trigger, about["how"])
        return Poison(*poison, targets=targets)
    except KeyError as error:
        raise ValueError(f"{path} is not a poison file: {error} is missing or unknown") from error
    except DAMAGED as error:
        raise ValueError(f"{path} is not a readable poison file ({(str(error).splitlines() or [''])[0]})") from error
