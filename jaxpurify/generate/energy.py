"""Training an energy-based model by contrasting data with Langevin chains (PureGen, arXiv:2405.18627)."""

from collections.abc import Callable
import dataclasses
import functools
from pathlib import Path
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key
import numpy as np
import optax

from jaxpurify import loop
from jaxpurify.data.image import to_float
from jaxpurify.generate.energy_recipe import HILL as HILL
from jaxpurify.generate.energy_recipe import PUREGEN, EnergyRecipe, energy_optimizer
from jaxpurify.generate.energy_recipe import RECIPES as RECIPES
from jaxpurify.generate.run import run
from jaxpurify.networks.freeze import Frozen, freeze
from jaxpurify.purify.langevin import Langevin
from jaxpurify.random import image_keys, named
from jaxpurify.sharding import replicate, shard
from jaxpurify.struct import struct
from jaxpurify.types import Images, PyTree, StoredImages

# How many temperatures the energies of data and chains may be apart, and how many times as far as at first: untrained
# narrow networks are thousands apart, and chains that start from noise are anyway.
APART = {"data": 1000.0, "noise": float("inf")}
_GROWTH = 3.0


@struct
class EnergyState:
    """Parameters, Adam's moments, the bank [S, H, W, C] of chain states, steps taken and restarts."""

    params: PyTree
    optimizer_state: PyTree
    bank: Float[Array, "slots height width channels"]
    step: Int[Array, ""]
    restarts: Int[Array, ""]


def train_energy(
    model: nnx.Module,
    images: StoredImages,
    key: Key[Array, ""],
    *,
    recipe: EnergyRecipe = PUREGEN,
    augment: Callable | None = None,
    interval: int = 100,
    directory: Path | str | None = None,
    mesh: Mesh | None = None,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
) -> tuple[Frozen, dict[str, np.ndarray]]:
    """Trains an energy on clean images: L = [mean E(x⁺) − mean E(x⁻)] / T.

    Each update: x⁺ = data + σ z; draw distinct bank slots; run K Langevin steps from them to x⁻, through which no
    gradient flows; write back each end, or with chance `rejuvenation` x⁺ with another σ of noise; one Adam step.

    Args:
      model: images [B, H, W, C] in [0, 1] to energies [B]; left as it was.
      images: uint8 [N, H, W, C].
      key: consumed; draws batches, noise, slots and chains.
      recipe, augment: settings; keys and images to augmented images, or None.
      interval, directory, progress: health checks and checkpoints, as in `generate.run.run`.
      mesh: on CPU, devices that share the chains; results stay the same to the last bit. The update itself is one
        device's. None, and on GPU and TPU, where a step is one program: one device.

    Returns:
      The energy in evaluation mode, and the history by interval: `loss`, `gap` (mean E(x⁺) − mean E(x⁻)),
      `drift` (length of the gradient step over the length of the noise step at the chains' ends), `spread` (root
      mean square distance of the chains' ends from mid-grey).

    Raises:
      TrainingDiverged: chains exploded or the loss was not finite, also after restarts at lower learning rates.
      ValueError: fewer images than one batch, or a batch that the devices cannot share evenly.
    """
    if mesh is not None and recipe.batch_size % mesh.size:
        raise ValueError(f"batch_size={recipe.batch_size} is no multiple of the {mesh.size} devices")
    graphdef, params = nnx.split(model)
    params = jax.tree.map(jnp.array, nnx.as_pure(params))
    optimizer = energy_optimizer(recipe)
    bank = start_bank(named(key, "bank"), images, recipe)
    zero = jnp.zeros((), jnp.int32)
    state = EnergyState(params, optimizer.init(params), bank, zero, zero)
    state, history = run(
        EnergyStep(graphdef, optimizer, recipe, augment, mesh),
        state,
        images,
        named(key, "train"),
        steps=recipe.steps,
        batch_size=recipe.batch_size,
        unhealthy=functools.partial(unhealthy, apart=APART[recipe.bank_start]),
        retreat=lambda state: dataclasses.replace(state, restarts=state.restarts + 1),
        recipe=recipe,
        interval=interval,
        directory=directory,
        progress=progress,
    )
    return freeze(nnx.merge(graphdef, state.params)), history


def start_bank(key: Key[Array, ""], images: StoredImages, recipe: EnergyRecipe) -> Float[Array, "slots h w c"]:
    """The first chain states: data with noise, or uniform noise; `key` is consumed."""
    which, noise = jax.random.split(key)
    shape = (recipe.bank_size, *images.shape[1:])
    if recipe.bank_start == "noise":
        return jax.random.uniform(noise, shape)
    rows = np.asarray(jax.random.choice(which, len(images), shape[:1], replace=len(images) < recipe.bank_size))
    return jnp.asarray(to_float(images[rows])) + recipe.data_noise * jax.random.normal(noise, shape)


