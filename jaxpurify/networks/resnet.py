"""ResNet-18 and ResNet-34 in their CIFAR form (He et al., arXiv:1512.03385): 3 × 3 stem, no max-pool."""

from collections.abc import Sequence
from typing import Any

from flax import nnx
import jax
from jaxtyping import Array, Float

from jaxpurify.networks.layers import BatchNorm, Conv, Linear, Maps, Standardise
from jaxpurify.networks.lowering import average_pool
from jaxpurify.types import Images, Logits

_STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))


class ResNet(nnx.Module):
    """Four stages of basic blocks (64, 128, 256, 512 channels), images in [0, 1] to logits.

    The last map is average-pooled by 4 × 4 (or whole, if smaller) and flattened: 512 features for images up
    to 32 × 32, 2 × 2 × 512 for 64 × 64, as in the published networks.

    Args:
      blocks: number of blocks of each stage, (2, 2, 2, 2) for ResNet-18.
      classes: number of logits.
      channels: channels of the images.
      size: height and width of the images, 8 or a multiple of 8 up to 32, above a multiple of 32.
      mean, std: what the images are normalised with, in [0, 1] units: one number or one a channel.
      rngs: stream `params` initialises the weights (PyTorch's default).

    Raises:
      ValueError: another `size`, or images of another shape than `size` and `channels` say.
    """

    def __init__(
        self,
        blocks: Sequence[int] = (2, 2, 2, 2),
        classes: int = 10,
        channels: int = 3,
        size: int = 32,
        *,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.25,
        rngs: nnx.Rngs,
    ):
        if size < 8 or size % 8 or (size > 32 and size % 32):
            raise ValueError(f"size is {size}; ResNet takes 8, 16, 24, 32 or a multiple of 32")
        self.standardise = Standardise(channels, mean, std)
        self.conv1 = Conv(channels, 64, 3, padding=1, use_bias=False, rngs=rngs)
        self.norm1 = BatchNorm(64)
        inputs, stages = 64, []
        for (outputs, stride), count in zip(_STAGES, blocks, strict=True):
            stage = [_Block(inputs, outputs, stride, rngs)]
            stage += [_Block(outputs, outputs, 1, rngs) for _ in range(count - 1)]
            stages.append(nnx.List(stage))
            inputs = outputs
        self.stages = nnx.List(stages)
        self.window = min(4, size // 8)
        self.linear = Linear((size // 8 // self.window) ** 2 * 512, classes, rngs=rngs)
        self.shape = (size, size, channels)

    def features(self, images: Images) -> Float[Array, "batch features"]:
        """The numbers an image that the linear layer sees, flattened in (height, width, channel) order."""
        return self._pooled(self._maps(images)[-1])

    def block_outputs(self, images: Images) -> list[Array]:
        """The map after each basic block [B, H, W, 64] … [B, H/8, W/8, 512], and the features."""
        maps = self._maps(images)
        return [*maps, self._pooled(maps[-1])]

    def _pooled(self, images: Maps) -> Float[Array, "batch features"]:
        return average_pool(images, self.window).reshape(images.shape[0], -1)

    def _maps(self, images: Images) -> list[Maps]:
        if images.shape[1:] != self.shape:
            raise ValueError(f"images are {images.shape[1:]}; this ResNet was built for {self.shape}")
        images = jax.nn.relu(self.norm1(self.conv1(self.standardise(images))))
        maps = []
        for stage in self.stages:
            for block in stage:
                images = block(images)
                maps.append(images)
        return maps

    def __call__(self, images: Images) -> Logits:
        return self.linear(self.features(images))


class _Block(nnx.Module):
    """Two 3 × 3 convolutions beside a shortcut, which is a 1 × 1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, rngs: nnx.Rngs):
        self.conv1 = Conv(inputs, outputs, 3, stride=stride, padding=1, use_bias=False, rngs=rngs)
        self.norm1 = BatchNorm(outputs)
        self.conv2 = Conv(outputs, outputs, 3, padding=1, use_bias=False, rngs=rngs)
        self.norm2 = BatchNorm(outputs)
        changes = stride != 1 or inputs != outputs
        self.shortcut = Conv(inputs, outputs, 1, stride=stride, use_bias=False, rngs=rngs) if changes else None
        self.shortcut_norm = BatchNorm(outputs) if changes else None

    def __call__(self, images: Maps) -> Maps:
        residual = self.norm2(self.conv2(jax.nn.relu(self.norm1(self.conv1(images)))))
        if self.shortcut is not None and self.shortcut_norm is not None:
            images = self.shortcut_norm(self.shortcut(images))
        return jax.nn.relu(residual + images)


def resnet18(classes: int = 10, channels: int = 3, size: int = 32, **options: Any) -> ResNet:
    """ResNet-18: 11,173,962 parameters for 10 classes of 32 × 32 × 3 images. Options as in `ResNet`."""
    return ResNet((2, 2, 2, 2), classes, channels, size, **options)


def resnet34(classes: int = 10, channels: int = 3, size: int = 32, **options: Any) -> ResNet:
    """ResNet-34: 21,282,122 parameters for 10 classes of 32 × 32 × 3 images. Options as in `ResNet`."""
    return ResNet((3, 4, 6, 3), classes, channels, size, **options)
