"""Training a noise predictor: the objective, the restricted timesteps, averages."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpurify.generate.diffusion import (
    DiffusionRecipe,
    DiffusionState,
    DiffusionStep,
    diffusion_optimizer,
    train_diffusion,
)
from jaxpurify.train.state import TrainingDiverged
from tests.generate.conftest import SmallNoise

KEY = jax.random.key(6)
SMALL = DiffusionRecipe(steps=9, batch_size=10, learning_rate=1e-2, warmup=2, max_timestep=50)


class ExactForGrey(nnx.Module):
    """The noise of noisy mid-grey images, and NaN for a timestep that is not to be trained."""

    def __init__(self, recipe):
        self.scale = nnx.Param(jnp.ones(()))
        self.recipe = recipe

    def __call__(self, images, timesteps):
        signal = jnp.asarray(self.recipe.schedule.alpha_bars(), jnp.float32)[timesteps]
        signal = jnp.where(timesteps < self.recipe.max_timestep, signal, jnp.nan).reshape(-1, 1, 1, 1)
        return self.scale[...] * images / jnp.sqrt(1 - signal)


def make(model, recipe):
    graphdef, params = nnx.split(model)
    params = nnx.as_pure(params)
    optimizer = diffusion_optimizer(recipe)
    average = None if recipe.ema_decay is None else params
    zero = jnp.zeros((), jnp.int32)
    state = DiffusionState(params, average, optimizer.init(params), zero, zero)
    # The step donates its state: no two leaves may be the same buffer.
    return DiffusionStep(graphdef, optimizer, recipe, None), jax.tree.map(jnp.copy, state)


def test_the_objective_is_the_noise_at_the_timesteps_that_are_trained():
    recipe = dataclasses.replace(SMALL, batch_size=400, max_timestep=3)
    # Level 128 is not exactly mid-grey: the error stays within what that half level makes.
    images = jnp.full((400, 8, 8, 1), 128, jnp.uint8)
    step, state = make(ExactForGrey(recipe), recipe)
    _, metrics = step(state, KEY, jnp.arange(400), images)
    grey = 2 * 128 / 255 - 1
    signal = recipe.schedule.alpha_bars()[:3]
    expected = (signal * grey**2 / (1 - signal)).mean()
    np.testing.assert_allclose(metrics["loss"], expected, rtol=0.15)
    assert 0 < expected < 0.1


def test_images_are_augmented_before_they_are_noised():
    recipe = dataclasses.replace(SMALL, batch_size=200)
    step, state = make(ExactForGrey(recipe), recipe)
    images = jax.random.randint(jax.random.key(1), (200, 8, 8, 1), 0, 256).astype(jnp.uint8)
    grey = dataclasses.replace(step, augment=lambda keys, images: jnp.full_like(images, 0.5))
    _, metrics = grey(state, KEY, jnp.arange(200), images)
    assert float(metrics["loss"]) < 1e-6


def test_a_predictor_of_nothing_has_a_loss_of_one():
    step, state = make(ExactForGrey(SMALL), dataclasses.replace(SMALL, batch_size=200))
    state.params["scale"] = jnp.zeros(())
    images = jax.random.randint(jax.random.key(1), (200, 8, 8, 1), 0, 256).astype(jnp.uint8)
    _, metrics = step(state, KEY, jnp.arange(200), images)
    assert abs(float(metrics["loss"]) - 1) < 4 * np.sqrt(2 / images.size)


def test_training_predicts_noise(digits):
    recipe = dataclasses.replace(SMALL, steps=80, batch_size=50)
    model = SmallNoise()
    before = jax.tree.map(np.asarray, nnx.as_pure(nnx.state(model)))
    noise, history = train_diffusion(model, digits, KEY, recipe=recipe, interval=20)
    assert history["loss"].shape == (4,)
    assert history["loss"][-1] < 0.95 * history["loss"][0]
    jax.tree.map(np.testing.assert_array_equal, nnx.as_pure(nnx.state(model)), before)
    again, _ = train_diffusion(model, digits, KEY, recipe=recipe, interval=40)
    jax.tree.map(np.testing.assert_array_equal, again.state, noise.state)


def test_the_average_follows_the_parameters(digits):
    recipe = dataclasses.replace(SMALL, ema_decay=0.8)
    step, state = make(SmallNoise(), recipe)
    expected = jax.tree.map(np.asarray, state.params)
    for number in range(3):
        state, _ = step(state, jax.random.fold_in(KEY, number), jnp.arange(10), jnp.asarray(digits))
        expected = jax.tree.map(lambda old, new: 0.8 * old + 0.2 * np.asarray(new), expected, state.params)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-6), state.average, expected)
    gap = np.abs(expected["last"]["kernel"] - state.params["last"]["kernel"]).max()
    assert gap > 1e-4
    # The average is what training returns; the parameters themselves do not change through it.
    averaged, _ = train_diffusion(SmallNoise(), digits, KEY, recipe=recipe)
    plain, _ = train_diffusion(SmallNoise(), digits, KEY, recipe=SMALL)
    assert np.abs(averaged.state["last"]["kernel"] - plain.state["last"]["kernel"]).max() > 1e-4


def test_one_update_is_adamw(digits):
    step, state = make(SmallNoise(), SMALL)
    start = jax.tree.map(np.asarray, state.params)
    # At step 0 the warm-up rate is 0: nothing moves. At step 1 it is half of the peak.
    state, _ = step(state, KEY, jnp.arange(10), jnp.asarray(digits))
    jax.tree.map(np.testing.assert_array_equal, state.params, start)
    mu = optax.tree.get(state.optimizer_state, "mu")
    state, _ = step(state, jax.random.fold_in(KEY, 1), jnp.arange(10), jnp.asarray(digits))
    mean, square = (optax.tree.get(state.optimizer_state, name)["last"]["kernel"] for name in ("mu", "nu"))
    assert mu is not None
    direction = (mean / (1 - 0.9**2)) / (np.sqrt(square / (1 - 0.999**2)) + 1e-8)
    expected = start["last"]["kernel"] - 0.005 * (direction + 1e-2 * start["last"]["kernel"])
    np.testing.assert_allclose(state.params["last"]["kernel"], expected, atol=1e-6)


def test_divergence_is_an_error(digits):
    with pytest.raises(TrainingDiverged, match="between steps 0 and 9: the loss is not finite; no checkpoint was kept"):
        train_diffusion(SmallNoise(), digits, KEY, recipe=dataclasses.replace(SMALL, learning_rate=1e25, warmup=0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_timestep": 0}, "max_timestep=0; the schedule accepts 1 to 1000"),
        ({"max_timestep": 1001}, "max_timestep=1001"),
        ({"ema_decay": 1.0}, "ema_decay=1.0; it must be between 0 and 1, or None"),
        ({"steps": -1}, "steps=-1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"warmup": -3}, "warmup=-3; it must be at least 0"),
        ({"learning_rate": -1.0}, r"learning_rate=-1.0; it must be a number above 0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        DiffusionRecipe(**options)
