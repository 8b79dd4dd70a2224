"""Linear layers on features that were computed once: many seeds and many training sets as one program."""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, Key
import numpy as np
import optax

from jaxpurify import loop
from jaxpurify.data.image import to_float
from jaxpurify.random import named
from jaxpurify.struct import as_operand, static, struct
from jaxpurify.train.batches import epoch_orders
from jaxpurify.train.classifier import checked, cross_entropy
from jaxpurify.train.schedule import multistep
from jaxpurify.types import StoredImages

OPTIMIZERS = ("adam", "sgd")


@struct
class Heads:
    """R linear layers: `weight` [R, F, classes] and `bias` [R, classes]."""

    weight: Float[Array, "heads features classes"]
    bias: Float[Array, "heads classes"]

    def __call__(self, features: Float[Array, "batch features"]) -> Float[Array, "heads batch classes"]:
        """The logits of every head on the same features."""
        return jnp.einsum("bf,rfk->rbk", features, self.weight) + self.bias[:, None]


def embed(features: Callable, images: StoredImages, *, batch_size: int = 500) -> Float[np.ndarray, "count features"]:
    """Features [N, F] of stored images, computed once in batches, float32.

    Args:
      features: images [B, H, W, C] in [0, 1] to features [B, F]: `Frozen.features`, or any callable pytree.
      images: uint8 [N, H, W, C].
      batch_size: images at a time; the last batch is filled up, so that one program serves all.
    """
    if batch_size < 1 or not len(images):
        raise ValueError(f"{len(images)} images in batches of {batch_size}; both must be at least 1")
    batch_size = min(batch_size, len(images))
    function = as_operand(features)
    parts = []
    for start in range(0, len(images), batch_size):
        rows = np.arange(start, start + batch_size) % len(images)
        parts.append(np.asarray(_embed(function, images[rows])))
    return np.concatenate(parts)[: len(images)].astype(np.float32)


def train_heads(
    features: Float[np.ndarray | Array, "count features"],
    labels: Integer[np.ndarray, "count"],
    keys: Key[Array, "heads"],
    *,
    classes: int,
    rows: Integer[np.ndarray, "sets used"] | None = None,
    epochs: int = 60,
    batch_size: int = 64,
    learning_rate: float = 0.1,
    optimizer: str = "adam",
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    drops: tuple[float, ...] = (0.5, 0.75),
) -> tuple[Heads, dict[str, np.ndarray]]:
    """Trains R linear layers on cached features side by side, one seed and one training set each.

    Args:
      features: float32 [N, F]: clean images and the poisons of all experiments.
      labels: [N], 0 … classes-1.
      keys: R keys, consumed: first weights (PyTorch's default) and order of each epoch.
      classes: how many logits.
      rows: [R, n], which rows of `features` make up the training set of each; None: all rows for every head.
      epochs, batch_size: passes, and rows a step; the last, incomplete batch of an epoch is left out.
      learning_rate: multiplied by 0.1 at each share `drops` of all steps.
      optimizer: `"adam"`: 60 epochs from 0.1 with drops at 1/2 and 3/4 (Bullseye Polytope, arXiv:2005.00191);
        `"sgd"` with `momentum`: 40 epochs from 0.01, one drop at 3/4 and decay 2e-4 (the poisoning benchmark,
        arXiv:2006.12557).
      weight_decay: added to the gradient.

    Warning: PureGen (arXiv:2405.18627) prints SGD at 0.1 for its linear transfer, its configuration file says Adam at
    0.1. Both are `epochs=40, batch_size=64, learning_rate=0.1, weight_decay=5e-4, drops=(0.375, 0.625, 0.875)` with
    that `optimizer`; Adam is the default here.

    Returns:
      The heads, and the history: `loss` and `accuracy` [epochs, R].

    Raises:
      ValueError: labels or rows out of range, an unknown optimizer, or counts below 1.
      TrainingDiverged: a loss is not finite.
    """
    rows = np.broadcast_to(np.arange(len(features)), (len(keys), len(features))) if rows is None else rows
    if len(rows) != len(keys) or not rows.size:
        raise ValueError(f"rows are {rows.shape} and keys {len(keys)}; there must be a row of examples for each key")
    if rows.min() < 0 or rows.max() >= len(features):
        raise ValueError(f"rows are {rows.min()} … {rows.max()}; features have rows 0 … {len(features) - 1}")
    if len(labels) != len(features) or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"{len(labels)} labels up to {labels.max()}; {len(features)} below {classes} are needed")
    if epochs < 1 or batch_size < 1:
        raise ValueError(f"epochs={epochs}, batch_size={batch_size}; both must be at least 1")
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer is {optimizer!r}; known: {', '.join(OPTIMIZERS)}")
    used = rows.shape[1]
    batch_size = min(batch_size, used)
    steps = epochs * (used // batch_size)
    step = _HeadStep(_optimizer(optimizer, steps, learning_rate, momentum, weight_decay, drops))
    bound = 1 / np.sqrt(features.shape[1])
    state = _first_heads(keys, features.shape[1], classes, np.float32(bound))
    state = (state, step.optimizer.init(state))
    data = jax.device_put((np.asarray(features, np.float32), labels.astype(np.int32), rows.astype(np.int32)))
    history = []
    for epoch in range(epochs):
        order = epoch_orders(keys, np.uint32(epoch), used, batch_size)
        state, metrics = loop.scan(step, state, order.shape[1], order, *data)
        history.append(checked(jax.device_get(metrics), epoch))
    return state[0], {name: np.stack([row[name] for row in history]) for name in history[0]}


@struct
class _HeadStep:
    """One step of every head on its own batch; equal for equal settings, so that it compiles once."""

    optimizer: optax.GradientTransformation = static()

    def __call__(self, state, index, order, features, labels, rows):
        heads, moments = state
        chosen = jnp.take_along_axis(rows, order[:, index], 1)
        batch, target = features[chosen], labels[chosen]

        def loss(heads):
            logits = jnp.einsum("rbf,rfk->rbk", batch, heads.weight) + heads.bias[:, None]
            losses = jax.vmap(cross_entropy)(logits, target).mean(1)
            return losses.sum(), (losses, (logits.argmax(-1) == target).mean(1))

        (_, (losses, accuracy)), gradient = jax.value_and_grad(loss, has_aux=True)(heads)
        updates, moments = self.optimizer.update(gradient, moments, heads)
        return (optax.apply_updates(heads, updates), moments), {"loss": losses, "accuracy": accuracy}


@functools.lru_cache
def _optimizer(name, steps, learning_rate, momentum, weight_decay, drops) -> optax.GradientTransformation:
    rate = multistep(steps, learning_rate, drops=drops)
    descent = optax.adam(rate) if name == "adam" else optax.sgd(rate, momentum=momentum)
    return optax.chain(optax.add_decayed_weights(weight_decay), descent)


@jax.jit(static_argnums=(1, 2))
def _first_heads(keys, inputs, classes, bound):
    def one(key):
        weight = jax.random.uniform(named(key, "weight"), (inputs, classes), minval=-bound, maxval=bound)
        return weight, jax.random.uniform(named(key, "bias"), (classes,), minval=-bound, maxval=bound)

    return Heads(*jax.vmap(one)(keys))


@jax.jit
def _embed(features, images):
    return features(to_float(images))
