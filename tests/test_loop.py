"""Loops: the Python loop over a compiled step and `lax.scan` are the same loop."""

import dataclasses

import chex
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify import loop
from jaxpurify.networks import ConvEnergy, freeze
from jaxpurify.sharding import data_mesh, shard
from jaxpurify.struct import static, struct

START = jnp.linspace(0.0, 1.0, 12).reshape(3, 4)


def wave(state, index, factor):
    state = factor * state * (1 - state) + 0.01 * index.astype(jnp.float32)
    return state, {"largest": state.max()}


def wave_only(state, index, factor):
    return wave(state, index, factor)[0]


def descend(images, index, energy):
    return images - 0.01 * jax.grad(lambda images: energy(images).sum())(images)


def test_the_python_loop_is_the_scan_bit_for_bit():
    assert loop.runs_in_python(START)
    state, outputs = loop.scan(wave, START, 7, jnp.float32(3.7))
    scanned, scanned_outputs = jax.jit(lambda state, factor: loop.scan(wave, state, 7, factor))(START, jnp.float32(3.7))
    assert outputs["largest"].shape == (7,)
    np.testing.assert_array_equal(state, scanned)
    np.testing.assert_array_equal(outputs["largest"], scanned_outputs["largest"])


def both(state, index, factor):
    state = wave_only(state, index, factor)
    return state, state


def chained(state, index, energy):
    return loop.repeat(descend, state, 3, energy) + 0.01 * index.astype(jnp.float32), index


def test_a_step_that_is_not_compiled_as_a_whole_loops_in_python(monkeypatch):
    looped = []
    runs_in_python = loop.runs_in_python
    monkeypatch.setattr(loop, "runs_in_python", lambda *trees: looped.append(runs_in_python(*trees)) or looped[-1])
    energy = freeze(ConvEnergy(4, channels=1, size=8, rngs=nnx.Rngs(0)))
    images = jnp.linspace(0.0, 1.0, 128).reshape(2, 8, 8, 1)
    parts, _ = loop.scan(chained, images, 2, energy, whole=False)
    assert looped == [True, True, True]
    whole, indices = loop.scan(chained, images, 2, energy)
    assert looped == [True, True, True, True, False] and indices.tolist() == [0, 1]
    np.testing.assert_allclose(parts, whole, atol=1e-6)


def test_steps_write_over_each_others_states_and_over_nothing_else():
    start = jnp.copy(START)
    last, states = loop.scan(both, start, 5, jnp.float32(3.7))
    np.testing.assert_array_equal(start, START)
    for number in range(5):  # outputs are kept, although they are states
        np.testing.assert_array_equal(states[number], loop.scan(both, start, number + 1, jnp.float32(3.7))[0])
    np.testing.assert_array_equal(states[-1], last)
    taken = loop._compiled_step.lower(loop._hashed_once(both), start, np.uint32(0), (jnp.float32(3.7),))
    assert taken.args_info[0][0].donated and not taken.args_info[0][2][0].donated


def test_repeat_is_scan_without_outputs():
    state, _ = loop.scan(wave, START, 5, jnp.float32(3.7))
    np.testing.assert_array_equal(loop.repeat(wave_only, START, 5, jnp.float32(3.7)), state)


def test_gradients_of_convolutions_agree():
    energy = freeze(ConvEnergy(4, channels=1, size=8, rngs=nnx.Rngs(0)))
    images = jax.random.uniform(jax.random.key(0), (2, 8, 8, 1))
    scanned = jax.jit(lambda images, energy: loop.repeat(descend, images, 4, energy))(images, energy)
    np.testing.assert_allclose(loop.repeat(descend, images, 4, energy), scanned, atol=1e-6)


@pytest.mark.parametrize("compiled", [False, True])
def test_progress_is_reported_and_changes_nothing(compiled, monkeypatch):
    expected = loop.scan(wave, START, 42, jnp.float32(3.7))
    if compiled:  # as on an accelerator
        monkeypatch.setattr(loop, "runs_in_python", lambda *_: False)
    reports = []
    found = loop.scan(wave, START, 42, jnp.float32(3.7), progress=lambda *report: reports.append(report))
    assert reports == [(finished, 42) for finished in range(0, 43, 3 if compiled else 1)]
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_loop_is_a_part_of_a_longer_one():
    reports = []
    report = loop.part_of(lambda *each: reports.append(each), 10, 30, 2)
    loop.repeat(wave_only, START, 3, jnp.float32(3.7), progress=report)
    assert reports == [(10, 30), (12, 30), (14, 30), (16, 30)]
    assert loop.part_of(None, 10, 30) is None


def with_total(images):
    return jnp.concatenate([images, images.sum(1, keepdims=True)], 1)


