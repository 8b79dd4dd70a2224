"""The fast CIFAR-10 network of the "hyperlight benchmark" (T. Tysam) as PureGen trains it (arXiv:2405.18627)."""

from collections.abc import Sequence
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from jaxpurify.networks.initialise import torch_uniform
from jaxpurify.networks.layers import BatchNorm, Conv, Linear, Maps, Standardise
from jaxpurify.networks.lowering import max_pool
from jaxpurify.types import Images, Logits

_gelu = functools.partial(jax.nn.gelu, approximate=False)


class HLB(nnx.Module):
    """A 2 × 2 convolution, three groups of two convolutions, maximum over space, linear; logits times 1/9.

    Convolutions have no bias and start as the identity on their first filters. Batch normalisation has the
    fixed scale 1, epsilon 1e-12 and fast running averages. A group is convolution, max-pool by 2, normalise,
    GELU, convolution, normalise, GELU; odd maps lose their last row and column in the pool. The published
    network is built for 32 × 32, where the last max-pool (3 × 3) covers the whole map; here it always does,
    and maps of one pixel are not pooled, so that every size from 8 × 8 works.

    Warning: unlike in the original, the first convolution is neither initialised from data nor frozen, as in
    PureGen's code.

    Args:
      widths: channels of the three groups.
      classes: number of logits.
      channels: channels of the images.
      first_decay, second_decay: decay of the running averages, of the first normalisation in the network and
        in each group, and of the second in each group.
      mean, std: what the images in [0, 1] are normalised with: one number or one a channel.
      rngs: stream `params` initialises the weights.
    """

    def __init__(
        self,
        widths: Sequence[int] = (64, 256, 256),
        classes: int = 10,
        channels: int = 3,
        *,
        first_decay: float = 0.7,
        second_decay: float = 0.6,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.25,
        rngs: nnx.Rngs,
    ):
        self.standardise = Standardise(channels, mean, std)
        self.whiten = _conv(channels, 24, 2, 0, rngs)
        self.whiten_norm = _norm(24, first_decay)
        inputs = (24, *widths[:-1])
        self.groups = nnx.List(
            [_Group(pair, first_decay, second_decay, rngs) for pair in zip(inputs, widths, strict=True)]
        )
        self.linear = Linear(widths[-1], classes, use_bias=False, rngs=rngs)

    def features(self, images: Images) -> Float[Array, "batch features"]:
        """The numbers an image that the linear layer sees: 256 (HLB_S) or 384 (HLB_M)."""
        images = _gelu(self.whiten_norm(self.whiten(self.standardise(images))))
        for group in self.groups:
            images = group(images)
        return images.max((1, 2))

    def __call__(self, images: Images) -> Logits:
        return self.linear(self.features(images)) / 9


class _Group(nnx.Module):
    """Two 3 × 3 convolutions with normalisation and GELU, a max-pool after the first."""

    def __init__(self, widths: tuple[int, int], first_decay: float, second_decay: float, rngs: nnx.Rngs):
        inputs, outputs = widths
        self.conv1, self.norm1 = _conv(inputs, outputs, 3, 1, rngs), _norm(outputs, first_decay)
        self.conv2, self.norm2 = _conv(outputs, outputs, 3, 1, rngs), _norm(outputs, second_decay)

    def __call__(self, images: Maps) -> Maps:
        images = self.conv1(images)
        height, width = images.shape[1:3]
        if min(height, width) > 1:
            images = max_pool(images[:, : height // 2 * 2, : width // 2 * 2], 2)
        images = _gelu(self.norm1(images))
        return _gelu(self.norm2(self.conv2(images)))


def hlb_s(classes: int = 10, channels: int = 3, **options: Any) -> HLB:
    """HLB_S: widths 64, 256, 256; 1,972,816 parameters for 10 classes. Options as in `HLB`."""
    return HLB((64, 256, 256), classes, channels, **options)


def hlb_m(classes: int = 10, channels: int = 3, **options: Any) -> HLB:
    """HLB_M: widths 128, 384, 384 and all decays 0.6; 4,606,544 parameters for 10 classes. Options as in `HLB`."""
    options.setdefault("first_decay", 0.6)
    return HLB((128, 384, 384), classes, channels, **options)


def _conv(inputs: int, outputs: int, kernel_size: int, padding: int, rngs: nnx.Rngs) -> Conv:
    return Conv(inputs, outputs, kernel_size, padding=padding, use_bias=False, kernel_init=_identity_first, rngs=rngs)


def _norm(channels: int, decay: float) -> BatchNorm:
    return BatchNorm(channels, decay=decay, epsilon=1e-12, fixed_scale=True)


def _identity_first(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """PyTorch's default, its first filters replaced by ones that copy one input channel each."""
    height, width, inputs, outputs = shape
    copied = min(inputs, outputs)
    identity = np.zeros((height, width, inputs, copied), np.float32)
    identity[height // 2, width // 2, range(copied), range(copied)] = 1
    return jnp.concatenate([identity, torch_uniform(key, shape, dtype)[..., copied:]], -1)
