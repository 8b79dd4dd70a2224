"""PureGen's published handling of Narcissus poisons: arithmetic, choice, order, quotas and metrics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.attack.choose import choose
from jaxpurify.data import AdditiveTrigger, Dataset, Poison, compat_floor, to_float, to_uint8
from jaxpurify.data.published import compat_merged, compat_triggered
from jaxpurify.evaluate.metrics import poison_success

PATCH = np.linspace(-16 / 255, 16 / 255, 3 * 16 * 16, dtype=np.float32).reshape(16, 16, 3)


@pytest.fixture
def levels():
    """All 256 grey levels, each in all three channels."""
    return np.tile(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), (1, 1, 1, 3))


def test_poisons_are_clamped_in_signed_units_and_truncated(levels):
    poisoned = compat_triggered(levels, PATCH)
    # In exact arithmetic: v + 255 · patch / 2, clamped to 0 … 255, rounded down.
    exact = np.clip(levels.astype(np.float64) + 127.5 * PATCH[None].astype(np.float64), 0, 255)
    away = np.abs(exact - np.round(exact)) > 1e-3
    np.testing.assert_array_equal(poisoned[away], np.floor(exact[away]))
    assert away.mean() > 0.9 and np.abs(poisoned - exact).max() <= 1 + 1e-3
    # Without a patch the truncation darkens grey levels 1 … 63 by one and leaves the others.
    blank = compat_triggered(levels, np.zeros_like(PATCH))
    expected = np.where((levels > 0) & (levels < 64), levels - 1, levels)
    np.testing.assert_array_equal(blank, expected)
    np.testing.assert_array_equal(blank, compat_floor(to_float(levels)))
    assert compat_triggered(levels, np.full_like(PATCH, 2.0)).min() == 255  # clamped, it does not wrap round
    with pytest.raises(ValueError, match=r"patch of shape \(8, 8, 3\)"):
        compat_triggered(levels, PATCH[:8, :8])


def test_our_rounded_trigger_differs_from_the_truncated_one_by_one_level(levels):
    ours = to_uint8(np.asarray(AdditiveTrigger(jnp.asarray(PATCH / 2))(jnp.asarray(to_float(levels)))))
    difference = ours.astype(int) - compat_triggered(levels, PATCH)
    assert difference.min() == 0 and difference.max() == 1


def test_poisons_are_the_last_of_the_class_in_index_order():
    labels = np.arange(40) % 4
    index = choose(jax.random.key(0), np.flatnonzero(labels == 1), 3, choice="last", what="images of class 1")
    assert index.tolist() == [29, 33, 37]


def dataset():
    images = np.tile(np.arange(12, dtype=np.uint8).reshape(-1, 1, 1, 1), (1, 2, 2, 1))
    return Dataset(images, np.arange(12) % 3, ("a", "b", "c"))


def poison(index, labels):
    images = np.full((len(index), 2, 2, 1), 200, np.uint8) + np.arange(len(index), dtype=np.uint8).reshape(-1, 1, 1, 1)
    return Poison(images=images, labels=np.array(labels), index=np.array(index))


def test_poisons_come_first_then_the_clean_images_that_they_do_not_replace():
    merged = compat_merged(dataset(), poison([10, 4], [1, 1]))
    assert merged.images[:, 0, 0, 0].tolist() == [200, 201, 0, 1, 2, 3, 5, 6, 7, 8, 9, 11]
    assert merged.labels.tolist() == [1, 1, 0, 1, 2, 0, 2, 0, 1, 2, 0, 2]
    # Poisons that keep their label: a quota of the class size leaves nothing out.
    np.testing.assert_array_equal(compat_merged(dataset(), poison([10, 4], [1, 1]), quota=4).images, merged.images)


def test_poisons_count_towards_the_quota_of_the_label_that_they_carry():
    merged = compat_merged(dataset(), poison([0, 3], [1, 1]), quota=4)
    # Class 1 has two poisons and four images of its own: the last two of these are over the quota.
    assert merged.labels.tolist() == [1, 1, 1, 2, 1, 2, 0, 2, 0, 2]
    assert merged.images[:, 0, 0, 0].tolist() == [200, 201, 1, 2, 4, 5, 6, 8, 9, 11]
    first = compat_merged(dataset(), poison([0, 3], [1, 1]), quota=1)
    assert first.images[:, 0, 0, 0].tolist() == [200, 2, 6]
    with pytest.raises(ValueError, match="quota=0"):
        compat_merged(dataset(), poison([0], [1]), quota=0)


def test_poison_success_of_a_stub_classifier():
    """Counted over triggered images of all other classes; 45 of 48 targets are 93.75 %."""

    def stub(images):  # says class 2 where the trigger raised the first pixel above one half
        triggered = images[:, 0, 0, 0] > 0.5
        return jnp.where(triggered[:, None], jnp.array([[0.0, 0.0, 1.0]]), jnp.array([[1.0, 0.0, 0.0]]))

    images = np.zeros((60, 2, 2, 1), np.uint8)
    images[:45, 0, 0, 0] = 255
    images[48:, 0, 0, 0] = 255  # twelve of the target class itself, which do not count
    labels = np.array([0, 1] * 24 + [2] * 12)
    counts = poison_success(stub, images, labels, target=2)
    assert counts.fraction == 45 / 48 == 0.9375
    assert counts.highest == 23 / 24  # of class 0
