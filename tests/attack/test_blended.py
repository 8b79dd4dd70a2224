"""Blended injection: the mixture in 8 bits, the overlay, strength at test time, and a victim that learns it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.attack.blended import blended

KEY = jax.random.key(5)
IMAGES = np.random.default_rng(0).integers(40, 216, (60, 16, 16, 3)).astype(np.uint8)
LABELS = (np.arange(60) % 4).astype(np.int64)
DATA = (IMAGES, LABELS, KEY)


def test_images_are_the_mixture_and_labels_change():
    overlay = np.random.default_rng(1).uniform(size=(16, 16, 3)).astype(np.float32)
    poison = blended(*DATA, target=2, count=6, ratio=0.3, overlay=overlay)
    wanted = 0.7 * IMAGES[poison.index] + 0.3 * 255 * overlay[None]
    np.testing.assert_allclose(poison.images, wanted, atol=0.501)
    assert not np.any(LABELS[poison.index] == 2) and (poison.labels == 2).all() and poison.how["labels_changed"]
    triggered = poison.trigger(jnp.asarray(IMAGES[poison.index], jnp.float32) / 255)
    np.testing.assert_allclose(np.asarray(triggered) * 255, wanted, atol=1e-3)


def test_random_overlay_is_one_for_all_in_cells_and_follows_the_key():
    poison = blended(*DATA, target=1, fraction=0.1, cell=4)
    picture = np.asarray(poison.trigger.pattern).reshape(4, 4, 4, 4, 3)
    assert (picture == picture[:, :1, :, :1]).all() and 0 <= picture.min() < 0.1 and 0.9 < picture.max() < 1
    other = blended(IMAGES, LABELS, jax.random.key(6), target=1, fraction=0.1, cell=4)
    assert not np.array_equal(other.trigger.pattern, poison.trigger.pattern)


def test_strength_at_test_time():
    poison = blended(*DATA, target=1, count=2, ratio=0.1, test_ratio=0.4)
    assert np.asarray(poison.trigger.mask).max() == np.float32(0.4) and poison.how["test_ratio"] == 0.4
    np.testing.assert_allclose(poison.trigger.scaled(2.0).mask, 0.8, rtol=1e-6)
    np.testing.assert_allclose(poison.trigger.scaled(9.0).mask, 1.0)
    with pytest.raises(ValueError, match=r"cannot be scaled by 0\.0; the scale must be above 0$"):
        poison.trigger.scaled(0.0)


def test_clean_label_within_a_budget():
    poison = blended(*DATA, target=1, count=5, clean_label=True, epsilon=8 / 255)
    change = poison.images.astype(int) - IMAGES[poison.index]
    assert (LABELS[poison.index] == 1).all() and not poison.how["labels_changed"]
    assert np.abs(change).max() == 8 and poison.how["norm"] == "linf"


def test_a_linear_victim_learns_the_overlay(digits):
    images, labels = digits
    train, test = slice(0, 1000), slice(1000, None)
    poison = blended(images[train], labels[train], KEY, target=3, fraction=0.1)
    taught, names = images[train].copy(), labels[train].copy()
    taught[poison.index], names[poison.index] = poison.images, poison.labels
    victim = ridge(taught, names)
    others = labels[test] != 3
    clean = jnp.asarray(images[test][others], jnp.float32) / 255
    triggered = np.asarray(poison.trigger(clean))
    assert (ridge(images[train], labels[train])(triggered) == 3).mean() < 0.2
    assert (victim(triggered) == 3).mean() > 0.9
    assert (victim(np.asarray(clean)) == labels[test][others]).mean() > 0.85


def ridge(images, labels):
    """A least-squares classifier; images are stored, and what it is given are floats."""

    def features(images):
        flat = images.reshape(len(images), -1)
        return np.concatenate([flat, np.ones((len(flat), 1))], 1)

    seen = features(images / 255)
    weights = np.linalg.solve(seen.T @ seen + np.eye(seen.shape[1]), seen.T @ np.eye(10)[labels])
    return lambda images: (features(images) @ weights).argmax(-1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0.0}, r"^ratio is 0\.0; it must be above 0 and at most 1$"),
        ({"test_ratio": 1.5}, r"^test_ratio is 1\.5; it must be above 0 and at most 1$"),
        ({"cell": 0}, r"^cell is 0; it must be at least 1 pixel$"),
        ({"overlay": np.zeros((8, 8, 3), np.float32)}, r"^overlay has shape \(8, 8, 3\); the images have"),
        ({"overlay": np.full((16, 16, 3), 2.0, np.float32)}, r"^overlay spans 2 … 2; its values must lie"),
        ({"target": 7}, r"^target is 7; the labels of this data are"),
        ({"count": 46}, r"^count is 46; there are only 45 images of classes"),
        ({"epsilon": -1.0}, r"^epsilon is -1\.0; it must be from 1/255"),
        ({"fraction": 0.1}, r"^count is 1 and fraction is 0\.1; give exactly one"),
    ],
)
def test_bad_input_is_one_clear_line(options, message):
    with pytest.raises(ValueError, match=message):
        blended(*DATA, **{"target": 0, "count": 1, **options})
