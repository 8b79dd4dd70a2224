"""Checkpoints: whole or absent, in order, restored onto any layout."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpurify import checkpoint
from jaxpurify.sharding import data_mesh, replicate
from jaxpurify.struct import struct


@struct
class State:
    params: dict
    optimizer_state: object
    average: object
    step: jax.Array


def state(step):
    params = {"kernel": jnp.full((2, 3), float(step)), "layers": [jnp.arange(3, dtype=jnp.int32), jnp.float32(step)]}
    floats = {"kernel": params["kernel"]}
    return State(params, optax.adam(1e-3).init(floats), None, jnp.array(step, jnp.int32))


def equal(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_what_was_saved_comes_back(tmp_path):
    checkpoint.save(tmp_path / "runs", 3, state(3))
    restored = checkpoint.restore(tmp_path / "runs", 3, state(0))
    equal(restored, state(3))
    assert restored.params["kernel"].dtype == jnp.float32 and restored.step.dtype == jnp.int32


def test_the_last_ones_are_kept_in_numerical_order(tmp_path):
    for step in (9, 10, 100):
        checkpoint.save(tmp_path, step, state(step))
    assert checkpoint.steps(tmp_path) == [10, 100]
    checkpoint.save(tmp_path, 101, state(101), keep=1)
    assert checkpoint.steps(tmp_path) == [101]


def test_a_step_is_replaced(tmp_path):
    checkpoint.save(tmp_path, 1, state(1))
    checkpoint.save(tmp_path, 1, state(5))
    assert checkpoint.steps(tmp_path) == [1]
    equal(checkpoint.restore(tmp_path, 1, state(0)), state(5))


def test_relative_directories_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint.save("here", 1, state(1))
    assert checkpoint.steps(tmp_path / "here") == [1]
    equal(checkpoint.restore("here", 1, state(0)), state(1))


def test_absent_and_unfinished_ones(tmp_path):
    assert checkpoint.steps(tmp_path / "absent") == []
    checkpoint.save(tmp_path, 4, state(4))
    (tmp_path / "8.orbax-checkpoint-tmp-1").mkdir()  # what a killed process leaves behind
    assert checkpoint.steps(tmp_path) == [4]
    with pytest.raises(ValueError, match=r"no checkpoint of step 8 .* it has \[4\]"):
        checkpoint.restore(tmp_path, 8, state(0))
    checkpoint.save(tmp_path, 9, state(9))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4", "9"]


def test_it_is_restored_onto_the_layout_of_the_template(tmp_path):
    checkpoint.save(tmp_path, 1, state(1))
    template = replicate(data_mesh(), state(0))
    restored = checkpoint.restore(tmp_path, 1, template)
    assert restored.params["kernel"].sharding == template.params["kernel"].sharding
    equal(restored, state(1))
