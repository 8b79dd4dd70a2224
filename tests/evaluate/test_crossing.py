"""The crossing plot against a purifier whose distances are known, and which parts of a purifier can be varied."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.evaluate.crossing import Part, crossing, parts
from jaxpurify.purify.combine import Average, Identity, chain, repeat
from jaxpurify.purify.diffusion import Diffusion
from jaxpurify.purify.filter import TopEnergy
from jaxpurify.purify.jpeg import Jpeg
from jaxpurify.purify.langevin import Langevin
from jaxpurify.struct import static, struct
from jaxpurify.types import Energies, Images, Keys

KEY = jax.random.key(0)


@struct
class Darken:
    """One grey level a step."""

    steps: int = static(default=1)

    def __call__(self, keys: Keys, images: Images) -> Images:
        return images - self.steps / 255


@struct
class Flat:
    """No slope anywhere: chains are random walks."""

    level: float = 0.0

    def __call__(self, images: Images) -> Energies:
        return jnp.full(len(images), self.level)


@pytest.fixture
def pair():
    clean = np.full((5, 4, 4, 1), 100, np.uint8)
    return clean, clean + np.uint8(10)


def test_distances_and_the_crossing_point_of_a_known_purifier(pair):
    """A perturbation of 10 levels, taken off one a step: halfway it is as far from both."""
    seen = []
    found = crossing(Darken, *pair, [2, 8, 8, 10, 14], key=KEY, progress=lambda *each: seen.append(each))
    assert found.steps.tolist() == [0, 2, 8, 10, 14] and seen[0] == (1, 8) and seen[-1] == (8, 8)
    length = np.sqrt(16) / 255
    np.testing.assert_allclose(found.to_poisoned, length * np.tile([[0], [2], [8], [10], [14]], (1, 5)), atol=1e-12)
    np.testing.assert_allclose(found.to_clean, length * np.tile([[10], [8], [2], [0], [4]], (1, 5)), atol=1e-12)
    np.testing.assert_allclose(found.survival, 1)  # the same shift for both: nothing of the difference is removed
    assert found.point == pytest.approx(5)


def test_without_a_crossing_there_is_no_point(pair):
    assert crossing(Darken, *pair, [1, 4], key=KEY).point is None
    assert crossing(lambda steps: Identity(), *pair, [1, 4], key=KEY).point is None


def test_numbers_around_its_own():
    assert Part("steps", 150, Darken).grid() == [38, 75, 112, 150, 225]
    assert Part("steps", 1, Darken).grid() == [1, 2]
    assert Part("steps", 0, Darken).grid() == []


def energy(images):
    return images.sum((1, 2, 3))


def noise(images, timesteps):
    return images


def test_parts_of_a_purifier():
    langevin = Langevin(energy, 0.02, 1e-3, 40)
    diffusion = Diffusion(noise, timestep=20, steps=4)
    both = parts(chain(langevin, Jpeg(50), diffusion))
    assert [(part.name, part.own) for part in both] == [("Langevin steps", 40), ("diffusion timesteps", 20)]
    assert both[0].at(7).steps == 7 and both[0].at(7).temperature == 1e-3
    assert (both[1].at(10).timestep, both[1].at(10).steps) == (10, 2)
    assert (both[1].at(2).timestep, both[1].at(2).steps) == (2, 1)
    assert both[1].possible([30, 1000, 1001]) == [30, 1000] and both[0].possible([5000]) == [5000]
    assert parts(Diffusion(noise, timestep=900))[0].grid() == [225, 450, 675, 900]
    assert parts(Diffusion(noise, timestep=300, trained=300))[0].grid() == [75, 150, 225, 300]
    assert parts(Diffusion(noise, timestep=20))[0].at(30).steps is None
    (repeated,) = parts(repeat(chain(langevin, diffusion), 5))
    assert (repeated.name, repeated.own, repeated.at(2).count) == ("repetitions", 5, 2)
    assert parts(Average(langevin, 3))[0].own == parts(TopEnergy(energy, langevin))[0].own == 40
    averaged = parts(Average(langevin, 3))[0].at(9)
    assert isinstance(averaged, Average) and (averaged.count, averaged.purifier.steps) == (3, 9)
    assert parts(Jpeg(50)) == parts(Identity()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": []}, "at least one is needed"),
        ({"steps": [0, 3]}, "all of them at least 1"),
        ({"poisoned": np.full((5, 4, 5, 1), 110, np.uint8)}, "must have the same shape"),
        ({"poisoned": np.full((5, 4, 4, 1), 100, np.uint8)}, "image 0 has no perturbation"),
    ],
)
def test_refusals(pair, change, message):
    arguments = {"clean": pair[0], "poisoned": pair[1], "steps": [1], **change}
    with pytest.raises(ValueError, match=message):
        crossing(Darken, key=KEY, **arguments)


def test_keys_are_those_of_the_images(pair):
    langevin = Langevin(Flat(), 0.1, 1.0, 1)
    whole = crossing(parts(langevin)[0].at, *pair, [2], key=KEY)
    part = crossing(parts(langevin)[0].at, pair[0][2:], pair[1][2:], [2], key=KEY, index=np.arange(2, 5))
    np.testing.assert_array_equal(part.to_clean, whole.to_clean[:, 2:])
