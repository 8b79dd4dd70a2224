"""Where a rebuilt UNet goes wrong unseen: padding of the stride, heads of attention, channels on the way up."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from jaxpurify.networks import UNet
from jaxpurify.networks.unet import UNET_SIZES

run = jax.jit(lambda module, images: module(images))


def test_the_published_size_has_the_published_channels_on_its_way_up():
    model = nnx.eval_shape(lambda: UNet(UNET_SIZES["L"], rngs=nnx.Rngs(0)))
    found = [tuple(block.conv1.kernel.shape[2] for block in level.blocks) for level in model.up]
    assert found == [
        (1024, 1024, 1024), (1024, 1024, 768), (768, 512, 512), (512, 512, 384), (384, 256, 256), (256, 256, 256)
    ]  # fmt: skip
    # Attention in the fifth level down and the second up, and between them.
    assert [len(level.attentions) for level in model.down] == [0, 0, 0, 0, 2, 0]
    assert [len(level.attentions) for level in model.up] == [0, 3, 0, 0, 0, 0]
    assert model.middle.attention.head_channels == model.down[4].attentions[0].head_channels == 8


def test_halving_pads_both_sides():
    level = UNet((4, 4), 1, (), rngs=nnx.Rngs(0)).down[0].resample
    corner = jnp.zeros((3, 3, 4, 4)).at[0, 0].set(jnp.eye(4))
    level.kernel[...], level.bias[...] = corner, jnp.zeros(4)
    images = jnp.arange(64.0).reshape(1, 4, 4, 4) + 1
    # The kernel's upper left corner sees the padding first and then the pixel before each even one.
    expected = np.zeros((1, 2, 2, 4))
    expected[0, 1, 1] = images[0, 1, 1]
    np.testing.assert_allclose(run(level, images), expected)


def apply(linear, rows):
    return rows @ np.asarray(linear.kernel[...]) + np.asarray(linear.bias[...])


def test_attention_has_heads_of_eight_channels():
    attention = UNet((16, 16), 1, (1,), groups=4, rngs=nnx.Rngs(0)).middle.attention
    images = np.random.default_rng(0).normal(size=(1, 2, 3, 16)).astype(np.float32)
    grouped = images.reshape(6, 4, 4).astype(np.float64)
    mean, variance = grouped.mean((0, 2), keepdims=True), grouped.var((0, 2), keepdims=True)
    rows = ((grouped - mean) / np.sqrt(variance + 1e-5)).reshape(6, 16)
    query, key, value = (apply(getattr(attention, name), rows) for name in ("query", "key", "value"))
    heads = []
    for head in (slice(0, 8), slice(8, 16)):
        scores = np.exp(query[:, head] @ key[:, head].T / np.sqrt(8))
        heads.append(scores / scores.sum(1, keepdims=True) @ value[:, head])
    expected = images + apply(attention.output, np.concatenate(heads, 1)).reshape(images.shape)
    np.testing.assert_allclose(run(attention, jnp.asarray(images)), expected, atol=1e-5)
