"""The gradient, for the images, of a function of the gradient for the parameters.

With p(δ) = ∇_θ L(θ, x + δ), a loss Φ(p) and v = ∂Φ/∂p, symmetry of second derivatives gives

    ∇_δ Φ(p(δ)) = d/dτ ∇_δ L(θ + τ v, x + δ) at τ = 0,

the derivative of an ordinary input gradient in one direction of parameter space: forward mode over reverse mode, the
price of a bit more than two input gradients, and nothing of the parameters' size is kept per image. Where rows do not
see each other (batch normalisation with running statistics), L is a mean over rows, and both p and this derivative
fall into micro-batches: the exact loss over all rows with the memory of a few.
"""

from collections.abc import Callable
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

from jaxpurify import loop
from jaxpurify.types import PyTree

Scalar = Float[Array, ""]
Delta = Float[Array, "rows *image"]
# (params, delta [B, H, W, C], rows with leading axis B) to one loss a row [B]; a callable pytree.
RowLosses = Callable[[PyTree, Delta, PyTree], Float[Array, "batch"]]
Objective = Callable[[PyTree], Scalar]
# (delta [B, …], rows with leading axis B) to [B, …]; a callable pytree.
RowFunction = Callable[[Delta, PyTree], Float[Array, "batch *output"]]


def two_pass(
    row_losses: RowLosses,
    params: PyTree,
    delta: Delta,
    rows: PyTree,
    objective: Objective,
    *,
    micro_batch: int | None = None,
    loss_weight: float | Scalar = 0.0,
    axes: tuple[str, ...] = (),
) -> tuple[Scalar, Delta]:
    """Φ(p) + λ L and its gradient for `delta`, exact over all rows, a micro-batch at a time.

    The first pass sums p over the micro-batches, v = ∂Φ/∂p follows once, the second pass takes the derivative of each
    micro-batch's input gradient along v. Nothing passes between rows but p, so that rows split over devices need one
    sum of gradients. Where the compiler splits them (`sharding.shard`), micro-batches take rows of every device.

    Args:
      row_losses: L's terms, one a row; no row may depend on another one. A callable pytree.
      params: the parameters θ, a tree of floats.
      delta: what is differentiated for, [P, …].
      rows: whatever else `row_losses` reads of each row, leaves with leading axis P.
      objective: Φ, from a tree like `params` to a number; traced once.
      micro_batch: rows in memory at a time; None: all.
      loss_weight: λ of the additional term λ L ("centreg").
      axes: mesh axes, inside an unchecked `shard_map`, over whose devices the rows are split evenly; `delta` and `rows`
        are this device's, and so are the micro-batches.

    Raises:
      ValueError: `micro_batch` below 1.
    """
    batches = _Batches(len(delta), micro_batch)
    split = batches.split((delta, rows))

    operands = (row_losses, params, split, batches.weights(delta.dtype))
    start = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    (loss, poison), _ = _scan(_first_pass, start, batches.count, *operands)
    loss, poison = jax.lax.pmean((loss, poison), axes)
    value, direction = jax.value_and_grad(objective)(poison)
    _, gradients = _scan(_second_pass, (), batches.count, *operands, direction, jnp.asarray(loss_weight))
    return value + loss_weight * loss, batches.join(gradients) / jax.lax.axis_size(axes)


def reverse_over_reverse(
    row_losses: RowLosses,
    params: PyTree,
    delta: Delta,
    rows: PyTree,
    objective: Objective,
    *,
    loss_weight: float | Scalar = 0.0,
) -> tuple[Scalar, Delta]:
    """The same value and gradient by differentiating twice in reverse, with all rows at once.

    For models whose rows see each other (batch normalisation in train mode). About 3 to 4 times the memory of the
    second pass of `two_pass`.
    """

    def whole(delta):
        loss, poison = jax.value_and_grad(lambda params: row_losses(params, delta, rows).mean())(params)
        return objective(poison) + loss_weight * loss

    return jax.value_and_grad(whole)(delta)


def summed_gradient(
    row_losses: RowLosses, params: PyTree, delta: Delta, rows: PyTree, *, micro_batch: int | None = None
) -> tuple[Scalar, PyTree]:
    """The mean loss and p, its gradient for the parameters, a micro-batch at a time (the first pass alone)."""
    batches = _Batches(len(delta), micro_batch)
    start = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    operands = (row_losses, params, batches.split((delta, rows)), batches.weights(delta.dtype))
    return _scan(_first_pass, start, batches.count, *operands)[0]


