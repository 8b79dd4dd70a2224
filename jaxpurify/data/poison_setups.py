"""The trials of the poisoning benchmark (arXiv:2006.12557): its `poison_setups` files, read and written."""

from collections.abc import Sequence
import dataclasses
from pathlib import Path

import numpy as np

from jaxpurify.data.portable_pickle import dump_pickle
from jaxpurify.data.restricted_pickle import load_pickle
from jaxpurify.destination import replacing


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """One trial of the benchmark: which test image is to be taken for which class, and from what poisons are made.

    Attributes:
      target_class: the true class of the target.
      target_index: its position in the test set.
      base_class: the class of the poisons, for which the target is to be taken.
      base_index: int64 [P], positions in the training set; published files repeat one position in a few trials.
    """

    target_class: int
    target_index: int
    base_class: int
    base_index: np.ndarray


def read_setups(path: str | Path, labels: np.ndarray | None = None) -> tuple[Setup, ...]:
    """Reads a `poison_setups` file.

    Args:
      path: the pickle; only arrays and numbers in it are accepted.
      labels: the training labels; given, every base must be of its base class.

    Raises:
      ValueError: the file is not such a file, a target is of its base class, or a base has another label.
    """
    trials = load_pickle(path)
    if not isinstance(trials, list) or not trials:
        raise ValueError(f"{path} does not hold a list of set-ups")
    setups = []
    for number, trial in enumerate(trials):
        try:
            base_index = np.atleast_1d(np.asarray(trial["base indices"]))
            if base_index.ndim != 1 or (base_index.size and not np.issubdtype(base_index.dtype, np.integer)):
                raise ValueError(f"base indices are {base_index.dtype} {base_index.shape}")
            target_class, target_index = int(trial["target class"]), int(trial["target index"])
            setup = Setup(target_class, target_index, int(trial["base class"]), base_index)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{path}: set-up {number} lacks a class or an index ({error})") from error
        if setup.base_class == setup.target_class:
            raise ValueError(f"{path}: set-up {number} has class {setup.base_class} as both target and base class")
        if labels is not None:
            _check_bases(f"{path}: set-up {number}", setup, labels)
        setups.append(setup)
    return tuple(setups)


def write_setups(path: str | Path, setups: Sequence[Setup], *, force: bool = False) -> None:
    """Writes a `poison_setups` file that the benchmark's code can read."""
    trials = [
        {
            "target class": int(setup.target_class),
            "target index": np.int64(setup.target_index),
            "base class": int(setup.base_class),
            "base indices": np.asarray(setup.base_index, np.int64),
        }
        for setup in setups
    ]
    with replacing(Path(path), force=force) as temporary:
        temporary.write_bytes(dump_pickle(trials))


def _check_bases(what, setup, labels):
    if not setup.base_index.size:
        raise ValueError(f"{what} has no base indices; at least one is needed")
    outside = setup.base_index[(setup.base_index < 0) | (setup.base_index >= len(labels))]
    if outside.size:
        raise ValueError(f"{what} has base index {outside[0]}; there are {len(labels)} training images")
    wrong = np.flatnonzero(labels[setup.base_index] != setup.base_class)
    if len(wrong):
        position = setup.base_index[wrong[0]]
        raise ValueError(
            f"{what}: training image {position} has label {labels[position]} and not the base class "
            f"{setup.base_class}; is the training set in the order of the set-ups?"
        )
