"""The outer loop of generative training: batches, checkpoints, health checks and restarts."""

from collections.abc import Callable
import hashlib
import json
from pathlib import Path
import time
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key
import numpy as np

from jaxpurify import checkpoint, loop
from jaxpurify.destination import replacing
from jaxpurify.train.batches import epoch_order, steps_per_epoch
from jaxpurify.train.state import TrainingDiverged
from jaxpurify.types import StoredImages

MAX_RESTARTS = 3
# A checkpoint is written when this many times the last one's time has passed: large models do not fill the disk.
PAUSE = 50.0
SETTING, HISTORY = "setting.json", "history.jsonl"


def run(
    step: Callable,
    state: Any,
    images: StoredImages,
    key: Key[Array, ""],
    *,
    steps: int,
    batch_size: int,
    unhealthy: Callable[[dict[str, np.ndarray], dict[str, Any] | None], str | None],
    retreat: Callable[[Any], Any],
    recipe: Any = None,
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
      unhealthy: metrics of one interval, and their means over the first one (None in it), to what is wrong, or None.
      retreat: changes the last good state before it is tried again (a lower learning rate).
      recipe: whose text tells apart trainings that would share a `directory`.
      interval: steps between health checks and calls of `progress`.
      directory: where checkpoints and the history go, after intervals, as often as to take 2 % of the time, and at
        the end; None keeps the last good state in memory only.
      progress: called with (steps taken, all steps, means of the last interval).

    Returns:
      The last state and the history: the mean of each metric over each interval.

    Raises:
      TrainingDiverged: still unhealthy after the retries; names the step and the last good checkpoint.
      ValueError: `directory` holds checkpoints of other images, another key or another recipe.
    """
    if images.dtype != np.uint8:
        raise ValueError(f"images are {images.dtype}; stored images must be uint8 [N, H, W, C]")
    state = jax.tree.map(jnp.array, state)
    kept = None if directory is None else _Kept(Path(directory), images, key, recipe)
    if kept is not None:
        state = kept.restored(state)
    data = jax.device_put(images)
    per_epoch = steps_per_epoch(len(images), batch_size)
    good, order, epoch = state, None, -1
    history = [] if kept is None else kept.history
    taken = int(state.step)
    try:
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
            problem = unhealthy(rows, history[0] if history else None)
            if problem is None and not _finite(state):  # metrics are of the state before each update
                problem = "the weights are not finite"
            if problem is not None:
                if int(good.restarts) >= MAX_RESTARTS:
                    saved = kept is not None and taken > 0
                    where = f"last good checkpoint: step {taken} in {directory}" if saved else "no checkpoint was kept"
                    raise TrainingDiverged(f"training diverged between steps {taken} and {end}: {problem}; {where}")
                good, order = retreat(good), None
                continue
            means = {name: float(values.mean()) for name, values in rows.items()}
            history.append({"step": end, **means})
            good, taken = state, end
            if kept is not None and (taken == steps or kept.due()):
                kept.save(taken, good)
            if progress is not None:
                progress(taken, steps, means)
    except BaseException:  # Ctrl-C too: what is finished is not lost
        if kept is not None and taken:
            kept.save(taken, good)
        raise
    names = [name for name in history[0] if name != "step"] if history else []
    return good, {name: np.array([row[name] for row in history], np.float32) for name in names}


@jax.jit
def _finite(state):
    numbers = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.array([jnp.isfinite(leaf).all() for leaf in numbers]).all()


class _Kept:
    """The folder of one training: checkpoints, the history up to the last of them, and whose they are."""

    def __init__(self, directory: Path, images: StoredImages, key: Key[Array, ""], recipe: Any):
        self.directory, self.history = directory, []
        self.saved, self.cost = time.monotonic(), 0.0
        setting = {
            "images": hashlib.sha256(np.ascontiguousarray(images).data).hexdigest(),
            "key": np.asarray(jax.random.key_data(key)).tolist(),
            "recipe": repr(recipe),
        }
        path = directory / SETTING
        if checkpoint.steps(directory):
            known = json.loads(path.read_text()) if path.exists() else {}
            other = [name for name in setting if setting[name] != known.get(name)]
            if other:
                raise ValueError(
                    f"{directory} holds checkpoints of another {', '.join(other)}; remove it or use another"
                )
        else:
            with replacing(path, force=True) as temporary:
                temporary.write_text(json.dumps(setting))

    def restored(self, state: Any) -> Any:
        """The last checkpoint, or `state` where there is none; `history` holds the intervals before it."""
        steps = checkpoint.steps(self.directory)
        if not steps:
            return state
        rows = (self.directory / HISTORY).read_text().splitlines()
        self.history = [row for row in map(json.loads, rows) if row["step"] <= steps[-1]]
        return checkpoint.restore(self.directory, steps[-1], state)

    def due(self) -> bool:
        """Whether the last checkpoint is long enough ago."""
        return time.monotonic() - self.saved >= PAUSE * self.cost

    def save(self, step: int, state: Any) -> None:
        """A checkpoint, and the history before it: rows that are ahead of their checkpoint are passed over."""
        if step in checkpoint.steps(self.directory):
            return
        start = time.monotonic()
        rows = [{name: float(value) for name, value in row.items()} for row in self.history]
        with replacing(self.directory / HISTORY, force=True) as temporary:
            temporary.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        checkpoint.save(self.directory, step, state)
        self.saved = time.monotonic()
        self.cost = self.saved - start
