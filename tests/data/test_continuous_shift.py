"""The differentiable shift of gradient matching, against recorded values of the published code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.data.augment import ContinuousShift
from jaxpurify.random import image_keys
from tests.attack.matching_golden import GOLDEN, wave

RECORDED = GOLDEN["T7"]


def published_images():
    return jnp.asarray(wave((2, 3, 32, 32), 0.7).transpose(0, 2, 3, 1))


@pytest.mark.parametrize(("bits", "precision"), [(64, 1e-8), (32, 1e-4)])
def test_recorded_warp(bits, precision):
    with jax.enable_x64(bits == 64):
        numbers = jnp.asarray(RECORDED["randgen"])[:, :3]
        warped = ContinuousShift(4, fill=0.0).warp(numbers, published_images())
        assert warped.dtype == f"float{bits}"
        # The sum is the small rest of 3,000 terms.
        np.testing.assert_allclose(warped.sum(), RECORDED["sum"], rtol=precision, atol=1e-5 if bits == 32 else 0)
        np.testing.assert_allclose(jnp.square(warped).sum(), RECORDED["sumsq"], rtol=precision)
        for place, value in RECORDED["at"].items():
            image, channel, row, column = map(int, place.split(","))
            np.testing.assert_allclose(warped[image, row, column, channel], value, rtol=precision)


def test_fill_is_the_colour_that_comes_in():
    images = jnp.zeros((1, 8, 8, 3))
    numbers = jnp.array([[1.0 - 1e-6, 0.5, 0.0]])
    warped = ContinuousShift(4, fill=jnp.array([0.1, 0.5, 0.9])).warp(numbers, images)
    np.testing.assert_allclose(warped[0, 0, -1], [0.1, 0.5, 0.9], atol=1e-5)
    np.testing.assert_allclose(warped[0, 0, 0], 0.0, atol=1e-5)


def test_constant_images_of_the_fill_stay_and_gradients_sum_up():
    keys = image_keys(jax.random.key(0), jnp.arange(6))
    warp = ContinuousShift(3, fill=0.25)
    np.testing.assert_allclose(warp(keys, jnp.full((6, 8, 8, 1), 0.25)), 0.25, atol=1e-6)
    gradient = jax.grad(lambda images: warp(keys, images).sum())(jnp.full((6, 8, 8, 1), 0.5))
    # Linear in the images: every result is a mean of at most four pixels, and what leaves the frame counts nothing.
    assert (gradient >= -1e-6).all() and (gradient <= 1 + 1e-5).all()
    assert (gradient.sum((1, 2, 3)) < 64).all() and (gradient[:, 3:5, 3:5] > 0.99).all()


def test_half_of_the_images_are_mirrored_and_each_follows_its_key():
    keys = image_keys(jax.random.key(1), jnp.arange(400))
    images = jnp.broadcast_to(jnp.array([0.0, 1.0]).reshape(1, 1, 2, 1), (400, 2, 2, 1))
    mirrored = np.asarray(ContinuousShift(0)(keys, images)[:, 0, 0, 0])
    assert set(mirrored) == {0.0, 1.0} and 0.4 < mirrored.mean() < 0.6
    np.testing.assert_array_equal(ContinuousShift(0)(keys[7:8], images[:1])[0, 0, 0, 0], mirrored[7])
    np.testing.assert_array_equal(ContinuousShift(0, flip=False)(keys, images), images)


def test_negative_shift_is_refused():
    with pytest.raises(ValueError, match=r"^pixels is -1; it must be 0 or more$"):
        ContinuousShift(-1)
