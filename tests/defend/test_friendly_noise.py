"""Friendly noise on a linear model, where the optimum is known, and the random noise on top."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.data.image import to_uint8
from jaxpurify.defend import FriendlyNoise, RandomNoise
from jaxpurify.purify import purify
from jaxpurify.random import image_keys
from jaxpurify.struct import struct
from jaxpurify.types import Images, Logits

KEY = jax.random.key(4)


@struct
class Linear:
    """Three classes from 6 x 6 x 1 images."""

    weights: jax.Array

    def __call__(self, images: Images) -> Logits:
        return images.reshape(len(images), -1) @ self.weights


@pytest.fixture
def linear():
    return Linear(jnp.asarray(np.random.RandomState(0).normal(0, 0.3, (36, 3)), jnp.float32))


@pytest.fixture
def images():
    return jnp.asarray(np.random.RandomState(1).uniform(0.2, 0.8, (16, 6, 6, 1)), jnp.float32)


def keys(count=16):
    return image_keys(KEY, jnp.arange(count))


def test_the_objective_falls_and_the_noise_stays_within_its_bound(linear, images):
    defence = FriendlyNoise(linear)
    first = dataclasses.replace(defence, steps=0).optimise(keys(), images)
    last = defence.optimise(keys(), images)
    before, after = defence.objective(first, images), defence.objective(last, images)
    assert (np.asarray(after) < np.asarray(before)).all()
    assert np.abs(first).max() <= 8 / 255 + 1e-7 and np.abs(first).max() > 7.5 / 255
    assert np.abs(last).max() <= 16 / 255 + 1e-7
    assert np.square(last).mean() > np.square(first).mean()  # friendly noise is as large as it can be
    np.testing.assert_allclose(defence(keys(), images), np.clip(images + last, 0, 1), atol=1e-6)


def test_noise_that_changes_no_logit_is_free_and_grows_to_the_bound(images):
    blind = FriendlyNoise(Linear(jnp.zeros((36, 3))), weight=1000.0)
    delta = blind.optimise(keys(), images)
    first = dataclasses.replace(blind, steps=0).optimise(keys(), images)
    np.testing.assert_allclose(np.sign(delta), np.sign(first))
    assert np.median(np.abs(delta)) == pytest.approx(16 / 255)


def test_the_objective_is_the_published_divergence():
    """From what the clean image gives to what the noisy one gives, less the size of the noise."""
    images, random = jnp.full((1, 6, 6, 1), 0.5), np.random.RandomState(3)
    linear = Linear(jnp.asarray(random.normal(0, 3, (36, 3)), jnp.float32))
    delta = jnp.asarray(random.uniform(-0.06, 0.06, images.shape), jnp.float32)
    clean, noisy = (np.asarray(jax.nn.softmax(linear(each)), np.float64)[0] for each in (images, images + delta))
    divergence = (clean * np.log(clean / noisy)).sum()
    assert abs(divergence / (noisy * np.log(noisy / clean)).sum() - 1) > 0.05
    for weight in (0.0, 16.0):
        expected = divergence - weight * float(jnp.square(delta).mean())
        found = FriendlyNoise(linear, weight=weight).objective(delta, images)
        np.testing.assert_allclose(found, [expected], rtol=1e-3, atol=1e-6)


def test_two_steps_by_hand(linear, images):
    """Nesterov as PyTorch has it, and the rate falls at half and at three quarters of the steps."""
    defence = FriendlyNoise(linear, steps=4)
    delta = np.asarray(dataclasses.replace(defence, steps=0).optimise(keys(), images))
    momentum = np.zeros_like(delta)
    for rate in (1.0, 1.0, 0.1, 0.01):
        gradient = np.asarray(jax.grad(lambda d: defence.objective(d, images).sum())(jnp.asarray(delta)))
        momentum = 0.9 * momentum + gradient
        delta = delta - 100 / 128 * rate * (gradient + 0.9 * momentum)
    expected = np.clip(delta, -16 / 255, 16 / 255)
    np.testing.assert_allclose(defence.optimise(keys(), images), expected, atol=1e-6)


def test_a_data_set_goes_through_it_like_through_a_purifier(linear, images):
    stored = np.asarray(to_uint8(images))
    friendly = purify(FriendlyNoise(linear), stored, key=KEY, batch_size=8)
    difference = np.abs(friendly.astype(int) - stored)
    assert 0 < difference.max() <= 16 and (difference > 0).mean() > 0.5


@pytest.mark.parametrize(("kind", "deviation"), [("bernoulli", 8 / 255), ("gaussian", 8 / 255)])
def test_random_noise(kind, deviation):
    flat = jnp.full((64, 16, 16, 3), 0.01)
    noise = np.asarray(RandomNoise(kind=kind)(keys(64), flat)) - 0.01
    assert abs(noise.mean()) < 1e-3 and noise.std() == pytest.approx(deviation, rel=0.02)
    if kind == "bernoulli":
        np.testing.assert_allclose(np.abs(noise), 8 / 255, atol=1e-6)
    assert noise.min() < -0.01  # not clipped


def test_refusals(linear):
    with pytest.raises(ValueError, match="steps=-1"):
        FriendlyNoise(linear, steps=-1)
    with pytest.raises(ValueError, match="kind='laplace'; known: bernoulli, gaussian"):
        RandomNoise(kind="laplace")
