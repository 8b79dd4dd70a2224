"""How the expensive layers are computed on this backend: convolution and pooling, values and gradients.

Networks call these functions and stay readable; only this file knows that XLA:CPU is slow at some of them.
Everything is NHWC, kernels are HWIO, padding is the same on both sides as in PyTorch.
"""

import jax
from jax import lax
from jaxtyping import Array, Float

from jaxpurify.types import Images


def convolve(
    images: Images, kernel: Float[Array, "height width inputs outputs"], *, stride: int = 1, padding: int = 0
) -> Images:
    """Convolution of `images` [B, H, W, I] with `kernel` [h, w, I, O], zero padding on every side."""
    return lax.conv_general_dilated(
        images, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def max_pool(images: Images, window: int) -> Images:
    """Maximum over `window` × `window` tiles that do not overlap; H and W must be multiples of `window`."""
    batch, height, width, channels = images.shape
    tiles = images.reshape(batch, height // window, window, width // window, window, channels)
    return tiles.max((2, 4))


def average_pool(images: Images, window: int) -> Images:
    """Mean over `window` × `window` tiles that do not overlap; H and W must be multiples of `window`."""
    batch, height, width, channels = images.shape
    tiles = images.reshape(batch, height // window, window, width // window, window, channels)
    return tiles.mean((2, 4))


def upsample(images: Images) -> Images:
    """Every pixel repeated to a 2 × 2 tile (nearest neighbour)."""
    batch, height, width, channels = images.shape
    tiles = jax.lax.broadcast_in_dim(images, (batch, height, 2, width, 2, channels), (0, 1, 3, 5))
    return tiles.reshape(batch, 2 * height, 2 * width, channels)
