"""Learning-rate schedules of the published recipes, and the optimizers built on them."""

from collections.abc import Callable
import functools

import jax.numpy as jnp
import optax


def triangular(steps: int, peak: float, *, start: float = 0.2, peak_at: float = 0.2) -> optax.Schedule:
    """From `start`·peak up to `peak` at the share `peak_at` of all steps, then down to 0, in straight lines."""
    summit = max(1, round(steps * peak_at))
    return optax.join_schedules(
        [optax.linear_schedule(start * peak, peak, summit), optax.linear_schedule(peak, 0.0, max(1, steps - summit))],
        [summit],
    )


def multistep(
    steps: int, peak: float, *, drops: tuple[float, ...] = (0.5, 0.75), factor: float = 0.1
) -> optax.Schedule:
    """Constant, multiplied by `factor` at each share `drops` of all steps."""
    return optax.piecewise_constant_schedule(peak, {round(drop * steps): factor for drop in drops})


def warmup_cosine(steps: int, peak: float, *, warmup: int = 500) -> optax.Schedule:
    """Linear from 0 to `peak` over `warmup` steps (at most half of all), then half a cosine down to 0."""
    warmup = min(warmup, steps // 2)

    def schedule(step):
        step = jnp.asarray(step, jnp.float32)
        progress = jnp.clip((step - warmup) / max(1, steps - warmup), 0.0, 1.0)
        return peak * jnp.where(step < warmup, step / max(1, warmup), (1 + jnp.cos(jnp.pi * progress)) / 2)

    return schedule


SCHEDULES = {
    "triangular": triangular,
    "multistep": multistep,
    # PureGen's shorter training (arXiv:2405.18627): drops at epochs 30, 50 and 70 of 80.
    "multistep80": functools.partial(multistep, drops=(0.375, 0.625, 0.875)),
    # Its fine-tuning: epochs 15, 30 and 45 of 60.
    "multistep60": functools.partial(multistep, drops=(0.25, 0.5, 0.75)),
    "cosine": warmup_cosine,
}


@functools.lru_cache
def adam(schedule: str, steps: int, learning_rate: float, weight_decay: float) -> optax.GradientTransformation:
    """Adam with L2 weight decay added to the gradient, as in PyTorch. Cached and refusing as `sgd`."""
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.adam(_schedule(schedule)(steps, learning_rate)))


@functools.lru_cache
def sgd(
    schedule: str, steps: int, learning_rate: float, momentum: float, weight_decay: float, nesterov: bool = True
) -> optax.GradientTransformation:
    """SGD with (Nesterov) momentum and L2 weight decay added to the gradient, as in PyTorch.

    Cached, because an optimizer is compared by identity and a new one would recompile the training step.

    Raises:
      ValueError: unknown `schedule`.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(_schedule(schedule)(steps, learning_rate), momentum=momentum, nesterov=nesterov),
    )


def _schedule(name: str) -> Callable[[int, float], optax.Schedule]:
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}; known: {', '.join(sorted(SCHEDULES))}")
    return SCHEDULES[name]
