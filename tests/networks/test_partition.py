"""What training moves, and everything else: the two parts give the network back."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.networks import ResNet9, freeze
from jaxpurify.networks.hlb import HLB
from jaxpurify.networks.partition import split_trainable

IMAGES = np.random.default_rng(0).uniform(size=(2, 8, 8, 3)).astype(np.float32)


def names(tree):
    return {str(getattr(path[-1], "key", path[-1])) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


def test_parts_give_the_network_back():
    frozen = freeze(ResNet9(4, 3, rngs=nnx.Rngs(0)))
    apply, trainable = split_trainable(frozen)
    images = jnp.asarray(IMAGES)
    np.testing.assert_array_equal(apply(trainable, images), frozen(images))
    assert names(trainable) == {"kernel", "scale", "bias"}
    assert names(apply) == {"mean", "variance"}
    assert len(jax.tree.leaves(trainable)) + len(jax.tree.leaves(apply)) == len(jax.tree.leaves(frozen))


def test_gradients_cover_every_trainable_leaf_and_no_other():
    apply, trainable = split_trainable(freeze(ResNet9(4, 3, rngs=nnx.Rngs(0))))
    gradient = jax.jit(jax.grad(lambda trainable: apply(trainable, jnp.asarray(IMAGES))[:, 0].sum()))(trainable)
    assert jax.tree.structure(gradient) == jax.tree.structure(trainable)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


def test_fixed_scales_and_methods_stay():
    frozen = freeze(HLB((8, 8, 8), 3, rngs=nnx.Rngs(0)))
    apply, trainable = split_trainable(frozen.features)
    assert "scale" in names(apply) and "scale" not in names(trainable)
    np.testing.assert_array_equal(apply(trainable, jnp.asarray(IMAGES)), frozen.features(jnp.asarray(IMAGES)))


def test_ensembles_member_by_member():
    members = (freeze(ResNet9(4, 3, rngs=nnx.Rngs(0))), freeze(HLB((8, 8, 8), 3, rngs=nnx.Rngs(1))))
    applies, trainables = split_trainable(members)
    assert isinstance(applies, tuple) and isinstance(trainables, tuple)
    for apply, trainable, member in zip(applies, trainables, members, strict=True):
        np.testing.assert_array_equal(apply(trainable, jnp.asarray(IMAGES)), member(jnp.asarray(IMAGES)))


def test_only_the_last_layer():
    members = (freeze(ResNet9(4, 3, rngs=nnx.Rngs(0))), freeze(HLB((8, 8, 8), 3, rngs=nnx.Rngs(1))))
    applies, trainables = split_trainable(members, "linear")
    for apply, trainable, member in zip(applies, trainables, members, strict=True):
        (kernel,) = jax.tree.leaves(trainable)
        assert kernel.shape == (member.features(jnp.asarray(IMAGES)).shape[1], 3)
        np.testing.assert_array_equal(apply(trainable, jnp.asarray(IMAGES)), member(jnp.asarray(IMAGES)))
    with pytest.raises(ValueError, match=r"^the network has no trainable layer 'head'$"):
        split_trainable(members[0], "head")


@pytest.mark.parametrize("nothing", [(), []])
def test_an_empty_ensemble_is_refused(nothing):
    with pytest.raises(ValueError, match=r"^frozen is .*; it must be a Frozen network or a sequence of at least one$"):
        split_trainable(nothing)
