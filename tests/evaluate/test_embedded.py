"""Features that rows of linear victims share: which images are embedded, and that no row changes by it."""

import numpy as np
import pytest

from jaxpurify.evaluate import embedded as module
from jaxpurify.evaluate.embedded import Embedded
from jaxpurify.evaluate.grid import run_scenario
from jaxpurify.evaluate.metrics import natural_accuracy
from jaxpurify.evaluate.models import Models
from jaxpurify.evaluate.scenario import Scenario
from jaxpurify.networks.catalogue import NETWORKS
from jaxpurify.records import read_rows
from jaxpurify.train.heads import embed
from tests.evaluate.flat import Flat, tiny_protocol

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 4, 4, 1)).astype(np.uint8)


def squares(images):
    flat = images.reshape(len(images), -1)
    return flat @ np.float32(1 + np.arange(48).reshape(16, 3)) + flat[:, :3] ** 2


@pytest.fixture
def counted(monkeypatch):
    """How many images each call embedded; ten at a time."""
    seen = []

    def counting(features, images, **options):
        seen.append(len(images))
        return embed(features, images, **options)

    monkeypatch.setattr(module, "embed", counting)
    monkeypatch.setattr(module, "BATCH", 10)
    return seen


def test_only_changed_images_are_embedded(counted):
    embedded = Embedded(squares)
    poisoned, other = IMAGES.copy(), IMAGES[::-1].copy()
    poisoned[[3, 17]] ^= 1
    more = poisoned.copy()
    more[4:15] ^= 3
    for images, count in ((IMAGES, 30), (IMAGES, None), (poisoned, 10), (more, 20), (other, 30), (IMAGES[:20], 20)):
        before = len(counted)
        np.testing.assert_array_equal(embedded(images), embed(squares, images, batch_size=10))
        assert counted[before:] == ([] if count is None else [count])


def test_what_a_caller_does_with_its_features_is_its_own():
    embedded = Embedded(squares)
    for _ in range(2):
        features = embedded(IMAGES)
        np.testing.assert_array_equal(features, embed(squares, IMAGES))
        features[:] = 0
    np.testing.assert_array_equal(embedded(IMAGES), embed(squares, IMAGES))


def test_the_set_that_was_not_used_for_longest_is_dropped(counted, monkeypatch):
    monkeypatch.setattr(module, "KEPT", 2)
    embedded = Embedded(squares)
    sets = [np.roll(IMAGES, shift, 0) for shift in range(3)]
    for chosen in (0, 1, 0, 2, 0, 1):
        embedded(sets[chosen])
    assert counted == [30, 30, 30, 30]  # 0, 1, 2, and 1 again


ATTACKS = ("bullseye(count=5, epsilon=0.3, steps=3)", "pattern(count=8, epsilon=0.3)")


def test_rows_of_linear_victims_embed_each_image_once(counted, monkeypatch, tmp_path):
    monkeypatch.setitem(NETWORKS, "flat", Flat)
    scenario = Scenario(tiny_protocol(), ATTACKS, ("jpeg(quality=25)",), (0, 1), training="linear")
    written = read_rows(run_scenario(scenario, tmp_path / "shared"))
    # Training set, test set, the poisons of a row; behind JPEG first the whole set, later both rows' poisons.
    assert counted[:5] == [500, 300, 10, 500, 10] and counted.count(500) == 2 and counted.count(300) == 1
    assert max(counted[5:]) <= 20
    monkeypatch.setattr(Embedded, "__call__", lambda self, images: embed(self.features, images))
    monkeypatch.setattr(
        Models, "natural_accuracy", lambda self, victim, test: natural_accuracy(victim, test.images, test.labels)
    )
    alone = read_rows(run_scenario(scenario, tmp_path / "alone"))
    changing = ("seconds", "git")
    for row, expected in zip(written, alone, strict=True):
        assert {name: value for name, value in row.items() if name not in changing} == {
            name: value for name, value in expected.items() if name not in changing
        }
