"""The two optimisers of poisoning attacks that take the sign of a gradient and call themselves Adam."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Rate = float | jax.Array | Callable[[Any], Any]


def sign_then_adam(
    learning_rate: Rate, *, b1: float = 0.9, b2: float = 0.999, epsilon: float = 1e-8
) -> optax.GradientTransformation:
    """Adam on the sign of the gradient (Witches' Brew, arXiv:2009.02276, published code).

    s = sign(g), sign(0) = 0; m, v: Adam's moments of s; update = -learning_rate · m̂ / (√v̂ + epsilon). The first
    update is exactly -learning_rate · s.

    Args:
      learning_rate: a number, or a schedule from the number of steps taken so far.
      b1, b2, epsilon: Adam's.

    Warning: not the optimiser of `signed_adam`, which takes the sign after the moments.
    """
    return optax.chain(
        optax.stateless(lambda updates, _: jax.tree.map(jnp.sign, updates)),
        optax.scale_by_adam(b1=b1, b2=b2, eps=epsilon),
        optax.scale_by_learning_rate(learning_rate),
    )


def signed_adam(
    learning_rate: Rate, *, b1: float = 0.9, b2: float = 0.999, epsilon: float = 1e-8
) -> optax.GradientTransformation:
    """The sign of Adam's direction (Bullseye Polytope, arXiv:2005.00191, published code).

    m, v: Adam's moments of g; update = -learning_rate · √(1 - b2^t) / (1 - b1^t) · sign(m / (√v + epsilon)),
    t = 1, 2, …: the bias correction scales the step, it does not enter the sign.

    Args:
      learning_rate: a number, or a schedule from the number of steps taken so far.
      b1, b2, epsilon: Adam's.

    Warning: the first step is 0.316 of the learning rate with the usual b1 and b2, and steps grow from the second
    one on: unlike in `sign_then_adam`.
    """
    return optax.chain(_signed_direction(b1, b2, epsilon), optax.scale_by_learning_rate(learning_rate))


class _Moments(NamedTuple):
    count: jax.Array  # shape=(), dtype=int32
    first: Any
    second: Any


def _signed_direction(b1: float, b2: float, epsilon: float) -> optax.GradientTransformation:
    def init(params):
        return _Moments(jnp.zeros((), jnp.int32), optax.tree.zeros_like(params), optax.tree.zeros_like(params))

    def update(updates, state, params=None):
        del params
        gradient = updates
        count = state.count + 1
        first = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.first, gradient)
        second = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.second, gradient)
        steps = count.astype(jnp.float32)
        scale = jnp.sqrt(1 - b2**steps) / (1 - b1**steps)
        # m / (√v + ε) has the sign of m wherever it does not underflow; the published form is kept.
        updates = jax.tree.map(lambda m, v: scale * jnp.sign(m / (jnp.sqrt(v) + epsilon)), first, second)
        return updates, _Moments(count, first, second)

    return optax.GradientTransformation(init, update)


def milestones(steps: int) -> tuple[int, int, int]:
    """The steps from which the published schedule divides the rate by 10: 93, 156 and 218 of 250."""
    return int(steps // 2.667), int(steps // 1.6), int(steps // 1.142)


def decayed(learning_rate: float | jax.Array, steps: int, *, decay: bool = True) -> Callable[[Any], Any]:
    """The published schedule: `learning_rate`, a tenth of it from each of the `milestones(steps)` on."""
    boundaries = milestones(steps) if decay else ()

    def schedule(count):
        passed = sum((jnp.asarray(count) >= boundary).astype(jnp.float32) for boundary in boundaries)
        return learning_rate * 0.1 ** jnp.asarray(passed, jnp.float32)

    return schedule


def project(delta: Any, images: Any, epsilon: Any, low: Any = 0.0, high: Any = 1.0) -> Any:
    """`delta` within [-epsilon, epsilon] first, then such that `images + delta` is within [low, high].

    Args:
      delta, images: arrays of one shape, or shapes that broadcast without a new axis.
      epsilon, low, high: scalars, or arrays of the same rank (one bound a channel for normalised images).
    """
    delta = jnp.clip(delta, -epsilon, epsilon)
    return jnp.clip(delta, low - images, high - images)
