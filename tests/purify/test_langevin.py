"""Langevin dynamics: the published numbers, the exact law on a Gaussian, refusals."""

from flax import nnx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxpurify.networks import ConvEnergy, ResidualEnergy, freeze, from_torch
from jaxpurify.purify.langevin import Langevin, langevin_update, slopes
from jaxpurify.random import fold, image_keys, normal
from jaxpurify.struct import static, struct
from jaxpurify.types import Energies, Energy, Images
from tests.networks.golden import PARAMETERS, signed_images, summary, tensors

update = jax.jit(langevin_update)
evaluate = jax.jit(lambda energy, images: energy(images))
draw = jax.jit(normal, static_argnums=1)


@struct
class Gaussian:
    """E(x) = ½ Σ (x − mean)²."""

    mean: float

    def __call__(self, images: Images) -> Energies:
        return ((images - self.mean) ** 2).sum((1, 2, 3)) / 2


@pytest.mark.parametrize("name", ["conv_energy", "sngan_energy"])
def test_five_steps_with_the_recorded_noise(name):
    golden = PARAMETERS[name]
    energy = freeze(from_torch(name, tensors(name)))
    noises = np.random.RandomState(11).standard_normal((5, 4, 3, 32, 32)).astype(np.float32).transpose(0, 1, 3, 4, 2)
    images = (signed_images() + 1) / 2
    for noise in noises:
        images = update(energy, images, jnp.asarray(noise), 0.0125 / 2, 1e-4)
    for statistic, value in summary(2 * images - 1).items():
        np.testing.assert_allclose(value, golden["langevin5_f64"][statistic], atol=1e-5, err_msg=statistic)
    before, after = (evaluate(energy, each) for each in ((signed_images() + 1) / 2, images))
    np.testing.assert_allclose(after, golden["langevin5_energy_f64"], atol=1e-5)
    # The training loss, (mean E(x) - mean E(chain)) / T: the division makes small errors large.
    np.testing.assert_allclose((before.mean() - after.mean()) / 1e-4, golden["loss_(x0,x5)_f64"], rtol=1e-4)


def test_a_chain_is_its_updates_with_one_key_an_image_and_step(energies, images):
    keys = image_keys(jax.random.key(3), jnp.arange(4))
    expected = images
    for step in range(3):
        noise = draw(fold(keys, step), images.shape[1:])
        expected = update(energies[0], expected, noise, 0.02, 1e-3)
    np.testing.assert_allclose(Langevin(energies[0], 0.02, 1e-3, 3)(keys, images), expected, atol=1e-6)


def test_midpoint_steps_take_the_slope_at_half_of_their_noise(energies, images):
    keys = image_keys(jax.random.key(3), jnp.arange(4))
    expected = images
    for step in range(3):
        half = 0.02 * draw(fold(keys, step), images.shape[1:]) / 2
        moved = update(energies[0], expected + half, jnp.zeros_like(images), 0.02, 1e-3)
        expected = moved + half
    ends = Langevin(energies[0], 0.02, 1e-3, 3, midpoint=True)(keys, images)
    np.testing.assert_allclose(ends, expected, atol=1e-6)
    assert np.abs(ends - Langevin(energies[0], 0.02, 1e-3, 3)(keys, images)).max() > 1e-3


def test_midpoint_chains_on_a_gaussian_have_the_exact_temperature():
    # Half a step's noise more makes the stationary variance T, where published steps of this length leave 4/3 T.
    step_size, temperature, mean = 0.1, 0.01, 0.5
    chains = jnp.full((64, 40, 40, 1), 2.0)
    keys = image_keys(jax.random.key(0), jnp.arange(64))
    ends = np.asarray(Langevin(Gaussian(mean), step_size, temperature, 60, midpoint=True)(keys, chains), np.float64)
    whole = ends.var() + step_size**2 / 4
    assert abs(whole / temperature - 1) < 4 * np.sqrt(2 / ends.size)
    assert abs(ends.mean() - mean) < 4 * np.sqrt(temperature / ends.size)
    published = np.asarray(Langevin(Gaussian(mean), step_size, temperature, 60)(keys, chains), np.float64)
    assert abs(published.var() / temperature - 4 / 3) < 0.02


@struct
class InPieces:
    energy: Energy
    pixels_at_once: int | None = static(default=None)

    def __call__(self, images: Images) -> Energies:
        return self.energy(images)


def test_pieces_change_nothing():
    energy = freeze(ResidualEnergy(4, channels=1, rngs=nnx.Rngs(0)))
    assert energy.pixels_at_once == 8 * 32**2
    assert freeze(ConvEnergy(4, size=8, rngs=nnx.Rngs(0))).pixels_at_once is None
    images = jax.random.uniform(jax.random.key(1), (16, 8, 8, 1))
    whole = slopes(InPieces(energy), images)
    assert np.abs(whole).max() > 1e-3
    for pixels in (1, 64, 200):  # one image a device, one, and two of four
        np.testing.assert_allclose(slopes(InPieces(energy, pixels), images), whole, rtol=1e-5, atol=1e-7)


def test_no_steps_change_nothing(energies, images):
    keys = image_keys(jax.random.key(3), jnp.arange(4))
    np.testing.assert_array_equal(Langevin(energies[0], steps=0)(keys, images), images)


def test_chains_on_a_gaussian_have_the_exact_mean_and_variance():
    # x ← (1 − a)(x − mean) + mean + s z: the discrete chain's own law, 11 % wider than the continuous one's.
    step_size, temperature, start, mean = 0.1, 0.025, 2.0, 0.5
    shrink = 1 - step_size**2 / (2 * temperature)
    chains = jnp.full((64, 40, 40, 1), start)
    keys = image_keys(jax.random.key(0), jnp.arange(64))
    for steps in (3, 40):
        ends = np.asarray(Langevin(Gaussian(mean), step_size, temperature, steps)(keys, chains), np.float64)
        variance = step_size**2 * (1 - shrink ** (2 * steps)) / (1 - shrink**2)
        assert abs(ends.var() / variance - 1) < 4 * np.sqrt(2 / ends.size)
        expected = mean + shrink**steps * (start - mean)
        assert abs(ends.mean() - expected) < 4 * np.sqrt(variance / ends.size)
    # Neighbouring pixels, and the same pixel of neighbouring chains, are independent.
    centred = (ends - expected) / np.sqrt(variance)
    for moved in (np.roll(centred, 1, 1), np.roll(centred, 1, 0)):
        assert abs((centred * moved).mean()) < 4 / np.sqrt(ends.size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "steps=-1; a chain has a whole number of steps, 0 or more"),
        ({"step_size": 0.0}, "step_size=0.0; it must be a number greater than 0"),
        ({"step_size": float("nan")}, "step_size=nan"),
        ({"temperature": -1e-4}, "temperature=-0.0001; it must be a number greater than 0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        Langevin(Gaussian(0.5), **options)


def test_midpoint_is_true_or_false(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # whose check comes first where tests run
    with pytest.raises(ValueError, match=r"^midpoint=1; it must be True or False$"):
        Langevin(Gaussian(0.5), midpoint=1)
