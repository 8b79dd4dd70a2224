"""Energy networks E(x): images to one number each, low for natural images (PureGen, arXiv:2405.18627).

Both take images in [0, 1] and rescale them to [-1, 1] themselves: the gradient with respect to the images
they were given is therefore twice the published one. No normalisation layers, no dropout.
"""

import math

from flax import nnx
import jax

from jaxpurify.networks.initialise import xavier_uniform
from jaxpurify.networks.layers import Conv, Linear, Maps
from jaxpurify.networks.lowering import average_pool
from jaxpurify.types import Energies, Images


class ConvEnergy(nnx.Module):
    """The small convolutional energy of Hill et al. ("Stochastic Security", arXiv:2005.13525) and PureGen.

    A 3 × 3 convolution to `features` channels, then 4 × 4 convolutions of stride 2 that double the channels
    until the map is 4 × 4, each followed by a leaky ReLU (0.05), and a last 4 × 4 convolution to one number.
    The published network is `size=32`, three halvings and 693,569 parameters. At another size only the number
    of halvings changes: one for 8 × 8, two for 16 × 16, four for 64 × 64.

    Args:
      features: channels of the first layer.
      channels: channels of the images.
      size: height and width of the images: 4, 8, 16, 32, 64, …
      rngs: stream `params` initialises the weights (PyTorch's default for convolutions).

    Raises:
      ValueError: `size` is not a power of two of at least 4, or images of another shape are given.
    """

    def __init__(self, features: int = 32, channels: int = 3, size: int = 32, *, rngs: nnx.Rngs):
        halvings = int(math.log2(size)) - 2 if size >= 4 else -1
        if halvings < 0 or size != 4 << halvings:
            raise ValueError(
                f"size is {size}; ConvEnergy takes a power of two of at least 4 (residual_energy multiples of 4)"
            )
        layers = [Conv(channels, features, 3, padding=1, rngs=rngs)]
        for level in range(halvings):
            width = features << level
            layers.append(Conv(width, 2 * width, 4, stride=2, padding=1, rngs=rngs))
        layers.append(Conv(features << halvings, 1, 4, rngs=rngs))
        self.layers = nnx.List(layers)
        self.shape = (size, size, channels)

    def __call__(self, images: Images) -> Energies:
        if images.shape[1:] != self.shape:
            raise ValueError(f"images are {images.shape[1:]}; this ConvEnergy was built for {self.shape}")
        images = 2 * images - 1
        *hidden, last = self.layers
        for layer in hidden:
            images = jax.nn.leaky_relu(layer(images), 0.05)
        return last(images).reshape(-1)


class ResidualEnergy(nnx.Module):
    """EBMSNGAN32, the residual energy of PureGen; 1,053,824 parameters at `features=128`.

    Two blocks that halve the map, two that keep it, ReLU, mean over space, one linear unit without bias. One
    instance serves every height and width that are multiples of 4.

    Warning: the paper calls it the *generator* of SNGAN; the published code, followed here, is a
    discriminator whose sum over space is a mean.

    Args:
      features: channels of all blocks.
      channels: channels of the images.
      patch_size: p; the first layer sees tiles of p × p pixels as p² channels each. An option of the published code
        that none of its runs used.
      rngs: stream `params` initialises the weights (Xavier-uniform, biases 0).

    Raises:
      ValueError: `patch_size` below 1, or images of a height or width that is no multiple of 4 tiles.
    """

    # Eight images of 32²: their maps of all layers stay in a core's cache. Image-steps a second on one core of an EPYC
    # (Zen 4), 32 images at once against pieces of 8: 128 features 142 → 163, in bfloat16 178 → 214; 32 features 1,172 →
    # 1,165, in bfloat16 1,196 → 1,489. `ConvEnergy` has few pixels in its wide layers and loses: 1,027 → 830.
    pixels_at_once = 2**13

    def __init__(self, features: int = 128, channels: int = 3, patch_size: int = 1, *, rngs: nnx.Rngs):
        if patch_size < 1:
            raise ValueError(f"patch_size is {patch_size}; it must be at least 1")
        self.patch_size = patch_size
        self.stem = _Stem(channels * patch_size**2, features, rngs)
        self.blocks = nnx.List([_Block(features, halve, rngs) for halve in (True, False, False)])
        self.head = Linear(features, 1, use_bias=False, kernel_init=xavier_uniform, rngs=rngs)

    def __call__(self, images: Images) -> Energies:
        multiple = 4 * self.patch_size
        if images.shape[1] % multiple or images.shape[2] % multiple:
            raise ValueError(f"images are {images.shape[1:3]}; height and width must be multiples of {multiple}")
        images = self.stem(_tiles_as_channels(2 * images - 1, self.patch_size))
        for block in self.blocks:
            images = block(images)
        return self.head(jax.nn.relu(images).mean((1, 2))).reshape(-1)


def _tiles_as_channels(images: Maps, size: int) -> Maps:
    """Tiles of `size` × `size` pixels as channels, in PyTorch's order: channel, row, column."""
    if size == 1:
        return images
    batch, height, width, channels = images.shape
    tiles = images.reshape(batch, height // size, size, width // size, size, channels)
    return tiles.transpose(0, 1, 3, 5, 2, 4).reshape(batch, height // size, width // size, -1)


def _conv(inputs: int, outputs: int, kernel_size: int, rngs: nnx.Rngs) -> Conv:
    padding = kernel_size // 2
    return Conv(inputs, outputs, kernel_size, padding=padding, zero_bias=True, kernel_init=xavier_uniform, rngs=rngs)


class _Stem(nnx.Module):
    """First block: no leading ReLU, and the shortcut pools before it convolves."""

    def __init__(self, channels: int, features: int, rngs: nnx.Rngs):
        self.conv1 = _conv(channels, features, 3, rngs)
        self.conv2 = _conv(features, features, 3, rngs)
        self.shortcut = _conv(channels, features, 1, rngs)

    def __call__(self, images: Maps) -> Maps:
        residual = average_pool(self.conv2(jax.nn.relu(self.conv1(images))), 2)
        return residual + self.shortcut(average_pool(images, 2))


class _Block(nnx.Module):
    """ReLU, convolution, twice; a block that halves the map has a 1 × 1 convolution on its shortcut."""

    def __init__(self, features: int, halve: bool, rngs: nnx.Rngs):
        self.conv1 = _conv(features, features, 3, rngs)
        self.conv2 = _conv(features, features, 3, rngs)
        self.shortcut = _conv(features, features, 1, rngs) if halve else None

    def __call__(self, images: Maps) -> Maps:
        residual = self.conv2(jax.nn.relu(self.conv1(jax.nn.relu(images))))
        if self.shortcut is None:
            return residual + images
        # A 1 × 1 convolution and a mean commute: pooling the sum once is the published network.
        return average_pool(residual + self.shortcut(images), 2)
