"""What every purifier promises, one table: all purifiers × all contracts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.data.image import to_uint8
from jaxpurify.purify.combine import Average, Identity, chain, repeat
from jaxpurify.purify.diffusion import Diffusion
from jaxpurify.purify.jpeg import Jpeg
from jaxpurify.purify.langevin import Langevin
from jaxpurify.random import image_keys
from jaxpurify.struct import static, struct
from jaxpurify.types import Purifier

TRACES = []


@struct
class Traced:
    """A model that remembers how often Python ran it, that is, how often it was traced."""

    model: object
    used_by: str = static()

    def __call__(self, *arguments):
        TRACES.append(self.used_by)
        return self.model(*arguments)


def langevin(energy, noise, **options):
    return Langevin(energy, **{"step_size": 0.02, "temperature": 1e-3, "steps": 3, **options})


# Each takes an energy, a noise predictor and options of its Langevin part.
PURIFIERS = {
    "identity": lambda energy, noise, **options: Identity(),
    "jpeg": lambda energy, noise, **options: Jpeg(50),
    "langevin": langevin,
    "ancestral": lambda energy, noise, **options: Diffusion(noise, timestep=4),
    "ddim": lambda energy, noise, **options: Diffusion(noise, timestep=20, steps=3, sampler="ddim"),
    "strided": lambda energy, noise, **options: Diffusion(noise, timestep=20, steps=4),
    "compat": lambda energy, noise, **options: Diffusion(noise, timestep=3, compat=True),
    "chain": lambda energy, noise, **options: chain(
        langevin(energy, noise, **options), Diffusion(noise, timestep=2), Jpeg(75)
    ),
    "repeat": lambda energy, noise, **options: repeat(langevin(energy, noise, **options), 2),
    "mean": lambda energy, noise, **options: Average(langevin(energy, noise, **options), 3),
    "median": lambda energy, noise, **options: Average(Diffusion(noise, timestep=2), 3, "median"),
}
DETERMINISTIC = ("identity", "jpeg")
LOOPS = ("langevin", "ancestral", "ddim", "strided", "compat", "repeat")
TEMPERED = ("langevin", "chain", "repeat", "mean")
KEY = jax.random.key(5)


def keys(count=4, key=KEY):
    return image_keys(key, jnp.arange(count))


def levels(images):
    return np.asarray(to_uint8(images)).astype(int)


@pytest.fixture(scope="module")
def outputs(energies, noises, images):
    """The result of every purifier on four images, computed once."""
    return {name: make(energies[0], noises[0])(keys(), images) for name, make in PURIFIERS.items()}


@pytest.mark.parametrize("name", PURIFIERS)
def test_shape_type_and_protocol(name, outputs, energies, noises, images):
    output = outputs[name]
    assert isinstance(PURIFIERS[name](energies[0], noises[0]), Purifier)
    assert isinstance(output, jax.Array)
    assert output.shape == images.shape and output.dtype == jnp.float32
    assert np.isfinite(output).all()
    if name in ("ancestral", "ddim", "strided", "compat", "median", "jpeg"):
        assert output.min() >= 0 and output.max() <= 1


@pytest.mark.parametrize("name", PURIFIERS)
def test_the_same_key_gives_the_same_images(name, outputs, energies, noises, images):
    np.testing.assert_array_equal(PURIFIERS[name](energies[0], noises[0])(keys(), images), outputs[name])


@pytest.mark.parametrize("name", PURIFIERS)
def test_another_key_gives_other_images_unless_the_purifier_is_deterministic(name, outputs, energies, noises, images):
    other = PURIFIERS[name](energies[0], noises[0])(keys(key=jax.random.key(6)), images)
    difference = np.abs(np.asarray(other - outputs[name])).max((1, 2, 3))
    assert (difference == 0).all() if name in DETERMINISTIC else (difference > 1 / 255).all()


@pytest.mark.parametrize("name", PURIFIERS)
def test_purification_changes_pixels(name, outputs, images):
    changed = (levels(outputs[name]) != levels(images)).mean((1, 2, 3))
    assert (changed == 0).all() if name == "identity" else (changed > 0.3).all()


@pytest.mark.parametrize("name", PURIFIERS)
def test_an_image_does_not_see_its_batch(name, outputs, energies, noises, images):
    purifier = PURIFIERS[name](energies[0], noises[0])
    alone = purifier(keys()[2:3], images[2:3])
    backwards = purifier(keys()[::-1], images[::-1])[::-1]
    for result, expected in ((alone, outputs[name][2:3]), (backwards, outputs[name])):
        assert np.abs(levels(result) - levels(expected)).max() <= 1
        np.testing.assert_allclose(result, expected, atol=1e-5 if name != "chain" else 2 / 255)


@pytest.mark.parametrize("name", PURIFIERS)
def test_it_is_the_same_program_under_jit(name, outputs, energies, noises, images):
    compiled = jax.jit(lambda purifier, keys, images: purifier(keys, images))
    result = compiled(PURIFIERS[name](energies[0], noises[0]), keys(), images)
    if name in LOOPS:  # the compiled loop computes what the Python loop does
        np.testing.assert_array_equal(result, outputs[name])
    assert np.abs(levels(result) - levels(outputs[name])).max() <= 1


@pytest.mark.parametrize("name", PURIFIERS)
def test_new_weights_and_temperatures_do_not_retrace(name, outputs, energies, noises, images):
    TRACES.clear()
    make = PURIFIERS[name]
    first = make(Traced(energies[0], name), Traced(noises[0], name))(keys(), images)
    np.testing.assert_array_equal(first, outputs[name])
    traces = len(TRACES)
    assert (traces > 0) == (name not in DETERMINISTIC)
    again = make(Traced(energies[1], name), Traced(noises[1], name), temperature=0.5, step_size=0.03)(keys(), images)
    assert len(TRACES) == traces
    if name not in DETERMINISTIC:
        assert np.abs(np.asarray(again - first)).max() > 1e-3


def test_temperatures_are_swept_by_vmap(energies, images):
    sweep = jnp.array([1e-3, 2e-3])
    purifier = langevin(energies[0], None)
    swept = jax.vmap(lambda temperature: dataclasses.replace(purifier, temperature=temperature)(keys(), images))(sweep)
    for row, temperature in zip(swept, sweep, strict=True):
        expected = dataclasses.replace(purifier, temperature=temperature)(keys(), images)
        np.testing.assert_allclose(row, expected, atol=1e-5)


def test_purifiers_are_plain_to_read(noises):
    text = repr(Diffusion(noises[0], timestep=75, steps=5, sampler="ddim"))
    assert "timestep=75" in text and "steps=5" in text and "ddim" in text
