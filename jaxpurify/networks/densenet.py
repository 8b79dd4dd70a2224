"""DenseNet-121 in its CIFAR form (Huang et al., arXiv:1608.06993)."""

from collections.abc import Sequence
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpurify.networks.layers import BatchNorm, Conv, Linear, Maps, Standardise
from jaxpurify.networks.lowering import average_pool
from jaxpurify.types import Images, Logits


class DenseNet(nnx.Module):
    """Dense blocks with bottlenecks and halving transitions, images in [0, 1] to logits.

    `blocks=(6, 12, 24, 16), growth=32` is DenseNet-121 with 6,956,298 parameters. New features are put
    *before* the old ones, as in the published network. The last map is averaged whole, which for 32 × 32 is
    the published pool of 4 × 4.

    Args:
      blocks: layers of each dense block.
      growth: channels that a layer adds.
      classes: number of logits.
      channels: channels of the images; height and width are free, multiples of 8 for four blocks.
      mean, std: what the images in [0, 1] are normalised with: one number or one a channel.
      rngs: stream `params` initialises the weights (PyTorch's default).

    Raises:
      ValueError: images whose height or width cannot be halved in every transition.
    """

    def __init__(
        self,
        blocks: Sequence[int] = (6, 12, 24, 16),
        growth: int = 32,
        classes: int = 10,
        channels: int = 3,
        *,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.25,
        rngs: nnx.Rngs,
    ):
        self.standardise = Standardise(channels, mean, std)
        width = 2 * growth
        self.conv = Conv(channels, width, 3, padding=1, use_bias=False, rngs=rngs)
        self.blocks, self.transitions = nnx.List([]), nnx.List([])
        for level, count in enumerate(blocks):
            self.blocks.append(nnx.List([_Layer(width + index * growth, growth, rngs) for index in range(count)]))
            width += count * growth
            if level < len(blocks) - 1:
                self.transitions.append(_Transition(width, width // 2, rngs))
                width //= 2
        self.norm = BatchNorm(width)
        self.linear = Linear(width, classes, rngs=rngs)

    def features(self, images: Images) -> Float[Array, "batch features"]:
        """The numbers an image that the linear layer sees: 1024 for DenseNet-121."""
        multiple = 2 ** len(self.transitions)
        if images.shape[1] % multiple or images.shape[2] % multiple:
            raise ValueError(f"images are {images.shape[1:3]}; height and width must be multiples of {multiple}")
        images = self.conv(self.standardise(images))
        for level, block in enumerate(self.blocks):
            for layer in block:
                images = layer(images)
            if level < len(self.transitions):
                images = self.transitions[level](images)
        return jax.nn.relu(self.norm(images)).mean((1, 2))

    def __call__(self, images: Images) -> Logits:
        return self.linear(self.features(images))


class _Layer(nnx.Module):
    """Normalise, ReLU, 1 × 1 convolution to four times the growth, the same with 3 × 3 to the growth."""

    def __init__(self, inputs: int, growth: int, rngs: nnx.Rngs):
        self.norm1, self.conv1 = BatchNorm(inputs), Conv(inputs, 4 * growth, 1, use_bias=False, rngs=rngs)
        self.norm2 = BatchNorm(4 * growth)
        self.conv2 = Conv(4 * growth, growth, 3, padding=1, use_bias=False, rngs=rngs)

    def __call__(self, images: Maps) -> Maps:
        new = self.conv1(jax.nn.relu(self.norm1(images)))
        new = self.conv2(jax.nn.relu(self.norm2(new)))
        return jnp.concatenate([new, images], -1)


class _Transition(nnx.Module):
    """Normalise, ReLU, 1 × 1 convolution, average-pool by 2."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
        self.norm, self.conv = BatchNorm(inputs), Conv(inputs, outputs, 1, use_bias=False, rngs=rngs)

    def __call__(self, images: Maps) -> Maps:
        return average_pool(self.conv(jax.nn.relu(self.norm(images))), 2)


def densenet121(classes: int = 10, channels: int = 3, **options: Any) -> DenseNet:
    """DenseNet-121: 6,956,298 parameters for 10 classes. Options as in `DenseNet`."""
    return DenseNet((6, 12, 24, 16), 32, classes, channels, **options)
