"""Conversion between uint8 and [0, 1]: exact on every level, saturating outside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.data import compat_floor, to_float, to_uint8

LEVELS = np.arange(256, dtype=np.uint8)


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_every_level_survives_the_round_trip(convert):
    levels = convert(LEVELS)
    unit = to_float(levels)
    assert unit.dtype == np.float32
    assert isinstance(unit, type(levels))
    np.testing.assert_allclose(np.asarray(unit), LEVELS / 255, rtol=1e-7)
    np.testing.assert_array_equal(np.asarray(to_uint8(unit)), LEVELS)


def test_every_level_survives_in_one_compiled_program():
    np.testing.assert_array_equal(jax.jit(lambda levels: to_uint8(to_float(levels)))(LEVELS), LEVELS)


def test_rounding_goes_to_the_nearest_level_and_saturates():
    values = np.array([-0.02, 0.49 / 255, 0.51 / 255, 254.4 / 255, 1.01, 7.0], np.float32)
    expected = [0, 0, 1, 254, 255, 255]
    np.testing.assert_array_equal(to_uint8(values), expected)
    np.testing.assert_array_equal(jax.jit(to_uint8)(values), expected)


def test_half_a_level_is_rounded_up_where_the_published_truncation_goes_down():
    values = np.array([0.5, 8 / 255], np.float32)
    for convert in (np.asarray, jnp.asarray):
        np.testing.assert_array_equal(to_uint8(convert(values)), [128, 8])
        # A plain floor(255 x) leaves 8/255 at 8; the way through [-1, 1] does not.
        np.testing.assert_array_equal(compat_floor(convert(values)), [127, 7])


@pytest.mark.parametrize("quantise", [compat_floor, jax.jit(compat_floor)], ids=["numpy", "jit"])
def test_the_published_truncation_darkens_levels_1_to_63_by_one(quantise):
    expected = np.where((LEVELS >= 1) & (LEVELS <= 63), LEVELS - 1, LEVELS)
    np.testing.assert_array_equal(quantise(to_float(LEVELS)), expected)
    np.testing.assert_array_equal(quantise(np.array([-0.02, 1.01], np.float32)), [0, 255])


def test_the_published_truncation_is_the_same_when_compiled_with_the_conversion():
    expected = np.where((LEVELS >= 1) & (LEVELS <= 63), LEVELS - 1, LEVELS)
    np.testing.assert_array_equal(jax.jit(lambda levels: compat_floor(to_float(levels)))(LEVELS), expected)


@pytest.mark.parametrize("quantise", [to_uint8, compat_floor])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(quantise, bad):
    with pytest.raises(ValueError, match="1 values that are NaN or infinite"):
        quantise(np.array([0.5, bad], np.float32))
