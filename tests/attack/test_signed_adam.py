"""Both signed optimisers and the projection against recorded values of the published code."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpurify.attack.signed_adam import decayed, milestones, project, sign_then_adam, signed_adam
from tests.attack.matching_golden import GOLDEN, wave

RECORDED = GOLDEN["T4"]


@pytest.mark.parametrize(("name", "factory"), [("sign_then_adam", sign_then_adam), ("ucsb_signed_adam", signed_adam)])
def test_scalar_steps(name, factory):
    transformation = factory(0.1)
    position = jnp.zeros(())
    state = transformation.init(position)
    found = []
    for gradient in RECORDED["scalar_grads"]:
        updates, state = transformation.update(jnp.asarray(gradient), state, position)
        position = optax.apply_updates(position, updates)
        found.append(float(position))
    np.testing.assert_allclose(found, RECORDED[name], rtol=3e-5)


def test_published_steps_in_normalised_space():
    mean, std = (np.array(each).reshape(1, 3, 1, 1) for each in ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)))
    shape = (2, 3, 2, 2)
    images = jnp.asarray((1 / (1 + np.exp(-2 * wave(shape, 0.5))) - mean) / std, jnp.float32)
    epsilon = jnp.asarray(16 / 255 / std, jnp.float32)
    low, high = (jnp.asarray((edge - mean) / std, jnp.float32) for edge in (0.0, 1.0))
    delta = jnp.clip(jnp.asarray(wave(shape, 1.7), jnp.float32) * epsilon, -epsilon, epsilon)
    delta = project(delta, images, epsilon, low, high)
    np.testing.assert_allclose(delta.sum(), RECORDED["init_sum"], atol=2e-6)

    def rate(count):
        return 0.1 * 0.1 ** sum((count >= boundary).astype(jnp.float32) for boundary in (2, 4, 7))

    transformation = sign_then_adam(rate)
    state = transformation.init(delta)
    for step, (total, square) in enumerate(zip(RECORDED["sum"], RECORDED["sumsq"], strict=True)):
        gradient = jnp.asarray(wave(shape, 0.9 * step), jnp.float32).at[0, 0, 0, 0].set(0.0)
        updates, state = transformation.update(gradient, state, delta)
        delta = project(delta + updates, images, epsilon, low, high)
        np.testing.assert_allclose(delta.sum(), total, atol=3e-6, err_msg=f"step {step}")
        np.testing.assert_allclose(jnp.square(delta).sum(), square, rtol=1e-5, err_msg=f"step {step}")


def test_schedule_falls_at_the_published_steps():
    assert milestones(250) == (93, 156, 218)
    rates = jax.vmap(decayed(0.1, 250))(jnp.array([0, 92, 93, 155, 156, 217, 218, 249]))
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3, 1e-4, 1e-4], rtol=1e-5)
    np.testing.assert_allclose(decayed(0.1, 250, decay=False)(249), 0.1)


def test_projection_keeps_both_boxes():
    images = jnp.array([0.0, 0.02, 0.5, 0.98, 1.0])
    for sign in (-1, 1):
        delta = project(sign * jnp.ones(5), images, 0.1)
        assert (jnp.abs(delta) <= 0.1).all()
        assert (images + delta >= 0).all() and (images + delta <= 1).all()
    np.testing.assert_allclose(project(jnp.full(5, 0.05), images, 0.1), [0.05, 0.05, 0.05, 0.02, 0.0], atol=1e-7)


def test_a_zero_gradient_moves_neither():
    for factory in (sign_then_adam, signed_adam):
        transformation = factory(0.1)
        updates, _ = transformation.update(jnp.zeros(3), transformation.init(jnp.zeros(3)), jnp.zeros(3))
        np.testing.assert_array_equal(updates, 0)
