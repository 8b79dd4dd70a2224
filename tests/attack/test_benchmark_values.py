"""Losses and steps on NumPy's old random numbers, seed 0, against values worked out in double precision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpurify.attack.crafting import Crafting
from jaxpurify.attack.matching import CRITERIA, Passenger
from jaxpurify.attack.second_order import reverse_over_reverse, two_pass
from jaxpurify.attack.signed_adam import milestones, sign_then_adam
from jaxpurify.attack.unrolled import Unrolled


@functools.cache
def draws():
    """Everything in the order in which it was drawn; poison features of other tests come first."""
    generator = np.random.RandomState(0)
    generator.randn(5, 8), generator.randn(1, 8)
    target, poison = ([generator.randn(3, 4), generator.randn(4)] for _ in range(2))
    generator.randn(4, 6), generator.randn(4, 6)
    return {
        "target": target,
        "poison": poison,
        "logits": generator.randn(3, 5),
        "weights": 0.1 * generator.randn(6, 3),
        "images": generator.randn(4, 6).reshape(4, 1, 1, 6),
        "seen": generator.randn(1, 6).reshape(1, 1, 1, 6),
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [("similarity", 0.73938585), ("scalar_product", -0.78557624), ("SE", 2.23461416), ("cosine1", -0.20261675)],
)
def test_gradient_losses(name, value):
    poison, target = ([jnp.asarray(each, jnp.float32) for each in draws()[part]] for part in ("poison", "target"))
    np.testing.assert_allclose(Passenger(name)(poison, target), value, rtol=2e-6)


def test_criteria():
    logits, labels = jnp.asarray(draws()["logits"], jnp.float32), jnp.array([1, 4, 0])
    np.testing.assert_allclose(CRITERIA["cw"](logits, labels), 0.39764999, rtol=1e-6)
    np.testing.assert_allclose(CRITERIA["xent"](logits, labels), 1.53235700, rtol=1e-6)


LABELS = jnp.array([0, 1, 2, 1])


def regression(weights, images):
    return images.reshape(len(images), -1) @ weights


def row_losses(weights, delta, rows):
    images, labels = rows
    return optax.softmax_cross_entropy_with_integer_labels(regression(weights, images + delta), labels)


@pytest.mark.parametrize("engine", [two_pass, reverse_over_reverse])
def test_gradient_matching_of_a_softmax_regression(engine):
    weights, images, seen = (jnp.asarray(draws()[name], jnp.float32) for name in ("weights", "images", "seen"))
    target = jax.grad(lambda weights: row_losses(weights, 0 * seen, (seen, jnp.array([2]))).mean())(weights)
    matching = jax.jit(
        lambda delta: engine(
            jax.tree_util.Partial(row_losses), weights, delta, (images, LABELS), lambda p: Passenger()(p, target)
        )
    )
    value, gradient = matching(jnp.zeros_like(images))
    np.testing.assert_allclose(value, 0.77172614, rtol=2e-6)
    np.testing.assert_allclose(jnp.linalg.norm(gradient.ravel()), 0.20259534, rtol=1e-5)
    np.testing.assert_allclose(gradient[0, 0, 0, 0], -0.01086772, atol=1e-7)


def test_two_unrolled_steps_of_a_softmax_regression():
    """The recorded images are no images: they enter as delta on black ones, and black targets stand for theirs."""
    weights, images, seen = (jnp.asarray(draws()[name], jnp.float32) for name in ("weights", "images", "seen"))

    def apply(weights, images):
        return regression(weights, seen if len(images) == 1 else images)

    one = jnp.float32(1)
    crafting = Crafting(jnp.zeros((4, 1, 1, 6), jnp.uint8), LABELS, jnp.arange(4), jax.random.key(0), one, one, 1)
    black, wanted = jnp.zeros((1, 1, 1, 6), jnp.uint8), jnp.array([2])
    objective = Unrolled((jax.tree_util.Partial(apply),), (weights,), black, wanted, unroll=2)
    value, gradient = jax.jit(lambda delta: objective(delta, jax.random.key(1), crafting))(images)
    np.testing.assert_allclose(value, 1.00524728, rtol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(gradient.ravel()), 0.10577772, rtol=1e-5)
    np.testing.assert_allclose(gradient[0, 0, 0, 0], -0.02400666, atol=1e-7)


def test_the_rate_falls_at_the_published_steps_and_epochs():
    assert milestones(250) == (93, 156, 218)
    assert milestones(40) == (14, 24, 35)


def test_the_first_step_moves_every_pixel_by_the_rate():
    with jax.enable_x64(True):
        gradient = jnp.array([3.0, -2e-7, 1e5, 0.0])
        transformation = sign_then_adam(0.1)
        updates, _ = transformation.update(gradient, transformation.init(gradient))
        expected = np.array([-1.0, 1.0, -1.0, 0.0]) * 0.1 / (1 + 1e-8)
        np.testing.assert_allclose(updates, expected, rtol=1e-12)