def apply_rows(
    function: RowFunction, delta: Delta, rows: PyTree, *, micro_batch: int | None = None
) -> tuple[Float[Array, "rows *output"], Callable[[Any], Delta]]:
    """`function(delta, rows)`, and what pulls a gradient for that back to one for `delta`, a micro-batch at a time.

    It keeps a part of the objective that runs no network of the parameters' out of the two passes: a purifier is then
    differentiated once, in reverse only, and once for all members of an ensemble.

    Args:
      function: a callable pytree from (delta [B, …], rows) to numbers [B, …]; no row may depend on another one.
      delta, rows, micro_batch: as in `two_pass`. In micro-batches `function` is computed again where it is pulled back.
    """
    batches = _Batches(len(delta), micro_batch)
    if batches.count == 1:
        output, pull = jax.vjp(lambda delta: function(delta, rows), delta)
        return output, lambda gradient: pull(gradient)[0]
    split = batches.split((delta, rows))
    _, output = _scan(_apply, (), batches.count, function, split)

    def pull_back(gradient):
        _, gradients = _scan(_pull_back, (), batches.count, function, split, batches.split(gradient))
        return batches.join(gradients)

    return batches.join(output), pull_back


class _Batches:
    """P rows in `count` micro-batches of equal size; rows beyond P repeat others with weight 0."""

    def __init__(self, rows: int, micro_batch: int | None):
        if micro_batch is not None and micro_batch < 1:
            raise ValueError(f"micro_batch is {micro_batch}; it must be at least 1, or None for all rows at once")
        self.rows = rows
        self.count = 1 if micro_batch is None else math.ceil(rows / micro_batch)
        self.size = math.ceil(rows / self.count)

    def split(self, tree: PyTree) -> PyTree:
        """Leaves [P, …] as [count, size, …]; micro-batch j holds the rows j, j + count, …: some of every device."""
        return jax.tree.map(self._split, tree)

    def _split(self, leaf):
        if self.count == 1:
            return leaf[None]
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            # As numbers: the check for keys that are used twice takes a transposition for a use.
            return jax.random.wrap_key_data(self._split(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        if self.count * self.size > self.rows:
            leaf = leaf[jnp.arange(self.count * self.size) % self.rows]
        return leaf.reshape(self.size, self.count, *leaf.shape[1:]).swapaxes(0, 1)

    def weights(self, dtype: Any) -> Float[Array, "count size"]:
        """1/P for each row, 0 for the repeated ones."""
        row = jnp.arange(self.size)[None] * self.count + jnp.arange(self.count)[:, None]
        return (row < self.rows).astype(dtype) / self.rows

    def join(self, gradients: Float[Array, "count size *image"]) -> Delta:
        """What `split` made of [P, …], back in its order."""
        return gradients.swapaxes(0, 1).reshape(-1, *gradients.shape[2:])[: self.rows]


def _scan(step, state, count, *operands) -> tuple[Any, Any]:
    """`loop.scan` over the micro-batches; a single one needs no loop."""
    if count > 1:
        return loop.scan(step, state, count, *operands)
    state, output = step(state, jnp.uint32(0), *operands)
    return state, None if output is None else output[None]


def _first_pass(state, index: UInt32[Array, ""], row_losses, params, split, weights):
    (delta, rows), weight = jax.tree.map(lambda leaf: leaf[index], (split, weights))
    loss, gradient = jax.value_and_grad(lambda params: (row_losses(params, delta, rows) * weight).sum())(params)
    return jax.tree.map(jnp.add, state, (loss, gradient)), None


def _second_pass(state, index: UInt32[Array, ""], row_losses, params, split, weights, direction, loss_weight):
    (delta, rows), weight = jax.tree.map(lambda leaf: leaf[index], (split, weights))

    def input_gradient(params):
        return jax.grad(lambda delta: (row_losses(params, delta, rows) * weight).sum())(delta)

    gradient, along = jax.jvp(input_gradient, (params,), (direction,))
    return state, along + loss_weight * gradient


def _apply(state, index: UInt32[Array, ""], function, split):
    return state, function(*jax.tree.map(lambda leaf: leaf[index], split))


def _pull_back(state, index: UInt32[Array, ""], function, split, gradients):
    (delta, rows), gradient = jax.tree.map(lambda leaf: leaf[index], (split, gradients))
    _, pull = jax.vjp(lambda delta: function(delta, rows), delta)
    return state, pull(gradient)[0]
