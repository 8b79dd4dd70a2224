"""Random noise: nothing but signs on images of the intended class."""

import jax
import numpy as np
import pytest

from jaxpurify.attack.random_noise import random_noise
from tests.attack import golden


def test_signs_of_the_whole_budget_on_images_of_the_class(digits):
    targets = golden.digit_targets(digits, [1700, 1702])
    poison = random_noise(*digits, jax.random.key(0), target=7, targets=targets, count=9, epsilon=5 / 255)
    base = digits[0][poison.index].astype(int)
    change = poison.images.astype(int) - base
    free = (base >= 5) & (base <= 250)  # where nothing is clipped
    assert len(np.unique(change[:, :2].reshape(9, -1), axis=0)) == 9  # signs of their own
    assert set(np.unique(change[free])) == {-5, 5} and abs(np.sign(change[free]).mean()) < 0.2
    assert (digits[1][poison.index] == 7).all() and (poison.labels == 7).all()
    assert poison.targets is targets and poison.target == 7 and poison.trigger is None


def test_a_target_of_the_intended_class_is_refused(digits):
    label = int(digits[1][1700])
    with pytest.raises(ValueError, match=f"target is {label}; a target image has this label already"):
        random_noise(*digits, jax.random.key(0), target=label, targets=golden.digit_targets(digits, [1700]), count=9)
