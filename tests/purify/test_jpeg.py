"""JPEG as a purifier is Pillow, byte for byte."""

import io

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from jaxpurify.purify.combine import chain
from jaxpurify.purify.dataset import purify
from jaxpurify.purify.jpeg import Jpeg
from jaxpurify.random import image_keys


def pillow(image, quality):
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze()).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer)).reshape(image.shape)


@pytest.fixture
def pictures():
    """Smooth colour pictures, uint8 [5, 32, 32, 3]."""
    waves = np.random.RandomState(0).uniform(0, 0.4, (5, 1, 1, 3, 2))
    rows, columns = np.mgrid[:32, :32]
    surface = np.sin(waves[..., 0] * rows[None, ..., None] + waves[..., 1] * columns[None, ..., None])
    return np.round(127.5 + 127.5 * surface).astype(np.uint8)


@pytest.mark.parametrize("quality", [25, 50, 75, 85])
@pytest.mark.parametrize("channels", [1, 3])
def test_stored_images_become_what_pillow_makes_of_them(pictures, quality, channels):
    pictures = pictures[..., :channels]
    expected = np.stack([pillow(image, quality) for image in pictures])
    assert (expected != pictures).any()
    result = purify(Jpeg(quality), pictures, key=jax.random.key(0), batch_size=4)
    np.testing.assert_array_equal(result, expected)


def test_values_outside_of_the_range_saturate():
    images = jnp.asarray([-0.3, 1.4]).reshape(2, 1, 1, 1) * jnp.ones((1, 8, 8, 1))
    result = Jpeg(95)(image_keys(jax.random.key(0), jnp.arange(2)), images)
    np.testing.assert_allclose(result[:, 0, 0, 0], [0, 1], atol=2 / 255)


def test_refusals():
    for quality in (0, 96):
        with pytest.raises(ValueError, match=f"quality={quality}; JPEG accepts whole numbers from 1 to 95"):
            Jpeg(quality)
    with pytest.raises(ValueError, match="JPEG needs 1 or 3 channels, the images have 4"):
        Jpeg()(image_keys(jax.random.key(0), jnp.arange(1)), jnp.zeros((1, 8, 8, 4)))


def test_images_that_became_nan_or_infinite_stay_so_and_are_refused(pictures):
    broken = jnp.asarray(pictures, jnp.float32).at[1, 0, 0, 0].set(jnp.nan).at[3, 2, 2, 1].set(jnp.inf) / 255
    keys = image_keys(jax.random.key(0), jnp.arange(5))
    for found in (Jpeg(50)(keys, broken), jax.jit(Jpeg(50))(keys, broken)):
        np.testing.assert_array_equal(np.isfinite(found).all((1, 2, 3)), [True, False, True, False, True])
        np.testing.assert_array_equal(found[2] * 255, pillow(pictures[2], 50))

    def diverges(keys, images):
        return jnp.where(images > 0.9, jnp.nan, images)

    with pytest.raises(ValueError, match=r"^image 0 became NaN or infinite; "):
        purify(chain(diverges, Jpeg(50)), pictures, key=jax.random.key(0))
