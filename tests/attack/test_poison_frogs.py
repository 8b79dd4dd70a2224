"""Poison Frogs: published losses, steps that never lose ground, the proximal variant and the framework's form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.attack.bullseye import bullseye_loss
from jaxpurify.attack.poison_frogs import collision_losses, mean_collision_loss, poison_frogs
from tests.attack import golden

KEY = jax.random.key(1)


def craft(digits, apply=golden.hidden, params=None, key=KEY, **arguments):
    params = golden.hidden_weights() if params is None else params
    defaults = {"target": 7, "targets": golden.digit_targets(digits, [1700]), "count": 5, "steps": 40}
    defaults |= {"learning_rate": 0.02, "epsilon": 32 / 255}
    return poison_frogs(apply, params, key, *digits, **(defaults | arguments))


def distances(poison, weights=None):
    weights = golden.hidden_weights() if weights is None else weights
    features, aims = (
        golden.hidden(weights, jnp.asarray(images, jnp.float32) / 255)[None]
        for images in (poison.images, poison.targets.images)
    )
    return np.asarray(collision_losses(features, aims)[0])


def test_loss_of_the_framework_has_its_value_and_bullseyes_gradient():
    with jax.enable_x64(True):
        aims = golden.network_features(jnp.asarray(golden.TARGETS))[None]

        def loss(rows, objective):
            return objective(golden.network_features(rows)[None], aims)[0]

        poisons = jnp.asarray(golden.POISONS)
        value, gradient = jax.value_and_grad(loss)(poisons, mean_collision_loss)
        np.testing.assert_allclose(value, 0.4838898817, rtol=1e-8)
        np.testing.assert_allclose(jnp.linalg.norm(gradient), 0.1102920515, rtol=1e-8)
        np.testing.assert_allclose([gradient[0, 0], gradient[7, 5]], [0.0009365241, 0.0081505922], rtol=1e-6)
        same = jax.grad(loss)(poisons, lambda *pair: bullseye_loss(*pair, "mean_squared"))
        np.testing.assert_allclose(gradient, same, rtol=1e-9)


def test_losses_of_single_poisons_are_those_of_the_benchmark():
    poisons, target = (jnp.asarray(rows, jnp.float32)[None] for rows in golden.random_rows())
    losses = collision_losses(poisons, target)
    np.testing.assert_allclose(losses[0], [30.17454687, 12.91858346, 32.04493332, 28.60384875, 13.03890136], rtol=1e-5)
    np.testing.assert_allclose(losses.sum(), 116.78081376, rtol=1e-5)
    two = collision_losses(poisons, jnp.concatenate([target, poisons[:, 1:2]], 1))
    np.testing.assert_allclose(two[0, :2], [losses[0, 0], 0.0], rtol=1e-5)


@pytest.mark.parametrize("form", ["each", "mean"])
def test_poisons_collide_with_the_target_within_the_budget(digits, form):
    poison = craft(digits, form=form)
    assert poison.how["objective"] < 0.7 * poison.how["clean_objective"]
    moved = poison.images.astype(int) - digits[0][poison.index]
    assert 16 < np.abs(moved).max() <= 32
    assert (digits[1][poison.index] == 7).all() and poison.targets.index.tolist() == [1700]
    if form == "each":
        np.testing.assert_allclose(poison.how["objective"], distances(poison).mean(), rtol=1e-5)


def test_steps_that_are_too_long_are_taken_back(digits):
    """From any step size: never worse than the start, and better with more steps."""
    start = craft(digits, learning_rate=1e-9, steps=1)
    few, many = (craft(digits, learning_rate=50.0, steps=steps) for steps in (3, 60))
    slack = 0.02  # rounding to 8 bits
    assert (distances(few) <= distances(start) + slack).all()
    assert (distances(many) <= distances(few) + slack).all() and distances(many).sum() < 0.9 * distances(start).sum()


def test_the_start_carries_the_targets_watermark(digits):
    poison = craft(digits, steps=1, epsilon=1.0)
    base, target = digits[0][poison.index].astype(float), poison.targets.images.astype(float)
    np.testing.assert_allclose(poison.images, 0.7 * base + 0.3 * target, atol=0.51)


def test_without_a_bound_beta_holds_poisons_near_their_bases(digits):
    free, held = (craft(digits, epsilon=None, beta=beta, opacity=0.0, steps=60) for beta in (0.01, 10.0))
    moved = [np.abs(poison.images.astype(float) - digits[0][poison.index]).mean() for poison in (free, held)]
    assert 0 < moved[1] < moved[0] / 2
    assert free.how["objective"] < held.how["objective"] and free.how["norm"] == "box"
    assert free.how["epsilon"] is None


def test_finished_poisons_stay_where_they_are(digits):
    """With a wide tolerance a poison is finished by its first accepted step."""
    one, more = (craft(digits, tolerance=10.0, steps=steps) for steps in (2, 30))
    np.testing.assert_array_equal(one.images, more.images)


def test_several_targets_are_cycled_over_the_poisons(digits):
    poison = craft(digits, targets=golden.digit_targets(digits, [1700, 1702]))
    alone = [craft(digits, targets=golden.digit_targets(digits, [row])) for row in (1700, 1702)]
    np.testing.assert_array_equal(poison.images[[0, 2, 4]], alone[0].images[[0, 2, 4]])
    np.testing.assert_array_equal(poison.images[[1, 3]], alone[1].images[[1, 3]])


def test_separate_targets_and_ensembles(digits):
    members = [golden.hidden_weights(seed) for seed in (0, 1)]
    targets = golden.digit_targets(digits, [1700, 1702])
    together = craft(digits, params=members, targets=targets, separately=True, target=[7, 8])
    assert [poison.target for poison in together] == [7, 8]
    assert all(poison.how["objective"] < poison.how["clean_objective"] for poison in together)
    sums = sum(distances(together[1], member).mean() for member in members)
    np.testing.assert_allclose(together[1].how["objective"], sums, rtol=1e-4)


def noise(keys, images):
    return images + 0.1 * jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(keys)


def test_a_random_transform_keeps_its_draws(digits):
    adaptive = craft(digits, transform=noise, transform_draws=3)
    assert adaptive.how["adaptive"] and adaptive.how["objective"] < 0.8 * adaptive.how["clean_objective"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": 0.0}, r"^epsilon is 0\.0; it must be from 1/255 to 1"),
        (
            {"epsilon": None},
            r"^epsilon is None, form 'each' and beta 0\.0; one of epsilon and beta must bound the poisons",
        ),
        ({"form": "mean", "beta": 1.0}, r"^beta is 1\.0; form 'mean' does not use it$"),
        ({"form": "mean", "tolerance": 0.1}, r"^tolerance is 0\.1; form 'mean' does not use it$"),
        ({"form": "each", "decay": False}, r"^decay is False; form 'each' does not use it$"),
        ({"form": "sum"}, r"^form is 'sum'; known: each, mean$"),
        ({"opacity": 1.0}, r"^opacity=1\.0, beta=0\.0, shrink=0\.2, steps=40; "),
        ({"target": 5}, r"^target is 5; "),
        (
            {"params": jnp.full((64, 32), jnp.nan)},
            r"^the objective is not finite at step 0 of 40; lower learning_rate$",
        ),
    ],
)
def test_bad_input_is_one_clear_line(digits, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        craft(digits, **arguments)
    assert "\n" not in str(caught.value)
