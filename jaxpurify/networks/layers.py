"""The layers that all networks share: NNX modules over `lowering.py`, with PyTorch's padding and defaults.

The number type of the images decides the number type of a network's arithmetic (float32 or bfloat16);
parameters stay float32 and are cast where they are used, statistics of normalisation are always float32.
"""

from collections.abc import Callable, Sequence
import math

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpurify.networks.initialise import ones, torch_uniform, uniform, zeros
from jaxpurify.networks.lowering import axes_of, convolve

Initializer = Callable[..., jax.Array]
# Feature maps [B, H, W, C]: unlike `Images`, what comes out may differ from what went in by all but B.
Maps = Float[Array, "batch _ _ _"]
Rows = Float[Array, "*batch inputs"]

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


class Fixed(nnx.Variable):
    """A number of the published network that training leaves alone: saved with it, but not an `nnx.Param`."""


def parameter_count(model: nnx.Module) -> int:
    """How many numbers the published network lists as parameters, those that stay fixed included."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Any(nnx.Param, Fixed))))


class Conv(nnx.Module):
    """Convolution with a square kernel [k, k, inputs, outputs], symmetric zero padding and an optional bias."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        use_bias: bool = True,
        zero_bias: bool = False,
        kernel_init: Initializer = torch_uniform,
        rngs: nnx.Rngs,
    ):
        shape = (kernel_size, kernel_size, inputs, outputs)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, jnp.float32))
        bias = _bias(kernel_size**2 * inputs, outputs, zero_bias, rngs) if use_bias else None
        self.bias = None if bias is None else nnx.Param(bias)
        self.stride, self.padding = stride, padding

    def __call__(self, images: Maps) -> Maps:
        kernel = self.kernel[...].astype(images.dtype)
        images = convolve(images, kernel, stride=self.stride, padding=self.padding)
        if self.bias is None:
            return images
        return images + self.bias[...].astype(images.dtype).reshape(1, 1, 1, -1)


class DepthwiseConv(nnx.Module):
    """3 × 3 convolution of every channel with its own kernel [3, 3, 1, channels], zero padding 1, no bias.

    Written as nine shifted products: grouped convolutions are slow on CPU and no faster elsewhere at 3 × 3.
    """

    def __init__(self, channels: int, *, stride: int = 1, rngs: nnx.Rngs):
        self.kernel = nnx.Param(torch_uniform(rngs.params(), (3, 3, 1, channels), jnp.float32))
        self.stride = stride

    def __call__(self, images: Maps) -> Maps:
        kernel = self.kernel[...].astype(images.dtype)
        height, width = images.shape[1:3]
        padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
        products = (
            padded[:, row : row + height : self.stride, column : column + width : self.stride]
            * kernel[row, column].reshape(1, 1, 1, -1)
            for row in range(3)
            for column in range(3)
        )
        return sum(products, start=jnp.zeros((), images.dtype))


class Linear(nnx.Module):
    """`inputs @ kernel + bias` over the last axis, kernel [inputs, outputs]."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        use_bias: bool = True,
        kernel_init: Initializer = torch_uniform,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(kernel_init(rngs.params(), (inputs, outputs), jnp.float32))
        self.bias = nnx.Param(_bias(inputs, outputs, False, rngs)) if use_bias else None

    def __call__(self, rows: Rows) -> Float[Array, "*batch outputs"]:
        rows = rows @ self.kernel[...].astype(rows.dtype)
        if self.bias is None:
            return rows
        return rows + self.bias[...].astype(rows.dtype).reshape((1,) * (rows.ndim - 1) + (-1,))


class BatchNorm(nnx.Module):
    """Batch normalisation as in PyTorch: `scale * (x - mean) / sqrt(variance + epsilon) + bias`.

    While training (`use_running_average` False, as built) it takes the statistics of the batch and moves the
    running ones: `running = decay * running + (1 - decay) * batch`, with the unbiased batch variance.
    `nnx.view(model, use_running_average=True)` takes the running ones. PyTorch's `momentum` is `1 - decay`.
    A `fixed_scale` is not trained.

    Warning: Flax's own layer keeps the biased variance and decays by 0.99.
    """

    def __init__(self, channels: int, *, decay: float = 0.9, epsilon: float = 1e-5, fixed_scale: bool = False):
        self.scale = (Fixed if fixed_scale else nnx.Param)(ones(channels))
        self.bias = nnx.Param(zeros(channels))
        self.mean = nnx.BatchStat(zeros(channels))
        self.variance = nnx.BatchStat(ones(channels))
        self.decay, self.epsilon = decay, epsilon
        self.use_running_average = False

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Called by `nnx.view` with the mode that the view shall have."""
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def __call__(self, images: Maps) -> Maps:
        scale, bias = self.scale[...], self.bias[...]
        if self.use_running_average:
            return normalise(images, self.mean[...], self.variance[...], scale, bias, self.epsilon)
        images, mean, variance = normalise_batch(images, scale, bias, self.epsilon)
        count = math.prod(images.shape[:3]) * jax.lax.axis_size(axes_of(images))
        unbiased = variance * (count / max(count - 1, 1))
        self.mean[...] = self.decay * self.mean[...] + (1 - self.decay) * jax.lax.stop_gradient(mean)
        self.variance[...] = self.decay * self.variance[...] + (1 - self.decay) * jax.lax.stop_gradient(unbiased)
        return images


