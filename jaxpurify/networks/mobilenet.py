"""MobileNetV2 in its CIFAR form (Sandler et al., arXiv:1801.04381)."""

from collections.abc import Sequence

from flax import nnx
import jax
from jaxtyping import Array, Float

from jaxpurify.networks.layers import BatchNorm, Conv, DepthwiseConv, Linear, Maps, Standardise
from jaxpurify.types import Images, Logits

# Expansion, output channels, number of blocks, stride of the first one.
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class MobileNetV2(nnx.Module):
    """Inverted bottlenecks with ReLU (not ReLU6), images in [0, 1] to logits; 2,296,922 parameters.

    The stem and the first two stages keep the resolution. A block of stride 1 is residual, through a 1 × 1
    convolution and normalisation where the channels change. The last map is averaged whole, which for 32 × 32
    is the published pool of 4 × 4.

    Args:
      classes: number of logits.
      channels: channels of the images; height and width are free.
      mean, std: what the images in [0, 1] are normalised with: one number or one a channel.
      rngs: stream `params` initialises the weights (PyTorch's default).
    """

    def __init__(
        self,
        classes: int = 10,
        channels: int = 3,
        *,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.25,
        rngs: nnx.Rngs,
    ):
        self.standardise = Standardise(channels, mean, std)
        self.conv1 = Conv(channels, 32, 3, padding=1, use_bias=False, rngs=rngs)
        self.norm1 = BatchNorm(32)
        inputs, blocks = 32, []
        for expansion, outputs, count, stride in _STAGES:
            for position in range(count):
                blocks.append(_Block(inputs, outputs, expansion, stride if position == 0 else 1, rngs))
                inputs = outputs
        self.blocks = nnx.List(blocks)
        self.conv2 = Conv(inputs, 1280, 1, use_bias=False, rngs=rngs)
        self.norm2 = BatchNorm(1280)
        self.linear = Linear(1280, classes, rngs=rngs)

    def features(self, images: Images) -> Float[Array, "batch features"]:
        """The 1280 numbers an image that the linear layer sees."""
        images = jax.nn.relu(self.norm1(self.conv1(self.standardise(images))))
        for block in self.blocks:
            images = block(images)
        return jax.nn.relu(self.norm2(self.conv2(images))).mean((1, 2))

    def __call__(self, images: Images) -> Logits:
        return self.linear(self.features(images))


class _Block(nnx.Module):
    """1 × 1 convolution to more channels, 3 × 3 convolution of each channel, 1 × 1 convolution back."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int, rngs: nnx.Rngs):
        width = expansion * inputs
        self.conv1, self.norm1 = Conv(inputs, width, 1, use_bias=False, rngs=rngs), BatchNorm(width)
        self.conv2, self.norm2 = DepthwiseConv(width, stride=stride, rngs=rngs), BatchNorm(width)
        self.conv3, self.norm3 = Conv(width, outputs, 1, use_bias=False, rngs=rngs), BatchNorm(outputs)
        changes = stride == 1 and inputs != outputs
        self.shortcut = Conv(inputs, outputs, 1, use_bias=False, rngs=rngs) if changes else None
        self.shortcut_norm = BatchNorm(outputs) if changes else None
        self.residual = stride == 1

    def __call__(self, images: Maps) -> Maps:
        output = jax.nn.relu(self.norm1(self.conv1(images)))
        output = jax.nn.relu(self.norm2(self.conv2(output)))
        output = self.norm3(self.conv3(output))
        if not self.residual:
            return output
        if self.shortcut is not None and self.shortcut_norm is not None:
            images = self.shortcut_norm(self.shortcut(images))
        return output + images
