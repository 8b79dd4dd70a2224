"""Triggers: known pixels, gradients through them, strengths, and what fits which images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.data import (
    AdditiveTrigger,
    Dataset,
    PatchTrigger,
    Poison,
    ScatteredPatchTrigger,
    WarpTrigger,
    load_poison,
    save_poison,
    triggered_test_set,
    triggers,
)
from jaxpurify.data import poison as poisons

RAMP = jnp.broadcast_to(jnp.arange(8.0)[None, None, :, None] / 8, (2, 6, 8, 1))


def shift(rows, columns):
    return np.broadcast_to(np.array([rows, columns], np.float32), (6, 8, 2))


def test_warp_on_known_pixels():
    np.testing.assert_allclose(WarpTrigger(shift(0, 0))(RAMP), RAMP)
    moved = np.asarray(WarpTrigger(shift(0, 0.25))(RAMP)) * 8
    np.testing.assert_allclose(moved[0, 0, :, 0], [0.25, 1.25, 2.25, 3.25, 4.25, 5.25, 6.25, 7.0], atol=1e-6)
    np.testing.assert_allclose(WarpTrigger(shift(3.5, 0))(RAMP), RAMP, atol=1e-6)
    np.testing.assert_allclose(WarpTrigger(shift(0, -99.0))(RAMP), 0.0, atol=1e-6)
    tall = jnp.swapaxes(RAMP, 1, 2)
    flow = np.broadcast_to(np.array([1.0, 0.5], np.float32), (8, 6, 2))
    wanted = [1, 2, 3, 4, 5, 6, 7, 7]
    np.testing.assert_allclose(np.asarray(WarpTrigger(flow)(tall))[0, :, 2, 0] * 8, wanted, atol=1e-6)


def test_warp_of_one_row_stays_in_it():
    row = RAMP[:, :1]
    np.testing.assert_allclose(WarpTrigger(shift(5.0, 0)[:1])(row), row)


def test_warp_is_linear_and_its_gradient_sums_to_one():
    flow = np.random.default_rng(0).normal(size=(6, 8, 2)).astype(np.float32)
    warp = WarpTrigger(flow)
    np.testing.assert_allclose(warp(jnp.full((1, 6, 8, 3), 0.7)), 0.7, rtol=1e-6)
    gradient = jax.grad(lambda images: warp(images)[0, 2, 3, 0])(RAMP)
    assert float(gradient.sum()) == pytest.approx(1.0, abs=1e-6) and float(gradient.min()) >= 0


def test_scattered_patches_lie_anywhere_and_stay_in_any_batch():
    patch = np.linspace(0.1, 0.9, 9, dtype=np.float32).reshape(3, 3, 1)
    trigger = ScatteredPatchTrigger(patch, np.asarray(7))
    images = jax.random.randint(jax.random.key(0), (300, 8, 6, 1), 0, 256) / 255
    stamped = np.asarray(trigger(images))
    changed = (stamped != np.asarray(images)).any(-1)
    rows, columns = changed.any(2).argmax(1), changed.any(1).argmax(1)
    assert set(rows) == set(range(6)) and set(columns) == set(range(4))
    for image, row, column in zip(stamped, rows, columns, strict=True):
        np.testing.assert_array_equal(image[row : row + 3, column : column + 3], patch)
    np.testing.assert_array_equal(trigger(images[40:50][::-1]), stamped[40:50][::-1])
    # One grey level in one pixel is another place, and so is another seed.
    moved = np.asarray(trigger(images.at[:, 0, 5].add(jnp.where(images[:, 0, 5] > 0.5, -1, 1) / 255)))
    other = np.asarray(ScatteredPatchTrigger(patch, np.asarray(8))(images))
    for each in (moved, other):
        assert 0.8 < (np.abs(each - stamped) > 0.02).any((1, 2, 3)).mean() < 1.0


def test_strengths():
    with pytest.raises(ValueError, match=r"^a patch trigger cannot be scaled by 0\.5"):
        ScatteredPatchTrigger(np.ones((2, 2, 1), np.float32), np.asarray(0)).scaled(0.5)
    assert np.asarray(WarpTrigger(shift(1, 2)).scaled(0.5).flow)[0, 0].tolist() == [0.5, 1.0]
    stamp = PatchTrigger(np.ones((6, 8, 1), np.float32), np.ones((6, 8, 1), np.float32))
    assert stamp.scaled(1.0) is stamp
    with pytest.raises(ValueError, match=r"^a patch trigger cannot be scaled by 2\.0"):
        stamp.scaled(2.0)


def test_one_set_of_triggers_under_both_names():
    for name, kind in triggers.TRIGGERS.items():
        assert getattr(poisons, name) is kind
    assert poisons.TRIGGERS is triggers.TRIGGERS


@pytest.mark.parametrize(
    "trigger",
    [
        AdditiveTrigger(np.full((6, 8, 1), 0.1, np.float32), 2.0),
        PatchTrigger(np.ones((6, 8, 1), np.float32), np.full((6, 8, 1), 0.25, np.float32)),
        ScatteredPatchTrigger(np.ones((2, 2, 1), np.float32), np.asarray(3)),
        WarpTrigger(shift(0.5, -0.5)),
    ],
)
def test_every_trigger_survives_its_file(tmp_path, trigger):
    poison = Poison(np.zeros((1, 6, 8, 1), np.uint8), np.array([1]), np.array([4]), 1, trigger)
    save_poison(tmp_path / "poison.npz", poison)
    loaded = load_poison(tmp_path / "poison.npz").trigger
    assert type(loaded) is type(trigger)
    np.testing.assert_array_equal(loaded(RAMP), trigger(RAMP))


@pytest.mark.parametrize(
    ("trigger", "message"),
    [
        (WarpTrigger(shift(0, 0)), r"^trigger of shape \(6, 8, 2\) does not fit images of shape \(8, 8, 1\)$"),
        (AdditiveTrigger(np.zeros((6, 8, 1), np.float32)), r"^trigger of shape \(6, 8, 1\) does not fit"),
        (PatchTrigger(*2 * [np.zeros((8, 7, 1), np.float32)]), r"^trigger of shape \(8, 7, 1\) does not fit"),
        (ScatteredPatchTrigger(np.ones((2, 2, 3), np.float32), np.asarray(3)), r"^patch of shape \(2, 2, 3\) does not"),
    ],
)
def test_triggers_of_another_shape_are_refused(trigger, message):
    test = Dataset(np.zeros((2, 8, 8, 1), np.uint8), np.array([0, 1]), ("a", "b"))
    poison = Poison(np.zeros((1, 8, 8, 1), np.uint8), np.array([1]), np.array([4]), 1, trigger)
    with pytest.raises(ValueError, match=message):
        triggered_test_set(test, poison)
