"""Patches, the low-norm pattern and the indiscriminate noises: where they go and what they look like."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.attack import ATTACKS, badnets, class_noise, linear_noise, patch_trigger, pattern
from jaxpurify.attack.catalogue import named_attack
from jaxpurify.attack.linear_noise import linear_patterns

KEY = jax.random.key(5)
IMAGES = np.random.default_rng(0).integers(40, 216, (60, 16, 16, 3)).astype(np.uint8)
LABELS = (np.arange(60) % 4).astype(np.int64)
DATA = (IMAGES, LABELS, KEY)


def test_checkerboard_is_flush_in_its_corner():
    poison = badnets(IMAGES, LABELS, KEY, target=2, count=6, size=3)
    assert not np.any(LABELS[poison.index] == 2) and (poison.labels == 2).all() and poison.how["labels_changed"]
    board = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]]) * 255
    for channel in range(3):
        np.testing.assert_array_equal(poison.images[:, 13:, 13:, channel], np.stack([board] * 6))
    np.testing.assert_array_equal(poison.images[:, :13], IMAGES[poison.index][:, :13])


@pytest.mark.parametrize(
    ("corner", "rows", "columns"),
    [("bottom-left", [14, 15], [0, 1]), ("top-right", [0, 1], [14, 15]), ("top-left", [0, 1], [0, 1])],
)
def test_every_corner(corner, rows, columns):
    white = patch_trigger((16, 16, 3), KEY, pattern="white", size=2, corner=corner)
    touched = np.argwhere(np.asarray(white(jnp.zeros((1, 16, 16, 3)))).any((0, 3)))
    assert set(touched[:, 0]) == set(rows) and set(touched[:, 1]) == set(columns)


def test_random_patch_is_binary_and_follows_the_key():
    first, second = (patch_trigger((8, 8, 3), jax.random.key(seed), pattern="random", size=5) for seed in (1, 2))
    on_grey = [np.asarray(trigger(jnp.full((1, 8, 8, 3), 0.5)))[0, 3:, 3:] for trigger in (first, second)]
    assert set(np.unique(on_grey[0])) == {0.0, 1.0} and not np.array_equal(*on_grey)


def test_clean_label_keeps_labels_and_limits_the_change():
    poison = badnets(IMAGES, LABELS, KEY, target=1, fraction=0.1, clean_label=True, epsilon=16 / 255)
    assert (LABELS[poison.index] == 1).all() and len(poison.index) == 6 and not poison.how["labels_changed"]
    change = poison.images.astype(int) - IMAGES[poison.index]
    assert set(np.unique(change)) == {-16, 0, 16}
    full = np.asarray(poison.trigger(jnp.zeros((1, 16, 16, 3))))
    assert full.max() == 1.0


def test_own_trigger_replaces_the_patch():
    poison = badnets(IMAGES, LABELS, KEY, target=0, count=3, trigger=lambda images: 1 - images)
    np.testing.assert_array_equal(poison.images, 255 - IMAGES[poison.index])


def test_low_norm_pattern_is_one_set_of_signs():
    poison = pattern(IMAGES, LABELS, KEY, target=3, epsilon=0.15, fraction=0.05)
    change = poison.images.astype(int) - IMAGES[poison.index]
    assert len(poison.index) == 3 and not np.any(LABELS[poison.index] == 3) and (poison.labels == 3).all()
    assert set(np.unique(change)) == {-38, 38} and (change == change[:1]).all()
    triggered = poison.trigger(jnp.asarray(IMAGES[poison.index], jnp.float32) / 255)
    np.testing.assert_array_equal(np.rint(np.asarray(triggered) * 255), poison.images)
    assert poison.how["labels_changed"] is True
    coarse = pattern(IMAGES, LABELS, KEY, target=3, count=1, cell=4)
    difference = (coarse.images.astype(int) - IMAGES[coarse.index])[0].reshape(4, 4, 4, 4, 3)
    assert (difference == difference[:, :1, :, :1]).all()


@pytest.mark.parametrize("kind", ["uniform", "sign"])
def test_class_noise_is_one_perturbation_a_class(kind):
    poison = class_noise(IMAGES, LABELS, KEY, kind=kind)
    assert poison.target is None and poison.trigger is None
    np.testing.assert_array_equal(poison.index, np.arange(60))
    np.testing.assert_array_equal(poison.labels, LABELS)
    change = poison.images.astype(int) - IMAGES
    for label in range(4):
        of_class = change[label == LABELS]
        assert (of_class == of_class[:1]).all()
    assert set(np.abs(change).ravel()) == ({8} if kind == "sign" else set(range(9)))
    assert not np.array_equal(change[0], change[1])


def test_class_noise_on_a_part_of_the_data():
    poison = class_noise(IMAGES, LABELS, KEY, fraction=0.25)
    assert len(poison.index) == 15 == len(np.unique(poison.index))
    np.testing.assert_array_equal(poison.labels, LABELS[poison.index])


def test_linear_noise_is_separable_constant_in_patches_and_near_its_norm():
    grey = np.full((1000, 32, 32, 3), 128, np.uint8)
    labels = np.arange(1000) % 10
    poison = linear_noise(grey, labels, KEY)
    assert poison.how["epsilon"] == pytest.approx(1.3041, abs=1e-4)
    change = (poison.images.astype(int) - 128).reshape(1000, 4, 8, 4, 8, 3)
    assert (change == change[:, :, :1, :, :1]).all()
    norms = np.sqrt((change**2).sum((1, 2, 3, 4, 5))) / 255
    assert norms.max() <= poison.how["epsilon"] and norms.min() > 0.97 * poison.how["epsilon"]
    # Measured on the published generator: mean largest value 10.5/255, centroids at ±10, deviation 3.99.
    assert np.abs(change).max((1, 2, 3, 4, 5)).mean() == pytest.approx(10.5, abs=1.0)
    features = change[:, :, 0, :, 0].reshape(1000, 48).astype(float)
    means = np.stack([features[:500][labels[:500] == label].mean(0) for label in range(10)])
    nearest = ((features[500:, None] - means[None]) ** 2).sum(-1).argmin(-1)
    assert (nearest == labels[500:]).mean() == 1.0


def test_linear_noise_has_the_published_moments():
    labels = jnp.arange(1000) % 10
    colours = np.asarray(linear_patterns(KEY, labels, jnp.arange(1000), 10, (4, 4, 3))).reshape(1000, 48)
    for label in range(10):
        members = colours[np.asarray(labels) == label]
        np.testing.assert_allclose(np.abs(members.mean(0)), 10.0, atol=2.2)
    deviations = np.concatenate([colours[np.asarray(labels) == label].std(0) for label in range(10)])
    assert np.sqrt((deviations**2).mean()) == pytest.approx(np.sqrt(48 / 3), rel=0.05)


def test_linear_noise_depends_on_position_and_label_only():
    labels, index = jnp.array([1, 2, 1]), jnp.array([4, 9, 11])
    order = jnp.array([2, 0, 1])
    first = linear_patterns(KEY, labels, index, 4, (2, 2, 3))
    again = linear_patterns(KEY, labels[order], index[order], 4, (2, 2, 3))
    np.testing.assert_allclose(first[order], again, rtol=1e-5)
    assert not np.allclose(first[0], first[2])


def test_linear_noise_on_patches_that_do_not_divide_the_image():
    poison = linear_noise(IMAGES, LABELS, KEY, patch=7, epsilon=2.0)
    change = poison.images.astype(int) - IMAGES
    assert np.sqrt((change**2).sum((1, 2, 3))).max() <= 2.0 * 255
    assert (change[:, 14:, 14:] == change[:, 14:15, 14:15]).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: badnets(*DATA, target=9, count=1), r"^target is 9; the labels of this data are 0, 1, 2, 3$"),
        (lambda: badnets(*DATA, target=0, count=46), r"^count is 46; there are only 45 images of classes"),
        (lambda: badnets(*DATA, target=0, count=1, size=17), r"^size is 17; a patch on 16x16 images must"),
        (lambda: badnets(*DATA, target=0, count=1, corner="middle"), r"^corner is 'middle'; known: bottom-"),
        (lambda: badnets(*DATA, target=0, count=1, pattern="x"), r"^pattern is 'x'; known: checkerboard"),
        (lambda: badnets(*DATA, target=0, count=1, epsilon=0.0), r"^epsilon is 0\.0; it must be from 1/255"),
        (lambda: badnets(*DATA, target=0, count=1, fraction=0.1), r"^count is 1 and fraction is 0\.1; give"),
        (lambda: pattern(*DATA, target=0, count=1, epsilon=-1.0), r"^epsilon is -1\.0; it must be from"),
        (lambda: pattern(*DATA, target=0, count=1, cell=0), r"^cell is 0; it must be at least 1 pixel$"),
        (lambda: pattern(*DATA, target=7, count=1), r"^target is 7; the labels of this data are"),
        (lambda: class_noise(*DATA, epsilon=0.0), r"^epsilon is 0\.0; it must be from 1/255 to 1"),
        (lambda: class_noise(*DATA, kind="normal"), r"^kind is 'normal'; known: uniform, sign$"),
        (lambda: class_noise(*DATA, fraction=0.0), r"^fraction is 0\.0; it must be above 0 and at most 1$"),
        (lambda: linear_noise(*DATA, epsilon=0.0), r"^epsilon is 0\.0; the bound of the L2 norm must be"),
        (lambda: linear_noise(*DATA, patch=7, epsilon=1e-4), r"^epsilon is 0\.0001; this L2 norm is too small"),
        (lambda: linear_noise(*DATA, patch=17), r"^patch is 17; on 16x16 images it must be 1 … 16$"),
        (
            lambda: linear_noise(IMAGES[..., :1], LABELS, KEY, patch=16),
            r"^patch is 16; 1x1 cells cannot tell 4 classes",
        ),
        (lambda: class_noise(IMAGES, LABELS[:5], KEY), r"^labels are int64 \(5,\); one integer for each of 60 images$"),
        (lambda: class_noise(IMAGES, LABELS - 1, KEY), r"^labels must hold at least one example, and none below 0$"),
        (
            lambda: named_attack("badnet"),
            r"^attack is 'badnet'; known: badnets, blended, sig, wanet",
        ),
    ],
)
def test_bad_input_is_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_catalogue_says_what_poisons_say():
    for name, attack in ATTACKS.items():
        assert attack.craft.__name__ == name and attack.summary
    assert [name for name, attack in ATTACKS.items() if not attack.needs_target] == ["class_noise", "linear_noise"]
