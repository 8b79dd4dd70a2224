"""Noising and denoising by a diffusion model (PureGen, arXiv:2405.18627; DDPM, arXiv:2006.11239)."""

import itertools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, UInt32
import numpy as np

from jaxpurify import loop
from jaxpurify.purify.schedule import LINEAR, Schedule
from jaxpurify.random import fold, normal
from jaxpurify.struct import is_count, make_operands, static, struct
from jaxpurify.types import Images, Keys, Noise

SAMPLERS = ("ancestral", "ddim")


@struct
class Diffusion:
    """Adds `timestep` steps of noise and takes them away again with a noise predictor.

    x_t = √ᾱ_t x + √(1−ᾱ_t) z, then for each visited level t with next level t':
    x̂ = clip((x_t − √(1−ᾱ_t) ε(x_t, t)) / √ᾱ_t), and x_t' from the posterior given x̂ (`ancestral`) or from
    x̂ and the noise that it implies (`ddim`). The last level returns x̂ itself, so the result is in [0, 1].
    One key an image, consumed: fold_in(key, 0) draws z, fold_in(key, 1 + step) the noise of each step.

    Attributes:
      noise: predictor (noisy images in [-1, 1] units, timesteps [B]) → noise, trained at least for t < timestep.
      timestep: T ≥ 1: noise of T steps of the schedule is added (level index T − 1).
      steps: network calls, 1 … T, spread evenly over the levels; None makes T calls.
      sampler: `ancestral` (random) or `ddim` (no noise after the first).
      schedule: the schedule that `noise` was trained with.
      compat: the published code's off-by-one: noise is added at level index T, removed as if at T − 1.
      reverse_only: no noise is added first: images are denoised as if they were x_T (an option of the published code).
      trained: the highest `timestep` that `noise` was trained for; None: not known.

    Raises:
      ValueError: an attribute outside of what is accepted.
    """

    noise: Noise
    timestep: int = static(default=75)
    steps: int | None = static(default=None)
    sampler: str = static(default="ancestral")
    schedule: Schedule = static(default=LINEAR)
    compat: bool = static(default=False)
    reverse_only: bool = static(default=False)
    trained: int | None = static(default=None)

    def __post_init__(self):
        make_operands(self, "noise")
        for name in ("compat", "reverse_only"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r}; it must be True or False")
        most = self.schedule.length - self.compat
        if not is_count(self.timestep, 1, most):
            raise ValueError(f"timestep={self.timestep!r}; this schedule accepts whole numbers from 1 to {most}")
        if self.trained is not None and self.timestep > self.trained:
            raise ValueError(f"timestep={self.timestep}; these weights were trained up to timestep {self.trained}")
        if self.steps is not None and not is_count(self.steps, 1, self.timestep):
            known = f"timestep={self.timestep} accepts whole numbers from 1 to {self.timestep}"
            raise ValueError(f"steps={self.steps!r}; {known}")
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler={self.sampler!r}; known: {', '.join(SAMPLERS)}")

    def __call__(self, keys: Keys, images: Images) -> Images:
        table = self.coefficients()
        calls = len(table)
        # Where one step is compiled (CPU), schedules of other lengths find it again: 5 and 15 calls are one program.
        table = jnp.asarray(np.pad(table, ((0, -calls % 16), (0, 0))))
        noisy = add_noise(images, keys, *self.start())
        clean = loop.repeat(reverse_step, noisy, calls, self.noise, table, keys)
        return to_unit_range(clean)

    def start(self) -> tuple[np.float32, np.float32]:
        """√ᾱ_t and √(1−ᾱ_t) of the noise that is added first: 1 and 0 for `reverse_only`."""
        signal = 1.0 if self.reverse_only else self.schedule.signal_variance(self.timestep - (not self.compat))
        return np.float32(np.sqrt(signal)), np.float32(np.sqrt(1 - signal))

    def levels(self) -> np.ndarray:
        """The visited timesteps, from T − 1 down to 0, as many as there are network calls."""
        count = self.timestep if self.steps is None else self.steps
        return np.round(np.linspace(self.timestep - 1, 0, count)).astype(int)

    def coefficients(self) -> np.ndarray:
        """One row a network call [calls, 6], float32 from float64, used by `reverse_update`.

        Columns: timestep, √ᾱ_t, √(1−ᾱ_t), weight of x̂, weight of x_t, standard deviation of new noise.
        """
        levels = [*self.levels().tolist(), -1]
        rows = []
        for level, following in itertools.pairwise(levels):
            now, then = self.schedule.signal_variance(level), self.schedule.signal_variance(following)
            if self.sampler == "ancestral":
                beta = 1 - now / then
                clean_weight = np.sqrt(then) * beta / (1 - now)
                noisy_weight = np.sqrt(now / then) * (1 - then) / (1 - now)
                deviation = np.sqrt(beta * (1 - then) / (1 - now))
            else:
                noisy_weight = np.sqrt((1 - then) / (1 - now))
                clean_weight = np.sqrt(then) - noisy_weight * np.sqrt(now)
                deviation = 0.0
            rows.append((level, np.sqrt(now), np.sqrt(1 - now), clean_weight, noisy_weight, deviation))
        return np.array(rows, np.float32)


def reverse_update(noisy: Images, predicted: Images, fresh: Images, row: Float[Array, "6"]) -> Images:
    """One denoising step in [-1, 1] units from a row of `Diffusion.coefficients`, given its noise `fresh`."""
    _, signal, spread, clean_weight, noisy_weight, deviation = row
    clean = jnp.clip((noisy - spread * predicted) / signal, -1.0, 1.0)
    return clean_weight * clean + noisy_weight * noisy + deviation * fresh


def reverse_step(
    noisy: Images, index: UInt32[Array, ""], noise: Noise, table: Float[Array, "rows 6"], keys: Keys
) -> Images:
    """The network call number `index`, with the noise that the images' keys draw for it."""
    row = table[index]
    timesteps = jnp.full(len(noisy), row[0], jnp.int32)
    fresh = normal(fold(keys, index + 1), noisy.shape[1:])
    return reverse_update(noisy, noise(noisy, timesteps), fresh, row)


@jax.jit
def add_noise(images: Images, keys: Keys, signal: Float[ArrayLike, ""], spread: Float[ArrayLike, ""]) -> Images:
    """From [0, 1] to the scale [-1, 1], with the first noise: signal · (2x − 1) + spread · z."""
    return jnp.asarray(signal) * (2 * images - 1) + spread * normal(fold(keys, 0), images.shape[1:])


@jax.jit
def to_unit_range(images: Images) -> Images:
    """From [-1, 1] back to [0, 1], without clipping."""
    return (images + 1) / 2