@pytest.mark.parametrize(
    ("rows", "most", "at_once"),
    [
        (32, 8, 32),  # eight on each of the four devices
        (32, 2, 8),
        (32, 3, 8),  # in four pieces of two a device, for three do not divide eight
        (28, 2, 4),  # seven a device have no pieces but single ones
        (52, 4, 52),  # thirteen would be all single
        (9, 1, 3),  # three devices share nine
        (1, 4, 1),
    ],
)
def test_pieces_are_parts_of_every_devices_share(rows, most, at_once, monkeypatch):
    sizes = []

    def function(images):
        sizes.append(len(images))
        return with_total(images)

    images = jax.random.normal(jax.random.key(0), (rows, 5))
    np.testing.assert_array_equal(loop.in_pieces(function, images, most), with_total(images))
    assert sizes == [at_once]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    np.testing.assert_array_equal(loop.in_pieces(function, images, most), with_total(images))
    assert sizes == [at_once, rows]


def test_pieces_need_nothing_of_other_devices():
    mesh = data_mesh()
    images = shard(mesh, jnp.arange(160.0).reshape(32, 5))
    program = jax.jit(lambda images: loop.in_pieces(with_total, images, 2)).lower(images).compile()
    np.testing.assert_array_equal(program(images), with_total(images))
    assert program.output_shardings.is_equivalent_to(images.sharding, 2)
    text = program.as_text()
    assert "f32[2,5]" in text  # two of the 32 rows on each device
    for collective in ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
        assert collective not in text


def test_no_progress_inside_of_a_trace():
    reports = []

    @jax.jit
    def run(factor):
        return loop.repeat(wave_only, START, 4, factor, progress=lambda *each: reports.append(each))

    np.testing.assert_array_equal(run(jnp.float32(3.7)), loop.repeat(wave_only, START, 4, jnp.float32(3.7)))
    assert not reports


def test_new_operands_do_not_recompile():
    @chex.assert_max_traces(n=1)
    def step(state, index, factor):
        return factor * state + index.astype(jnp.float32)

    chex.clear_trace_counter()
    for factor in (1.0, 2.0, 3.0):
        loop.repeat(step, START, 4, jnp.float32(factor))
    # Another length is the same compiled step.
    assert loop.repeat(step, START, 9, jnp.float32(0.0))[0, 0] == 8


def test_no_steps_and_fewer():
    state, outputs = loop.scan(wave, START, 0, jnp.float32(1.0))
    _, one = loop.scan(wave, START, 1, jnp.float32(1.0))
    np.testing.assert_array_equal(state, START)
    assert jax.tree.map(jnp.shape, outputs) == jax.tree.map(lambda row: (0, *row.shape[1:]), one)
    with pytest.raises(ValueError, match="steps is -1"):
        loop.repeat(wave_only, START, -1, jnp.float32(1.0))


def test_the_caller_keeps_its_state():
    loop.repeat(wave_only, START, 2, jnp.float32(1.0))
    assert not START.is_deleted()


def test_loops_run_inside_of_transformations():
    gradient = jax.grad(lambda factor: loop.repeat(wave_only, START, 3, factor).sum())(jnp.float32(2.0))
    near = [float(loop.repeat(wave_only, START, 3, jnp.float32(factor)).sum()) for factor in (1.99, 2.01)]
    np.testing.assert_allclose(gradient, (near[1] - near[0]) / 0.02, rtol=1e-3)
    swept = jax.vmap(lambda factor: loop.repeat(wave_only, START, 3, factor))(jnp.array([1.0, 2.0]))
    np.testing.assert_array_equal(swept[1], loop.repeat(wave_only, START, 3, jnp.float32(2.0)))


@struct
class Affine:
    factor: jax.Array
    steps: int = static(default=2)

    def __call__(self, numbers):
        TRACES.append("struct")
        return loop.repeat(wave_only, numbers, self.steps, self.factor)


@dataclasses.dataclass(frozen=True)
class Recipe:
    steps: int

    def __call__(self, numbers, factor):
        TRACES.append("object")
        return loop.repeat(wave_only, numbers, self.steps, factor)


def plain(numbers, factor):
    TRACES.append("function")
    return loop.repeat(wave_only, numbers, 2, factor)


TRACES = []


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_call_takes_structs_objects_and_functions(backend, monkeypatch):
    # Only the decision is another backend's: "gpu" compiles the whole call, loops included.
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    TRACES.clear()
    for factor in (jnp.float32(2.0), jnp.float32(3.0)):
        expected = factor * START * (1 - START)
        expected = factor * expected * (1 - expected) + 0.01
        np.testing.assert_allclose(loop.call(Affine(factor), START), expected, atol=1e-6)
        np.testing.assert_allclose(loop.call(Recipe(2), START, factor), expected, atol=1e-6)
        np.testing.assert_allclose(loop.call(plain, START, factor), expected, atol=1e-6)
    calls = ["struct", "object", "function"]
    assert calls * 2 == TRACES if backend == "cpu" else calls == TRACES
