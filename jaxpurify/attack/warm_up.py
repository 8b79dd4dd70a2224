"""Training a surrogate on one class alone before a trigger is optimised on it, as Narcissus' code does."""

import functools

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Int, Integer, Key, UInt8
import optax

from jaxpurify import loop
from jaxpurify.data.image import to_float
from jaxpurify.struct import static, struct
from jaxpurify.types import PyTree


def class_batch(key: Key[Array, ""], count: int, batch_size: int, step: Integer[Array, ""]) -> Int[Array, "batch"]:
    """Places of the images of step `step` among `count`: whole batches, in a new order for every pass."""
    batches = count // batch_size
    order = jax.random.permutation(jax.random.fold_in(key, step // batches), count)
    return lax.dynamic_slice_in_dim(order, (step % batches) * batch_size, batch_size)


def warm_up(
    apply: PyTree,
    params: PyTree,
    key: Key[Array, ""],
    images: UInt8[Array, "count height width channels"],
    label: int,
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int,
) -> PyTree:
    """`params` after `epochs` passes over `images` as examples of `label`, by RAdam on the mean cross-entropy.

    Args:
      apply: the surrogate, `(params, images [B, H, W, C] in [0, 1]) -> logits`, a callable pytree.
      params: what is trained; its leaves are floating-point arrays.
      key: draws the order of the batches; consumed.
      images: stored, of one class.
      label: the output that they are to have.
      epochs: passes; 0 leaves `params` as they are.
      learning_rate: of RAdam (published: 0.1).
      batch_size: images a step, at most all of them; what is left of a pass is not used.
    """
    if not epochs:
        return params
    task = _WarmUp(apply, key, images, jnp.int32(label), jnp.float32(learning_rate), batch_size)
    state = params, optax.radam(learning_rate).init(params)
    return loop.repeat(_step, state, epochs * (len(images) // batch_size), task)[0]


@struct
class _WarmUp:
    apply: PyTree
    key: Key[Array, ""]
    images: UInt8[Array, "count height width channels"]
    label: Array
    learning_rate: Array
    batch_size: int = static()


def _step(state, index, task):
    params, moments = state
    chosen = class_batch(task.key, len(task.images), task.batch_size, index)
    seen = to_float(task.images[chosen])
    gradient = jax.grad(functools.partial(_loss, task))(params, seen)
    updates, moments = optax.radam(task.learning_rate).update(gradient, moments, params)
    return optax.apply_updates(params, updates), moments


def _loss(task, params, seen):
    logits = task.apply(params, seen)
    wanted = jnp.full(logits.shape[:1], task.label)
    return optax.softmax_cross_entropy_with_integer_labels(logits, wanted).mean()
