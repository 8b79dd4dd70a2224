"""Orbax checkpoints of pure state: written whole or not at all, restored onto any device layout."""

from pathlib import Path
import shutil
from typing import Any

import jax
import orbax.checkpoint as ocp


def save(directory: Path | str, step: int, state: Any, *, keep: int = 2) -> None:
    """Writes `state`, a pytree of arrays, as `directory/step` and removes all but the last `keep`.

    Orbax writes to a temporary name and renames, so a killed process leaves the previous ones intact.
    """
    directory = Path(directory).resolve()
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory / str(step), state, force=True)
    for unfinished in directory.glob("*.orbax-checkpoint-tmp*"):  # of a killed process
        shutil.rmtree(unfinished)
    for old in steps(directory)[:-keep]:
        shutil.rmtree(directory / str(old))


def steps(directory: Path | str) -> list[int]:
    """The steps that `directory` holds, in rising order; none where it does not exist."""
    directory = Path(directory)
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


def restore(directory: Path | str, step: int, like: Any) -> Any:
    """Reads `directory/step` into the shapes, types and device layout of `like`.

    Raises:
      ValueError: there is no such step.
    """
    known = steps(directory)
    if step not in known:
        raise ValueError(f"no checkpoint of step {step} in {directory}; it has {known}")
    template = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(Path(directory).resolve() / str(step), template)
