"""Victims that start from a trained network: a new linear layer on its frozen features, or all of it fine-tuned."""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Integer, Key
import numpy as np
import optax

from jaxpurify.networks.freeze import Frozen
from jaxpurify.networks.layers import Linear
from jaxpurify.random import named
from jaxpurify.struct import struct
from jaxpurify.train.batches import steps_per_epoch
from jaxpurify.train.classifier import Recipe, train_classifier
from jaxpurify.train.heads import embed, train_heads
from jaxpurify.train.schedule import adam
from jaxpurify.types import Images, Logits, PyTree, StoredImages


@struct
class LinearVictim:
    """A linear layer on frozen features: images [B, H, W, C] in [0, 1] to logits, `features(x) @ weight + bias`.

    `features` is a callable pytree, such as `Frozen.features`; `weight` [F, classes], `bias` [classes].
    """

    features: PyTree
    weight: Float[Array, "features classes"]
    bias: Float[Array, "classes"]

    def __call__(self, images: Images) -> Logits:
        return self.features(images) @ self.weight + self.bias[None]


def linear_transfer(
    model: Frozen,
    images: StoredImages,
    labels: Integer[np.ndarray, "count"],
    key: Key[Array, ""],
    *,
    classes: int,
    features: Float[np.ndarray, "count features"] | None = None,
    **options: Any,
) -> tuple[LinearVictim, dict[str, np.ndarray]]:
    """A new linear layer on the frozen features of `model`: the victim of transfer-learning attacks.

    Args:
      model: a trained network; its own linear layer is not used.
      images: the training set, uint8 [N, H, W, C], not augmented.
      labels: [N], 0 … classes-1.
      key: consumed: first weights and order.
      classes: how many logits.
      features: what `embed(model.features, images)` gave, to save the time; None: it is computed.
      **options: as in `train_heads`.

    Returns:
      The classifier, and the history of `train_heads` [epochs].
    """
    cached = embed(model.features, images) if features is None else features
    heads, history = train_heads(cached, labels, key.reshape(1), classes=classes, **options)
    victim = LinearVictim(model.features, heads.weight[0], heads.bias[0])
    return victim, {name: values[:, 0] for name, values in history.items()}


@dataclasses.dataclass(frozen=True)
class FineTuning(Recipe):
    """PureGen's fine-tuning (arXiv:2405.18627): Adam instead of SGD; `momentum` and `nesterov` are not used.

    Warning: the published code fine-tunes Bullseye's victims without augmentation and those of Narcissus with crops and
    mirroring.
    """

    epochs: int = 60
    learning_rate: float = 1e-4
    schedule: str = "multistep60"

    def optimizer(self, count: int) -> optax.GradientTransformation:
        """The optimizer for `count` training images."""
        steps = self.epochs * steps_per_epoch(count, self.batch_size)
        return adam(self.schedule, steps, self.learning_rate, self.weight_decay)


def fine_tune(
    model: nnx.Module | Frozen,
    images: StoredImages,
    labels: Integer[np.ndarray, "count"],
    key: Key[Array, ""],
    *,
    recipe: Recipe,
    classes: int | None = None,
    augment: Callable | None = None,
    mesh: Mesh | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Frozen, dict[str, np.ndarray]]:
    """Trains all of a trained network further; batch normalisation uses and moves the statistics of batches.

    Args:
      model: the starting weights, left as they are. A network with its last layer at `linear`.
      images, labels, recipe, augment, mesh, progress: as in `train_classifier`. Published rates are small: 1e-4
        (Bullseye Polytope, arXiv:2005.00191, with Adam), 1e-4 (the framework of arXiv:2102.13624).
      key: consumed: as in `train_classifier`, and the weights of a new last layer.
      classes: None keeps the last layer; a number replaces it by a new one with so many logits.

    Warning: by the header of PureGen's table (arXiv:2405.18627) 10 % of the images of its fine-tuned Bullseye victims
    are poisons; by its appendix and its configuration file 1 %, 5 of 500.

    Raises:
      ValueError: `classes` for a network that has no `linear` layer; otherwise as in `train_classifier`.
    """
    trained: Any = model if isinstance(model, nnx.Module) else nnx.merge(model.graphdef, model.state)
    module: Any = nnx.view(trained, deterministic=False, use_running_average=False, raise_if_not_found=False)
    if classes is not None:
        head = getattr(module, "linear", None)
        if not isinstance(head, Linear) or classes < 1:
            raise ValueError(f"classes is {classes}; it must be at least 1, for a network with a last layer `linear`")
        inputs, use_bias = head.kernel.shape[0], head.bias is not None
        rngs = nnx.Rngs(params=named(key, "head"))
        module.linear = Linear(inputs, classes, use_bias=use_bias, rngs=rngs)
    return train_classifier(module, images, labels, key, recipe=recipe, augment=augment, mesh=mesh, progress=progress)
