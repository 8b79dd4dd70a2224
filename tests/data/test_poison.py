"""Triggers, the poison record, the one place that writes poisons, and the poison file."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.data import (
    AdditiveTrigger,
    Dataset,
    PatchTrigger,
    Poison,
    load_poison,
    load_source,
    poison_dataset,
    save_poison,
    to_float,
    triggered_test_set,
)

DELTA = np.full((8, 8, 1), 8 / 255, np.float32)
CORNER = np.zeros((8, 8, 1), np.float32)
CORNER[-2:, -2:] = 1


def make(**changes):
    fields = {
        "images": np.full((3, 8, 8, 1), 7, np.uint8),
        "labels": np.array([4, 4, 4]),
        "index": np.array([10, 2, 5]),
        "target": 4,
        "trigger": AdditiveTrigger(DELTA),
        "how": {"attack": "narcissus", "epsilon": 8 / 255, "steps": [1, 2]},
    }
    return Poison(**{**fields, **changes})


def test_triggers_on_known_pixels():
    images = jnp.full((2, 8, 8, 1), 0.5)
    np.testing.assert_allclose(AdditiveTrigger(DELTA)(images), 0.5 + 8 / 255, rtol=1e-6)
    np.testing.assert_allclose(AdditiveTrigger(DELTA).scaled(2.0)(images), 0.5 + 16 / 255, rtol=1e-6)
    np.testing.assert_array_equal(AdditiveTrigger(DELTA, scale=99.0)(images), 1.0)
    np.testing.assert_array_equal(AdditiveTrigger(DELTA, scale=-99.0)(images), 0.0)
    stamped = PatchTrigger(np.ones((8, 8, 1), np.float32), CORNER)(images)
    np.testing.assert_array_equal(stamped, np.broadcast_to(0.5 + 0.5 * CORNER, (2, 8, 8, 1)))
    blended = PatchTrigger(np.ones((8, 8, 1), np.float32), np.float32(0.2) * np.ones_like(CORNER))(images)
    np.testing.assert_allclose(blended, 0.6, rtol=1e-6)


def test_triggers_are_pytrees_of_their_arrays():
    images = jnp.full((2, 8, 8, 1), 0.5)
    apply = jax.jit(lambda trigger, images: trigger(images))
    for trigger in (AdditiveTrigger(DELTA), PatchTrigger(DELTA, CORNER)):
        np.testing.assert_allclose(apply(trigger, images), trigger(images), rtol=1e-6)
        gradient = jax.grad(lambda trigger: trigger(images).sum())(jax.tree.map(jnp.asarray, trigger))
        assert float(jax.tree.leaves(gradient)[0].sum()) > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((3, 8, 8, 1))}, "images are float64"),
        ({"images": np.zeros((3, 8, 8), np.uint8)}, r"shape \(3, 8, 8\)"),
        ({"labels": np.array([4, 4])}, "3 images need one row of 3 labels"),
        ({"labels": np.array([4, -4, 4])}, "labels span -4 … 4"),
        ({"index": np.array([1, 2])}, r"index of shape \(2,\)"),
        ({"index": np.array([1.0, 2.0, 3.0])}, "float64; 3 integers are needed"),
        ({"index": np.array([1, 2, 1])}, "index holds 1 more than once"),
        ({"index": np.array([1, -2, 3])}, "index holds -2"),
        ({"target": -1}, "target is -1"),
        ({"target": 1.5}, "target is 1.5"),
        ({"target": True}, "target is True"),
        ({"trigger": "patch"}, "trigger is 'patch'; it must be callable"),
        ({"how": {"epsilon": np.ones(2)}}, "plain JSON values"),
        ({"how": {"epsilon": np.float32("nan")}}, "plain JSON values"),
        ({"how": {"epsilon": float("nan")}}, "plain JSON values"),
    ],
)
def test_bad_poisons_are_named_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        make(**changes)
    assert "\n" not in str(caught.value)


def test_integers_get_the_types_of_the_record():
    poison = make(labels=np.array([1, 2, 3], np.uint8), index=np.array([3, 4, 0], np.uint16), target=np.int64(3))
    assert (poison.labels.dtype, poison.index.dtype, len(poison)) == (np.int32, np.int64, 3)
    assert type(poison.target) is int
    how = make(how={"steps": np.int64(3), "scale": np.float32(0.5), "adaptive": np.bool_(True)}).how
    assert how == {"steps": 3, "scale": 0.5, "adaptive": True}
    assert [type(value) for value in how.values()] == [int, float, bool]


def test_poisons_replace_their_positions_and_nothing_else():
    dataset, poison = load_source("digits[:20]"), make(labels=np.array([4, 5, 6]))
    before = dataset.images.copy()
    poisoned = poison_dataset(dataset, poison)
    np.testing.assert_array_equal(poisoned.images[poison.index], poison.images)
    np.testing.assert_array_equal(poisoned.labels[poison.index], [4, 5, 6])
    others = np.setdiff1d(np.arange(20), poison.index)
    np.testing.assert_array_equal(poisoned.images[others], dataset.images[others])
    np.testing.assert_array_equal(poisoned.labels[others], dataset.labels[others])
    np.testing.assert_array_equal(dataset.images, before)
    assert (poisoned.classes, poisoned.source) == (dataset.classes, dataset.source)
    none = make(images=np.zeros((0, 8, 8, 1), np.uint8), labels=np.array([]), index=np.array([]))
    np.testing.assert_array_equal(poison_dataset(dataset, none).images, before)


def test_poisons_that_do_not_fit():
    dataset = load_source("digits[:20]")
    with pytest.raises(ValueError, match="poison index 20 is out of range; positions are 0 … 19"):
        poison_dataset(dataset, make(index=np.array([1, 20, 3])))
    with pytest.raises(ValueError, match=r"shape \(4, 4, 1\) do not fit images of shape \(8, 8, 1\)"):
        poison_dataset(dataset, make(images=np.zeros((3, 4, 4, 1), np.uint8)))
    with pytest.raises(ValueError, match="label 11 at position 10 is out of range"):
        poison_dataset(dataset, make(labels=np.array([11, 0, 0])))


def test_the_triggered_test_set_leaves_the_target_class_out():
    test, poison = load_source("digits"), make()
    triggered = triggered_test_set(test, poison)
    kept = test.labels != 4
    np.testing.assert_array_equal(triggered.labels, test.labels[kept])
    expected = np.minimum(test.images[kept].astype(int) + 8, 255)
    np.testing.assert_array_equal(triggered.images, expected)
    doubled = triggered_test_set(test, poison, scale=2.0)
    np.testing.assert_array_equal(doubled.images, np.minimum(test.images[kept].astype(int) + 16, 255))
    everything = triggered_test_set(test, make(target=None, trigger=lambda images: 1.0 - images))
    np.testing.assert_array_equal(everything.images, 255 - test.images)


def test_triggered_test_sets_that_cannot_be_made():
    test = load_source("digits[:20]")
    fours = test.select(test.labels == 4)
    patch = PatchTrigger(DELTA, CORNER)
    for dataset, poison, scale, message in (
        (test, make(trigger=None), 1.0, "has no trigger"),
        (fours, make(), 1.0, "no test image has another label than the target 4"),
        (test, make(trigger=patch), 2.0, "a patch trigger cannot be scaled by 2.0"),
        (test, make(trigger=lambda images: images), 2.0, "function cannot be scaled by 2.0"),
        (test, make(trigger=AdditiveTrigger(DELTA[:4])), 1.0, r"trigger of shape \(4, 8, 1\) does not fit"),
    ):
        with pytest.raises(ValueError, match=message):
            triggered_test_set(dataset, poison, scale=scale)


@pytest.mark.parametrize("trigger", [None, AdditiveTrigger(DELTA, 1.5), PatchTrigger(1 - DELTA, CORNER)], ids=type)
@pytest.mark.parametrize("target", [None, 4])
def test_poison_files_round_trip(tmp_path, trigger, target):
    poison = make(trigger=trigger, target=target)
    save_poison(tmp_path / "poison.npz", poison)
    again = load_poison(tmp_path / "poison.npz")
    for name in ("images", "labels", "index"):
        np.testing.assert_array_equal(getattr(again, name), getattr(poison, name))
    assert (again.target, again.how) == (target, poison.how)
    assert type(again.trigger) is type(trigger)
    jax.tree.map(np.testing.assert_array_equal, again.trigger, trigger)
    with pytest.raises(ValueError, match="exists already"):
        save_poison(tmp_path / "poison.npz", poison)
    save_poison(tmp_path / "poison.npz", poison, force=True)


def test_a_trigger_without_a_file_form_is_refused(tmp_path):
    with pytest.raises(ValueError, match="trigger function cannot be saved; known triggers are AdditiveTrigger"):
        save_poison(tmp_path / "x.npz", make(trigger=lambda images: images))
    assert os.listdir(tmp_path) == []


def test_files_that_are_not_poisons(tmp_path):
    path = tmp_path / "x.npz"
    with pytest.raises(ValueError, match=r"x.npz is not a readable poison file .*No such file"):
        load_poison(path)
    np.savez(path, images=np.zeros((1, 2, 2, 3), np.uint8), labels=np.zeros(1, int))
    with pytest.raises(ValueError, match="is not a poison file: 'about' is missing"):
        load_poison(path)
    np.savez(path, images=np.array([{}]), about=np.array("{}"))
    with pytest.raises(ValueError, match="not a readable poison file"):
        load_poison(path)
    np.savez(path, about=np.array('{"target": 0, "how": {}, "trigger": "os.system"}'))
    with pytest.raises(ValueError, match=r"is not a poison file: 'os\.system' is missing or unknown"):
        load_poison(path)
    save_poison(path, make(), force=True)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="not a readable poison file"):
        load_poison(path)


def test_a_full_disk_leaves_no_poison_file(tmp_path, monkeypatch):
    def fill_disk(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", fill_disk)
    with pytest.raises(OSError, match="No space left"):
        save_poison(tmp_path / "new" / "x.npz", make())
    assert os.listdir(tmp_path) == []


def test_poisons_of_real_images(cifar10):
    train = load_source(f"{cifar10}/train[:200]")
    index = np.flatnonzero(train.labels == 3)[:5]
    trigger = AdditiveTrigger(np.full((32, 32, 3), 8 / 255, np.float32))
    poison = Poison(train.images[index], train.labels[index], index, 3, trigger, {})
    poisoned = poison_dataset(train, poison)
    np.testing.assert_array_equal(poisoned.images, train.images)
    triggered = triggered_test_set(train, poison)
    assert isinstance(triggered, Dataset) and 3 not in triggered.labels
    change = to_float(triggered.images) - to_float(train.images[train.labels != 3])
    assert change.max() <= 8 / 255 + 1e-6 and change.min() >= 0
