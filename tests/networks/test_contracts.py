"""What every network promises: parameter counts, shapes at all sizes, number types, clear refusals."""

import functools
import itertools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify import types
from jaxpurify.networks import (
    NETWORKS,
    ConvEnergy,
    ResidualEnergy,
    ResNet9,
    UNet,
    freeze,
    parameter_count,
    resnet18,
    resnet34,
)
from jaxpurify.networks.unet import timestep_embedding

COUNTS = {
    "conv_energy": 693_569,
    "residual_energy": 1_053_824,
    "unet_s": 7_126_275,
    "unet_m": 28_447_235,
    "unet_l": 113_673_219,
    "resnet9": 412_944,
    "resnet18": 11_173_962,
    "resnet34": 21_282_122,
    "mobilenet_v2": 2_296_922,
    "densenet121": 6_956_298,
    "hlb_s": 1_972_816,
    "hlb_m": 4_606_544,
}
CLASSIFIERS = ("resnet9", "resnet18", "resnet34", "mobilenet_v2", "densenet121", "hlb_s", "hlb_m")
SIZES = [(8, 1), (64, 3)]


@functools.cache
def abstract(name, *args, **options):
    """The network without its numbers: shapes cost no compilation."""
    return nnx.eval_shape(lambda: NETWORKS[name](*args, **options, rngs=nnx.Rngs(0)))


def random_images(size, channels, batch=2):
    return jnp.asarray(np.random.RandomState(0).uniform(size=(batch, size, size, channels)), jnp.float32)


@jax.jit
def run(model, *inputs):
    return model(*inputs)


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_count(name):
    assert parameter_count(abstract(name)) == COUNTS[name]


def test_the_catalogue_lists_every_network():
    assert set(NETWORKS) == {*COUNTS, "unet"}


def test_resnet34_for_tiny_imagenet():
    assert parameter_count(abstract("resnet34", 200, size=64)) == 21_686_792


@pytest.mark.parametrize(("size", "channels"), SIZES)
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_serve_all_sizes(name, size, channels):
    options = {"size": size} if name in ("resnet18", "resnet34") else {}
    model = freeze(abstract(name, channels=channels, classes=7, **options))
    images = jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)
    assert jax.eval_shape(run, model, images).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet9", 128), ("resnet18", 512), ("mobilenet_v2", 1280), ("densenet121", 1024), ("hlb_m", 384)],
)
def test_every_classifier_has_features(name, count):
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    assert jax.eval_shape(run, freeze(abstract(name)).features, images).shape == (2, count)


@pytest.mark.parametrize(("size", "channels"), SIZES)
def test_energies_serve_all_sizes(size, channels):
    for energy in (ConvEnergy(4, channels, size, rngs=nnx.Rngs(0)), ResidualEnergy(8, channels, rngs=nnx.Rngs(0))):
        energy = freeze(energy)
        assert isinstance(energy, types.Energy)
        energies = run(energy, random_images(size, channels))
        assert energies.shape == (2,) and energies[0] != energies[1]


def test_an_energy_of_tiles_sees_them_as_channels():
    """In PyTorch's order of channels: those of the image, then row and column in the tile."""
    tiled = ResidualEnergy(8, patch_size=2, rngs=nnx.Rngs(0))
    images = random_images(16, 3)
    unshuffled = np.zeros((2, 8, 8, 12), np.float32)
    for channel, row, column in itertools.product(range(3), range(2), range(2)):
        unshuffled[..., 4 * channel + 2 * row + column] = images[:, row::2, column::2, channel]
    plain = ResidualEnergy(8, 12, rngs=nnx.Rngs(1))
    nnx.update(plain, nnx.state(tiled))
    np.testing.assert_allclose(run(tiled, images), run(plain, jnp.asarray(unshuffled)), rtol=1e-5)


@pytest.mark.parametrize(("size", "channels"), SIZES)
def test_unets_serve_all_sizes(size, channels):
    widths = (16, 32) if size == 8 else (32, 32, 64)
    model = freeze(nnx.eval_shape(lambda: UNet(widths, attention_levels=(1,), channels=channels, rngs=nnx.Rngs(0))))
    images = jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)
    assert jax.eval_shape(run, model, images, jnp.array([3, 9])).shape == images.shape


def test_a_tiny_unet_sees_the_image_and_the_timestep():
    model = freeze(UNet((16, 32), layers_per_block=1, attention_levels=(1,), channels=1, rngs=nnx.Rngs(0)))
    images = random_images(8, 1)
    first, second = run(model, images, jnp.array([3, 9])), run(model, images, jnp.array([3, 3]))
    np.testing.assert_allclose(first[0], second[0], atol=1e-6)
    assert np.abs(first[1] - second[1]).max() > 1e-4
    assert np.abs(first - run(model, 1 - images, jnp.array([3, 9]))).max() > 1e-3


