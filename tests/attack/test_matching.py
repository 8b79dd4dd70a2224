"""Every passenger loss and criterion against recorded values of the published code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.attack.matching import CRITERIA, Passenger, check_criterion, output_positions
from tests.attack.matching_golden import GOLDEN, gradient_trees, wave

RECORDED = GOLDEN["T1"]


PASSENGERS = {
    "similarity": Passenger("similarity"),
    "similarity_narrow": Passenger("similarity-narrow"),
    "top5": Passenger("top5-similarity"),
    "top10": Passenger("top10-similarity"),
    "top20": Passenger("top20-similarity"),
    "scalar_product": Passenger("scalar_product"),
    "cosine1": Passenger("cosine1"),
    "SE": Passenger("SE"),
    "MSE": Passenger("MSE"),
    "similarity_repel_0p1": Passenger("similarity", repel_weight=0.1, repel="compat"),
    "similarity_normreg_0p1": Passenger("similarity", norm_weight=0.1),
}


@pytest.mark.parametrize("name", PASSENGERS)
def test_recorded_values(name):
    poison, target = gradient_trees()
    np.testing.assert_allclose(PASSENGERS[name](poison, target), RECORDED[name], rtol=2e-6)


def test_recorded_target_norm():
    norm = np.sqrt(sum(float(jnp.square(leaf).sum()) for leaf in gradient_trees()[1]))
    np.testing.assert_allclose(norm, RECORDED["gnorm"], rtol=1e-6)


@pytest.mark.parametrize("name", PASSENGERS)
def test_gradient_is_the_change_of_the_value(name):
    poison, target = gradient_trees()
    value, direction = PASSENGERS[name].value_and_gradient(poison, target)
    step = jax.tree.map(lambda leaf: jnp.asarray(wave(leaf.shape, 0.3), jnp.float32), poison)
    slope = sum(float((one * other).sum()) for one, other in zip(direction, step, strict=True))
    ends = [
        float(PASSENGERS[name](jax.tree.map(lambda p, s, by=by: p + by * s, poison, step), target))
        for by in (-1e-2, 1e-2)
    ]
    np.testing.assert_allclose((ends[1] - ends[0]) / 2e-2, slope, rtol=5e-3, atol=1e-4)
    np.testing.assert_allclose(value, RECORDED[name], rtol=2e-6)


def test_gradient_of_the_cosine_in_closed_form():
    poison, target = gradient_trees()
    _, direction = Passenger().value_and_gradient(poison, target)
    p, t, v = (
        np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in tree]) for tree in (poison, target, direction)
    )
    norm = np.linalg.norm(p)
    expected = -t / (np.linalg.norm(t) * norm) + (t @ p) * p / (np.linalg.norm(t) * norm**3)
    np.testing.assert_allclose(v, expected, atol=1e-7)


def test_repelling_moves_away_from_the_clean_gradient():
    poison, target = gradient_trees()
    clean = jax.tree.map(lambda leaf: leaf + 1.0, target)
    plain, repelling = Passenger(), Passenger(repel_weight=0.5)
    cosine = 1 - float(plain(poison, clean))
    np.testing.assert_allclose(repelling(poison, target, clean), plain(poison, target) + 0.5 * cosine, rtol=1e-5)
    np.testing.assert_allclose(repelling(poison, target), plain(poison, target))


def test_a_zero_poison_gradient_has_a_finite_value_and_direction():
    target = gradient_trees()[1]
    zero = jax.tree.map(jnp.zeros_like, target)
    for passenger in PASSENGERS.values():
        value, direction = passenger.value_and_gradient(zero, target)
        assert np.isfinite(value) and all(np.isfinite(leaf).all() for leaf in direction)


def test_recorded_criteria():
    logits, labels = jnp.asarray(3 * wave((5, 4), 0.3), jnp.float32), jnp.array([1, 0, 3, 2, 1])
    for name in ("cw", "cw2"):
        np.testing.assert_allclose(CRITERIA[name](logits, labels), GOLDEN["T3"][name], rtol=1e-6)
    log_probability = jax.nn.log_softmax(logits)[jnp.arange(5), labels]
    np.testing.assert_allclose(CRITERIA["xent"](logits, labels), -log_probability.mean(), rtol=1e-6)
    np.testing.assert_allclose(CRITERIA["unxent"](logits, labels), log_probability.mean(), rtol=1e-6)


def test_output_layer_is_found_by_name():
    assert output_positions({"linear": {"bias": 0, "kernel": 0}, "stem": {"kernel": 0}, "zoom": [0, 0]}) == (0, 1)
    assert output_positions({"first": 0, "second": 0, "third": 0}) == (1, 2)
    passenger = Passenger("similarity-narrow").for_parameters({"linear": {"kernel": 0}, "stem": 0})
    assert passenger.output == (0,)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match=r"^loss is 'cosine'; known: similarity, similarity-narrow, "):
        Passenger("cosine")
    with pytest.raises(ValueError, match=r"^repel is 'no'; known: intended, compat$"):
        Passenger(repel="no")
    with pytest.raises(ValueError, match=r"^repel is 'compat' with loss 'SE'; "):
        Passenger("SE", repel="compat")
    with pytest.raises(ValueError, match=r"^criterion is 'ce'; known: xent, cw, cw2, unxent$"):
        check_criterion("ce")
