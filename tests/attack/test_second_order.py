"""Two passes give what differentiating twice in reverse gives: recorded values, micro-batches, devices, networks."""

import functools
import re
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpurify.attack.matching import PASSENGERS, Passenger
from jaxpurify.attack.second_order import reverse_over_reverse, summed_gradient, two_pass
from jaxpurify.networks import freeze
from jaxpurify.networks.layers import BatchNorm, Conv, Linear
from jaxpurify.networks.lowering import max_pool
from jaxpurify.networks.partition import split_trainable
from jaxpurify.sharding import data_mesh, replicate, shard
from jaxpurify.struct import struct
from tests.attack.matching_golden import GOLDEN, POISON_LABELS, network, parameters, rows


@struct
class Losses:
    apply: Any

    def __call__(self, params, delta, data):
        images, labels = data
        return optax.softmax_cross_entropy_with_integer_labels(self.apply(params, images + delta), labels)


SMALL = Losses(jax.tree_util.Partial(network))


@functools.partial(jax.jit, static_argnames=("engine", "micro_batch"))
def differentiate(losses, params, delta, data, passenger, target, loss_weight=0.0, engine="two-pass", micro_batch=None):
    def objective(poison):
        return passenger(poison, target)

    common = (losses, params, delta, data, objective)
    if engine == "reverse":
        return reverse_over_reverse(*common, loss_weight=loss_weight)
    return two_pass(*common, micro_batch=micro_batch, loss_weight=loss_weight)


@functools.cache
def small():
    """Parameters, rows and the targets' gradient of the recorded problem."""
    params, images = parameters(), rows((8, 6), 1.1)
    seen, intended = rows((2, 6), 2.2), jnp.zeros(2, int)
    target = jax.grad(lambda params: SMALL(params, jnp.zeros_like(seen), (seen, intended)).mean())(params)
    return params, jnp.zeros_like(images), (images, jnp.asarray(POISON_LABELS)), target


def test_recorded_loss_and_gradient():
    params, delta, data, target = small()
    np.testing.assert_allclose(optax.tree.norm(target), GOLDEN["T2"]["target_gnorm"], rtol=1e-6)
    recorded = GOLDEN["T2"]["gm"]
    for engine in ("two-pass", "reverse"):
        value, gradient = differentiate(SMALL, params, delta, data, Passenger(), target, engine=engine)
        np.testing.assert_allclose(value, recorded["loss"], rtol=1e-6)
        np.testing.assert_allclose(jnp.linalg.norm(gradient.ravel()), recorded["gradnorm"], rtol=1e-5)
        np.testing.assert_allclose(gradient[0, 0, 0, 0], recorded["g00"], atol=1e-7)
        np.testing.assert_allclose(gradient[7, 0, 0, 5], recorded["g75"], atol=1e-7)


@pytest.mark.parametrize("micro_batch", [1, 3, 4, 8, 100])
def test_micro_batches_change_nothing(micro_batch):
    params, delta, data, target = small()
    whole = differentiate(SMALL, params, delta, data, Passenger(), target, loss_weight=0.3)
    parts = differentiate(SMALL, params, delta, data, Passenger(), target, loss_weight=0.3, micro_batch=micro_batch)
    np.testing.assert_allclose(parts[0], whole[0], rtol=1e-6)
    np.testing.assert_allclose(parts[1], whole[1], atol=2e-7)


@pytest.mark.parametrize("name", PASSENGERS)
def test_both_engines_agree_for_every_loss(name):
    params, delta, data, target = small()
    passenger = Passenger(name, norm_weight=0.1)
    both = [
        differentiate(SMALL, params, delta, data, passenger, target, loss_weight=0.2, engine=engine, micro_batch=size)
        for engine, size in (("two-pass", 3), ("reverse", None))
    ]
    np.testing.assert_allclose(both[0][0], both[1][0], rtol=1e-5)
    np.testing.assert_allclose(both[0][1], both[1][1], atol=5e-7)
    assert np.abs(both[0][1]).max() > 1e-3


def test_in_double_precision_both_engines_are_one():
    with jax.enable_x64(True):
        params, delta, data, target = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, jnp.float64) if leaf.dtype == jnp.float32 else leaf, small()
        )
        two = differentiate(SMALL, params, delta, data, Passenger(), target)[1]
        reverse = differentiate(SMALL, params, delta, data, Passenger(), target, engine="reverse")[1]
        assert two.dtype == jnp.float64
        np.testing.assert_allclose(two, reverse, atol=1e-16)
        np.testing.assert_allclose(jnp.linalg.norm(two.ravel()), GOLDEN["T2"]["gm"]["gradnorm"], atol=1e-10)


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_weights_of_rows_are_as_precise_as_the_rows(micro_batch):
    """1/7 in single precision would be wrong by 2e-9."""
    with jax.enable_x64(True):
        params, delta, data, target = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, jnp.float64) if leaf.dtype == jnp.float32 else leaf, small()
        )
        delta, data = jax.tree.map(lambda leaf: leaf[:7], (delta, data))
        operands = (SMALL, params, delta, data, Passenger("scalar_product"), target, 0.3)
        two, reverse = (
            differentiate(*operands, **each) for each in ({"micro_batch": micro_batch}, {"engine": "reverse"})
        )
        np.testing.assert_allclose(two[0], reverse[0], rtol=1e-15)
        np.testing.assert_allclose(two[1], reverse[1], atol=1e-15)


