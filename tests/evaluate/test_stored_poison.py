"""Poisons from files in grids: other people's folders and our own, by content and not by name."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxpurify.attack import badnets
from jaxpurify.data import Dataset, Poison, Targets, save_poison
from jaxpurify.data.interchange import write_benchmark
from jaxpurify.data.poison_packages import write_bullseye, write_metapoison
from jaxpurify.evaluate.crafting import attack_of
from jaxpurify.evaluate.grid import run_scenario
from jaxpurify.evaluate.scenario import Scenario
from jaxpurify.evaluate.stored_poison import stored
from jaxpurify.networks.catalogue import NETWORKS
from jaxpurify.records import read_rows
from tests.evaluate.flat import Flat, tiny_protocol


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(NETWORKS, "flat", Flat)
    return tiny_protocol()


def patched(train, test, target=3):
    poison = badnets(train.images, train.labels, jax.random.key(0), target=target, count=60)
    at = np.flatnonzero(test.labels != target)[:2]
    return dataclasses.replace(poison, targets=Targets(test.images[at], test.labels[at], at))


def test_a_folder_of_the_benchmark_is_an_attack_of_a_grid(tiny, tmp_path):
    train, test = tiny.load()
    write_benchmark(tmp_path / "trial", patched(train, test))
    attack = f"stored(path='{tmp_path / 'trial'}', epsilon=1.0)"
    rows = read_rows(run_scenario(Scenario(tiny, (attack,), (), (0, 1)), tmp_path / "grid"))
    poisoned = [row for row in rows if row["attack"] != "none"]
    assert [(row["target"], row["poisons"], row["adaptive"]) for row in poisoned] == [(3, 60, False)] * 2
    assert all(row["poison_success"] > 0.5 > row["trigger_success_clean"] for row in poisoned)
    first, second = (row["crafted"] for row in poisoned)
    assert first == second and first["attack"] == "benchmark" and len(first["sha256"]) == 12
    assert first["target_index"] == [0, 1] and rows[0]["crafted"] is None
    hits = [row["triggered_target_hits"] for row in poisoned]
    assert all(len(each) == 2 for each in hits) and any(map(any, hits))
    assert all(row["target_hits"] is None for row in poisoned)  # they are not what success is counted on
    write_benchmark(tmp_path / "trial", patched(train, test, target=5), force=True)
    fresh = run_scenario(Scenario(tiny, (attack,), (), (0,)), tmp_path / "other")
    assert poisoned[0]["run_id"] not in {row["run_id"] for row in read_rows(fresh)}


def test_every_format_is_read(tmp_path):
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 200, (40, 12, 12, 3)).astype(np.uint8), np.arange(40, dtype=np.int32) % 4
    train, test = Dataset(images, labels, tuple("abcd")), Dataset(255 - images, labels, tuple("abcd"))
    index = np.array([5, 9])
    targets = Targets(test.images[:1], labels[:1], np.arange(1))
    poison = Poison(images[index] + np.uint8(8), labels[index], index, 1, None, {}, targets)
    save_poison(tmp_path / "poison.npz", poison)
    write_benchmark(tmp_path / "folder", poison)
    write_metapoison(tmp_path / "package", poison, train, test)
    write_bullseye(tmp_path / "file", poison)
    places = {"poison.npz": None, "folder": None, "package": "metapoison", "file": "bullseye"}
    for name, form in places.items():
        read = stored(images, labels, jax.random.key(0), path=str(tmp_path / name), format=form)
        assert sorted(read.index.tolist()) == [5, 9] and read.target == 1
        np.testing.assert_array_equal(read.images[np.argsort(read.index)], poison.images)
    with pytest.raises(ValueError, match=r"poison 0 differs by 8 levels from training image 5, 5 are allowed"):
        stored(images, labels, jax.random.key(0), path=str(tmp_path / "folder"), epsilon=4 / 255)


def test_our_own_files_must_fit_the_training_set(tmp_path):
    images, labels = np.zeros((6, 8, 8, 1), np.uint8), np.arange(6, dtype=np.int32) % 3
    how = {"norm": "linf", "epsilon": 4 / 255}
    for name, poison, message in (
        ("other", Poison(images[:1] + np.uint8(9), labels[:1], np.array([2]), 1, None, how), "differs by 9 levels"),
        ("beyond", Poison(images[:1], labels[:1], np.array([6]), 1, None, how), "base index 6 is out of range"),
        ("shape", Poison(np.zeros((1, 9, 9, 1), np.uint8), labels[:1], np.array([2]), 1, None, how), "do not match"),
    ):
        save_poison(tmp_path / f"{name}.npz", poison)
        with pytest.raises(ValueError, match=message):
            stored(images, labels, jax.random.key(0), path=str(tmp_path / f"{name}.npz"))


def test_damaged_files_are_one_clear_line(tmp_path):
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 200, (2, 8, 8, 1)).astype(np.uint8), np.zeros(2, np.int32)
    save_poison(tmp_path / "whole.npz", Poison(images, labels, np.arange(2), 1))
    whole = np.frombuffer((tmp_path / "whole.npz").read_bytes(), np.uint8)
    refused = 0
    for _ in range(200):
        damaged = whole.copy()
        damaged[random.integers(0, len(whole), 3)] = random.integers(0, 256, 3)
        (tmp_path / "damaged.npz").write_bytes(damaged.tobytes())
        try:
            stored(images, labels, jax.random.key(0), path=str(tmp_path / "damaged.npz"))
        except ValueError as error:
            refused += "\n" not in str(error)
    assert refused > 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "poison.bin"}, r"^format is None for poison\.bin; known: npz, benchmark, metapoison, bullseye$"),
        ({"path": "poison.npz", "format": "zip"}, r"^format is 'zip' for poison\.npz; known: npz, "),
        ({"path": "poison.npz", "search": True}, r"^search is True for poison\.npz; it is an option of format 'bench"),
        ({"path": "poison.npz", "epsilon": 0.1}, r"^epsilon is 0\.1; poisons in poison\.npz say theirs themselves$"),
        ({"path": "missing.npz"}, r"^missing\.npz is not a readable poison file "),
    ],
)
def test_bad_input_is_one_clear_line(options, message):
    train, _ = tiny_protocol().load()
    with pytest.raises(ValueError, match=message) as caught:
        stored(train.images, train.labels, jax.random.key(0), **options)
    assert "\n" not in str(caught.value)


def test_a_grid_needs_the_file_before_it_starts(tiny, tmp_path):
    train, _ = tiny.load()
    beyond = Poison(train.images[:1], train.labels[:1], np.array([len(train)]), 3)
    save_poison(tmp_path / "other.npz", beyond)
    with pytest.raises(ValueError, match=r"^path=None; stored\(path='…'\) names a file or folder$"):
        attack_of("stored()")
    for name, message in (
        ("missing", r"No such file or directory: .*missing\.npz'\)$"),
        ("other", r"is out of range; "),
    ):
        with pytest.raises(ValueError, match=message):
            run_scenario(Scenario(tiny, (f"stored(path='{tmp_path / name}.npz')",), (), (0,)), tmp_path / "grid")
    assert not (tmp_path / "grid").exists()
