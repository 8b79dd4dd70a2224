"""Numbers of the wrong type, as they come from callers without type checks: one clear line, and nothing computed."""

import jax
import jaxtyping
import numpy as np
import pytest

from jaxpurify.attack import gradient_matching, metapoison, wanet
from jaxpurify.attack.budget import levels
from jaxpurify.attack.bullseye import bullseye
from jaxpurify.attack.choose import poison_count
from jaxpurify.attack.crafting import check_settings
from jaxpurify.data.poison import Targets


@pytest.fixture(autouse=True)
def unchecked():
    """Switches off the type checks that tests run under and users do not."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    ("attack", "options", "message"),
    [
        (gradient_matching, {"micro_batch": 2.5}, r"^micro_batch is 2\.5; it must be a whole number$"),
        (gradient_matching, {"transform_draws": 1.5}, r"^transform_draws is 1\.5; it must be a whole number$"),
        (gradient_matching, {"transform_draws": 2}, r"^transform_draws is 2; more than 1 needs noise to draw: "),
        (bullseye, {"count": None, "bases": [0.5]}, r"^bases are float64; positions of images are whole numbers$"),
        (metapoison, {"count": None, "bases": [0.5]}, r"^bases are float64; positions of images are whole numbers$"),
        (bullseye, {"transform_draws": 2}, r"^transform_draws is 2; more than 1 needs noise to draw: "),
        (gradient_matching, {"epsilon": None}, r"^epsilon is None; it must be from 1/255 to 1, in units of \[0, 1\]$"),
        (metapoison, {"unroll": "2"}, r"^unroll is '2'; it must be a whole number$"),
        (metapoison, {"count": True}, r"^count is True; it must be a whole number$"),
    ],
)
def test_targeted_attacks(surrogate, digits, attack, options, message):
    targets = Targets(digits[0][:1], digits[1][:1], np.arange(1))
    options = {"target": int(digits[1][1]), "targets": targets, "count": 5} | options
    with pytest.raises(ValueError, match=message):
        attack(*surrogate, jax.random.key(0), *digits, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: levels("large"), r"^epsilon is 'large'; it must be from 1/255 to 1, in units of \[0, 1\]$"),
        (lambda: poison_count(2.5, None, 10), r"^count is 2\.5; it must be a whole number$"),
        (lambda: check_settings(2.5, 1, 0.1), r"^steps is 2\.5; it must be a whole number$"),
        (lambda: check_settings(2, "1", 0.1), r"^restarts is '1'; it must be a whole number$"),
    ],
)
def test_checks(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_grid_of_a_warp(digits):
    with pytest.raises(ValueError, match=r"^grid is 2\.5; it must be a whole number$"):
        wanet(*digits, jax.random.key(0), target=3, count=2, grid=2.5)


def test_numbers_of_numpy_are_whole_too():
    check_settings(np.int32(3), np.int64(2), 0.1)
    assert poison_count(np.int64(3), None, 10) == 3
