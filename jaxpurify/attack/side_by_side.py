"""Craftings of several targets, each with poisons of its own, side by side in one program."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from jaxpurify import loop
from jaxpurify.attack.choose import check_whole
from jaxpurify.attack.crafting import Crafting, Objective, Progress, advance, craft_step

Job = tuple[Objective, Crafting]


def advance_each(
    prepare: Callable[[int], Job],
    states: Sequence[Progress],
    steps: int,
    together: int | None = None,
    progress: loop.Report | None = None,
) -> tuple[list[Progress], list[Float[np.ndarray, "_ _"]]]:
    """`advance` for each of several targets: each moves as it would alone.

    Args:
      prepare: the number of a target to its objective and crafting, which are alike but for their arrays; called when
        its turn comes. Arrays that all of them share (the weights of a surrogate) are kept once.
      states: where each stands.
      steps: further steps of each.
      together: how many of them run side by side; memory grows with it. None: one on CPU, all of them
        elsewhere. One after the other they share a compiled program.
      progress: called with (finished steps, all steps) of this call, those of all targets added up.

    Returns:
      The states, and the objectives [steps, R] of each before each step.

    Raises:
      ValueError: `together` is no whole number of at least 1.
    """
    check_whole(targets_together=together)
    if together is not None and together < 1:
        raise ValueError(f"targets_together is {together}; it must be at least 1")
    size = together or (1 if jax.default_backend() == "cpu" else len(states))
    moved, values = [], []
    for first in range(0, len(states), size):
        part = range(first, min(first + size, len(states)))
        report = loop.part_of(progress, first * steps, len(states) * steps, len(part))
        jobs = [prepare(number) for number in part]
        one, of_one = _advance_together(jobs, [states[number] for number in part], steps, report)
        moved += one
        values += of_one
    return moved, values


def _advance_together(jobs, states, steps, progress):
    if len(jobs) == 1:
        (objective, crafting), state = jobs[0], states[0]
        state, values = advance(objective, crafting, state, steps, progress)
        return [state], [values]
    leaves, structures = zip(*(jax.tree.flatten(job) for job in jobs), strict=True)
    if len(set(structures)) > 1:
        raise ValueError("targets crafted side by side differ in more than arrays; craft them one by one")
    shared = tuple(all(leaf is column[0] for leaf in column) for column in zip(*leaves, strict=True))
    operands = [
        column[0] if once else _stacked(column) for column, once in zip(zip(*leaves, strict=True), shared, strict=True)
    ]
    state = jax.tree.map(lambda *rows: jnp.stack(rows), *states)
    state, values = loop.scan(_Each(structures[0], shared), state, steps, operands, progress=progress)
    values = np.asarray(jax.device_get(values))
    each = [jax.tree.map(lambda leaf, place=place: leaf[place], state) for place in range(len(jobs))]
    return each, [values[:, place] for place in range(len(jobs))]


def _stacked(column):
    """The arrays of all jobs on a new leading axis; to stack a key does not consume it."""
    if jnp.issubdtype(column[0].dtype, jax.dtypes.prng_key):
        column = map(jax.random.clone, column)
    return jnp.stack(list(column))


@dataclasses.dataclass(frozen=True)
class _Each:
    """`craft_step` for all targets at once; equal for equal structures, so that `jit` finds it again."""

    structure: Any
    shared: tuple[bool, ...]

    def __call__(self, states, index, operands):
        def one(state, *leaves):
            return craft_step(state, index, *jax.tree.unflatten(self.structure, leaves))

        axes = [None if once else 0 for once in self.shared]
        return jax.vmap(one, (0, *axes))(states, *operands)
