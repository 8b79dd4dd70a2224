"""Victims trained side by side are the victims that would have been trained alone."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify import loop
from jaxpurify.data.augment import PadCrop
from jaxpurify.data.digits import read_digits
from jaxpurify.networks.layers import BatchNorm, Conv, Linear
from jaxpurify.sharding import data_mesh
from jaxpurify.train.classifier import Recipe, train_classifier
from jaxpurify.train.population import train_population

RECIPE = Recipe(epochs=2, batch_size=40, learning_rate=0.1)
VICTIMS = 2


class Small(nnx.Module):
    """One convolution with batch normalisation and a linear layer."""

    def __init__(self, seed, width=8):
        rngs = nnx.Rngs(seed)
        self.conv = Conv(1, width, 3, stride=2, padding=1, use_bias=False, rngs=rngs)
        self.norm = BatchNorm(width)
        self.linear = Linear(16 * width, 10, rngs=rngs)

    def __call__(self, images):
        return self.linear(jax.nn.relu(self.norm(self.conv(images))).reshape(len(images), -1))


@pytest.fixture(scope="module")
def sets():
    digits = read_digits(split="train")[:200]
    noisy = np.clip(digits.images.astype(int) + 40, 0, 255).astype(np.uint8)
    return np.stack([digits.images, noisy]), np.stack([digits.labels, digits.labels[::-1]])


def population(sets, **options):
    keys = jax.vmap(jax.random.key)(jnp.arange(VICTIMS))
    return train_population([Small(seed) for seed in range(VICTIMS)], *sets, keys, recipe=RECIPE, **options)


def check_equal(ours, theirs, tolerance):
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, atol=tolerance)


@pytest.fixture(scope="module")
def together(sets):
    return population(sets)


def test_augmented_victims_equal_those_trained_alone(sets, together):
    victims, history = population(sets, augment=PadCrop(1))
    alone, losses = train_classifier(
        Small(1), sets[0][1], sets[1][1], jax.random.key(1), recipe=RECIPE, augment=PadCrop(1)
    )
    check_equal(victims[1], alone, 1e-5)
    np.testing.assert_allclose(history["loss"][:, 1], losses["loss"], rtol=1e-4)
    assert (np.abs(history["loss"] - together[1]["loss"]) > 1e-3).any()


def test_each_victim_equals_the_one_trained_alone(sets, together):
    victims, history = together
    assert history["loss"].shape == (RECIPE.epochs, VICTIMS)
    for seed in range(VICTIMS):
        alone, losses = train_classifier(Small(seed), sets[0][seed], sets[1][seed], jax.random.key(seed), recipe=RECIPE)
        check_equal(victims[seed], alone, 1e-5)
        np.testing.assert_allclose(history["loss"][:, seed], losses["loss"], atol=1e-5)


def test_victims_and_batches_can_be_split_over_devices(sets, together):
    victims, _ = population(sets, mesh=data_mesh(replicas=VICTIMS))
    for ours, theirs in zip(victims, together[0], strict=True):
        check_equal(ours, theirs, 1e-5)


def test_a_shared_set_is_kept_once(sets, monkeypatch):
    shared = np.broadcast_to(sets[0][0], sets[0].shape)
    seen, scan = [], loop.scan
    monkeypatch.setattr(loop, "scan", lambda *given: seen.append(given[5].ndim) or scan(*given))
    for mesh in (None, data_mesh(replicas=VICTIMS)):
        victims, _ = population((shared, sets[1]), mesh=mesh)
        copied, _ = population((np.array(shared), sets[1]), mesh=mesh)
        for ours, theirs in zip(victims, copied, strict=True):
            check_equal(ours, theirs, 1e-5)
        assert set(seen[: RECIPE.epochs]) == {4} and set(seen[RECIPE.epochs :]) == {5}
        seen.clear()


def test_victims_of_a_split_population_are_on_one_device(sets):
    for victim in population(sets, mesh=data_mesh(replicas=VICTIMS))[0]:
        assert {len(leaf.devices()) for leaf in jax.tree.leaves(victim)} == {1}


def test_bad_populations_are_refused(sets):
    keys = jax.vmap(jax.random.key)(jnp.arange(VICTIMS))
    with pytest.raises(ValueError, match=r"labels span 0 … 99; the model has the classes 0 … \d"):
        train_population([Small(0), Small(1)], sets[0], np.where(sets[1] == 1, 99, sets[1]), keys, recipe=RECIPE)
    with pytest.raises(ValueError, match=r"labels have the shape \(2, 5\), images \(2, "):
        train_population([Small(0), Small(1)], sets[0], sets[1][:, :5], keys, recipe=RECIPE)
    with pytest.raises(ValueError, match="1 models, 2 image sets"):
        train_population([Small(0)], *sets, keys, recipe=RECIPE)
    with pytest.raises(ValueError, match="differ in structure"):
        train_population([Small(0), Small(1, width=4)], *sets, keys, recipe=RECIPE)
