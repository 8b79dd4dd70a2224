"""Watermark: the framework's numbers, its bounds, and which target each poison carries."""

import jax
import numpy as np
import pytest

from jaxpurify.attack.watermark import watermark, watermark_delta
from tests.attack import golden

KEY = jax.random.key(1)
MEAN = np.array([0.4914, 0.4822, 0.4465])
DEVIATION = np.array([0.2470, 0.2435, 0.2616])


def craft(digits, **arguments):
    defaults = {"target": 7, "targets": golden.digit_targets(digits, [1700, 1702]), "count": 5}
    return watermark(*digits, KEY, **(defaults | arguments))


def test_sum_of_the_framework():
    image, target = (1 / (1 + np.exp(-golden.waves((3, 2, 2), shift))) for shift in (0.5, 1.5))
    opacity = 16 / 255 / DEVIATION
    np.testing.assert_allclose(opacity, [0.25403, 0.25768, 0.23985], atol=1e-5)
    rows = [np.moveaxis(array, 0, -1)[None] for array in (image, target)]
    delta = watermark_delta(*rows, opacity, 16 / 255)
    # The published number is of images divided by the deviations.
    np.testing.assert_allclose((delta / DEVIATION.reshape(1, 1, 1, 3)).sum(), -0.1415440117, rtol=1e-8)


def test_poisons_carry_the_targets_in_turn_within_the_budget(digits):
    poison = craft(digits)
    base = digits[0][poison.index].astype(float)
    aims = poison.targets.images[[0, 1, 0, 1, 0]].astype(float)
    expected = np.clip(0.25 * (aims - base), -16, 16)
    np.testing.assert_allclose(poison.images - base, expected, atol=0.51)
    assert np.abs(poison.images - base).max() == 16
    assert (digits[1][poison.index] == 7).all() and poison.how["norm"] == "linf"


def test_without_a_bound_the_images_are_mixed(digits):
    poison = craft(digits, epsilon=None, opacity=[0.5], fraction=0.002, count=None)
    base = digits[0][poison.index].astype(float)
    aims = poison.targets.images[np.arange(len(poison)) % 2].astype(float)
    np.testing.assert_allclose(poison.images, (base + aims) / 2, atol=0.51)
    assert len(poison) == 4 and poison.how["epsilon"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": 0.0}, r"^epsilon is 0\.0; it must be from 1/255 to 1, in units of \[0, 1\]$"),
        ({"opacity": 1.5}, r"^opacity is 1\.5; it must be one number in \[0, 1\], or one for each channel$"),
        ({"opacity": [0.1, 0.2]}, r"^opacity is \[0\.1, 0\.2\]; "),
        ({"target": 5}, r"^target is 5; "),
        ({"target": 11}, r"^target is 11; the labels of this data are 0 … 9$"),
        ({"count": 300}, r"^count is 300; there are only 179 images of class 7$"),
    ],
)
def test_bad_input_is_one_clear_line(digits, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        craft(digits, **arguments)
    assert "\n" not in str(caught.value)
