"""Accuracy and success: golden small examples, exactness under padding and sharding, one program for all batches."""

import functools

import chex
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.evaluate.counts import Counts
from jaxpurify.evaluate.metrics import accuracy, natural_accuracy, poison_success, predict, success
from jaxpurify.networks.freeze import freeze
from jaxpurify.networks.resnet9 import ResNet9
from jaxpurify.sharding import data_mesh
from jaxpurify.struct import struct


@struct
class Brightness:
    """Answers with the class that the first value of an image spells, shifted by a weight."""

    shift: jax.Array

    def __call__(self, images):
        classes = jnp.rint(images[:, 0, 0, 0] * 255).astype(jnp.int32) + self.shift
        return jax.nn.one_hot(classes, 10)


STUB = Brightness(jnp.int32(0))


def spelled(classes):
    return np.broadcast_to(np.asarray(classes, np.uint8)[:, None, None, None], (len(classes), 2, 2, 1))


def test_45_of_48_targets_hit_is_93_75_percent():
    predictions = [6] * 20 + [1, 2, 3] + [6] * 25
    counts = poison_success(STUB, spelled(predictions), np.full(48, 8), 6, batch_size=10)
    assert counts.fraction == 0.9375 == counts.highest
    assert int(counts.hits.sum()) == 45 and int(counts.trials.sum()) == 48


def test_success_is_counted_by_true_class_without_the_target():
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2, 3])
    predictions = np.array([2, 2, 2, 0, 2, 1, 2, 2, 3])
    counts = poison_success(STUB, spelled(predictions), labels, 2, batch_size=4)
    assert counts.fraction == 4 / 7
    np.testing.assert_array_equal(counts.per_class, [0.75, 0.5, np.nan, 0.0])
    assert counts.average == pytest.approx(1.25 / 3) and counts.highest == 0.75 and counts.lowest == 0.0
    assert success(predictions, labels, 2).fraction == counts.fraction


def test_accuracy_by_class():
    labels, predictions = np.array([0, 1, 1, 3, 3, 3]), np.array([0, 1, 0, 3, 3, 0])
    counts = natural_accuracy(STUB, spelled(predictions), labels, batch_size=4)
    assert counts.fraction == 4 / 6 and counts.lowest == 0.5
    np.testing.assert_array_equal(counts.per_class, [1.0, 0.5, np.nan, 2 / 3])
    assert accuracy(predictions, labels).average == pytest.approx((1 + 0.5 + 2 / 3) / 3)


@pytest.mark.parametrize("batch_size", [4, 8, 52])
def test_padding_batches_and_devices_change_nothing(batch_size):
    classes = np.random.default_rng(0).integers(0, 10, 49)
    for mesh in (None, data_mesh()):
        predictions = predict(STUB, spelled(classes), batch_size=batch_size, mesh=mesh)
        assert predictions.dtype == np.int32
        np.testing.assert_array_equal(predictions, classes)
    assert predict(STUB, spelled([]), batch_size=batch_size).shape == (0,)


def test_one_program_for_all_batches_and_for_new_weights():
    traces = chex.assert_max_traces(lambda images, shift: Brightness(shift)(images), n=1)

    @struct
    class Counted:
        shift: jax.Array

        def __call__(self, images):
            return traces(images, self.shift)

    classes = np.arange(9)
    for shift in (0, 1):
        predictions = predict(Counted(jnp.int32(shift)), spelled(classes), batch_size=4)
        np.testing.assert_array_equal(predictions, (classes + shift))
    np.testing.assert_array_equal(predict(Counted(jnp.int32(0)), spelled([3, 1]), batch_size=4), [3, 1])


class Linear(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(64, 5, rngs=rngs)

    def __call__(self, images):
        return self.layer(images.reshape(len(images), -1))


def test_a_frozen_network_predicts_as_it_does_directly():
    images = np.random.default_rng(1).integers(0, 256, (10, 8, 8, 1)).astype(np.uint8)
    for seed in (0, 1):
        network = freeze(Linear(nnx.Rngs(seed)))
        direct = network(jnp.asarray(images, jnp.float32) / 255).argmax(-1)
        np.testing.assert_array_equal(predict(network, images, batch_size=16, mesh=data_mesh()), direct)


def test_the_smallest_resnet_is_a_classifier_for_predict():
    network = freeze(ResNet9(width=2, rngs=nnx.Rngs(0)))
    images = np.zeros((3, 32, 32, 3), np.uint8)
    predictions = predict(network, images, batch_size=4)
    assert len(set(predictions)) == 1 and 0 <= predictions[0] < 10


def test_merged_counts_are_exact_where_means_of_means_are_not():
    random = np.random.default_rng(2)
    hits, labels = random.random(103) < 0.3, random.integers(0, 4, 103)
    whole = Counts.of(hits, labels, classes=5)
    merged = Counts(jnp.zeros(5, jnp.int32), jnp.zeros(5, jnp.int32))
    count = jax.jit(functools.partial(Counts.of, classes=5))
    for start in range(0, 103, 32):
        rows = np.arange(start, start + 32)
        mask = rows < 103
        rows = np.minimum(rows, 102)
        merged = merged.merge(count(hits[rows], labels[rows], mask))
    np.testing.assert_array_equal(merged.hits, whole.hits)
    np.testing.assert_array_equal(merged.trials, np.bincount(labels, minlength=5))
    assert merged.fraction == hits.mean() and np.isnan(merged.per_class[4])


def test_counts_of_nothing_are_not_a_number():
    nothing = accuracy(np.zeros(0, np.int32), np.zeros(0, np.int32))
    assert all(np.isnan(value) for value in (nothing.fraction, nothing.average, nothing.lowest, nothing.highest))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: predict(STUB, spelled([1]), batch_size=0),
            r"^batch_size is 0; it must be a positive multiple",
        ),
        (
            lambda: predict(STUB, spelled([1]), batch_size=6, mesh=data_mesh()),
            r"^batch_size is 6; .* of the 4",
        ),
        (
            lambda: natural_accuracy(STUB, spelled([1, 2]), np.array([1])),
            r"^labels have the shape \(1,\); one",
        ),
        (lambda: poison_success(STUB, spelled([1, 2]), np.array([2, 2]), 2), r"^all 2 test images are of the target"),
        (lambda: accuracy(np.array([1]), np.array([-1])), r"^labels hold -1; classes are 0 or more$"),
        (lambda: success(np.array([1]), np.array([1, 2]), 0), r"^predictions \(1,\) and labels \(2,\) must be one"),
    ],
)
def test_bad_input_is_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("target", [10, -3, 70])
def test_a_target_that_the_classifier_does_not_know_is_refused(target):
    def seven(images):
        return jax.nn.one_hot(jnp.full(len(images), 7), 10)

    images, labels = np.zeros((4, 8, 8, 1), np.uint8), np.arange(4)
    assert poison_success(seven, images, labels, target=7).fraction == 1
    with pytest.raises(ValueError, match=f"^target is {target}; the classifier has the classes 0 … 9$"):
        poison_success(seven, images, labels, target=target)
