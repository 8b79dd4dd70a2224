"""`freeze`: a pure callable pytree in evaluation mode."""

import chex
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify import types
from jaxpurify.networks import ResidualEnergy, ResNet9, freeze, hlb_s
from jaxpurify.networks.resnet import ResNet

run = jax.jit(lambda model, images: model(images))
IMAGES = jnp.asarray(np.random.RandomState(0).uniform(size=(2, 8, 8, 3)), jnp.float32)


def test_new_weights_do_not_retrace():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(model, images):
        return model(images)

    chex.clear_trace_counter()
    outputs = [run(freeze(ResNet9(4, rngs=nnx.Rngs(seed))), IMAGES) for seed in range(3)]
    assert jnp.abs(outputs[0] - outputs[1]).max() > 1e-4


def test_a_trained_model_does_not_retrace_either():
    model = ResNet9(4, rngs=nnx.Rngs(0))

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(model, images):
        return model(images)

    chex.clear_trace_counter()
    before = run(freeze(model), IMAGES)
    model.prepare.norm.mean[...] = jnp.full(4, 0.5, jnp.float32)
    assert jnp.abs(run(freeze(model), IMAGES) - before).max() > 1e-6


def test_the_model_is_left_as_it_was():
    model = ResNet9(4, rngs=nnx.Rngs(0))
    before = jax.tree.map(np.asarray, nnx.as_pure(nnx.state(model)))
    frozen = freeze(model)
    first = run(frozen, IMAGES)
    jax.tree.map(np.testing.assert_array_equal, nnx.as_pure(nnx.state(model)), before)
    assert model.prepare.norm.use_running_average is False
    # And training the model further leaves the frozen one alone.
    model.prepare.norm.mean[...] = jnp.full(4, 0.5, jnp.float32)
    model.linear.kernel[...] = jnp.zeros_like(model.linear.kernel[...])
    np.testing.assert_array_equal(run(frozen, IMAGES), first)


def test_evaluation_does_not_depend_on_the_batch():
    frozen = freeze(ResNet9(4, rngs=nnx.Rngs(0)))
    np.testing.assert_allclose(run(frozen, IMAGES)[:1], run(frozen, IMAGES[:1]), atol=1e-6)


def test_features_lead_to_the_logits():
    model = ResNet9(4, rngs=nnx.Rngs(0))
    frozen = freeze(model)
    assert isinstance(frozen, types.Classifier)
    features = run(frozen.features, IMAGES)
    assert features.shape == (2, 32)
    np.testing.assert_allclose(0.125 * features @ model.linear.kernel[...], run(frozen, IMAGES), atol=1e-6)


def test_block_outputs_end_in_the_features():
    images = jnp.tile(IMAGES, (1, 32 // IMAGES.shape[1], 32 // IMAGES.shape[2], 1))
    for model, channels in (
        (ResNet9(4, rngs=nnx.Rngs(0)), [8, 16, 32]),
        (ResNet((1, 1, 1, 1), rngs=nnx.Rngs(0)), [64, 128, 256, 512]),
    ):
        frozen = freeze(model)
        *maps, features = run(frozen.block_outputs, images)
        np.testing.assert_allclose(features, run(frozen.features, images), rtol=1e-6)
        assert sorted({each.shape[-1] for each in maps}) == channels and all(each.ndim == 4 for each in maps)
    with pytest.raises(ValueError, match=r"^HLB has no block outputs; known: ResNet9, ResNet "):
        run(freeze(hlb_s(rngs=nnx.Rngs(0))).block_outputs, images)


def test_gradients_and_ensembles_go_through():
    energy = freeze(ResidualEnergy(8, rngs=nnx.Rngs(0)))
    gradient = jax.jit(jax.grad(lambda energy: energy(IMAGES).sum()))(energy)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), energy, freeze(ResidualEnergy(8, rngs=nnx.Rngs(1))))
    energies = jax.jit(jax.vmap(lambda energy: energy(IMAGES)))(stacked)
    assert energies.shape == (2, 2)
    np.testing.assert_allclose(energies[0], run(energy, IMAGES), atol=1e-6)


def test_networks_without_modes_freeze_too():
    assert freeze(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))(IMAGES).shape == (2, 8, 8, 2)
