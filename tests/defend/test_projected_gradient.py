"""Adversarial examples for training: on a linear classifier, where the best ones are known, and their contracts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.defend import ProjectedGradient
from jaxpurify.random import image_keys

IMAGES = jax.random.uniform(jax.random.key(1), (6, 4, 4, 1), minval=0.2, maxval=0.8)
LABELS = jnp.array([0, 1, 0, 1, 1, 0])
WEIGHT = jax.random.normal(jax.random.key(2), (16,))


def linear(images):
    margin = images.reshape(len(images), -1) @ WEIGHT
    return jnp.stack([margin, -margin], 1)


def keys(index=range(6)):
    return image_keys(jax.random.key(3), jnp.array(list(index)))


def test_enough_steps_reach_the_corner_of_the_box():
    found = ProjectedGradient(epsilon=0.1, step_size=0.05, steps=4)(linear, keys(), IMAGES, LABELS)
    away = jnp.where(LABELS == 0, -1.0, 1.0)[:, None] * jnp.sign(WEIGHT)[None]
    np.testing.assert_allclose(found - IMAGES, 0.1 * away.reshape(IMAGES.shape), atol=1e-6)


def test_the_start_is_uniform_in_the_box_and_one_step_adds_to_it():
    start = ProjectedGradient(epsilon=0.1, steps=0)(linear, keys(), IMAGES, LABELS) - IMAGES
    assert np.abs(start).max() <= 0.1 + 1e-6 and 0.04 < np.abs(start).mean() < 0.06
    one = ProjectedGradient(epsilon=0.1, step_size=0.01, steps=1)(linear, keys(), IMAGES, LABELS) - IMAGES
    away = jnp.where(LABELS == 0, -1.0, 1.0)[:, None] * jnp.sign(WEIGHT)[None]
    np.testing.assert_allclose(one, np.clip(start + 0.01 * away.reshape(IMAGES.shape), -0.1, 0.1), atol=1e-6)
    part = ProjectedGradient(epsilon=0.1, steps=0)(linear, keys([4, 2]), IMAGES[jnp.array([4, 2])], LABELS[:2])
    np.testing.assert_allclose(part - IMAGES[jnp.array([4, 2])], start[jnp.array([4, 2])], atol=1e-6)


def test_results_are_images():
    found = ProjectedGradient(epsilon=0.5)(linear, keys(), jnp.round(IMAGES), LABELS)
    assert found.min() >= -1e-6 and found.max() <= 1 + 1e-6


@pytest.mark.parametrize("options", [{"epsilon": 0.0}, {"epsilon": 1.5}, {"step_size": 0.0}, {"steps": -1}])
def test_bad_settings_are_one_clear_line(options):
    with pytest.raises(ValueError, match=r"epsilon in \(0, 1\], a step above 0 and at least 0 steps are accepted$"):
        ProjectedGradient(**options)
