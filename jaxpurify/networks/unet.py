"""The noise predictor of DDPM: the UNet of `diffusers.UNet2DModel` as PureGen uses it (arXiv:2405.18627)."""

from collections.abc import Sequence
import math

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxpurify.networks.layers import Conv, GroupNorm, Linear, Maps
from jaxpurify.networks.lowering import upsample
from jaxpurify.types import Images

UNET_SIZES = {
    "S": (32, 32, 64, 64, 128, 128),
    "M": (64, 64, 128, 128, 256, 256),
    "L": (128, 128, 256, 256, 512, 512),
}


class UNet(nnx.Module):
    """Noisy images in [-1, 1] scale and integer timesteps [B] to the noise in them.

    Every level has `layers_per_block` residual blocks down and one more up; all levels but the last halve the
    map by a 3 × 3 convolution of stride 2, padded by 1 on both sides. Levels in `attention_levels` have
    self-attention after every block, the middle always has one. The published sizes are `UNET_SIZES` with the
    other defaults: S 7,126,275, M 28,447,235, L 113,673,219 parameters; L is the paper's. Smaller images take
    fewer levels, `UNet((16, 32), attention_levels=(1,), channels=1)` for 8 × 8.

    Args:
      block_channels: channels of each level; the number of levels is free.
      layers_per_block: residual blocks a level on the way down.
      attention_levels: which levels (0 is the finest) have attention.
      channels: channels of the images.
      head_channels: channels of one attention head; at most the channels of the level.
      groups: groups of all normalisations; must divide every level's channels. By default 32, the published
        number, or the fewest channels of a level if those are fewer.
      rngs: stream `params` initialises the weights (PyTorch's default).

    Raises:
      ValueError: an attention level that does not exist, channels that `groups` or `head_channels` does not
        divide, or images whose height or width cannot be halved levels - 1 times.
    """

    def __init__(
        self,
        block_channels: Sequence[int] = UNET_SIZES["L"],
        layers_per_block: int = 2,
        attention_levels: Sequence[int] = (4,),
        channels: int = 3,
        head_channels: int = 8,
        groups: int | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        widths = tuple(block_channels)
        levels = len(widths)
        if not widths or layers_per_block < 1:
            raise ValueError(f"block_channels={widths}, layers_per_block={layers_per_block}; both need at least one")
        if not set(attention_levels) <= set(range(levels)):
            raise ValueError(f"attention_levels={tuple(attention_levels)}; there are levels 0 to {levels - 1}")
        groups = min(32, *widths) if groups is None else groups
        parts = _Parts(4 * widths[0], groups, head_channels, rngs)
        self.conv_in = Conv(channels, widths[0], 3, padding=1, rngs=rngs)
        self.time1 = Linear(widths[0], 4 * widths[0], rngs=rngs)
        self.time2 = Linear(4 * widths[0], 4 * widths[0], rngs=rngs)
        self.down, skips = nnx.List([]), [widths[0]]
        for level, width in enumerate(widths):
            inputs = [skips[-1]] + [width] * (layers_per_block - 1)
            last = level == levels - 1
            self.down.append(_Level(inputs, width, level in attention_levels, None if last else 2, parts))
            skips += [width] * (layers_per_block + (not last))
        self.middle = _Middle(widths[-1], parts)
        self.up, current = nnx.List([]), widths[-1]
        for level, width in reversed(list(enumerate(widths))):
            inputs = []
            for _ in range(layers_per_block + 1):
                inputs.append(current + skips.pop())
                current = width
            self.up.append(_Level(inputs, width, level in attention_levels, None if level == 0 else 1, parts))
        self.norm_out = GroupNorm(groups, widths[0])
        self.conv_out = Conv(widths[0], channels, 3, padding=1, rngs=rngs)
        self.width, self.halvings = widths[0], levels - 1

    def __call__(self, images: Images, timesteps: Int[Array, "batch"]) -> Images:
        if images.shape[1] % 2**self.halvings or images.shape[2] % 2**self.halvings:
            raise ValueError(
                f"images are {images.shape[1:3]}; this UNet takes heights and widths that are multiples of "
                f"{2**self.halvings}"
            )
        time = timestep_embedding(timesteps, self.width).astype(images.dtype)
        # Every block starts with SiLU of the embedding, so it is taken once here.
        time = jax.nn.silu(self.time2(jax.nn.silu(self.time1(time))))
        images = self.conv_in(images)
        skips = [images]
        for level in self.down:
            for block, attention in level.pairs():
                images = attention(block(images, time))
                skips.append(images)
            if level.resample is not None:
                images = level.resample(images)
                skips.append(images)
        images = self.middle(images, time)
        for level in self.up:
            for block, attention in level.pairs():
                images = attention(block(jnp.concatenate([images, skips.pop()], -1), time))
            if level.resample is not None:
                images = level.resample(upsample(images))
        return self.conv_out(jax.nn.silu(self.norm_out(images)))


def timestep_embedding(timesteps: Int[Array, "batch"], width: int) -> Float[Array, "batch width"]:
    """`[cos(t f) | sin(t f)]` with width/2 frequencies f = 10000^(-2i/width); the cosine half comes first."""
    half = width // 2
    frequencies = jnp.exp(-math.log(10000.0) / half * jnp.arange(half, dtype=jnp.float32))
    angles = timesteps.astype(jnp.float32).reshape(-1, 1) * frequencies.reshape(1, -1)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


class _Parts:
    """Builds blocks and attention with what all of them share."""

    def __init__(self, time_channels: int, groups: int, head_channels: int, rngs: nnx.Rngs):
        self.time_channels, self.groups, self.head_channels, self.rngs = time_channels, groups, head_channels, rngs

    def block(self, inputs: int, outputs: int) -> "_Block":
        return _Block(inputs, outputs, self.time_channels, self.groups, self.rngs)

    def attention(self, channels: int) -> "_Attention":
        return _Attention(channels, self.head_channels, self.groups, self.rngs)


class _Level(nnx.Module):
    """The blocks of one resolution, and the convolution that leads to the next (stride 2 down, 1 up)."""

    def __init__(self, inputs: list[int], outputs: int, attends: bool, stride: int | None, parts: _Parts):
        self.blocks = nnx.List([parts.block(width, outputs) for width in inputs])
        self.attentions = nnx.List([parts.attention(outputs) for _ in inputs if attends])
        resample = stride is not None
        self.resample = Conv(outputs, outputs, 3, stride=stride, padding=1, rngs=parts.rngs) if resample else None

    def pairs(self):
        attentions = list(self.attentions) or [_same] * len(self.blocks)
        return zip(self.blocks, attentions, strict=True)


class _Middle(nnx.Module):
    """Block, attention, block at the coarsest resolution."""

    def __init__(self, channels: int, parts: _Parts):
        self.blocks = nnx.List([parts.block(channels, channels) for _ in range(2)])
        self.attention = parts.attention(channels)

    def __call__(self, images: Maps, time: Float[Array, "batch time"]) -> Maps:
        return self.blocks[1](self.attention(self.blocks[0](images, time)), time)


class _Block(nnx.Module):
    """Normalise, SiLU, convolve, twice, the timestep added in between; 1 × 1 shortcut where channels change."""

    def __init__(self, inputs: int, outputs: int, time_channels: int, groups: int, rngs: nnx.Rngs):
        self.norm1 = GroupNorm(groups, inputs)
        self.conv1 = Conv(inputs, outputs, 3, padding=1, rngs=rngs)
        self.time = Linear(time_channels, outputs, rngs=rngs)
        self.norm2 = GroupNorm(groups, outputs)
        self.conv2 = Conv(outputs, outputs, 3, padding=1, rngs=rngs)
        self.shortcut = Conv(inputs, outputs, 1, rngs=rngs) if inputs != outputs else None

    def __call__(self, images: Maps, time: Float[Array, "batch time"]) -> Maps:
        residual = self.conv1(jax.nn.silu(self.norm1(images)))
        residual = residual + self.time(time).reshape(images.shape[0], 1, 1, -1)
        residual = self.conv2(jax.nn.silu(self.norm2(residual)))
        return residual + (images if self.shortcut is None else self.shortcut(images))


class _Attention(nnx.Module):
    """Self-attention over all positions of a map, softmax in float32, added to its input."""

    def __init__(self, channels: int, head_channels: int, groups: int, rngs: nnx.Rngs):
        head_channels = min(head_channels, channels)
        if head_channels < 1 or channels % head_channels:
            raise ValueError(f"head_channels={head_channels} does not divide the {channels} channels of a level")
        self.norm = GroupNorm(groups, channels)
        self.query, self.key, self.value, self.output = (Linear(channels, channels, rngs=rngs) for _ in range(4))
        self.head_channels = head_channels

    def __call__(self, images: Maps) -> Maps:
        batch, height, width, channels = images.shape
        heads = (batch, height * width, channels // self.head_channels, self.head_channels)
        rows = self.norm(images).reshape(batch, height * width, channels)
        query, key, value = (part(rows).reshape(heads) for part in (self.query, self.key, self.value))
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key).astype(jnp.float32) / math.sqrt(self.head_channels)
        weights = jax.nn.softmax(scores, -1).astype(images.dtype)
        rows = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(batch, height * width, channels)
        return images + self.output(rows).reshape(images.shape)


def _same(images: Maps) -> Maps:
    return images
