"""Uncertainties and image measures against known values."""

import math

from hypothesis import given, settings, strategies
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from jaxpurify.evaluate.metrics import auroc, mean_and_error, perturbation_survival, psnr, wilson_interval


def test_mean_and_standard_error():
    assert mean_and_error([0.5]) == (0.5, None, 1)
    mean, error, count = mean_and_error([1.0, 2.0, 3.0, 4.0])
    assert (mean, count) == (2.5, 4) and error == pytest.approx(math.sqrt(5 / 3) / 2)


def test_wilson_interval_has_its_known_values():
    # 95 %: 45 of 48 and the textbook case of no success in ten trials.
    assert wilson_interval(45, 48) == pytest.approx((0.83165, 0.97852), abs=1e-5)
    low, high = wilson_interval(0, 10)
    assert low == 0.0 and high == pytest.approx(0.27753, abs=1e-5)
    assert wilson_interval(10, 10) == pytest.approx((1 - high, 1.0))
    assert wilson_interval(1, 1)[1] == 1.0


@given(trials=strategies.integers(1, 400), share=strategies.floats(0, 1), confidence=strategies.floats(0.5, 0.999))
@settings(max_examples=50, deadline=None)
def test_wilson_bounds_solve_their_equation(trials, share, confidence):
    successes = round(share * trials)
    low, high = wilson_interval(successes, trials, confidence=confidence)
    rate = successes / trials
    assert 0 <= low <= rate <= high <= 1
    # Each bound p is where |rate - p| = z √(p(1-p)/n) with one z for both; a bound at 0 or 1 is where both vanish.
    scores = [abs(rate - p) / math.sqrt(p * (1 - p) / trials) for p in (low, high) if 0 < p < 1]
    assert max(scores) - min(scores) < 1e-6


@given(seed=strategies.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_auroc_agrees_with_scikit_learn_also_on_ties(seed):
    random = np.random.default_rng(seed)
    negative, positive = random.integers(0, 6, 30), random.integers(1, 8, 17)
    truth = np.r_[np.zeros(30), np.ones(17)]
    assert auroc(negative, positive) == pytest.approx(roc_auc_score(truth, np.r_[negative, positive]))


def test_auroc_at_its_ends():
    assert auroc([1, 2], [3, 4]) == 1.0 and auroc([3, 4], [1, 2]) == 0.0 and auroc([1, 1], [1]) == 0.5


def test_psnr():
    zeros = np.zeros((2, 4, 4, 3))
    other = zeros.copy()
    other[0] = 0.1
    np.testing.assert_allclose(psnr(zeros, other), [20.0, np.inf])
    stored = psnr(np.zeros((1, 4, 4, 3), np.uint8), np.full((1, 4, 4, 3), 255, np.uint8))
    np.testing.assert_allclose(stored, [0.0])


def test_perturbation_survival_is_one_for_doing_nothing_and_zero_for_removing():
    random = np.random.default_rng(0)
    clean, delta = random.uniform(0.2, 0.8, (5, 4, 4, 3)), random.uniform(-0.1, 0.1, (5, 4, 4, 3))
    np.testing.assert_allclose(perturbation_survival(clean + delta, clean, delta), 1.0)
    np.testing.assert_allclose(perturbation_survival(clean, clean, delta), 0.0)
    np.testing.assert_allclose(perturbation_survival(clean + 0.25 * delta[:1], clean, delta[0]), 0.25)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_and_error([]), r"^values are \[\]; at least one is needed"),
        (lambda: mean_and_error([1.0, float("nan")]), r"^values are \[1\.0, nan\]; "),
        (lambda: wilson_interval(3, 2), r"^successes is 3 of 2 trials; it must be 0 … trials"),
        (lambda: wilson_interval(0, 0), r"^successes is 0 of 0 trials; "),
        (lambda: wilson_interval(1, 2, confidence=95.0), r"^confidence is 95\.0; it must be between 0 and 1$"),
        (lambda: auroc([], [1.0]), r"^negative_scores holds 0 numbers, 0 of them NaN"),
        (lambda: auroc([1.0], [float("nan")]), r"^positive_scores holds 1 numbers, 1 of them NaN"),
        (lambda: psnr(np.zeros((1, 2, 2, 1)), np.zeros((2, 2, 2, 1))), r"^images of shapes \(1, 2, 2, 1\) and"),
        (lambda: psnr(np.zeros((2, 2, 1)), np.zeros((2, 2, 1))), r"^first images have the shape \(2, 2, 1\); "),
        (
            lambda: perturbation_survival(np.zeros((1, 2, 2, 1)), np.zeros((1, 2, 2, 1)), np.zeros((2, 2, 1))),
            r"^delta of image 0 is zero; ",
        ),
    ],
)
def test_bad_input_is_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message):
        call()
