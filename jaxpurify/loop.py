"""The one place that decides how a loop over network gradients runs.

On GPU and TPU a loop is one `lax.scan`. XLA:CPU runs the gradient of a convolution many times slower
inside a compiled loop than outside of it (weight gradients about 50 times, input gradients about 4), so
on CPU the same loop is a Python loop over a compiled step. Both run the same step function
on the same numbers. Inside another trace (`jit`, `vmap`, `grad`) there is no choice: the loop is `lax.scan`.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from jaxpurify.sharding import batch_mesh

State = Any
Step = Callable[..., tuple[State, Any]]
Report = Callable[[int, int], None]  # (finished steps, all steps)

_PARTS = 20  # in which a compiled loop runs where its progress is reported


def scan(
    step: Step, state: State, steps: int, *operands: Any, progress: Report | None = None, whole: bool = True
) -> tuple[State, Any]:
    """Runs `state, output = step(state, index, *operands)` for `index` 0 … steps-1.

    Args:
      step: a module-level function: it is a static argument of `jit`, so a new closure would recompile.
      state: pytree of arrays, replaced by each step. The caller's arrays stay as they are.
      steps: how many steps, a Python int.
      *operands: pytrees that the step reads: models, keys, data. New values do not recompile.
      progress: called with (finished steps, all steps): at the start, and after every step on CPU, elsewhere after
        each of up to 20 equal parts, which run the same program one after the other; not inside of another trace.
      whole: False: on CPU the step is called as it is and compiles its own parts, so that long loops inside of it are
        Python loops as well (see `has_loops`).

    Returns:
      The last state, and the outputs of all steps stacked on a new leading axis.
    """
    if steps < 0:
        raise ValueError(f"steps is {steps}; it must be 0 or more")
    if progress is not None and not _traced(state, operands):
        progress(0, steps)
    if steps and runs_in_python(state, operands):
        step, outputs = _hashed_once(step), []
        # A copy, for each step writes over the last state: with a new block of memory for every state the heap falls to
        # pieces that the next step's temporaries do not fit (ResNet-18 on two devices: 2.1 GB more after 12 steps).
        state = jax.device_put(state, may_alias=False)
        for index in range(steps):
            if whole:
                state, output = _compiled_step(step, state, np.uint32(index), operands)
            else:
                state, output = step(state, jnp.uint32(index), *operands)
            outputs.append(output)
            if progress is not None:
                jax.block_until_ready(state)  # a step is finished then, not when it is under way
                progress(index + 1, steps)
        if not jax.tree.leaves(outputs[0]):
            return state, None
        return state, jax.tree.map(lambda *rows: jnp.stack(rows), *outputs)

    if progress is None or not steps or _traced(state, operands):
        return _compiled_scan(step, steps, state, np.uint32(0), operands)
    outputs, size = [], steps // max(parts for parts in range(1, _PARTS + 1) if steps % parts == 0)
    for first in range(0, steps, size):
        state, output = jax.block_until_ready(_compiled_scan(step, size, state, np.uint32(first), operands))
        outputs.append(output)
        progress(first + size, steps)
    return state, jax.tree.map(lambda *parts: jnp.concatenate(parts), *outputs)


def repeat(
    step: Callable[..., State],
    state: State,
    steps: int,
    *operands: Any,
    progress: Report | None = None,
    whole: bool = True,
) -> State:
    """Runs `state = step(state, index, *operands)` for `index` 0 … steps-1 and returns the last state."""
    return scan(_WithoutOutput(step), state, steps, *operands, progress=progress, whole=whole)[0]


def in_pieces(function: Callable[[Any], Any], rows: Any, most: int) -> Any:
    """`function(rows)` for an array and a function that treats every row by itself, in pieces where that is faster.

    On CPU a loop computes equal pieces of at most `most` rows a device, whose intermediate values stay in the cache;
    elsewhere, and where no piece of more than half of `most` divides the rows, all of them are computed at once.
    """
    if jax.default_backend() != "cpu":
        return function(rows)
    share = len(rows) // batch_mesh(len(rows)).size
    least = -(-share // most)
    count = next((count for count in range(least, 2 * least) if share % count == 0), 1)
    if count == 1:
        return function(rows)
    # Every piece has rows of all devices' shares, so that none of them hears of another.
    pieces = lax.map(function, rows.reshape(-1, count, *rows.shape[1:]).swapaxes(0, 1)).swapaxes(0, 1)
    return pieces.reshape(len(rows), *pieces.shape[2:])


def part_of(progress: Report | None, earlier: int, total: int, each: int = 1) -> Report | None:
    """The report of one loop among several: `earlier` steps of the `total` are done, one of this loop counts `each`."""
    return None if progress is None else lambda finished, _: progress(earlier + each * finished, total)


def runs_in_python(*trees: Any) -> bool:
    """True where a loop over these arrays runs as a Python loop: on CPU and outside of any trace."""
    return not _traced(trees) and jax.default_backend() == "cpu"


def has_loops(function: Any) -> bool:
    """True where a step that calls `function` is faster uncompiled: it says so (`has_loops`), and this is a CPU."""
    return getattr(function, "has_loops", False) and jax.default_backend() == "cpu"


def _traced(*trees: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


class _HashedOnce:
    """A step whose hash is kept: `jit` asks for it at every call, and that of a network's structure takes a while
    (ResNet-9 on scanned digits: 0.4 of 3.8 ms a step)."""

    def __init__(self, step: Step):
        self.step, self.hash = step, hash(step)

    def __call__(self, state, index, *operands):
        return self.step(state, index, *operands)

    def __eq__(self, other):
        return self is other or (isinstance(other, _HashedOnce) and self.step == other.step)

    def __hash__(self):
        return self.hash


_hashed_once = functools.lru_cache(maxsize=256)(_HashedOnce)  # equal steps are one object, which is equal at once


class _WithoutOutput:
    """Adapts a step without output to `scan`; equal for equal steps, so that `jit` finds it again."""

    def __init__(self, step: Callable[..., State]):
        self.step = step

    def __call__(self, state, index, *operands):
        return self.step(state, index, *operands), None

    def __eq__(self, other):
        return isinstance(other, _WithoutOutput) and self.step == other.step

    def __hash__(self):
        return hash((_WithoutOutput, self.step))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _compiled_step(step, state, index, operands):
    return step(state, index, *operands)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _compiled_scan(step, steps, state, first, operands):
    def body(carry, index):
        return step(carry, index, *operands)

    return lax.scan(body, state, first + jnp.arange(steps, dtype=jnp.uint32))


def call(function: Callable[..., Any], *operands: Any) -> Any:
    """Calls `function`, which loops over gradients: as one compiled program, except on CPU.

    On CPU it is called as it is, so that the loops inside become Python loops over compiled steps. A
    `struct` is a good `function`: it is then an operand itself, and new weights do not recompile.
    """
    if jax.default_backend() == "cpu":
        return function(*operands)
    leaves = jax.tree.leaves(function)
    if not leaves or leaves[0] is function:  # a plain function, or an object without arrays: static
        return _compiled_function(function, operands)
    return _compiled_object(function, operands)


@jax.jit
def _compiled_object(function, operands):
    return function(*operands)


@functools.partial(jax.jit, static_argnums=0)
def _compiled_function(function, operands):
    return function(*operands)
