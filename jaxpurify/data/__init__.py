"""Labelled images: where they come from, how they are stored and augmented, and how poisons enter them."""

from jaxpurify.data.augment import Compose, Cutout, Flip, PadCrop, Shift
from jaxpurify.data.dataset import Dataset
from jaxpurify.data.image import compat_floor, to_float, to_uint8
from jaxpurify.data.poison import (
    AdditiveTrigger,
    PatchTrigger,
    Poison,
    ScatteredPatchTrigger,
    Targets,
    WarpTrigger,
    load_poison,
    poison_dataset,
    save_poison,
    triggered_test_set,
)
from jaxpurify.data.sources import check_save, load_source, save_dataset

__all__ = [
    "AdditiveTrigger",
    "Compose",
    "Cutout",
    "Dataset",
    "Flip",
    "PadCrop",
    "PatchTrigger",
    "Poison",
    "ScatteredPatchTrigger",
    "Shift",
    "Targets",
    "WarpTrigger",
    "check_save",
    "compat_floor",
    "load_poison",
    "load_source",
    "poison_dataset",
    "save_dataset",
    "save_poison",
    "to_float",
    "to_uint8",
    "triggered_test_set",
]
