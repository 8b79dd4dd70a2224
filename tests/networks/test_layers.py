"""Normalisation layers against their definitions in NumPy and PyTorch's conventions."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.networks import parameter_count
from jaxpurify.networks.initialise import torch_uniform, xavier_uniform
from jaxpurify.networks.layers import BatchNorm, Conv, DepthwiseConv, GroupNorm, Linear


def random_maps(shape=(4, 6, 6, 8), seed=0):
    return np.random.RandomState(seed).normal(2.0, 3.0, shape).astype(np.float32)


def test_batch_norm_normalises_with_the_biased_variance():
    images, layer = random_maps(), BatchNorm(8)
    layer.scale[...], layer.bias[...] = jnp.arange(1.0, 9.0), jnp.arange(8.0)
    mean, variance = images.mean((0, 1, 2)), images.var((0, 1, 2))
    expected = (images - mean) / np.sqrt(variance + 1e-5) * np.arange(1, 9) + np.arange(8)
    np.testing.assert_allclose(layer(jnp.asarray(images)), expected, atol=2e-5)


def test_running_statistics_follow_pytorch():
    layer, mean, variance = BatchNorm(8), np.zeros(8), np.ones(8)
    for seed in range(3):
        images = random_maps(seed=seed)
        layer(jnp.asarray(images))
        mean = 0.9 * mean + 0.1 * images.mean((0, 1, 2))
        # PyTorch's running variance is the unbiased one.
        variance = 0.9 * variance + 0.1 * images.var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(layer.mean[...], mean, rtol=1e-5)
    np.testing.assert_allclose(layer.variance[...], variance, rtol=1e-5)


def test_evaluation_is_a_frozen_affine_map():
    layer, images = BatchNorm(8), jnp.asarray(random_maps())
    layer.mean[...], layer.variance[...] = jnp.arange(8.0), jnp.arange(1.0, 9.0)
    view = nnx.view(layer, use_running_average=True)
    scale = 1 / np.sqrt(np.arange(1.0, 9.0) + 1e-5)
    np.testing.assert_allclose(view(images), np.asarray(images) * scale - np.arange(8) * scale, atol=1e-5)
    np.testing.assert_array_equal(view.mean[...], np.arange(8.0))
    assert layer.use_running_average is False


def test_running_statistics_come_out_of_a_gradient():
    layer, images = BatchNorm(8), jnp.asarray(random_maps())
    graphdef, parameters, rest = nnx.split(layer, nnx.Param, ...)

    def loss(parameters, rest):
        layer = nnx.merge(graphdef, parameters, rest)
        value = jnp.square(layer(images)).mean()
        return value, nnx.as_pure(nnx.state(layer, nnx.BatchStat))

    gradient, statistics = jax.grad(loss, has_aux=True)(nnx.as_pure(parameters), nnx.as_pure(rest))
    assert jnp.abs(gradient["scale"]).min() > 0
    np.testing.assert_allclose(statistics["mean"], 0.1 * images.mean((0, 1, 2)), rtol=1e-4)


def test_statistics_of_bfloat16_images_are_float32():
    images = np.ones((64, 32, 32, 1), np.float32)
    images[::2] = 3
    layer = BatchNorm(1)
    output = layer(jnp.asarray(images, jnp.bfloat16))
    assert output.dtype == jnp.bfloat16
    # A bfloat16 sum of 65,536 terms would stop at 256.
    np.testing.assert_allclose(layer.mean[...], [0.2], rtol=1e-5)
    np.testing.assert_allclose(np.unique(np.asarray(output, np.float32)), [-1.0, 1.0], rtol=1e-2)


def test_batch_norm_gradient_is_that_of_the_definition():
    images = jnp.asarray(random_maps((3, 4, 4, 2)))
    weights = jnp.asarray(random_maps((3, 4, 4, 2), 1))

    def by_definition(images):
        centred = images - images.mean((0, 1, 2), keepdims=True)
        return (weights * centred / jnp.sqrt(jnp.square(centred).mean((0, 1, 2), keepdims=True) + 1e-5)).sum()

    graphdef, state = nnx.split(BatchNorm(2))
    ours = jax.jit(jax.grad(lambda images: (weights * nnx.merge(graphdef, nnx.as_pure(state))(images)).sum()))
    np.testing.assert_allclose(ours(images), jax.jit(jax.grad(by_definition))(images), atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_group_norm_follows_its_definition(groups):
    images, layer = random_maps(), GroupNorm(groups, 8)
    layer.scale[...], layer.bias[...] = jnp.arange(1.0, 9.0), jnp.arange(8.0)
    grouped = images.reshape(4, 6, 6, groups, 8 // groups)
    mean, variance = grouped.mean((1, 2, 4), keepdims=True), grouped.var((1, 2, 4), keepdims=True)
    expected = ((grouped - mean) / np.sqrt(variance + 1e-5)).reshape(images.shape) * np.arange(1, 9) + np.arange(8)
    np.testing.assert_allclose(layer(jnp.asarray(images)), expected, atol=3e-5)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [6, 7])
def test_depthwise_convolution_is_the_grouped_one(stride, size):
    images, layer = jnp.asarray(random_maps((2, size, size, 4))), DepthwiseConv(4, stride=stride, rngs=nnx.Rngs(0))
    expected = jax.lax.conv_general_dilated(
        images,
        layer.kernel[...],
        (stride, stride),
        [(1, 1), (1, 1)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=4,
    )
    np.testing.assert_allclose(layer(images), expected, atol=1e-5)


def test_fixed_scales_count_but_do_not_train():
    layer = BatchNorm(8, fixed_scale=True)
    assert parameter_count(layer) == 16
    assert set(nnx.to_pure_dict(nnx.state(layer, nnx.Param))) == {"bias"}


@pytest.mark.parametrize(
    ("initialise", "bound"), [(torch_uniform, 1 / np.sqrt(72)), (xavier_uniform, np.sqrt(6 / (9 * 24)))]
)
def test_first_weights_fill_their_range(initialise, bound):
    weights = np.asarray(initialise(jax.random.key(0), (3, 3, 8, 16)))
    assert np.abs(weights).max() <= bound
    np.testing.assert_allclose(weights.std(), bound / np.sqrt(3), rtol=0.05)
    assert abs(weights.mean()) < bound / 10
    traced = jax.jit(lambda key: initialise(key, (3, 3, 8, 16)))(jax.random.key(0))
    np.testing.assert_array_equal(weights, traced)


def test_running_averages_decay_as_they_are_told():
    images = jax.random.normal(jax.random.key(0), (8, 4, 4, 3)) + 2
    layer = BatchNorm(3, decay=0.7)
    layer(images)
    np.testing.assert_allclose(layer.mean[...], 0.3 * images.mean((0, 1, 2)), rtol=1e-5)


def test_biases_follow_pytorch_unless_zero():
    assert 0 < jnp.abs(Linear(4, 64, rngs=nnx.Rngs(0)).bias[...]).max() <= 0.5
    assert not Conv(3, 8, 3, zero_bias=True, rngs=nnx.Rngs(0)).bias[...].any()
