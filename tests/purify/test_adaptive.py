"""Gradients through purifiers: exact against finite differences, truncated against exact, straight-through."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.purify import Average, Diffusion, Identity, Jpeg, Langevin, TopEnergy, Truncate, chain, repeat
from jaxpurify.purify.adaptive import UNROLLED, Adaptive
from jaxpurify.random import image_keys
from jaxpurify.struct import struct

KEYS_OF = jax.random.key(7)


@struct
class Wave:
    """E(x) = strength Σ cos(3x): a smooth energy whose second derivative is known."""

    strength: float

    def __call__(self, images):
        return self.strength * jnp.cos(3 * images).sum((1, 2, 3))


@struct
class Shrink:
    """A noise predictor that is not linear."""

    def __call__(self, images, timesteps):
        return jnp.tanh(images) + 0.01 * timesteps.reshape(-1, 1, 1, 1)


def keys_for(count):
    return image_keys(KEYS_OF, jnp.arange(count))


def langevin(steps, midpoint=False):
    return Langevin(Wave(1.0), 0.05, 0.02, steps, midpoint)


IMAGES = jnp.asarray(np.random.default_rng(0).uniform(0.1, 0.9, (3, 4, 4, 1)).astype(np.float32))
WEIGHTS = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4, 4, 1)).astype(np.float32))
PURIFIERS = {
    "langevin": langevin(5),
    "long langevin": langevin(UNROLLED + 4),
    "midpoint": langevin(5, midpoint=True),
    "diffusion": Diffusion(Shrink(), timestep=40, steps=4),
    "ddim compat": Diffusion(Shrink(), timestep=40, steps=3, sampler="ddim", compat=True),
    "chain": chain(langevin(3), Diffusion(Shrink(), timestep=20, steps=3)),
    "repeat": repeat(langevin(2), 3),
    "average": Average(langevin(3), 2),
    "average in a chain": chain(Average(langevin(3), 2), langevin(2)),
    "repeated average": repeat(Average(langevin(3), 2), 2),
    "filter": TopEnergy(Wave(1.0), langevin(3), 1.0),
    "identity": Identity(),
}


def gradient(purifier, images=IMAGES):
    return jax.grad(lambda x: (WEIGHTS * purifier(keys_for(len(x)), x)).sum())(images)


@pytest.mark.parametrize("mode", ["exact", "truncated", "straight_through"])
@pytest.mark.parametrize("name", PURIFIERS)
def test_images_are_the_purifiers_own(name, mode):
    purifier = PURIFIERS[name]
    wanted = purifier(keys_for(3), IMAGES)
    np.testing.assert_allclose(Adaptive(purifier, mode, 2)(keys_for(3), IMAGES), wanted, rtol=1e-5, atol=1e-6)
    compiled = jax.jit(lambda adaptive, keys, images: adaptive(keys, images))
    np.testing.assert_allclose(compiled(Adaptive(purifier, mode, 2), keys_for(3), IMAGES), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", PURIFIERS)
def test_exact_is_the_gradient_of_the_purifier_and_truncated_by_nothing_is_too(name):
    wanted = gradient(PURIFIERS[name])
    np.testing.assert_allclose(gradient(Adaptive(PURIFIERS[name])), wanted, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(gradient(Adaptive(PURIFIERS[name], "truncated", 99)), wanted, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["langevin", "long langevin", "midpoint", "diffusion", "chain"])
def test_exact_equals_finite_differences(name):
    exact = gradient(Adaptive(PURIFIERS[name]))
    random = np.random.default_rng(2)
    for _ in range(3):
        direction = jnp.asarray(random.normal(size=IMAGES.shape).astype(np.float32))
        ahead, behind = (PURIFIERS[name](keys_for(3), IMAGES + sign * 1e-3 * direction) for sign in (1, -1))
        slope = float((WEIGHTS * (ahead - behind)).sum()) / 2e-3
        assert float((exact * direction).sum()) == pytest.approx(slope, rel=0.02, abs=0.02)


def test_exact_is_the_product_of_the_steps_own_derivatives():
    steps, rate = 5, 0.05**2 / (2 * 0.02)
    images, slope = IMAGES, jnp.ones_like(IMAGES)
    for number in range(steps):
        # x - rate E'(x) with E' = -3 sin 3x: its derivative is 1 + 9 rate cos 3x.
        slope = slope * (1 + 9 * rate * jnp.cos(3 * images))
        images = Adaptive(langevin(number + 1), "truncated", 1)(keys_for(3), IMAGES)
    np.testing.assert_allclose(gradient(Adaptive(langevin(steps))), WEIGHTS * slope, rtol=1e-4)
    last = langevin(steps - 1)(keys_for(3), IMAGES)
    np.testing.assert_allclose(
        gradient(Adaptive(langevin(steps), "truncated", 1)), WEIGHTS * (1 + 9 * rate * jnp.cos(3 * last)), rtol=1e-4
    )


@pytest.mark.parametrize("name", PURIFIERS)
def test_straight_through_is_the_identity(name):
    np.testing.assert_array_equal(gradient(Adaptive(PURIFIERS[name], "straight_through")), WEIGHTS)


def test_a_difference_is_the_exact_gradient_of_a_smooth_energy():
    for steps in (1, 5, UNROLLED + 2):
        smoothed = gradient(Adaptive(langevin(steps), difference=0.01))
        np.testing.assert_allclose(smoothed, gradient(langevin(steps)), rtol=5e-3, atol=5e-3)
    middle = langevin(5, midpoint=True)
    smoothed = gradient(Adaptive(middle, difference=0.01))
    np.testing.assert_allclose(smoothed, gradient(middle), rtol=5e-3, atol=5e-3)
    assert np.abs(smoothed - gradient(langevin(5))).max() > 0.05
    truncated = gradient(Adaptive(chain(langevin(3), langevin(2)), "truncated", 2, difference=0.01))
    wanted = gradient(Adaptive(chain(langevin(3), langevin(2)), "truncated", 2))
    np.testing.assert_allclose(truncated, wanted, rtol=5e-3, atol=5e-3)


def test_a_difference_sees_the_kinks_of_a_piecewise_linear_energy(energies, images):
    purifier = Langevin(energies[0], 0.05, 1e-4, 1)
    keys = image_keys(jax.random.key(1), jnp.arange(4))
    weights = jnp.asarray(np.random.default_rng(4).normal(size=images.shape).astype(np.float32))
    weights = weights / jnp.sqrt(jnp.mean(weights**2, (1, 2, 3), keepdims=True))

    def slope(adaptive):
        return jax.grad(lambda x: (weights * adaptive(keys, x)).sum())(images)

    # The network is piecewise linear: the exact gradient is the identity, although the chain is none.
    np.testing.assert_array_equal(slope(Adaptive(purifier)), weights)
    ahead, behind = (purifier(keys, images + sign * 0.1 * weights) for sign in (1, -1))
    beyond_identity = float((weights * (ahead - behind)).sum() / 0.2 - (weights**2).sum())
    assert abs(beyond_identity) > 0.02 * float((weights**2).sum())
    found = float((weights * slope(Adaptive(purifier, difference=0.1))).sum() - (weights**2).sum())
    assert found == pytest.approx(beyond_identity, rel=0.02)


def test_truncated_crosses_the_stages_of_a_chain_from_the_end():
    first, last = langevin(3), langevin(2)
    both = chain(first, last)
    between = first(jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys_for(3)), IMAGES)
    folded = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys_for(3))
    wanted = jax.grad(lambda x: (WEIGHTS * last(folded, x)).sum())(between)
    np.testing.assert_allclose(gradient(Adaptive(both, "truncated", 2)), wanted, rtol=1e-4)
    assert not np.allclose(gradient(Adaptive(both, "truncated", 3)), wanted, rtol=1e-3)


@pytest.mark.parametrize("wrap", [chain, lambda purifier: repeat(purifier, 1)])
def test_settings_reach_into_an_average_wherever_it_is(wrap):
    inside = wrap(Average(langevin(4), 1))
    cut = gradient(Adaptive(inside, "truncated", 1))
    assert not np.allclose(cut, gradient(Adaptive(inside)), rtol=1e-3)
    alone = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, 0), 0))(keys_for(3))
    wanted = jax.grad(lambda x: (WEIGHTS * Adaptive(langevin(4), "truncated", 1)(alone, x)).sum())(IMAGES)
    np.testing.assert_allclose(cut, wanted, rtol=1e-4)
    jpegs = wrap(Average(chain(Jpeg(50), langevin(1)), 2))
    images = jnp.tile(IMAGES, (1, 2, 2, 1))
    assert np.isfinite(jax.grad(lambda x: Adaptive(jpegs, "truncated", 1)(keys_for(3), x).sum())(images)).all()


def test_settings_reach_into_a_filter():
    inside = TopEnergy(Wave(1.0), langevin(4), 1.0)
    cut = gradient(Adaptive(inside, "truncated", 1))
    np.testing.assert_allclose(cut, gradient(Adaptive(langevin(4), "truncated", 1)), rtol=1e-4)
    assert not np.allclose(cut, gradient(Adaptive(inside)), rtol=1e-3)


def test_truncated_diffusion_keeps_the_scale_of_its_noising():
    purifier = dataclasses.replace(PURIFIERS["diffusion"], steps=1)
    np.testing.assert_allclose(gradient(Adaptive(purifier, "truncated", 1)), gradient(purifier), rtol=1e-4, atol=1e-6)
    deep = gradient(Adaptive(PURIFIERS["diffusion"], "truncated", 1))
    exact = gradient(PURIFIERS["diffusion"])
    assert np.corrcoef(np.ravel(deep), np.ravel(exact))[0, 1] > 0.9 and np.abs(deep).max() > 0.05


def test_plain_functions_are_purifiers_here_too():
    keys, adaptive = keys_for(3), Adaptive(lambda keys, images: images.round(), "straight_through")
    slope = jax.jit(lambda adaptive, x: jax.grad(lambda x: (WEIGHTS * adaptive(keys, x)).sum())(x))(adaptive, IMAGES)
    np.testing.assert_array_equal(slope, WEIGHTS)


@pytest.mark.parametrize(
    "purifier", [Jpeg(50), Truncate(), chain(repeat(Average(Jpeg(50), 2), 2), Identity()), repeat(Truncate(), 2)]
)
def test_what_has_no_gradient_has_no_exact_one(purifier):
    with pytest.raises(ValueError, match=r"^mode='exact'; JPEG and truncation have no gradient: known: truncated, "):
        Adaptive(purifier)


def test_jpeg_has_no_gradient_of_its_own():
    images = jnp.tile(IMAGES, (1, 2, 2, 1))
    for purifier in (Adaptive(Jpeg(50), "straight_through"), Adaptive(chain(langevin(1), Jpeg(50)), "truncated", 2)):
        slope = jax.grad(lambda x, purifier=purifier: purifier(keys_for(3), x).sum())(images)
        assert np.isfinite(slope).all() and np.abs(slope).min() > 0.1
    np.testing.assert_allclose(Adaptive(Jpeg(50), "truncated")(keys_for(3), images), Jpeg(50)(keys_for(3), images))


def test_networks_through_the_chain_and_new_weights_do_not_recompile(energies, images):
    traces = []

    @jax.jit
    def slope(adaptive, keys, images):
        traces.append(1)
        return jax.grad(lambda x: jnp.square(adaptive(keys, x)).sum())(images)

    for energy in energies:
        adaptive = Adaptive(Langevin(energy, 0.01, 1e-3, 6), "truncated", 2)
        result = slope(adaptive, image_keys(jax.random.key(1), jnp.arange(4)), images)
        assert np.isfinite(result).all() and np.abs(result).max() > 0
    assert len(traces) == 1
    exact = Langevin(energies[0], 0.01, 1e-3, 2)
    keys = image_keys(jax.random.key(1), jnp.arange(4))
    wanted = jax.grad(lambda x: jnp.square(exact(keys, x)).sum())(images)
    np.testing.assert_allclose(slope(Adaptive(exact), keys, images), wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "bpda"}, r"^mode='bpda'; known: exact, truncated, straight_through$"),
        ({"difference": 0.0}, r"^difference=0\.0; it must be above 0, in units of \[0, 1\], or None$"),
        ({"steps": 0}, r"^steps=0; at least 1 step must have a gradient$"),
    ],
)
def test_bad_input_is_one_clear_line(options, message):
    with pytest.raises(ValueError, match=message):
        Adaptive(Identity(), **options)
