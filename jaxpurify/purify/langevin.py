"""Langevin dynamics on an energy (PureEBM, arXiv:2405.19376; PureGen, arXiv:2405.18627)."""

from collections.abc import Callable
import functools

import jax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, UInt32

from jaxpurify import loop
from jaxpurify.random import fold, normal
from jaxpurify.struct import is_count, make_operands, static, struct
from jaxpurify.types import Energy, Images, Keys


@struct
class Langevin:
    """Steps downhill on an energy with noise: x ← x − s²/(2T) ∇E(x) + s z, z ~ N(0, I).

    Nothing is clipped inside the chain. One key an image, consumed: fold_in(key, step) draws z.

    With `midpoint` the slope is taken where half of the step's noise has moved the image already,
    x ← x − s²/(2T) ∇E(x + s z/2) + s z: the integrator of Leimkuhler and Matthews (Applied Mathematics Research
    eXpress, 2013) in a form that remembers nothing of the step before. On a quadratic energy its images, with half a
    step's noise added, have variance T exactly for any stable step, where published steps leave more: with it fewer
    and longer steps are as good (`ebm-fast`, measured in `experiments/puregen_table1.py`).

    Attributes:
      energy: images [B, H, W, C] in [0, 1] to energies [B]; low means natural.
      step_size: s, in [0, 1] pixel units. The published ε = 0.0125 lives in [-1, 1] units and is 0.00625 here;
        with E composed with the same rescaling the two chains are equal.
      temperature: T > 0, divides the energy.
      steps: length of the chain, 0 or more; published 150 (training from scratch), 500 and 1000 (transfer).
      midpoint: slopes at half of the noise; published chains take them before it.

    Raises:
      ValueError: negative `steps`, `step_size` or `temperature` that is not positive, or `midpoint` that is not
        True or False.

    Warning:
      The paper prints the step as Δτ ∇G with noise √(2Δτ); with Δτ = s²/2 and G = E/T both are the same.
      For linear transfer (500 steps) a comment in the published configuration says T = 7.5e-5, paper and command line
      say 1e-4, which is the default here.
    """

    energy: Energy
    step_size: Float[ArrayLike, ""] = 0.00625
    temperature: Float[ArrayLike, ""] = 1e-4
    steps: int = static(default=150)
    midpoint: bool = static(default=False)

    def __post_init__(self):
        make_operands(self, "energy")
        if not is_count(self.steps, 0):
            raise ValueError(f"steps={self.steps!r}; a chain has a whole number of steps, 0 or more")
        for name in ("step_size", "temperature"):
            value = getattr(self, name)
            # Others are arrays, perhaps traced.
            plain = value is None or isinstance(value, str | bool | int | float | complex | list | tuple | dict)
            if plain and not (isinstance(value, int | float) and value > 0):
                raise ValueError(f"{name}={value!r}; it must be a number greater than 0")
        if not isinstance(self.midpoint, bool):
            raise ValueError(f"midpoint={self.midpoint!r}; it must be True or False")

    @property
    def step(self) -> Callable[..., Images]:
        """The step that the chain repeats: `langevin_step`, with slopes as `midpoint` says."""
        return midpoint_step if self.midpoint else langevin_step

    def __call__(self, keys: Keys, images: Images) -> Images:
        return loop.repeat(self.step, images, self.steps, self.energy, self.step_size, self.temperature, keys)


def langevin_update(
    energy: Energy,
    images: Images,
    noise: Images,
    step_size: Float[ArrayLike, ""],
    temperature: Float[ArrayLike, ""],
    midpoint: bool = False,
) -> Images:
    """One Langevin step with the given noise [B, H, W, C] ~ N(0, I)."""
    seen = images + step_size * noise / 2 if midpoint else images
    return images - (step_size**2 / (2 * temperature)) * slopes(energy, seen) + step_size * noise


def slopes(energy: Energy, images: Images) -> Images:
    """∇E of every image by itself, [B, H, W, C]; on CPU for as many at once as the energy says (`pixels_at_once`)."""

    def together(images):
        return jax.grad(lambda x: energy(x).sum())(images)

    pixels = getattr(energy, "pixels_at_once", None)
    if pixels is None:
        return together(images)
    return loop.in_pieces(together, images, max(1, pixels // (images.shape[1] * images.shape[2])))


def langevin_step(
    images: Images,
    index: UInt32[Array, ""],
    energy: Energy,
    step_size: Float[ArrayLike, ""],
    temperature: Float[ArrayLike, ""],
    keys: Keys,
    midpoint: bool = False,
) -> Images:
    """Step number `index` of a chain: `langevin_update` with the noise that the images' keys draw for it."""
    noise = normal(fold(keys, index), images.shape[1:])
    return langevin_update(energy, images, noise, step_size, temperature, midpoint)


# One object, so that a loop over it compiles once.
midpoint_step = functools.partial(langevin_step, midpoint=True)