def test_first_pass_is_the_gradient_of_the_mean_loss():
    params, delta, data, _ = small()
    expected = jax.value_and_grad(lambda params: SMALL(params, delta, data).mean())(params)
    found = summed_gradient(SMALL, params, delta, data, micro_batch=3)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-7), found, expected)


class Narrow(nnx.Module):
    """Everything that ResNets are made of, small enough to compile quickly."""

    def __init__(self, rngs):
        self.first = Conv(3, 4, 3, padding=1, use_bias=False, rngs=rngs)
        self.norm = BatchNorm(4)
        self.second = Conv(4, 5, 3, stride=2, padding=1, rngs=rngs)
        self.linear = Linear(5, 3, rngs=rngs)

    def __call__(self, images):
        images = max_pool(jax.nn.relu(self.norm(self.first(images))), 2)
        return self.linear(jnp.tanh(self.second(images)).mean((1, 2)))


@functools.cache
def convolutional():
    """A small network with running statistics that are not 0 and 1, and 16 rows."""
    model = Narrow(nnx.Rngs(0))
    model.norm.mean[...] = 0.1 * jnp.sin(jnp.arange(4.0))
    model.norm.variance[...] = 1 + 0.3 * jnp.cos(jnp.arange(4.0))
    apply, params = split_trainable(freeze(model))
    images = jax.random.uniform(jax.random.key(1), (16, 8, 8, 3))
    data = images, jnp.arange(16) % 3
    target = jax.grad(lambda params: Losses(apply)(params, images[:1] * 0, (images[:1], data[1][1:2])).mean())(params)
    return Losses(apply), params, jnp.zeros_like(images), data, Passenger("similarity"), target


def test_convolutions_normalisation_and_pooling():
    two, reverse, parts = (
        differentiate(*convolutional(), engine=engine, micro_batch=size)
        for engine, size in (("two-pass", None), ("reverse", None), ("two-pass", 5))
    )
    scale = float(np.abs(reverse[1]).max())
    for found in (two, parts):
        np.testing.assert_allclose(found[0], reverse[0], rtol=1e-5)
        np.testing.assert_allclose(found[1] / scale, reverse[1] / scale, atol=2e-5)


@pytest.mark.parametrize("micro_batch", [None, 8])
def test_rows_over_four_devices(micro_batch):
    losses, params, delta, data, passenger, target = convolutional()
    value, gradient = differentiate(losses, params, delta, data, passenger, target, micro_batch=micro_batch)
    mesh = data_mesh()
    whole = replicate(mesh, (losses, params, passenger, target))
    split = shard(mesh, (delta, data))
    operands = (whole[0], whole[1], *split, *whole[2:])
    found = differentiate(*operands, micro_batch=micro_batch)
    assert len(found[1].sharding.device_set) == 4
    scale = float(np.abs(gradient).max())
    np.testing.assert_allclose(found[0], value, rtol=1e-5)
    np.testing.assert_allclose(found[1] / scale, gradient / scale, atol=2e-5)
    # Each device computes its own rows: no convolution in the program sees all 16 (or all 8 of a micro-batch).
    program = differentiate.lower(*operands, micro_batch=micro_batch).compile().as_text()
    rows_seen = {int(match[1]) for match in re.finditer(r"f32\[(\d+),8,8,3\]", program)}
    assert rows_seen and max(rows_seen) <= 4


def test_train_mode_needs_the_reverse_form():
    """With batch statistics rows see each other: differentiating twice in reverse still follows the definition."""

    def normalised(params, images):
        hidden = images.reshape(len(images), -1) @ params["W1"].T
        hidden = jnp.tanh((hidden - hidden.mean(0)[None]) / jnp.sqrt(hidden.var(0) + 0.1)[None])
        return hidden @ params["W2"].T

    params, delta, data, target = small()
    losses = Losses(jax.tree_util.Partial(normalised))
    value, gradient = differentiate(losses, params, delta, data, Passenger(), target, engine="reverse")
    step = jnp.sin(jnp.arange(delta.size, dtype=jnp.float32)).reshape(delta.shape)
    ends = [
        float(differentiate(losses, params, delta + by * step, data, Passenger(), target, engine="reverse")[0])
        for by in (-3e-3, 3e-3)
    ]
    np.testing.assert_allclose((ends[1] - ends[0]) / 6e-3, (gradient * step).sum(), rtol=1e-2)
    parts = differentiate(losses, params, delta, data, Passenger(), target, micro_batch=4)
    assert abs(float(parts[0] - value)) > 1e-3


def test_restarts_are_one_program():
    params, delta, data, target = small()
    deltas = jnp.stack([delta, delta + 0.1, delta - 0.2])

    def one(delta):
        return two_pass(SMALL, params, delta, data, lambda poison: Passenger()(poison, target), micro_batch=3)

    values, gradients = jax.jit(jax.vmap(one))(deltas)
    for place in range(3):
        value, gradient = one(deltas[place])
        np.testing.assert_allclose(values[place], value, rtol=1e-6)
        np.testing.assert_allclose(gradients[place], gradient, atol=3e-7)


def test_micro_batch_is_checked():
    params, delta, data, target = small()
    with pytest.raises(ValueError, match=r"^micro_batch is 0; it must be at least 1, or None for all rows at once$"):
        two_pass(SMALL, params, delta, data, lambda poison: Passenger()(poison, target), micro_batch=0)
