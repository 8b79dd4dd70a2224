"""Diffusion: recorded steps and a whole recorded run, exact laws, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpurify.networks import freeze, from_torch
from jaxpurify.purify.diffusion import Diffusion, reverse_update
from jaxpurify.purify.schedule import Schedule
from jaxpurify.random import fold, image_keys, normal
from jaxpurify.struct import static, struct
from tests.networks.golden import GOLDEN, signed_images, summary, tensors

update = jax.jit(reverse_update)
predict = jax.jit(lambda noise, images, timestep: noise(images, jnp.full(len(images), timestep)))
draw = jax.jit(normal, static_argnums=1)


def recorded(seed, shape):
    numbers = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
    return jnp.asarray(np.moveaxis(numbers, -3, -1))


@struct
class GaussianNoise:
    """The exact noise predictor for pixels N(0, deviation²) in [-1, 1] units."""

    deviation: float
    schedule: Schedule = static(default=Schedule())

    def __call__(self, images, timesteps):
        signal = jnp.asarray(self.schedule.alpha_bars(), jnp.float32)[timesteps].reshape(-1, 1, 1, 1)
        return jnp.sqrt(1 - signal) * images / (signal * self.deviation**2 + 1 - signal)


@pytest.mark.parametrize("timestep", [74, 1, 0])
def test_recorded_steps(timestep):
    row = Diffusion(GaussianNoise(1.0), timestep=75).coefficients()[74 - timestep]
    assert row[0] == timestep
    images, predicted, fresh = signed_images()[:2], recorded(23, (2, 3, 32, 32)), recorded(21, (2, 3, 32, 32))
    golden = GOLDEN["scheduler"][f"step_t{timestep}"]
    for statistic, value in summary(update(images, predicted, fresh, row)).items():
        np.testing.assert_allclose(value, golden["prev"][statistic], atol=2e-5, err_msg=statistic)
    denoised = np.clip((images - row[2] * predicted) / row[1], -1, 1)
    for statistic, value in summary(denoised).items():
        np.testing.assert_allclose(value, golden["x0"][statistic], atol=2e-5, err_msg=statistic)


def test_reverse_only_starts_from_the_images_themselves():
    keys, images = image_keys(jax.random.key(0), jnp.arange(3)), 0.5 + 0.1 * signed_images()[:3]
    found = Diffusion(GaussianNoise(0.3), timestep=20, steps=1, reverse_only=True)(keys, images)
    purifier = Diffusion(GaussianNoise(0.3), timestep=20, steps=1)
    row = purifier.coefficients()[0]
    noise = GaussianNoise(0.3)(2 * images - 1, jnp.full(3, 19))
    expected = (jnp.clip((2 * images - 1 - row[2] * noise) / row[1], -1, 1) + 1) / 2
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found - purifier(keys, images)).max() > 0.01


def test_the_last_step_returns_the_denoised_image_itself():
    images, predicted = signed_images()[:2], recorded(23, (2, 3, 32, 32))
    for options in ({}, {"sampler": "ddim"}, {"steps": 1}):
        purifier = Diffusion(GaussianNoise(1.0), timestep=75, **options)
        row = purifier.coefficients()[-1]
        assert row[3] == 1 and row[4] == 0 and row[5] == 0
        denoised = np.clip((images - row[2] * predicted) / row[1], -1, 1)
        result = update(images, predicted, jnp.full_like(images, 9.0), row)
        np.testing.assert_allclose(result, denoised, atol=1e-6)
        assert np.abs(result).max() <= 1


def test_a_whole_recorded_run():
    noise = freeze(from_torch("unet2d", tensors("unet2d")))
    purifier = Diffusion(noise, timestep=5, compat=True)
    signal = purifier.schedule.signal_variance(5)
    images = np.sqrt(signal) * signed_images()[:2] + np.sqrt(1 - signal) * recorded(21, (2, 3, 32, 32))
    images = images.astype(jnp.float32)
    golden = GOLDEN["UNet_S"]
    for statistic, value in summary(images).items():
        np.testing.assert_allclose(value, golden["ddpm5_noised_f64"][statistic], atol=1e-6, err_msg=statistic)
    for row, fresh in zip(purifier.coefficients(), recorded(22, (5, 2, 3, 32, 32)), strict=True):
        images = update(images, predict(noise, images, row[0].astype(int)), fresh, row)
    # The recorded run has coefficients in float32, which are off by up to 5e-4 at small timesteps.
    for statistic, value in summary(images).items():
        np.testing.assert_allclose(value, golden["ddpm5_final_f64"][statistic], atol=3e-4, err_msg=statistic)


@pytest.mark.parametrize("compat", [False, True])
def test_purification_is_these_steps_with_one_key_an_image_and_step(noises, images, compat):
    keys = image_keys(jax.random.key(3), jnp.arange(4))
    purifier = Diffusion(noises[0], timestep=4, steps=3, compat=compat)
    assert purifier.levels().tolist() == [3, 2, 0]
    signal = Schedule().alpha_bars()[4 if compat else 3]
    noise = draw(fold(keys, 0), images.shape[1:])
    noisy = np.float32(np.sqrt(signal)) * (2 * images - 1) + np.float32(np.sqrt(1 - signal)) * noise
    for step, row in enumerate(purifier.coefficients()):
        predicted = predict(noises[0], noisy, row[0].astype(int))
        noisy = update(noisy, predicted, draw(fold(keys, 1 + step), images.shape[1:]), row)
    np.testing.assert_allclose(purifier(keys, images), (noisy + 1) / 2, atol=1e-5)


def exact_variance(purifier, deviation):
    """Variance after each recursion x ← (weight of x̂ · x̂/x + weight of x) x + noise, where nothing is clipped."""
    start = purifier.timestep if purifier.compat else purifier.timestep - 1
    signal = purifier.schedule.signal_variance(start)
    variance = signal * deviation**2 + 1 - signal
    for level, _, _, clean_weight, noisy_weight, noise in purifier.coefficients().astype(float):
        signal = purifier.schedule.signal_variance(int(level))
        denoised = np.sqrt(signal) * deviation**2 / (signal * deviation**2 + 1 - signal)
        variance = (clean_weight * denoised + noisy_weight) ** 2 * variance + noise**2
    return variance


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"timestep": 40}, (0.93, 1.01)),
        ({"timestep": 200, "steps": 60}, (0.85, 1.01)),
        ({"timestep": 40, "sampler": "ddim"}, (0.97, 1.03)),
        ({"timestep": 200, "steps": 60, "sampler": "ddim"}, (0.93, 1.03)),
        ({"timestep": 40, "compat": True}, (0.93, 1.06)),
    ],
    ids=str,
)
def test_the_exact_predictor_keeps_a_gaussian(options, kept):
    # Pixels N(½, (deviation / 2)²): 5 standard deviations inside of [0, 1], so that clipping does not matter.
    deviation = 0.2
    purifier = Diffusion(GaussianNoise(deviation), **options)
    expected = exact_variance(purifier, deviation)
    assert kept[0] < expected / deviation**2 < kept[1]
    keys = image_keys(jax.random.key(1), jnp.arange(40))
    images = 0.5 + deviation / 2 * draw(fold(keys, 99), (40, 40, 1))
    result = np.asarray(2 * purifier(keys, images) - 1, np.float64)
    assert abs(result.var() / expected - 1) < 4 * np.sqrt(2 / result.size)
    assert abs(result.mean()) < 4 * np.sqrt(expected / result.size)


def test_fewer_steps_spread_evenly_without_repeating_a_level(noises):
    assert Diffusion(noises[0], timestep=75, steps=1).levels().tolist() == [74]
    assert Diffusion(noises[0], timestep=75, steps=3).levels().tolist() == [74, 37, 0]
    for timestep in (1, 2, 9, 64, 75):
        for steps in range(1, timestep + 1):
            levels = Diffusion(noises[0], timestep=timestep, steps=steps).levels()
            assert len(levels) == steps and levels[0] == timestep - 1
            assert (np.diff(levels) < 0).all()
            assert steps == 1 or levels[-1] == 0
    np.testing.assert_array_equal(
        Diffusion(noises[0], timestep=9, steps=9).coefficients(), Diffusion(noises[0], timestep=9).coefficients()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timestep": 0}, "timestep=0; this schedule accepts whole numbers from 1 to 1000"),
        ({"timestep": 80, "trained": 75}, "timestep=80; these weights were trained up to timestep 75"),
        ({"timestep": 50, "steps": True}, "steps=True; timestep=50 accepts whole numbers from 1 to 50"),
        ({"timestep": 1001}, "timestep=1001; this schedule accepts whole numbers from 1 to 1000"),
        ({"timestep": 1000, "compat": True}, "timestep=1000; this schedule accepts whole numbers from 1 to 999"),
        ({"timestep": 50, "steps": 51}, "steps=51; timestep=50 accepts whole numbers from 1 to 50"),
        ({"steps": 0}, "steps=0"),
        ({"steps": -1}, "steps=-1"),
        ({"sampler": "euler"}, "sampler='euler'; known: ancestral, ddim"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        Diffusion(GaussianNoise(1.0), **options)
