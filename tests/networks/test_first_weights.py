"""The weights that the published networks start from, read from whole networks."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from jaxpurify.networks import ResidualEnergy
from jaxpurify.networks.hlb import hlb_m, hlb_s


def test_the_residual_energy_starts_as_published():
    energy = ResidualEnergy(16, rngs=nnx.Rngs(0))
    leaves = jax.tree.leaves(nnx.to_pure_dict(nnx.state(energy)))
    assert {leaf.shape for leaf in leaves} >= {
        (3, 3, 3, 16),
        (3, 3, 16, 16),
        (1, 1, 3, 16),
        (1, 1, 16, 16),
        (16, 1),
        (16,),
    }
    for leaf in leaves:
        if leaf.ndim == 1:
            assert not leaf.any()
        else:
            bound = np.sqrt(6 / (np.prod(leaf.shape[:-2]) * sum(leaf.shape[-2:])))
            assert 0.8 * bound < jnp.abs(leaf).max() <= bound


def test_hlb_starts_as_copies_of_its_inputs_and_forgets_as_published():
    network = hlb_s(rngs=nnx.Rngs(0))
    for layer in (network.whiten, *(layer for group in network.groups for layer in (group.conv1, group.conv2))):
        kernel = np.asarray(layer.kernel[...])
        height, width, inputs, _ = kernel.shape
        images = np.random.default_rng(0).random((1, 6, 6, inputs), np.float32)
        copied = np.asarray(layer(jnp.asarray(images)))[..., :inputs]
        seen = images[:, 1:, 1:] if (height, width) == (2, 2) else images
        np.testing.assert_allclose(copied, seen, atol=1e-6)
        assert np.abs(kernel[..., inputs:]).max(initial=0) <= 1 / np.sqrt(height * width * inputs)
    for build, decays in ((hlb_s, (0.7, 0.6)), (hlb_m, (0.6, 0.6))):
        network = build(rngs=nnx.Rngs(0))
        assert [network.whiten_norm.decay] == [decays[0]]
        assert [(group.norm1.decay, group.norm2.decay) for group in network.groups] == [decays] * 3