class GroupNorm(nnx.Module):
    """Group normalisation: mean and variance of every image over space and one group of channels."""

    def __init__(self, groups: int, channels: int, *, epsilon: float = 1e-5):
        if groups < 1 or channels % groups:
            raise ValueError(f"groups={groups} does not divide {channels} channels")
        self.scale = nnx.Param(ones(channels))
        self.bias = nnx.Param(zeros(channels))
        self.groups, self.epsilon = groups, epsilon

    def __call__(self, images: Maps) -> Maps:
        return normalise_groups(images, self.scale[...], self.bias[...], self.groups, self.epsilon)


class Standardise(nnx.Module):
    """`(images - mean) / std` a channel: what a classifier does first with images in [0, 1].

    Args:
      mean, std: one number, or one a channel; part of the program, neither trained nor saved.

    Raises:
      ValueError: another number of entries than `channels`, or a `std` that is not above 0.
    """

    def __init__(self, channels: int, mean: float | Sequence[float], std: float | Sequence[float]):
        self.mean = _one_a_channel("mean", mean, channels)
        self.std = _one_a_channel("std", std, channels)
        if min(self.std) <= 0:
            raise ValueError(f"std is {std}; every entry must be above 0")

    def __call__(self, images: Maps) -> Maps:
        mean, std = (jnp.array(numbers, jnp.float32).reshape(1, 1, 1, -1) for numbers in (self.mean, self.std))
        return ((images.astype(jnp.float32) - mean) / std).astype(images.dtype)


def normalise(images: Maps, mean: Array, variance: Array, scale: Array, bias: Array, epsilon: float) -> Maps:
    """`scale * (images - mean) / sqrt(variance + epsilon) + bias`, all [C], as one multiplication and addition."""
    scale = scale * jax.lax.rsqrt(variance + epsilon)
    return _affine(images, scale.reshape(1, 1, 1, -1), (bias - mean * scale).reshape(1, 1, 1, -1))


def normalise_batch(images: Maps, scale: Array, bias: Array, epsilon: float) -> tuple[Maps, Array, Array]:
    """Normalised images, and the mean and the biased variance [C] over batch and space that did it.

    Inside `shard_map` the batch is that of all devices.
    """
    wide = images.astype(jnp.float32)
    moments = jnp.stack([wide.mean((0, 1, 2)), jnp.square(wide).mean((0, 1, 2))])
    mean, square = jax.lax.pmean(moments, devices) if (devices := axes_of(images)) else moments
    variance = jnp.maximum(square - jnp.square(mean), 0.0)
    return normalise(images, mean, variance, scale, bias, epsilon), mean, variance


def normalise_groups(images: Maps, scale: Array, bias: Array, groups: int, epsilon: float) -> Maps:
    """Group normalisation of `images`; reduces over space first, so that channels stay the contiguous axis."""
    batch, channels = images.shape[0], images.shape[3]
    wide = images.astype(jnp.float32)
    grouped = (batch, groups, channels // groups)
    mean, square = (moment.mean((1, 2)).reshape(grouped).mean(2, keepdims=True) for moment in (wide, jnp.square(wide)))
    variance = jnp.maximum(square - jnp.square(mean), 0.0)
    scale = scale.reshape(1, *grouped[1:]) * jax.lax.rsqrt(variance + epsilon)
    shift = bias.reshape(1, *grouped[1:]) - mean * scale
    return _affine(images, scale.reshape(batch, 1, 1, channels), shift.reshape(batch, 1, 1, channels))


def _affine(images: Maps, scale: Array, shift: Array) -> Maps:
    return (images.astype(jnp.float32) * scale + shift).astype(images.dtype)


def _bias(fan_in: int, outputs: int, zero: bool, rngs: nnx.Rngs) -> jax.Array:
    if zero:
        return zeros(outputs)
    return uniform(rngs.params(), (outputs,), 1 / math.sqrt(fan_in))


def _one_a_channel(name: str, numbers: float | Sequence[float], channels: int) -> tuple[float, ...]:
    numbers = (numbers,) * channels if isinstance(numbers, float | int) else tuple(numbers)
    if len(numbers) != channels:
        raise ValueError(f"{name} has {len(numbers)} entries; the images have {channels} channels")
    return tuple(float(number) for number in numbers)
