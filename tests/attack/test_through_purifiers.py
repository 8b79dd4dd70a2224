"""Attacks on gradients through purifiers: the engines differentiate twice, the purifier is differentiated once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.attack.crafting import Crafting
from jaxpurify.attack.gradient_matching import gradient_matching
from jaxpurify.attack.matching import Passenger
from jaxpurify.attack.matching_objective import Matching, target_gradients
from jaxpurify.attack.metapoison import metapoison
from jaxpurify.attack.second_order import reverse_over_reverse, two_pass
from jaxpurify.attack.sleeper_agent import sleeper_agent
from jaxpurify.attack.view import RowLosses, View
from jaxpurify.data.augment import ContinuousShift
from jaxpurify.data.poison import Targets
from jaxpurify.purify.adaptive import Adaptive
from jaxpurify.purify.langevin import Langevin
from jaxpurify.random import image_keys, named
from jaxpurify.struct import struct


@struct
class Wave:
    """E(x) = Σ cos(3x): smooth, so that differences and exact second derivatives agree."""

    def __call__(self, images):
        return jnp.cos(3 * images).sum((1, 2, 3))


CHAIN = Langevin(Wave(), 0.02, 0.002, 4)
EXACT, DIFFERENCE = (Adaptive(CHAIN, "truncated", 2, difference) for difference in (None, 0.01))
SHIFT = ContinuousShift(1, fill=0.0, flip=False)
SETTINGS = {"target": 3, "count": 12, "epsilon": 16 / 255, "learning_rate": 0.02, "steps": 15}


@pytest.fixture(scope="module")
def targets(digits):
    images, labels = digits
    found = np.flatnonzero(labels[1000:] == 8)[:2] + 1000
    return Targets(images[found], labels[found], found)


@pytest.fixture(scope="module")
def problem(surrogate, digits, targets):
    """Matching's operands and seven rows that are perturbed already."""
    apply, params = surrogate
    apply = jax.tree_util.Partial(apply)
    seen = jnp.asarray(targets.images, jnp.float32) / 255
    wanted = target_gradients((apply,), (params,), seen, jnp.full(2, 3))
    index = np.flatnonzero(digits[1][:1000] == 3)[:7]
    crafting = Crafting(
        jnp.asarray(digits[0][index]),
        jnp.asarray(digits[1][index]),
        jnp.asarray(index, jnp.int32),
        jax.random.key(0),
        jnp.float32(0.1),
        jnp.float32(0.01),
        1,
    )
    delta = 0.05 * jax.random.normal(jax.random.key(2), (7, 8, 8, 1))
    return apply, params, wanted, crafting, delta


@jax.jit
def objective(matching, delta, key, crafting):
    return matching(delta, key, crafting)


@pytest.mark.parametrize("engine", ["two-pass", "reverse"])
@pytest.mark.parametrize("micro_batch", [None, 3])
def test_a_purifier_outside_of_the_engine_has_the_gradient_that_it_had_inside(problem, engine, micro_batch):
    apply, params, wanted, crafting, delta = problem
    view, key = View(EXACT, SHIFT), jax.random.key(3)
    options = {"loss_weight": jnp.float32(0.2), "draws": 2, "micro_batch": micro_batch, "engine": engine}
    value, gradient = objective(
        Matching((apply,), (params,), wanted, Passenger(), view, **options), delta, key, crafting
    )

    def inside(delta, crafting):
        rows = crafting.float_images(), crafting.labels, image_keys(named(key, "images"), crafting.index)
        one = jax.tree.map(lambda leaf: leaf[0], wanted[0])
        operands = RowLosses(apply, view, 2), params, delta, rows, lambda poison: Passenger()(poison, one)
        return (two_pass if engine == "two-pass" else reverse_over_reverse)(*operands, loss_weight=0.2)

    expected = jax.jit(inside)(delta, crafting)
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    scale = float(np.abs(expected[1]).max())
    np.testing.assert_allclose(gradient / scale, expected[1] / scale, atol=2e-5)


@pytest.mark.parametrize("options", [{}, {"micro_batch": 3}, {"draws": 2}, {"engine": "reverse"}], ids=str)
def test_a_difference_follows_the_exact_gradient(problem, options):
    apply, params, wanted, crafting, delta = problem
    slopes = [
        objective(
            Matching((apply,), (params,), wanted, Passenger(), View(purifier), **options),
            delta,
            jax.random.key(3),
            crafting,
        )[1]
        for purifier in (EXACT, DIFFERENCE)
    ]
    scale = float(np.abs(slopes[0]).max())
    np.testing.assert_allclose(slopes[1] / scale, slopes[0] / scale, atol=0.01)


def test_a_purifier_runs_once_for_all_members(problem):
    apply, params, wanted, crafting, delta = problem
    traced = []

    def purifier(keys, images):
        traced.append(len(images))
        return jnp.tanh(images)

    view = View(jax.tree_util.Partial(purifier))
    twice = Matching((apply, apply), (params, params), wanted * 2, Passenger(), view)
    once = Matching((apply,), (params,), wanted, Passenger(), view)
    found = objective(twice, delta, jax.random.key(3), crafting)
    assert traced == [7]
    np.testing.assert_allclose(found[1], 2 * objective(once, delta, jax.random.key(3), crafting)[1], rtol=1e-5)


def craft(attack, surrogate, digits, **options):
    images, labels = digits[0][:1000], digits[1][:1000]
    return attack(*surrogate, jax.random.key(0), images, labels, **SETTINGS | options)


@pytest.mark.parametrize("transform", [EXACT, DIFFERENCE], ids=["exact", "difference"])
@pytest.mark.parametrize("attack", [gradient_matching, sleeper_agent, metapoison])
def test_attacks_through_a_chain_lower_their_objective(surrogate, digits, targets, attack, transform):
    own: dict = {"targets": targets}
    if attack is gradient_matching:
        own |= {"restarts": 2, "micro_batch": 5, "hidden": surrogate[0], "hidden_weight": 0.001}
    elif attack is sleeper_agent:
        own = {"source": 8, "size": 3, "source_count": 30, "transform_draws": 2}
    poison = craft(attack, surrogate, digits, transform=transform, **own)
    first, last = (poison.how[name][poison.how["chosen_restart"]] for name in ("first_losses", "last_losses"))
    assert last < first - 0.02 * abs(first)
    assert poison.how["adaptive"] and np.abs(poison.images.astype(int) - digits[0][poison.index]).max() > 8
