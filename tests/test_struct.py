"""`struct`: frozen dataclasses that are pytrees."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.struct import static, struct


@struct
class Scale:
    factor: float
    power: int = static(default=1)

    def __post_init__(self):
        if self.power < 1:
            raise ValueError(f"power={self.power}; it must be at least 1")
        if isinstance(self.factor, float) and self.factor < 0:
            raise ValueError(f"factor={self.factor}; it must be at least 0")

    def __call__(self, numbers):
        return self.factor * numbers**self.power


def test_fields_are_leaves_and_static_fields_are_structure():
    leaves, structure = jax.tree.flatten(Scale(2.0, 3))
    assert leaves == [2.0]
    assert structure == jax.tree.structure(Scale(5.0, 3)) != jax.tree.structure(Scale(2.0, 4))
    path = jax.tree_util.tree_flatten_with_path(Scale(2.0))[0][0][0]
    assert jax.tree_util.keystr(path) == ".factor"


def test_construction_checks_and_unflattening_does_not():
    with pytest.raises(ValueError, match="power=0"):
        Scale(1.0, 0)
    with pytest.raises(ValueError, match=r"factor=-1\.0"):
        dataclasses.replace(Scale(1.0), factor=-1.0)
    assert jax.tree.map(lambda leaf: -leaf, Scale(1.0)).factor == -1.0
    assert isinstance(jax.eval_shape(lambda scale: scale, Scale(1.0)).factor, jax.ShapeDtypeStruct)


def test_it_is_frozen_and_equal_by_value():
    scale = Scale(1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        scale.factor = 2.0
    assert scale == Scale(1.0) != Scale(1.0, 2)
    assert hash(scale) == hash(Scale(1.0))


def test_a_new_leaf_does_not_retrace_and_a_new_static_field_does():
    @jax.jit
    @chex.assert_max_traces(n=2)
    def run(scale, numbers):
        return scale(numbers)

    chex.clear_trace_counter()
    numbers = jnp.arange(3.0)
    for factor in (1.0, 2.0, 3.0):
        np.testing.assert_array_equal(run(Scale(factor), numbers), factor * np.arange(3.0))
    np.testing.assert_array_equal(run(Scale(2.0, 2), numbers), 2 * np.arange(3.0) ** 2)
    with pytest.raises(AssertionError, match="traced"):
        run(Scale(2.0, 3), numbers)


def test_vmap_sweeps_over_leaves():
    sweep = Scale(jnp.array([1.0, 2.0]), 2)
    np.testing.assert_array_equal(jax.vmap(lambda scale: scale(jnp.float32(3)))(sweep), [9.0, 18.0])