def test_timestep_embedding_puts_cosines_first():
    embedding = timestep_embedding(jnp.array([0, 5]), 8)
    np.testing.assert_allclose(embedding[0], [1, 1, 1, 1, 0, 0, 0, 0])
    frequencies = 10000.0 ** (-np.arange(4) / 4)
    np.testing.assert_allclose(embedding[1, 4:], np.sin(5 * frequencies), atol=1e-6)


def test_conv_energy_changes_only_the_number_of_halvings():
    for size, layers in ((4, 2), (8, 3), (16, 4), (32, 5), (64, 6)):
        model = nnx.eval_shape(lambda size=size: ConvEnergy(size=size, rngs=nnx.Rngs(0)))
        assert len(model.layers) == layers
        assert model.layers[-1].kernel.shape == (4, 4, 32 * 2 ** (layers - 2), 1)


def test_bfloat16_images_keep_the_number_type_and_roughly_the_value():
    model, images = freeze(ResNet9(4, rngs=nnx.Rngs(0))), random_images(8, 3)
    exact, rounded = run(model, images), run(model, jnp.asarray(images, jnp.bfloat16))
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(rounded, np.float32), exact, atol=0.05 * np.abs(exact).max())


@pytest.mark.parametrize("name", ["residual_energy", "densenet121", "mobilenet_v2", "hlb_s", "resnet18"])
def test_all_networks_compute_in_the_number_type_of_the_images(name):
    output = jax.eval_shape(run, freeze(abstract(name)), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.bfloat16))
    assert output.dtype == jnp.bfloat16


def test_normalisation_happens_inside():
    same = ResNet9(4, mean=0.0, std=1.0, rngs=nnx.Rngs(0))
    other = ResNet9(4, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), rngs=nnx.Rngs(0))
    images = random_images(8, 3)
    by_hand = (np.asarray(images) - np.array([0.1, 0.2, 0.3])) / np.array([0.5, 0.6, 0.7])
    by_hand = jnp.asarray(by_hand, jnp.float32)
    np.testing.assert_allclose(run(freeze(other), images), run(freeze(same), by_hand), atol=1e-5)


def test_stacked_ensembles_draw_the_same_weights_as_single_networks():
    def weights(key):
        return nnx.as_pure(nnx.state(ConvEnergy(4, size=8, rngs=nnx.Rngs(key))))

    keys = jax.random.split(jax.random.key(3), 2)
    stacked, single = jax.jit(jax.vmap(weights))(keys), weights(keys[1])
    jax.tree.map(lambda many, one: np.testing.assert_array_equal(many[1], one), stacked, single)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda rngs: ConvEnergy(size=24, rngs=rngs), "size is 24"),
        (lambda rngs: ConvEnergy(4, rngs=rngs)(random_images(16, 3)), r"\(16, 16, 3\)"),
        (lambda rngs: ResidualEnergy(4, rngs=rngs)(random_images(10, 3)), "multiples of 4"),
        (lambda rngs: ResidualEnergy(4, patch_size=2, rngs=rngs)(random_images(12, 3)), "multiples of 8"),
        (lambda rngs: ResidualEnergy(4, patch_size=0, rngs=rngs), "patch_size is 0; it must be at least 1"),
        (lambda rngs: ResNet9(4, rngs=rngs)(random_images(12, 3)), "multiples of 8"),
        (lambda rngs: ResNet9(4, mean=(0.1, 0.2), rngs=rngs), "mean has 2 entries"),
        (lambda rngs: ResNet9(4, std=0.0, rngs=rngs), "std is"),
        (lambda rngs: nnx.eval_shape(lambda: resnet18(size=40, rngs=rngs)), "size is 40"),
        (lambda rngs: UNet((16, 32), attention_levels=(2,), rngs=rngs), "levels 0 to 1"),
        (lambda rngs: UNet((16, 24), attention_levels=(1,), rngs=rngs), "groups=16 does not divide"),
        (lambda rngs: UNet((), rngs=rngs), "block_channels"),
        (lambda rngs: UNet((12,), attention_levels=(0,), rngs=rngs), "head_channels=8"),
    ],
)
def test_refusals_name_the_value(build, message):
    with pytest.raises(ValueError, match=message):
        build(nnx.Rngs(0))


def test_unet_refuses_sizes_it_cannot_halve():
    model = freeze(nnx.eval_shape(lambda: UNet((8, 8, 8), attention_levels=(), rngs=nnx.Rngs(0))))
    images = jax.ShapeDtypeStruct((1, 10, 10, 3), jnp.float32)
    with pytest.raises(ValueError, match="multiples of 4"):
        jax.eval_shape(lambda model, *inputs: model(*inputs), model, images, jnp.array([1]))


def test_resnet34_is_deeper():
    assert len(nnx.eval_shape(lambda: resnet34(rngs=nnx.Rngs(0))).stages[2]) == 6
