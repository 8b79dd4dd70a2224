"""The attack inside adversarial poisoning against recorded values of the published code, and its contracts."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.defend.inner_attack import OBJECTIVES, inner_attack, inner_objective, matching_loss
from jaxpurify.random import image_keys
from tests.attack.matching_golden import GOLDEN, POISON_LABELS, gradient_trees, network, parameters, rows

RECORDED = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "inner_attack.json").read_text())
KEY = jax.random.key(3)
LABELS, INTENDED = jnp.asarray(POISON_LABELS), jnp.zeros(2, jnp.int32)


def features(params, images):
    return jnp.tanh(images.reshape(len(images), -1) @ params["W1"].T + params["b1"][None])


def batch():
    """Poison part and target part, in [0, 1]."""
    return (jax.nn.sigmoid(rows((8, 6), 1.1)), LABELS), (jax.nn.sigmoid(rows((2, 6), 2.2)), INTENDED)


def attack(name, *, params=None, labels=LABELS, index=tuple(range(8)), **options):
    (images, _), (targets, intended) = batch()
    apply, keys = features if name == "fc" else network, image_keys(KEY, jnp.array(index))
    params = parameters() if params is None else params
    return inner_attack(apply, params, keys, images, labels, targets, intended, objective=name, **options)


def value_at(name, delta):
    poisons, targets = batch()
    apply = features if name == "fc" else network
    return evaluated(inner_objective(apply, parameters(), *poisons, *targets, objective=name), delta)


@jax.jit
def evaluated(objective, delta):
    return objective(delta)[0]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_recorded_objective_and_perturbation(name):
    recorded, epsilon = RECORDED[name], (8 if name == "evasion" else 16) / 255
    delta, values = attack(name, epsilon=epsilon, learning_rate=0.1, start="zero")
    assert values.shape == (5,)
    np.testing.assert_allclose(values[0], recorded["first"], rtol=1e-5)
    np.testing.assert_allclose(value_at(name, delta), recorded["last"], rtol=1e-5)
    np.testing.assert_allclose(delta.sum(), recorded["sum"], atol=2e-6)
    if "squares" in recorded:
        np.testing.assert_allclose(jnp.square(delta).sum(), recorded["squares"], rtol=1e-5)


@pytest.mark.parametrize(("name", "recorded"), [("wb", "defence_neg_cos"), ("se", "defence_se")])
def test_recorded_matching_losses(name, recorded):
    np.testing.assert_allclose(matching_loss(name, *gradient_trees()), GOLDEN["T1"][recorded], rtol=2e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_from_the_normal_start_the_objective_falls_within_both_boxes(name):
    images = batch()[0][0]
    start, none = attack(name, steps=0, epsilon=0.2)
    delta, values = attack(name, epsilon=0.2)
    assert none.shape == (0,) and np.abs(start).max() > 0.15
    np.testing.assert_allclose(values[0], value_at(name, start), rtol=1e-5)
    assert value_at(name, delta) < values[0]
    for found in (start, delta):
        assert np.abs(found).max() <= 0.2 + 1e-7
        assert (images + found).min() >= -1e-7 and (images + found).max() <= 1 + 1e-7


def test_the_start_of_an_image_is_its_own_keys():
    start = attack("wb", steps=0)[0]
    other = attack("wb", steps=0, index=(0, 1, 2, 9, 4, 5, 6, 7))[0]
    same = np.array([(one == two).all() for one, two in zip(start, other, strict=True)])
    assert same.tolist() == [True, True, True, False, True, True, True, True]
    assert not attack("wb", steps=0, start="zero")[0].any()


@pytest.mark.parametrize("name", ["wb", "evasion"])
def test_inside_a_compiled_step_it_is_a_constant_of_the_outer_gradient(name):
    images = batch()[0][0]

    def loss(params, delta):
        logits = network(params, images + delta)
        return -jax.nn.log_softmax(logits)[jnp.arange(8), LABELS].mean()

    outside = attack(name)[0]
    through = jax.jit(jax.grad(lambda params: loss(params, attack(name, params=params)[0])))(parameters())
    jax.tree.map(
        lambda one, two: np.testing.assert_allclose(one, two, atol=1e-6),
        through,
        jax.grad(loss)(parameters(), outside),
    )


def test_ordinary_adversarial_training_needs_no_targets():
    (images, labels), _ = batch()
    keys = image_keys(KEY, jnp.arange(8))
    alone = inner_attack(network, parameters(), keys, images, labels, objective="evasion")[0]
    np.testing.assert_array_equal(alone, attack("evasion")[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "gm"}, r"^objective is 'gm'; known: wb, se, fc, evasion$"),
        ({"epsilon": 0.0}, r"^epsilon is 0\.0; it must be above 0 and at most 1, in units of \[0, 1\]$"),
        ({"learning_rate": 0.0}, r"^learning_rate is 0\.0; it must be above 0 and finite$"),
        ({"steps": -1}, r"^steps is -1; it must be 0 or more$"),
        ({"start": "uniform"}, r"^start is 'uniform'; known: normal, zero$"),
        ({"labels": LABELS[:7]}, r"^8 images and 7 labels to poison; one each and at least one needed$"),
    ],
)
def test_bad_input_is_one_clear_line(options, message):
    with pytest.raises(ValueError, match=message):
        attack(**{"name": "wb"} | options)


def test_a_target_part_that_the_objective_needs():
    (images, labels), (targets, intended) = batch()
    with pytest.raises(ValueError, match=r"^objective is 'fc' and there is no target image; only 'evasion' works wit"):
        inner_objective(features, parameters(), images, labels, targets[:0], objective="fc")
    with pytest.raises(ValueError, match=r"^2 target images and 1 intended labels; one each needed$"):
        inner_objective(network, parameters(), images, labels, targets, intended[:1])
