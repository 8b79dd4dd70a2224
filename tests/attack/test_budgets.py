"""Budgets hold in stored images, for every attack, on random images and at any strength."""

import math

from hypothesis import HealthCheck, given, settings, strategies
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.attack import ATTACKS
from jaxpurify.attack.budget import add_levels, apply_trigger, levels, to_levels
from jaxpurify.data.dataset import Dataset
from jaxpurify.data.image import to_float, to_uint8
from jaxpurify.data.poison import Targets, poison_dataset

SHAPE = (24, 8, 8, 3)
SETTINGS = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))


def linear(params, images):
    return images.reshape(len(images), -1) @ params


# Small weights: where a softmax is saturated, no attack has a gradient to follow.
PARAMS = 0.05 * np.random.default_rng(0).normal(size=(192, 3)).astype(np.float32)


EXTRA = {
    "badnets": {"size": 4},
    "bullseye": {"steps": 3, "learning_rate": 0.2},
    "clean_label_backdoor": {"steps": 2, "step_size": 0.2, "size": 3},
    "convex_polytope": {"steps": 3, "learning_rate": 0.2, "coefficient_steps": 5},
    "gradient_matching": {"steps": 3, "restarts": 2, "learning_rate": 0.2},
    "hidden_trigger": {"steps": 3, "learning_rate": 0.2, "size": 3, "inset": 1},
    "linear_noise": {"patch": 3},
    "metapoison": {"steps": 3, "learning_rate": 0.2},
    "narcissus": {"steps": 5, "learning_rate": 0.1},
    "poison_frogs": {"steps": 3, "learning_rate": 0.2},
    "sleeper_agent": {"steps": 3, "learning_rate": 0.2, "size": 3},
    "wanet": {"strength": 2.0, "cover_ratio": 0.0},  # covers keep their labels
}


def craft(name, images, labels, seed, epsilon, **options):
    key = jax.random.key(seed)
    arguments = {"epsilon": epsilon, **EXTRA.get(name, {}), **options}
    attack = ATTACKS[name]
    if attack.needs_target:
        arguments |= {"target": 1, "count": 5}
    if attack.needs_targets:
        arguments["targets"] = Targets(255 - images[:2], np.array([0, 2]), np.arange(2))
        if name == "convex_polytope":  # takes one target image
            arguments["targets"] = Targets(255 - images[:1], np.array([0]), np.arange(1))
    if attack.needs_surrogate:
        return attack.craft(linear, jnp.asarray(PARAMS), key, images, labels, **arguments)
    return attack.craft(images, labels, key, **arguments)


@pytest.mark.parametrize("name", list(ATTACKS))
@given(seed=strategies.integers(0, 2**31), epsilon=strategies.floats(1 / 255, 0.6))
@SETTINGS
def test_budget_holds_after_the_round_trip_through_8_bits(name, seed, epsilon):
    random = np.random.default_rng(seed)
    # Extreme values are over-represented, so that clipping to 0 … 255 happens.
    images = random.choice(np.array([0, 1, 3, 90, 128, 200, 254, 255], np.uint8), SHAPE)
    labels = np.arange(SHAPE[0], dtype=np.int32) % 3
    # An L2 bound is over all values: a norm that moves at least one cell needs to be larger.
    epsilon = epsilon * 14 + 0.1 if name == "linear_noise" else epsilon
    poison = craft(name, images, labels, seed, epsilon)
    change = poison.images.astype(np.int64) - images[poison.index]
    assert poison.images.dtype == np.uint8
    assert np.any(change)
    if poison.how["norm"] == "l2":
        assert np.sqrt((change**2).sum((1, 2, 3))).max() <= 255 * epsilon * (1 + 1e-6)
    else:
        assert np.abs(change).max() <= math.floor(255 * epsilon + 1e-6)
    trained_on = poison_dataset(Dataset(images, labels, ("a", "b", "c")), poison).images
    stored = np.asarray(to_uint8(to_float(jnp.asarray(trained_on))))
    np.testing.assert_array_equal(stored[poison.index], poison.images)
    changed = labels[poison.index] != poison.labels
    assert changed.all() if poison.how["labels_changed"] else not changed.any()


@pytest.mark.parametrize("name", list(ATTACKS))
def test_same_key_same_poison_and_another_key_another(name):
    images = np.random.default_rng(3).integers(0, 256, SHAPE).astype(np.uint8)
    labels = np.arange(SHAPE[0], dtype=np.int32) % 3
    epsilon = 2.0 if name == "linear_noise" else 0.2
    first, again, other = (craft(name, images, labels, seed, epsilon) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.index, again.index)
    # Of Narcissus the poisons are the last of the class, and one batch holds the whole class.
    if name != "narcissus":
        assert not np.array_equal(first.images, other.images)


@pytest.mark.parametrize("name", [name for name, attack in ATTACKS.items() if "steps" in attack.options])
def test_attacks_report_their_steps(name):
    images = np.random.default_rng(3).integers(0, 256, SHAPE).astype(np.uint8)
    labels, reports = np.arange(SHAPE[0], dtype=np.int32) % 3, []
    poison = craft(name, images, labels, 1, 0.2, progress=lambda *report: reports.append(report))
    finished, totals = zip(*reports, strict=True)
    steps = EXTRA[name]["steps"] * (len(poison) if name == "clean_label_backdoor" else 1)
    assert set(totals) == {steps} and finished[-1] == steps and finished[0] == 0
    assert sorted(finished) == list(finished)
    np.testing.assert_array_equal(poison.images, craft(name, images, labels, 1, 0.2).images)


def test_levels_are_exact_for_every_multiple_of_one_level():
    for count in range(1, 256):
        assert levels(count / 255) == count
        assert levels(float(np.float32(count / 255))) == count
    assert levels(0.15) == 38


@pytest.mark.parametrize("epsilon", [0.0, -0.1, 0.003, 1.1, float("nan"), float("inf")])
def test_unusable_epsilon_is_one_clear_line(epsilon):
    with pytest.raises(ValueError, match=r"^epsilon is .*; it must be from 1/255 to 1.*$"):
        levels(epsilon)


def test_rounding_never_exceeds_the_budget():
    delta = np.array([0.0314, -0.0314, 0.5, 0.001], np.float32)
    np.testing.assert_array_equal(to_levels(delta, 8 / 255), [8, -8, 8, 0])
    images = np.array([250, 3, 0, 77], np.uint8).reshape(1, 2, 2, 1)
    np.testing.assert_array_equal(add_levels(images, np.full((1, 2, 2, 1), 8, np.int16)).ravel(), [255, 11, 8, 85])


def test_trigger_application_is_in_chunks_and_limited():
    images = np.zeros((4100, 1, 1, 1), np.uint8)
    assert (apply_trigger(lambda x: x + 0.5, images) == 128).all()
    assert (apply_trigger(lambda x: x + 0.5, images, 8 / 255) == 8).all()
    assert apply_trigger(lambda x: x, images[:0]).shape == (0, 1, 1, 1)