@dataclasses.dataclass(frozen=True)
class EnergyStep:
    """One update; equal for equal settings, so that it compiles once."""

    graphdef: nnx.GraphDef
    optimizer: optax.GradientTransformation
    recipe: EnergyRecipe
    augment: Callable | None
    mesh: Mesh | None = None

    def __call__(self, state: EnergyState, key, rows, images):
        positive, slots, start, chain_keys = _draw(self, state.bank, key, rows, images)
        energy = Frozen(state.params, self.graphdef)
        recipe, mesh = self.recipe, self.mesh
        chain = Langevin(energy, recipe.step_size, recipe.temperature, recipe.langevin_steps)
        if mesh is not None and loop.runs_in_python(start):
            chains = replicate(mesh, chain)(*shard(mesh, (chain_keys, start)))
            negative = jax.device_put(chains, start.sharding)
        else:
            negative = chain(chain_keys, start)
        return _learn(self, state, key, positive, negative, slots)


@functools.partial(jax.jit, static_argnums=0)
def _draw(step: EnergyStep, bank, key, rows, images):
    recipe = step.recipe
    data = to_float(images[rows])
    if step.augment is not None:
        data = step.augment(image_keys(named(key, "augment"), rows), data)
    positive = data + recipe.data_noise * jax.random.normal(named(key, "data"), data.shape)
    slots = jax.random.permutation(named(key, "slots"), len(bank))[: recipe.batch_size]
    return positive, slots, bank[slots], image_keys(named(key, "chain"), slots)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _learn(step: EnergyStep, state: EnergyState, key, positive, negative, slots):
    recipe = step.recipe

    def objective(params, negative):
        energy = Frozen(params, step.graphdef)
        gap = energy(positive).mean() - energy(negative).mean()
        return gap / recipe.temperature, gap

    (loss, gap), (gradient, of_images) = jax.value_and_grad(objective, (0, 1), has_aux=True)(state.params, negative)
    slope = -recipe.temperature * len(negative) * of_images  # of the energy at the ends of the chains
    updates, optimizer_state = step.optimizer.update(gradient, state.optimizer_state, state.params)
    scale = 0.5 ** state.restarts.astype(jnp.float32)
    params = optax.apply_updates(state.params, jax.tree.map(lambda update: scale * update, updates))
    bank = state.bank.at[slots].set(written_back(key, positive, negative, recipe))
    metrics = {"loss": loss, "gap": gap, **_chain_health(slope, negative, recipe)}
    return EnergyState(params, optimizer_state, bank, state.step + 1, state.restarts), metrics


def written_back(key: Key[Array, ""], positive: Images, negative: Images, recipe: EnergyRecipe) -> Images:
    """What returns to the drawn bank slots: chain ends, or with chance `rejuvenation` the same row of data.

    Rejuvenated states get a second σ of noise on top of x⁺'s own, as in the published code; `key` is consumed.
    """
    renewed = jax.random.bernoulli(named(key, "renew"), recipe.rejuvenation, (len(negative), 1, 1, 1))
    fresh = positive + recipe.data_noise * jax.random.normal(named(key, "fresh"), positive.shape)
    return jnp.where(renewed, fresh, negative)


def _chain_health(slope: Images, negative: Images, recipe: EnergyRecipe) -> dict[str, Array]:
    length = jnp.sqrt((slope**2).sum((1, 2, 3))).mean()
    noise = recipe.step_size * np.sqrt(np.prod(negative.shape[1:]))
    drift = recipe.step_size**2 / (2 * recipe.temperature) * length / noise
    return {"drift": drift, "spread": jnp.sqrt(((negative - 0.5) ** 2).mean())}


def unhealthy(metrics: dict[str, np.ndarray], first: dict[str, Any] | None = None, apart: float = 1000.0) -> str | None:
    """What is wrong with an interval of training, or None: exploding chains, a vanished gradient, no number.

    `apart` is how many temperatures the energies of data and chains may be apart, if that is more than three times
    their distance in the first interval, whose means are `first` (None in it: the distance is not judged there).
    """
    if not all(np.isfinite(values).all() for values in metrics.values()):
        return "a metric is not finite"
    if metrics["spread"].max() > 2.0:
        return f"chains left the range of images (distance from mid-grey {metrics['spread'].max():.3g})"
    if metrics["drift"].mean() > 5.0:
        return f"the gradient is {metrics['drift'].mean():.3g} times the noise of a step"
    if first is not None and abs(metrics["loss"].mean()) > max(apart, _GROWTH * abs(first["loss"])):
        return f"the energies of data and chains are {abs(metrics['loss'].mean()):.3g} temperatures apart"
    if metrics["drift"].mean() < 1e-6:
        return f"the gradient vanished ({metrics['drift'].mean():.3g} of the noise of a step)"
    return None
