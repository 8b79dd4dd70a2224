"""The outer loop of generative training: batches, checkpoints, health checks and restarts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key
import numpy as np

from jaxpurify import checkpoint, loop
from jaxpurify.train.batches import epoch_order, steps_per_epoch
from jaxpurify.train.state import TrainingDiverged
from jaxpurify.types import StoredImages

MAX_RESTARTS = 3


def run(
    step: Callable,
    state: Any,
    images: StoredImages,
    key: Key[Array, ""],
    *,
    steps: int,
    batch_size: int,
    unhealthy: Callable[[dict[str, np.ndarray]], str | None],
    retreat: Callable[[Any], Any],
    interval: int = 100,
    directory: Path | str | None = None,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
) -> tuple[Any, dict[str, np.ndarray]]:
    """Takes `steps` training steps; a killed run continues from its last checkpoint, bit for bit on one device.

    Args:
      step: `(state, key, rows, images) -> (state, metrics)`; `key` belongs to the step, `rows` [B] to its batch.
      state: a pytree with the leaves `step` (steps taken) and `restarts`.
      images: uint8 [N, H, W, C], kept on the device.
      key: consumed; batches and noise are functions of (key, restarts, step).
      unhealthy: metrics of one interval to what is wrong with them, or None.
      retreat: changes the last good state before it is tried again (a lower learning rate).
      interval: steps between health checks, checkpoints and calls of `progress`.
      directory: where checkpoints go; None keeps the last good state in memory only.
      progress: called with (steps taken, all steps, means of the last interval).

    Returns:
      The last state and the history: the mean of each metric over each interval.

    Raises:
      TrainingDiverged: still unhealthy after the retries; names the step and the last good checkpoint.
    """
    state = jax.tree.map(jnp.array, state)
    if directory is not None and checkpoint.steps(directory):
        state = checkpoint.restore(directory, checkpoint.steps(directory)[-1], state)
    data = jax.device_put(images)
    per_epoch = steps_per_epoch(len(images), batch_size)
    good, history, order, epoch = state, [], None, -1
    taken = int(state.step)
    while taken < steps:
        stream = jax.random.fold_in(key, np.uint32(good.restarts))
        metrics = []
        end = min(taken + interval, steps)
        state = jax.tree.map(jnp.copy, good)  # the step may donate its state
        for number in range(taken, end):
            if order is None or epoch != number // per_epoch:
                epoch = number // per_epoch
                order = epoch_order(stream, np.uint32(epoch), len(images), batch_size)
            noise = jax.random.fold_in(stream, np.uint32(number))
            state, row = loop.call(step, state, noise, order[number % per_epoch], data)
            metrics.append(row)
        rows = jax.tree.map(lambda *values: np.array(values), *jax.device_get(metrics))
        problem = unhealthy(rows)
        if problem is not None:
            if int(good.restarts) >= MAX_RESTARTS:
                saved = directory is not None and taken > 0
                kept = f"last good checkpoint: step {taken} in {directory}" if saved else "no checkpoint was kept"
                raise TrainingDiverged(f"training diverged between steps {taken} and {end}: {problem}; {kept}")
            good, order = retreat(good), None
            continue
        good, taken = state, end
        history.append({name: values.mean() for name, values in rows.items()})
        if directory is not None:
            checkpoint.save(directory, taken, good)
        if progress is not None:
            progress(taken, steps, history[-1])
    names = history[0] if history else {}
    return good, {name: np.array([row[name] for row in history]) for name in names}
