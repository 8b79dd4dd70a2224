"""Which images make up which batch, as a pure function of the key and the epoch."""

import jax
from jaxtyping import Array, Int, Key

from jaxpurify.random import named


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Full batches in `count` images; the incomplete last one is left out.

    Raises:
      ValueError: fewer images than one batch.
    """
    if count < batch_size:
        raise ValueError(f"{count} training images are fewer than one batch of {batch_size}")
    return count // batch_size


@jax.jit(static_argnums=(2, 3))
def epoch_orders(keys: Key[Array, "runs"], epoch, count: int, batch_size: int) -> Int[Array, "runs steps batch"]:
    """`epoch_order` for each of several keys."""
    return jax.vmap(lambda key: epoch_order(key, epoch, count, batch_size))(keys)


@jax.jit(static_argnums=(2, 3))
def epoch_order(key: Key[Array, ""], epoch, count: int, batch_size: int) -> Int[Array, "steps batch"]:
    """A fresh order of all images for one epoch, cut into full batches; `key` is folded with `epoch`."""
    steps = count // batch_size
    order = jax.random.permutation(jax.random.fold_in(named(key, "order"), epoch), count)
    return order[: steps * batch_size].reshape(steps, batch_size)
