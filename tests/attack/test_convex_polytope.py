"""Convex Polytope: coefficients on the simplex, published losses, and poisons around the target."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.attack.convex_polytope import (
    convex_polytope,
    convex_polytope_loss,
    simplex_least_squares,
    simplex_projection,
)
from tests.attack import golden

KEY = jax.random.key(1)


def craft(digits, apply=golden.hidden, params=None, key=KEY, **arguments):
    params = golden.hidden_weights() if params is None else params
    defaults = {"target": 7, "targets": golden.digit_targets(digits, [1700]), "count": 5, "steps": 30}
    return convex_polytope(apply, params, key, *digits, **(defaults | {"epsilon": 32 / 255} | arguments))


@pytest.mark.parametrize(
    ("point", "nearest"),
    [
        ([0.3, -0.2, 0.9, 0.4], [0.1, 0.0, 0.7, 0.2]),
        ([0.2, 0.9, -0.3, 0.5], [0.0, 0.7, 0.0, 0.3]),
        ([5.0, 0.0, 0.0], [1.0, 0.0, 0.0]),
        ([0.25, 0.75], [0.25, 0.75]),
    ],
)
def test_projection_onto_the_simplex(point, nearest):
    np.testing.assert_allclose(simplex_projection(jnp.array(point)), nearest, atol=1e-6)


def test_loss_and_coefficients_are_those_of_the_published_code():
    with jax.enable_x64(True):
        poisons, target = jnp.asarray(golden.POISONS), jnp.asarray(golden.TARGETS[0])

        def objective(rows):
            aim = golden.network_features(target[None])[0]
            return convex_polytope_loss(golden.network_features(rows), aim, jnp.full(8, 1 / 8), steps=2000)

        (value, coefficients), gradient = jax.value_and_grad(objective, has_aux=True)(poisons)
        expected = np.zeros(8)
        expected[[0, 5]] = 0.119209, 0.880791
        np.testing.assert_allclose(coefficients, expected, atol=1e-5)
        np.testing.assert_allclose(value, 0.0011763362, atol=1e-7)
        np.testing.assert_allclose(jnp.linalg.norm(gradient), 0.0070515522, atol=1e-6)


def test_optimum_of_the_benchmarks_random_features():
    poisons, target = (jnp.asarray(rows, jnp.float32) for rows in golden.random_rows())
    for start in (jnp.full(5, 0.2), jnp.eye(5)[0]):
        loss, coefficients = convex_polytope_loss(poisons, target[0], start)
        np.testing.assert_allclose(coefficients, [0, 0.50559909, 0, 0, 0.49440091], atol=1e-4)
        np.testing.assert_allclose(loss, 0.41306554, rtol=1e-5)


def test_coefficients_satisfy_the_optimality_conditions():
    rows = jax.random.normal(jax.random.key(4), (30, 60)) + 2.0
    gram = rows @ rows.T
    coefficients = simplex_least_squares(gram, jnp.full(30, 1 / 30), 500)
    slope = np.asarray(gram @ coefficients)
    np.testing.assert_allclose(coefficients.sum(), 1.0, rtol=1e-5)
    lowest = slope.min()
    used = np.asarray(coefficients) > 1e-4
    np.testing.assert_allclose(slope[used], lowest, rtol=2e-3)


@pytest.mark.parametrize("warm_start", [True, False])
def test_poisons_surround_the_target_within_the_budget(digits, warm_start):
    poison = craft(digits, warm_start=warm_start, learning_rate=0.02)
    assert poison.how["objective"] < 0.5 * poison.how["clean_objective"]
    moved = poison.images.astype(int) - digits[0][poison.index]
    assert 0 < np.abs(moved).max() <= 32
    features, aim = (golden.hidden(golden.hidden_weights(), jnp.asarray(rows, jnp.float32) / 255)
                     for rows in (poison.images, poison.targets.images))  # fmt: skip
    loss, _ = convex_polytope_loss(features, aim[0], jnp.full(5, 0.2), steps=1000)
    np.testing.assert_allclose(poison.how["objective"], loss, rtol=1e-2)


def test_separate_targets_are_those_crafted_alone(digits):
    targets = golden.digit_targets(digits, [1700, 1702])
    together = craft(digits, targets=targets, separately=True, steps=10)
    for number, poison in enumerate(together):
        one = golden.digit_targets(digits, [1700 + 2 * number])
        alone = craft(digits, key=jax.random.fold_in(KEY, number), targets=one, steps=10)
        assert np.abs(poison.images.astype(int) - alone.images).max() <= 1


def blocks(params, images):
    maps = jnp.tanh(images * params[0, 0] + 0.1)
    return [maps, golden.hidden(params, images)]


def noise(keys, images):
    return images + 0.1 * jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(keys)


def test_members_blocks_and_draws_have_coefficients_of_their_own(digits):
    members = [golden.hidden_weights(seed) for seed in (0, 1)]
    poison = craft(digits, blocks, members, transform=noise, transform_draws=2, steps=4)
    assert poison.how["blocks"] == [2, 2] and poison.how["adaptive"]
    single = [
        craft(digits, blocks, member, transform=noise, transform_draws=2, steps=1).how["clean_objective"]
        for member in members
    ]
    np.testing.assert_allclose(poison.how["clean_objective"], sum(single), rtol=1e-3)
    assert poison.how["objective"] < poison.how["clean_objective"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": -1.0}, r"^epsilon is -1\.0; it must be from 1/255 to 1"),
        ({"coefficient_steps": 0}, r"^coefficient_steps is 0; it must be at least 1$"),
        ({"restarts": 3}, r"^restarts is 3 with start 'zero': all would be equal; use start 'normal'$"),
        ({"count": 180}, r"^count is 180; there are only 179 images of class 7$"),
    ],
)
def test_bad_input_is_one_clear_line(digits, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        craft(digits, **arguments)
    assert "\n" not in str(caught.value)


def test_several_targets_together_are_refused(digits):
    with pytest.raises(ValueError, match=r"^targets hold 2 images; this attack is for one at a time, see separately$"):
        craft(digits, targets=golden.digit_targets(digits, [1700, 1702]))
