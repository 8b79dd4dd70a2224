"""ResNet-9, the small residual network of DAWNBench's CIFAR-10 entries (D. Page, "How to train your ResNet")."""

from collections.abc import Sequence

from flax import nnx
import jax
from jaxtyping import Array, Float

from jaxpurify.networks.layers import BatchNorm, Conv, Linear, Maps, Standardise
from jaxpurify.networks.lowering import max_pool
from jaxpurify.types import Images, Logits


class ResNet9(nnx.Module):
    """Eight 3 × 3 convolutions and a linear layer: images in [0, 1] to logits.

    Convolution to w channels; 2w, max-pool, residual pair; 4w, max-pool; 8w, max-pool, residual pair; maximum
    over space; linear without bias, times 0.125. Every convolution is followed by batch normalisation and
    ReLU. DAWNBench's network is `width=64`.

    Args:
      width: channels w of the first layer.
      classes: number of logits.
      channels: channels of the images; height and width are free, multiples of 8.
      mean, std: what the images are normalised with, in [0, 1] units: one number or one a channel.
      rngs: stream `params` initialises the weights (PyTorch's default).

    Raises:
      ValueError: images of a height or width that is no multiple of 8.
    """

    def __init__(
        self,
        width: int = 16,
        classes: int = 10,
        channels: int = 3,
        *,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.25,
        rngs: nnx.Rngs,
    ):
        self.standardise = Standardise(channels, mean, std)
        self.prepare = _ConvNorm(channels, width, rngs)
        self.layer1 = _ConvNorm(width, 2 * width, rngs)
        self.residual1 = nnx.List([_ConvNorm(2 * width, 2 * width, rngs) for _ in range(2)])
        self.layer2 = _ConvNorm(2 * width, 4 * width, rngs)
        self.layer3 = _ConvNorm(4 * width, 8 * width, rngs)
        self.residual3 = nnx.List([_ConvNorm(8 * width, 8 * width, rngs) for _ in range(2)])
        self.linear = Linear(8 * width, classes, use_bias=False, rngs=rngs)

    def features(self, images: Images) -> Float[Array, "batch features"]:
        """The 8w numbers an image [B, 8w] that the linear layer sees."""
        return self._maps(images)[-1].max((1, 2))

    def block_outputs(self, images: Images) -> list[Array]:
        """What follows each max-pool, with its residual pair if it has one [B, H/2, W/2, 2w] …, and the features."""
        maps = self._maps(images)
        return [*maps, maps[-1].max((1, 2))]

    def _maps(self, images: Images) -> list[Maps]:
        if images.shape[1] % 8 or images.shape[2] % 8:
            raise ValueError(f"images are {images.shape[1:3]}; height and width must be multiples of 8")
        images = self.prepare(self.standardise(images))
        first = max_pool(self.layer1(images), 2)
        first = first + self.residual1[1](self.residual1[0](first))
        second = max_pool(self.layer2(first), 2)
        third = max_pool(self.layer3(second), 2)
        third = third + self.residual3[1](self.residual3[0](third))
        return [first, second, third]

    def __call__(self, images: Images) -> Logits:
        return 0.125 * self.linear(self.features(images))


class _ConvNorm(nnx.Module):
    """3 × 3 convolution, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
        self.conv = Conv(inputs, outputs, 3, padding=1, use_bias=False, rngs=rngs)
        self.norm = BatchNorm(outputs)

    def __call__(self, images: Maps) -> Maps:
        return jax.nn.relu(self.norm(self.conv(images)))
