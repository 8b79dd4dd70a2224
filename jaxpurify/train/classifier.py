"""Training one classifier: data on the device, one transfer to the host an epoch."""

from collections.abc import Callable
import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Integer, Key
import numpy as np
import optax

from jaxpurify import loop
from jaxpurify.data.image import to_float
from jaxpurify.networks.freeze import Frozen, class_count, freeze
from jaxpurify.random import image_keys, named
from jaxpurify.sharding import BATCH_AXES, on_shares, replicate, shard
from jaxpurify.struct import as_operand
from jaxpurify.train.batches import epoch_order, steps_per_epoch
from jaxpurify.train.schedule import sgd
from jaxpurify.train.settings import check_above_zero, check_least
from jaxpurify.train.state import TrainingDiverged, TrainState, create_state, update
from jaxpurify.types import StoredImages


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a classifier is trained; one value serves every victim of a table.

    Attributes:
      epochs, batch_size: passes over the data; images a step. The last, incomplete batch of an epoch is left out.
      learning_rate: peak of the schedule.
      momentum, weight_decay: of SGD; the decay is added to the gradient.
      schedule: a name of `train.schedule.SCHEDULES`: `triangular`, `multistep`, `multistep80`, `multistep60`, `cosine`.
      label_smoothing: share of each label that is spread evenly over all classes, in [0, 1).
      dtype: `float32` or `bfloat16`, the type of activations; parameters and statistics stay float32.
      nesterov: whether the momentum is Nesterov's.
    """

    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "triangular"
    label_smoothing: float = 0.0
    dtype: str = "float32"
    nesterov: bool = True

    def __post_init__(self):
        check_least(self, epochs=1, batch_size=1, momentum=0, weight_decay=0)
        check_above_zero(self, "learning_rate")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing={self.label_smoothing}; it must be in [0, 1)")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype={self.dtype!r}; known: float32, bfloat16")

    def optimizer(self, count: int) -> optax.GradientTransformation:
        """The optimizer for `count` training images."""
        steps = self.epochs * steps_per_epoch(count, self.batch_size)
        return sgd(self.schedule, steps, self.learning_rate, self.momentum, self.weight_decay, self.nesterov)


def train_classifier(
    model: nnx.Module,
    images: StoredImages,
    labels: Integer[np.ndarray, "_"],
    key: Key[Array, ""],
    *,
    recipe: Recipe,
    augment: Callable | None = None,
    adversary: Callable | None = None,
    mesh: Mesh | None = None,
    stop_after: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Frozen, dict[str, np.ndarray]]:
    """Trains `model` on stored images by SGD; the module itself is left as it was.

    Args:
      model: freshly made classifier, images [B, H, W, C] in [0, 1] to logits [B, classes].
      images: uint8 [N, H, W, C], kept on the device.
      labels: [N], 0 … classes-1.
      key: consumed; orders each epoch and, per image and epoch, draws the augmentation.
      recipe: lengths, rates and types.
      augment: keys [B] and images [B, H, W, C] to augmented images, or None.
      adversary: the classifier of the moment in evaluation mode, keys [B], augmented images and labels [B] to the
        images that are trained on instead, such as `defend.ProjectedGradient`; hashable, or None.
      mesh: splits every batch over these devices, with the statistics of the whole batch; None: one device.
      stop_after: epochs, 0 to all, after which training stops although its schedule is made for all; None: all.
      progress: called with (finished epochs, all epochs).

    Returns:
      The trained classifier in evaluation mode, and the history: `loss` and `accuracy` of each epoch on the
      augmented (and adversarial) training images.

    Raises:
      TrainingDiverged: the loss of an epoch is not finite.
      ValueError: fewer images than one batch, labels that are not one an image or no classes of the model, a batch that
        the devices cannot share evenly, or a `stop_after` that is no number of the recipe's epochs.
    """
    epochs = recipe.epochs if stop_after is None else stop_after
    if not 0 <= epochs <= recipe.epochs:
        raise ValueError(f"stop_after={stop_after}; it must be 0 to the recipe's {recipe.epochs} epochs")
    if mesh is not None and recipe.batch_size % mesh.size:
        raise ValueError(f"batch_size={recipe.batch_size} is no multiple of the {mesh.size} devices")
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"images are {images.dtype} {images.shape}; stored images must be uint8 [N, H, W, C]")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"labels have the shape {labels.shape} for {len(images)} images; give one of each an image")
    check_labels(model, images.shape[1:], labels)
    augment = as_operand(augment)
    optimizer = recipe.optimizer(len(images))
    graphdef, state = create_state(model, optimizer)
    step = ClassifierStep(graphdef, optimizer, recipe.label_smoothing, recipe.dtype, mesh, adversary)
    data = jax.device_put((images, labels.astype(np.int32)))
    if mesh is not None:
        state, data, augment = replicate(mesh, (state, data, augment))
    history = []
    for epoch in range(epochs):
        order = epoch_order(key, np.uint32(epoch), len(images), recipe.batch_size)
        noise = augmentation_key(key, np.uint32(epoch))
        if mesh is not None:
            order, noise = shard(mesh, order, None, BATCH_AXES), replicate(mesh, noise)
        state, metrics = loop.scan(step, state, len(order), order, noise, *data, augment)
        history.append(checked(jax.device_get(metrics), epoch))
        if progress is not None:
            progress(epoch + 1, epochs)
    if mesh is not None:  # copies on all devices would make each of them compute every prediction
        state = jax.device_put(jax.device_get(state))
    names = ("loss", "accuracy")
    return frozen_classifier(graphdef, state), {name: np.array([row[name] for row in history]) for name in names}


def check_labels(model: nnx.Module, shape: tuple[int, ...], labels: Integer[np.ndarray, "..."]) -> None:
    """Raises `ValueError` unless all `labels` are classes of `model`, which takes images of `shape` [H, W, C]."""
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels are {labels.dtype}; they must be whole numbers")
    classes = class_count(freeze(model), shape)
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"labels span {labels.min()} … {labels.max()}; the model has the classes 0 … {classes - 1}")


def frozen_classifier(graphdef: nnx.GraphDef, state: TrainState) -> Frozen:
    """The classifier of a training state, in evaluation mode."""
    return freeze(nnx.merge(graphdef, state.params, state.model_state))


@dataclasses.dataclass(frozen=True)
class ClassifierStep:
    """One SGD step on one batch; equal for equal settings, so that it compiles once."""

    graphdef: nnx.GraphDef
    optimizer: optax.GradientTransformation
    label_smoothing: float
    dtype: str
    mesh: Mesh | None = None
    adversary: Callable | None = None

    def __call__(self, state: TrainState, index, order, key, images, labels, augment):
        rows = order[index]
        if self.mesh is None:
            return self._step(rows, state, key, images, labels, augment)
        # Left to the compiler, a batch that a convolution cuts into pieces would travel between devices.
        return on_shares(self.mesh, self._step, rows, state, key, images, labels, augment)

    def _step(self, rows, state, key, images, labels, augment):
        batch, target = to_float(images[rows]), labels[rows]
        if augment is not None:
            batch = augment(image_keys(key, rows), batch)
        if self.adversary is not None:
            classifier, keys = frozen_classifier(self.graphdef, state), image_keys(named(key, "adversary"), rows)
            batch = self.adversary(classifier, keys, batch, target)

        def loss(model):
            logits = model(batch.astype(self.dtype)).astype(jnp.float32)
            return self._mean(cross_entropy(logits, target, self.label_smoothing)), logits

        state, value, logits = update(state, self.graphdef, self.optimizer, loss)
        return state, {"loss": value, "accuracy": self._mean(logits.argmax(-1) == target)}

    def _mean(self, values):
        """The mean over the whole batch."""
        mean = values.mean()
        return mean if self.mesh is None else jax.lax.pmean(mean, BATCH_AXES)


def cross_entropy(logits: Array, labels: Array, label_smoothing: float = 0.0) -> Array:
    """Cross-entropy [B] of logits [B, K] against labels [B], a share of them spread over all classes."""
    log_probability = jax.nn.log_softmax(logits)
    of_label = jnp.take_along_axis(log_probability, labels[:, None], -1)[:, 0]
    return -(1 - label_smoothing) * of_label - label_smoothing * log_probability.mean(-1)


@jax.jit
def augmentation_key(key: Key[Array, ""], epoch) -> Key[Array, ""]:
    """The key of one epoch's augmentation."""
    return jax.random.fold_in(named(key, "augment"), epoch)


def checked(metrics: dict[str, np.ndarray], epoch: int) -> dict[str, np.ndarray]:
    """The means over an epoch of metrics [steps, …]; raises `TrainingDiverged` where the loss is not finite."""
    row = {name: np.asarray(values.mean(0)) for name, values in metrics.items()}
    if not np.isfinite(row["loss"]).all():
        raise TrainingDiverged(f"the loss became {row['loss']} in epoch {epoch + 1}; lower the learning rate")
    return row
