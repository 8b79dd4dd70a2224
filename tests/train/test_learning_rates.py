"""Learning-rate schedules against values worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpurify.generate.diffusion import DiffusionRecipe, diffusion_optimizer
from jaxpurify.generate.energy import HILL, PUREGEN, energy_optimizer
from jaxpurify.train.schedule import SCHEDULES, multistep, sgd, triangular, warmup_cosine
from jaxpurify.train.transfer import FineTuning


def values(schedule, steps):
    return [float(schedule(step)) for step in steps]


def test_triangular():
    # 0.2 → 1 over the first fifth of 1000 steps, then to 0.
    rates = values(triangular(1000, 2.0), [0, 1, 100, 200, 250, 500, 600, 999, 1000])
    expected = [0.4, 0.408, 1.2, 2.0, 2 * 750 / 800, 2 * 500 / 800, 1.0, 2 / 800, 0.0]
    np.testing.assert_allclose(rates, expected, rtol=1e-5, atol=1e-7)


def test_multistep():
    rates = values(multistep(1000, 0.1), [0, 1, 250, 499, 501, 749, 751, 999])
    np.testing.assert_allclose(rates, [0.1] * 4 + [0.01] * 2 + [0.001] * 2, rtol=1e-5)


def test_multistep_of_eighty_epochs():
    rates = values(SCHEDULES["multistep80"](800, 0.1), [0, 299, 301, 499, 501, 699, 701, 799])
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3, 1e-4, 1e-4], rtol=1e-5)


def test_fine_tuning_of_sixty_epochs_is_adam():
    rates = values(SCHEDULES["multistep60"](600, 1e-4), [0, 149, 151, 299, 301, 449, 451, 599])
    np.testing.assert_allclose(rates, [1e-4, 1e-4, 1e-5, 1e-5, 1e-6, 1e-6, 1e-7, 1e-7], rtol=1e-5)
    optimizer, weights = FineTuning().optimizer(1280), {"w": jnp.array(2.0)}
    assert optimizer is FineTuning().optimizer(1280)
    state, change = optimizer.init(weights), None
    for _ in range(149):  # fifteen epochs of ten steps, but one
        change, state = optimizer.update({"w": jnp.array(-3.0)}, state, weights)
    np.testing.assert_allclose(change["w"], 1e-4, rtol=1e-3)
    change, state = optimizer.update({"w": jnp.array(-3.0)}, state, weights)
    change, state = optimizer.update({"w": jnp.array(-3.0)}, state, weights)
    np.testing.assert_allclose(change["w"], 1e-5, rtol=1e-3)


def test_cosine_with_warm_up():
    rates = values(warmup_cosine(41_000, 1e-4), [0, 1, 250, 500, 20_750, 41_000, 50_000])
    np.testing.assert_allclose(rates, [0, 2e-7, 5e-5, 1e-4, 5e-5, 0, 0], rtol=1e-4, atol=1e-10)
    # A short run warms up over half of its steps at most.
    np.testing.assert_allclose(values(warmup_cosine(10, 1.0), [0, 1, 5, 10]), [0, 0.2, 1, 0], atol=1e-6)
    assert float(warmup_cosine(1, 1.0)(0)) == 1.0


def test_a_schedule_runs_on_traced_steps():
    for schedule in (triangular(10, 1.0), multistep(10, 1.0), warmup_cosine(10, 1.0)):
        traced = jax.vmap(schedule)(jnp.arange(11))
        np.testing.assert_allclose(traced, values(schedule, range(11)), atol=1e-6)


def rate_of(optimizer, state, step):
    """The learning rate at a step, from the length of Adam's update for a constant gradient."""
    counts = {"count": jnp.array(step, jnp.int32)}
    state = optax.tree.set(state, **counts)
    updates, _ = optimizer.update({"w": jnp.ones(())}, state, {"w": jnp.zeros(())})
    return float(-updates["w"])


def test_generative_recipes_use_them():
    def at(optimizer, step):
        # A constant gradient in both moments makes Adam's direction exactly 1 without bias correction.
        state = optimizer.init({"w": jnp.zeros(())})
        state = optax.tree.set(state, mu={"w": jnp.ones(())}, nu={"w": jnp.ones(())})
        correction = (1 - 0.9 ** (step + 1)) / np.sqrt(1 - 0.999 ** (step + 1))
        return rate_of(optimizer, state, step) * correction

    thirds = [0, 21_000, 22_000, 40_500, 41_500, 54_000, 55_000]
    rates = [at(energy_optimizer(PUREGEN), step) for step in thirds]
    np.testing.assert_allclose(rates, [1e-4, 1e-4, 1e-5, 1e-5, 1e-6, 1e-6, 1e-7], rtol=1e-3)
    # Hill et al.: Adam for 125,000 steps, then SGD on the difference of energies, the loss times T.
    rates = [at(energy_optimizer(HILL), step) for step in (0, 124_000, 124_999)]
    np.testing.assert_allclose(rates, [1e-4] * 3, rtol=1e-3)
    state = optax.tree.set(energy_optimizer(HILL).init({"w": jnp.zeros(())}), taken=jnp.array(125_000, jnp.int32))
    updates, state = energy_optimizer(HILL).update({"w": jnp.array(3.0)}, state, {"w": jnp.zeros(())})
    np.testing.assert_allclose(updates["w"], -5e-5 * 5e-5 * 3.0, rtol=1e-5)
    assert state.taken == 125_001
    rates = [at(diffusion_optimizer(DiffusionRecipe()), step) for step in (250, 500, 20_750)]
    np.testing.assert_allclose(rates, [5e-5, 1e-4, 5e-5], rtol=1e-3)


@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd_has_momentum_and_decay_in_the_gradient(nesterov):
    optimizer = sgd("multistep", 4, 0.1, 0.9, 0.01, nesterov)
    params, gradients = {"w": jnp.array(2.0)}, [0.5, -0.3, 0.2]
    state, weight, momentum = optimizer.init(params), 2.0, 0.0
    for step, gradient in enumerate(gradients):
        updates, state = optimizer.update({"w": jnp.array(gradient)}, state, params)
        params = optax.apply_updates(params, updates)
        decayed = gradient + 0.01 * weight
        momentum = 0.9 * momentum + decayed
        rate = 0.1 if step < 2 else 0.01
        weight -= rate * (decayed + 0.9 * momentum if nesterov else momentum)
        np.testing.assert_allclose(params["w"], weight, rtol=1e-6)


def test_an_unknown_schedule_is_refused():
    known = "cosine, multistep, multistep60, multistep80, triangular"
    with pytest.raises(ValueError, match=f"unknown schedule 'step'; known: {known}"):
        sgd("step", 10, 0.1, 0.9, 0.0)
    assert sgd("cosine", 10, 0.1, 0.9, 0.0) is sgd("cosine", 10, 0.1, 0.9, 0.0)
