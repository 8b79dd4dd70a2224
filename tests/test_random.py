"""One key an image: numbers depend on the key and the position, never on the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.random import fold, image_keys, named, normal, uniform

KEY = jax.random.key(0)
draw_normal = jax.jit(normal, static_argnums=1)
draw_uniform = jax.jit(uniform, static_argnums=1)


def data(keys):
    return np.asarray(jax.random.key_data(keys))


def test_an_image_key_is_the_key_folded_with_the_position():
    index = jnp.array([3, 0, 2**32 - 1], jnp.uint32)
    expected = [data(jax.random.fold_in(KEY, position)) for position in (3, 0, 2**32 - 1)]
    np.testing.assert_array_equal(data(image_keys(KEY, index)), expected)
    np.testing.assert_array_equal(data(fold(image_keys(KEY, index), 7))[0], data(_twice(3, 7)))


def _twice(first, second):
    return jax.random.fold_in(jax.random.fold_in(KEY, first), second)


def test_streams_by_name_differ():
    streams = {bytes(data(named(KEY, name))) for name in ("weights", "train", "order", "")}
    assert len(streams) == 4
    np.testing.assert_array_equal(data(named(KEY, "train")), data(named(KEY, "train")))


@pytest.mark.parametrize("draw", [draw_normal, draw_uniform], ids=["normal", "uniform"])
def test_numbers_do_not_depend_on_the_batch(draw):
    draws = draw(image_keys(KEY, jnp.arange(5)), (4, 4, 1))
    assert draws.shape == (5, 4, 4, 1) and draws.dtype == jnp.float32
    alone = draw(image_keys(KEY, jnp.array([3])), (4, 4, 1))
    np.testing.assert_array_equal(draws[3:4], alone)
    assert len(np.unique(draws)) == draws.size


@pytest.mark.parametrize(
    ("draw", "reference"),
    [(draw_normal, jax.random.normal), (draw_uniform, jax.random.uniform)],
    ids=["normal", "uniform"],
)
def test_numbers_are_those_of_jax(draw, reference):
    keys = image_keys(KEY, jnp.arange(3))
    expected = jnp.stack([reference(key, (7, 5, 3)) for key in keys])
    np.testing.assert_allclose(draw(keys, (7, 5, 3)), expected, atol=1e-6)


def test_distributions():
    keys = image_keys(KEY, jnp.arange(10))
    numbers = np.asarray(draw_normal(keys, (100, 100, 1)), np.float64)
    assert abs(numbers.mean()) < 4 / np.sqrt(numbers.size)
    assert abs(numbers.var() - 1) < 4 * np.sqrt(2 / numbers.size)
    share = np.asarray(draw_uniform(fold(keys, 1), (100, 100, 1)), np.float64)
    assert share.min() >= 0 and share.max() < 1
    assert abs(share.mean() - 0.5) < 4 / np.sqrt(12 * share.size)
