"""PureGen-Filt: who is ranked, how many are purified, and what the published code does instead."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.purify import TopEnergy, chain, compat_filt, dataset, purify, repeat, top_energy
from jaxpurify.purify.combine import Identity
from jaxpurify.purify.filter import check_filters, energies, highest
from jaxpurify.random import image_keys, uniform
from jaxpurify.sharding import data_mesh
from jaxpurify.struct import struct
from jaxpurify.types import Energies, Images, Keys

KEY = jax.random.key(3)
CALLS = []


@struct
class Brightness:
    """Bright images have a high energy."""

    scale: float = 1.0

    def __call__(self, images: Images) -> Energies:
        return self.scale * images.mean((1, 2, 3))


@struct
class Darken:
    """Takes at least 20 grey levels off, in a random amount for each image; remembers what it was given."""

    least: float = 20 / 255

    def __call__(self, keys: Keys, images: Images) -> Images:
        CALLS.append(len(images))
        return images - self.least * (1 + uniform(keys, (1, 1, 1)))


@pytest.fixture
def grey():
    """Images whose energy grows with a shuffled rank: level 100 + 3 · rank."""
    ranks = np.random.default_rng(0).permutation(30)
    return ranks, np.tile((100 + 3 * ranks).astype(np.uint8).reshape(-1, 1, 1, 1), (1, 4, 4, 1))


@pytest.mark.parametrize(("fraction", "count"), [(0.0, 0), (0.5, 15), (0.333, 9), (0.29, 8), (1.0, 30)])
def test_the_highest_int_k_n_are_purified_and_the_others_returned(grey, fraction, count):
    ranks, images = grey
    purified = purify(TopEnergy(Brightness(), Darken(), fraction), images, key=KEY, batch_size=8)
    chosen = ranks >= 30 - count
    np.testing.assert_array_equal((purified != images).any((1, 2, 3)), chosen)
    everything = purify(Darken(), images, key=KEY, batch_size=8)
    np.testing.assert_array_equal(purified[chosen], everything[chosen])  # the same keys as without a filter
    np.testing.assert_array_equal(purified[~chosen], images[~chosen])


def test_only_the_chosen_images_are_computed(grey):
    CALLS.clear()
    seen = []
    purify(TopEnergy(Brightness(), Darken(), 0.3), grey[1], key=KEY, batch_size=4, progress=lambda *n: seen.append(n))
    assert CALLS == [4, 4, 4] and seen == [(25, 30), (29, 30), (30, 30)]


def test_an_unpurified_poison_of_low_energy_stays_and_the_published_code_purifies_it(grey):
    ranks, images = grey
    poisons = np.flatnonzero((ranks == 2) | (ranks == 29))  # one of low and one of the highest energy
    purifier = TopEnergy(Brightness(), Darken(), 0.5)
    correct = (purify(purifier, images, key=KEY) != images).any((1, 2, 3))
    assert correct[ranks == 29].all() and not correct[ranks == 2].any() and correct.sum() == 15
    published = compat_filt(purifier, images, poisons, key=KEY)
    changed = (published != images).any((1, 2, 3))
    assert changed[ranks == 2].all() and changed[ranks == 29].all()
    # Purified, rank 29 (level 187) falls to at most 167 and is ranked as that: its neighbours below move up.
    level = int(published[ranks == 29].max())
    order = sorted([(100 + 3 * rank, rank) for rank in range(30) if rank not in (2, 29)] + [(level, 29)])
    top = {rank for _, rank in order[-15:]} | {2, 29}
    assert set(ranks[changed].tolist()) == top and changed.sum() > 15
    np.testing.assert_array_equal(published[changed], purify(Darken(), images, key=KEY)[changed])


def test_a_filter_killed_while_it_ranks_starts_again(grey, tmp_path, monkeypatch):
    purifier, images = TopEnergy(Brightness(), Darken(), 0.5), grey[1]
    expected = purify(purifier, images, key=KEY)

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(dataset, "energies", killed)
        with pytest.raises(KeyboardInterrupt):
            purify(purifier, images, key=KEY, directory=tmp_path / "partial")
    np.testing.assert_array_equal(purify(purifier, images, key=KEY, directory=tmp_path / "partial"), expected)


def test_the_published_ranking_purifies_images_by_their_positions(grey):
    purifier, images, index = TopEnergy(Brightness(), Darken(), 0.5), grey[1], np.arange(50, 80)
    found = compat_filt(purifier, images, np.array([3, 4]), key=KEY, index=index)
    changed = (found != images).any((1, 2, 3))
    np.testing.assert_array_equal(found[changed], purify(Darken(), images, key=KEY, index=index)[changed])
    assert (found[changed] != purify(Darken(), images, key=KEY)[changed]).any()


def test_a_stopped_filter_continues_with_its_ranking(grey, tmp_path):
    purifier, images = TopEnergy(Brightness(), Darken(), 0.5), grey[1]
    expected = purify(purifier, images, key=KEY)

    def stop(finished, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        purify(purifier, images, key=KEY, batch_size=4, directory=tmp_path / "partial", progress=stop)
    assert np.load(tmp_path / "partial" / "finished.npy").sum() == 15 + 4
    with pytest.raises(ValueError, match="unfinished result of other images, key or purifier"):
        purify(TopEnergy(Brightness(), Darken(), 0.6), images, key=KEY, directory=tmp_path / "partial")
    CALLS.clear()
    np.testing.assert_array_equal(
        purify(purifier, images, key=KEY, batch_size=4, directory=tmp_path / "partial"), expected
    )
    assert sum(CALLS) == 12  # the eleven that were left


def test_the_published_code_continues_too(grey, tmp_path):
    purifier, images = TopEnergy(Brightness(), Darken(), 0.5), grey[1]
    poisons, seen = np.array([3, 4]), []
    expected = compat_filt(purifier, images, poisons, key=KEY, progress=lambda *n: seen.append(n))
    assert seen[0] == (2, 2) and seen[-1][0] == seen[-1][1]
    for _ in range(2):
        again = compat_filt(purifier, images, poisons, key=KEY, directory=tmp_path / "partial", batch_size=4)
        np.testing.assert_array_equal(again, expected)


def test_a_direct_call_takes_its_batch_for_the_data_set(grey):
    ranks, images = grey
    keys = image_keys(KEY, jnp.arange(30))
    called = top_energy(Brightness(), 0.5, Darken())(keys, jnp.asarray(images / np.float32(255)))
    changed = np.abs(np.asarray(called) - images / 255).max((1, 2, 3)) > 1e-3
    np.testing.assert_array_equal(changed, ranks >= 15)
    compiled = jax.jit(lambda purifier, *operands: purifier(*operands))(
        TopEnergy(Brightness(2.0), Darken(), 0.5), keys, jnp.asarray(images / np.float32(255))
    )
    np.testing.assert_allclose(compiled, called, atol=1e-6)


def test_equal_energies_are_ranked_by_position():
    assert highest(np.array([1.0, 2.0, 1.0, 1.0], np.float32), 0.5).tolist() == [0, 1]
    assert highest(np.zeros(0, np.float32), 0.5).tolist() == []
    with pytest.raises(ValueError, match="the energy of image 1 is NaN"):
        highest(np.array([1.0, np.nan], np.float32), 0.5)


@pytest.mark.parametrize("mesh", [None, data_mesh])
def test_energies_of_a_data_set(energies_of, mesh, stored):
    images = stored[:21]
    expected = np.asarray(energies_of(jnp.asarray(images / np.float32(255))))
    found = energies(energies_of, images, batch_size=6, mesh=mesh and mesh())
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert energies(energies_of, images[:0]).shape == (0,)


@pytest.fixture
def energies_of(request):
    return request.getfixturevalue("energies")[0]


def test_refusals(grey):
    images = grey[1]
    inside = "must be the outermost purifier"
    filtering = TopEnergy(Brightness(), Identity())
    for nested in (chain(filtering), repeat(filtering, 2), TopEnergy(Brightness(), filtering)):
        with pytest.raises(ValueError, match=inside):
            purify(nested, images, key=KEY)
        with pytest.raises(ValueError, match=inside):
            check_filters(nested)
    check_filters(TopEnergy(Brightness(), chain(Identity(), Darken())))
    with pytest.raises(ValueError, match="use compat_filt"):
        purify(TopEnergy(Brightness(), Identity(), compat=True), images, key=KEY)
    with pytest.raises(ValueError, match="positions are 0 … 29"):
        compat_filt(filtering, images, np.array([30]), key=KEY)
    with pytest.raises(ValueError, match="more than once"):
        compat_filt(filtering, images, np.array([3, 3]), key=KEY)
    for fraction in (-0.1, 1.1, True, "half"):
        with pytest.raises(Exception, match=r"it must be in \[0, 1\]|fraction"):
            TopEnergy(Brightness(), Identity(), fraction)
    with pytest.raises(Exception, match=r"^compat='no'; it must be True or False$|compat"):
        TopEnergy(Brightness(), Identity(), compat="no")
