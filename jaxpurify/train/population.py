"""Several victims trained as one program: other seeds, other poisons, the same network and recipe."""

from collections.abc import Callable, Sequence
import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Integer, Key, UInt8
import numpy as np

from jaxpurify import loop
from jaxpurify.networks.freeze import Frozen
from jaxpurify.sharding import replicate, shard
from jaxpurify.struct import as_operand
from jaxpurify.train.batches import epoch_orders
from jaxpurify.train.classifier import (
    ClassifierStep,
    Recipe,
    augmentation_key,
    check_labels,
    checked,
    frozen_classifier,
)
from jaxpurify.train.state import create_state


def train_population(
    models: Sequence[nnx.Module],
    images: UInt8[np.ndarray, "victims count height width channels"],
    labels: Integer[np.ndarray, "_ _"],
    keys: Key[Array, "victims"],
    *,
    recipe: Recipe,
    augment: Callable | None = None,
    mesh: Mesh | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Frozen], dict[str, np.ndarray]]:
    """Trains R victims of one network side by side; each becomes what `train_classifier` would make of it.

    Args:
      models: R freshly made modules of the same structure.
      images: uint8 [R, N, H, W, C], the training set of each; a set that all share can be a broadcast view.
      labels: [R, N].
      keys: R keys, consumed; as in `train_classifier`.
      recipe, augment: as in `train_classifier`.
      mesh: its `replica` axis splits the victims, its `data` axis every batch; None: one device.
      progress: called with (finished epochs, all epochs).

    Returns:
      The R classifiers in evaluation mode, and the history: `loss` and `accuracy` [epochs, R].

    Raises:
      TrainingDiverged: the loss of one of the victims is not finite.
      ValueError: different numbers of models, sets and keys, models of different structure, labels that are not one
        an image or no classes of the models, fewer images than one batch, or a mesh that does not divide victims and
        batch.
    """
    count = images.shape[1]
    if not len(models) == len(images) == len(labels) == len(keys) or not models:
        raise ValueError(f"{len(models)} models, {len(images)} image sets, {len(labels)} label sets, {len(keys)} keys")
    if images.dtype != np.uint8 or images.ndim != 5:
        raise ValueError(f"images are {images.dtype} {images.shape}; stored sets must be uint8 [R, N, H, W, C]")
    if labels.shape != images.shape[:2]:
        raise ValueError(f"labels have the shape {labels.shape}, images {images.shape}; give one label an image")
    optimizer = recipe.optimizer(count)
    graphdefs, states = zip(*(create_state(model, optimizer) for model in models), strict=True)
    shapes = [jax.tree.map(jnp.shape, state) for state in states]
    if any(graphdef != graphdefs[0] for graphdef in graphdefs) or any(shape != shapes[0] for shape in shapes):
        raise ValueError("the models of a population differ in structure; they must be the same network")
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    augment = as_operand(augment)
    check_labels(models[0], images.shape[2:], labels)
    shared = images.strides[0] == 0  # one set for all, kept once
    step = PopulationStep(ClassifierStep(graphdefs[0], optimizer, recipe.label_smoothing, recipe.dtype), shared)
    images, labels = np.ascontiguousarray(images[0] if shared else images), labels.astype(np.int32)
    if mesh is None:
        data = jax.device_put((images, labels))
    else:
        state, keys, labels = _shard(mesh, (state, keys, labels))
        data = (replicate(mesh, images) if shared else _shard(mesh, images), labels)
    history = []
    for epoch in range(recipe.epochs):
        order = epoch_orders(keys, np.uint32(epoch), count, recipe.batch_size)
        noise = jax.vmap(augmentation_key, (0, None))(keys, np.uint32(epoch))
        if mesh is not None:
            noise, augment = _shard(mesh, noise), replicate(mesh, augment)
            order = shard(mesh, order, "replica", None, "data")
        state, metrics = loop.scan(step, state, order.shape[1], order, noise, *data, augment)
        history.append(checked(jax.device_get(metrics), epoch))
        if progress is not None:
            progress(epoch + 1, recipe.epochs)
    if mesh is not None:  # else all devices would compute every prediction of every victim
        state = jax.device_get(state)
    victims = [frozen_classifier(graphdefs[0], jax.device_put(_one_of(state, victim))) for victim in range(len(keys))]
    return victims, {name: np.stack([row[name] for row in history]) for name in history[0]}


@dataclasses.dataclass(frozen=True)
class PopulationStep:
    """The step of every victim of a population, each on its own order and key, and on its own images or shared ones."""

    step: ClassifierStep
    shared: bool

    def __call__(self, state, index, order, key, images, labels, augment):
        def one(state, order, key, images, labels):
            return self.step(state, index, order, key, images, labels, augment)

        return jax.vmap(one, (0, 0, 0, None if self.shared else 0, 0))(state, order, key, images, labels)


def _one_of(states, victim):
    return jax.tree.map(lambda leaf: leaf[victim], states)


def _shard(mesh, tree):
    return shard(mesh, tree, "replica")
