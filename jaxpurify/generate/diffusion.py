"""Training a noise predictor on the low-noise end of the schedule (PureGen-DDPM, arXiv:2405.18627)."""

from collections.abc import Callable
import dataclasses
import functools
from pathlib import Path

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key
import numpy as np
import optax

from jaxpurify.data.image import to_float
from jaxpurify.generate.run import run
from jaxpurify.networks.freeze import Frozen, freeze
from jaxpurify.purify.schedule import LINEAR, Schedule
from jaxpurify.random import image_keys, named
from jaxpurify.struct import struct
from jaxpurify.train.schedule import warmup_cosine
from jaxpurify.train.settings import check_above_zero, check_least
from jaxpurify.types import PyTree, StoredImages


@dataclasses.dataclass(frozen=True)
class DiffusionRecipe:
    """How a noise predictor is trained.

    Attributes:
      steps, batch_size: parameter updates; images in each.
      learning_rate, warmup, weight_decay: AdamW, linear warm-up over `warmup` steps, then a cosine to 0.
      max_timestep: only t < max_timestep is trained, so that all capacity goes to restoring images. The published
        250 of 1000 leaves √ᾱ = 0.72: such a model purifies, it cannot generate.
      schedule: of the noise.
      ema_decay: decay of an average of the parameters, which is then what is returned; None (published) for none.
    """

    steps: int = 41_000
    batch_size: int = 256
    learning_rate: float = 1e-4
    warmup: int = 500
    weight_decay: float = 1e-2
    max_timestep: int = 250
    schedule: Schedule = LINEAR
    ema_decay: float | None = None

    def __post_init__(self):
        check_least(self, steps=0, batch_size=1, warmup=0, weight_decay=0)
        check_above_zero(self, "learning_rate")
        if not 1 <= self.max_timestep <= self.schedule.length:
            raise ValueError(f"max_timestep={self.max_timestep}; the schedule accepts 1 to {self.schedule.length}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay}; it must be between 0 and 1, or None")


PUREGEN = DiffusionRecipe()
RECIPES = {"puregen": PUREGEN}


@struct
class DiffusionState:
    """Parameters, their average (None without one), AdamW's moments, steps taken and restarts."""

    params: PyTree
    average: PyTree
    optimizer_state: PyTree
    step: Int[Array, ""]
    restarts: Int[Array, ""]


def train_diffusion(
    model: nnx.Module,
    images: StoredImages,
    key: Key[Array, ""],
    *,
    recipe: DiffusionRecipe | None = None,
    augment: Callable | None = None,
    interval: int = 100,
    directory: Path | str | None = None,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
) -> tuple[Frozen, dict[str, np.ndarray]]:
    """Trains a noise predictor: L = mean (ε(√ᾱ_t x + √(1−ᾱ_t) z, t) − z)², t ~ U{0 … max_timestep − 1}.

    Args:
      model: (noisy images [B, H, W, C] in [-1, 1] units, timesteps [B]) to noise; left as it was.
      images: uint8 [N, H, W, C].
      key: consumed; draws batches, timesteps and noise.
      recipe, augment: settings (default: the published ones); keys and images to augmented images, or None.
      interval, directory, progress: health checks and checkpoints, as in `generate.run.run`.

    Returns:
      The predictor in evaluation mode (of averaged parameters where the recipe has an average), and the history
      by interval: `loss`.

    Raises:
      TrainingDiverged: the loss was not finite, also after restarts at lower learning rates.
      ValueError: fewer images than one batch.
    """
    recipe = DiffusionRecipe() if recipe is None else recipe
    graphdef, params = nnx.split(model)
    params = jax.tree.map(jnp.array, nnx.as_pure(params))
    average = None if recipe.ema_decay is None else jax.tree.map(jnp.copy, params)
    optimizer = diffusion_optimizer(recipe)
    zero = jnp.zeros((), jnp.int32)
    state, history = run(
        DiffusionStep(graphdef, optimizer, recipe, augment),
        DiffusionState(params, average, optimizer.init(params), zero, zero),
        images,
        key,
        steps=recipe.steps,
        batch_size=recipe.batch_size,
        unhealthy=lambda metrics, first: None if np.isfinite(metrics["loss"]).all() else "the loss is not finite",
        retreat=lambda state: dataclasses.replace(state, restarts=state.restarts + 1),
        recipe=recipe,
        interval=interval,
        directory=directory,
        progress=progress,
    )
    chosen = state.params if state.average is None else state.average
    return freeze(nnx.merge(graphdef, chosen)), history


@functools.lru_cache
def diffusion_optimizer(recipe: DiffusionRecipe) -> optax.GradientTransformation:
    """AdamW of the recipe; its updates are halved for every restart by `DiffusionStep`."""
    schedule = warmup_cosine(recipe.steps, recipe.learning_rate, warmup=recipe.warmup)
    return optax.adamw(schedule, weight_decay=recipe.weight_decay)


@dataclasses.dataclass(frozen=True)
class DiffusionStep:
    """One update; equal for equal settings, so that it compiles once."""

    graphdef: nnx.GraphDef
    optimizer: optax.GradientTransformation
    recipe: DiffusionRecipe
    augment: Callable | None

    def __call__(self, state: DiffusionState, key, rows, images):
        return _learn(self, state, key, rows, images)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _learn(step: DiffusionStep, state: DiffusionState, key, rows, images):
    recipe = step.recipe
    data = to_float(images[rows])
    if step.augment is not None:
        data = step.augment(image_keys(named(key, "augment"), rows), data)
    timesteps = jax.random.randint(named(key, "timestep"), (len(rows),), 0, recipe.max_timestep)
    fresh = jax.random.normal(named(key, "noise"), data.shape)
    signal = jnp.asarray(recipe.schedule.alpha_bars(), jnp.float32)[timesteps].reshape(-1, 1, 1, 1)
    noisy = jnp.sqrt(signal) * (2 * data - 1) + jnp.sqrt(1 - signal) * fresh

    def objective(params):
        return ((Frozen(params, step.graphdef)(noisy, timesteps) - fresh) ** 2).mean()

    loss, gradient = jax.value_and_grad(objective)(state.params)
    updates, optimizer_state = step.optimizer.update(gradient, state.optimizer_state, state.params)
    scale = 0.5 ** state.restarts.astype(jnp.float32)
    params = optax.apply_updates(state.params, jax.tree.map(lambda update: scale * update, updates))
    average = state.average
    if recipe.ema_decay is not None:
        average = optax.incremental_update(params, average, 1 - recipe.ema_decay)
    return DiffusionState(params, average, optimizer_state, state.step + 1, state.restarts), {"loss": loss}
