"""Purified images that rows share: equal to purifying each poisoned set by itself, and each clean image once."""

import jax
import numpy as np
import pytest

from jaxpurify.data.poison import Poison, poison_dataset
from jaxpurify.data.sources import load_source
from jaxpurify.evaluate import purified as module
from jaxpurify.evaluate.purified import purified_poisoned
from jaxpurify.evaluate.purifiers import make_purifier
from jaxpurify.purify.dataset import purify
from jaxpurify.random import named

KEY = named(jax.random.key(0), "purify")


@pytest.fixture
def clean():
    return load_source("digits[:60]")


def poison_at(index, level):
    images = np.full((len(index), 8, 8, 1), level, np.uint8)
    images[:, ::2] = 255 - level
    return Poison(images, np.full(len(index), 3), np.array(index), target=3)


@pytest.fixture
def counted(monkeypatch):
    """How many images each call of `purify` was given."""
    calls = []

    def count(purifier, images, **settings):
        calls.append(len(images))
        return purify(purifier, images, **settings)

    monkeypatch.setattr(module, "purify", count)
    return calls


@pytest.mark.parametrize("spec", ["langevin(steps=2)", "filt('langevin(steps=2)', fraction=0.4)"])
def test_equal_to_purifying_the_poisoned_set(clean, tmp_path, spec):
    purifier = make_purifier(spec, (8, 8, 1))
    for poison in (poison_at([5, 2, 40], 10), poison_at([5, 9], 200)):
        expected = purify(purifier, poison_dataset(clean, poison).images, key=KEY)
        np.testing.assert_array_equal(purified_poisoned(purifier, clean, poison, tmp_path), expected)
        assert (expected[poison.index] != poison.images).any()


def test_each_clean_image_is_purified_once(clean, tmp_path, counted):
    purifier = make_purifier("langevin(steps=1)", (8, 8, 1))
    purified_poisoned(purifier, clean, poison_at([5, 2, 40], 10), tmp_path)
    purified_poisoned(purifier, clean, poison_at([5, 9], 200), tmp_path)
    purified_poisoned(make_purifier("filt('langevin(steps=1)')", (8, 8, 1)), clean, poison_at([], 1), tmp_path)
    assert counted[:4] == [57, 3, 2, 2]  # of the second set only what was a poison in the first, and its poisons
    assert len(counted) == 4  # the filter's purifier is the same one: nothing is left to do


def test_other_weights_or_images_are_another_result(clean, tmp_path, counted):
    first, second = (make_purifier(spec, (8, 8, 1)) for spec in ("langevin(steps=1)", "langevin(steps=2)"))
    nothing = poison_at([], 1)
    purified_poisoned(first, clean, nothing, tmp_path)
    purified_poisoned(second, clean, nothing, tmp_path)
    purified_poisoned(first, clean.replace_images(255 - clean.images), nothing, tmp_path)
    assert counted == [60, 60, 60] and len(list(tmp_path.iterdir())) == 3


def test_an_interrupted_purification_goes_on(clean, tmp_path):
    purifier, nothing = make_purifier("jpeg(quality=20)", (8, 8, 1)), poison_at([], 1)

    class Stop(Exception):
        pass

    def stop(done, total):
        raise Stop

    with pytest.raises(Stop):
        purified_poisoned(purifier, clean, nothing, tmp_path, progress=stop)
    assert list(tmp_path.glob("*/unfinished/*/images.npy"))
    result = purified_poisoned(purifier, clean, nothing, tmp_path)
    np.testing.assert_array_equal(result, purify(purifier, clean.images, key=KEY))
    assert not list(tmp_path.glob("*/unfinished"))
