"""Images as the published code writes them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.data import compat_floor, to_float
from jaxpurify.evaluate.purifiers import make_purifier
from jaxpurify.purify import Adaptive, Identity, Truncate, chain, purify
from jaxpurify.random import image_keys

LEVELS = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
KEY = jax.random.key(0)


def test_what_is_stored_are_the_published_levels():
    for purifier in (Truncate(), chain(Identity(), Truncate()), make_purifier("identity|truncate", (8, 8, 1))):
        stored = purify(purifier, LEVELS, key=KEY)
        np.testing.assert_array_equal(stored, compat_floor(to_float(LEVELS)))
    assert (stored[LEVELS < 64] == np.maximum(LEVELS[LEVELS < 64], 1) - 1).all()
    compiled = jax.jit(lambda purifier, keys, images: purifier(keys, images))
    outside = jnp.array([-0.5, 1.5, 0.25, 8 / 255]).reshape(1, 2, 2, 1)
    found = compiled(Truncate(), image_keys(KEY, jnp.arange(1)), outside)
    np.testing.assert_array_equal(np.ravel(found * 255).round(), [0, 255, 63, 7])


def test_an_adaptive_attack_passes_it_straight():
    images = to_float(jnp.asarray(LEVELS))
    adaptive = Adaptive(Truncate(), "truncated", 1)
    keys = image_keys(KEY, jnp.arange(4))
    np.testing.assert_array_equal(adaptive(keys, images), Truncate()(keys, images))
    np.testing.assert_array_equal(jax.grad(lambda x: adaptive(keys, x).sum())(images), jnp.ones_like(images))


def test_nan_and_infinite_values_stay_and_are_refused():
    values = jnp.array([jnp.nan, jnp.inf, -jnp.inf, 0.5]).reshape(1, 2, 2, 1)
    found = Truncate()(image_keys(KEY, jnp.arange(1)), values)
    np.testing.assert_array_equal(np.ravel(found), [np.nan, np.inf, -np.inf, np.float32(127 / 255)])
    with pytest.raises(ValueError, match=r"^image 0 became NaN or infinite; "):
        purify(chain(lambda keys, images: images / 0, Truncate()), LEVELS, key=KEY)
