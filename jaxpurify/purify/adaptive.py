"""Purifiers as attacks see them: the same images, with a gradient that is exact, truncated or straight-through.

A chain of hundreds of steps costs its attacker as many second derivatives and, stored, as many activations. The three
modes are the choices that an adaptive attack has (BPDA, arXiv:1802.00420, is the straight-through one).
"""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from jaxpurify import loop
from jaxpurify.purify.combine import Average, Chain, Identity, Repeat
from jaxpurify.purify.diffusion import Diffusion, add_noise, reverse_step, to_unit_range
from jaxpurify.purify.filter import TopEnergy
from jaxpurify.purify.jpeg import Jpeg
from jaxpurify.purify.langevin import Langevin, slopes
from jaxpurify.purify.truncate import Truncate
from jaxpurify.random import fold, normal
from jaxpurify.struct import make_operands, static, struct
from jaxpurify.types import Images, Keys, Purifier

MODES = ("exact", "truncated", "straight_through")

# Up to this many steps with a gradient are written out one after another on CPU, where a loop is slower.
UNROLLED = 8


@struct
class Adaptive:
    """`purifier` with the gradient that an adaptive attack follows; images and use of the keys are the purifier's.

    With P the purifier and P = L ∘ F, where L are its last `steps` steps and F all steps before:

    * `exact`: dP/dx, through every step.
    * `truncated`: L is differentiated at F(x), and the steps of F are taken for identities. With at least as many
      steps as there are it is the exact gradient.
    * `straight_through`: the identity, whatever the purifier does; works for any purifier.

    Steps are Langevin steps and network calls of a diffusion purifier, counted from the end over chains and
    repetitions; any other stage counts as one. A diffusion purifier's noising and change of scale are no steps: they
    are linear and always differentiated. `Jpeg` and `Truncate`, which have no gradient, are identities when truncated
    and have no exact mode. An `Average` counts as one step and truncates each of its runs, and a `TopEnergy` likewise.
    Backward, every step is computed a second time, so that memory grows by one image a step and not by the activations
    of one.

    Attributes:
      purifier: any purifier.
      mode: `exact`, `truncated` or `straight_through`.
      steps: how many of the last steps the truncated mode differentiates, 1 or more.
      difference: None: derivatives by the chain rule. A distance h > 0 (root mean square over an image, units of
        [0, 1]): in Langevin steps the product of the energy's second derivative with v is the central difference
        (∇E(x + h v̂) − ∇E(x − h v̂)) ‖v‖ / 2h along v̂ = v / ‖v‖; it costs about the same. 0.01 is near the noise of
        a published step; far smaller distances meet single kinks and explode.

    Raises:
      ValueError: an unknown mode, `steps` below 1, a `difference` that is not positive, or an exact gradient of a
        purifier with a stage that has none.

    Warning:
      Energies of networks with (leaky) ReLUs and no other nonlinearity, the published ones among them, are
      piecewise linear: almost everywhere their second derivative is 0, so that the exact gradient of a Langevin chain
      IS the identity, whatever the chain does to images a little further away. It is right and says nothing: such an
      attack is no more adaptive than a straight-through one. `difference` sees across the kinks.

      On CPU inside a compiled step more than 8 steps run as a loop, in which XLA computes the gradients of
      convolutions several times slower than outside of it. Narcissus and the label-consistent backdoor therefore leave
      their steps uncompiled around steps without a gradient (`has_loops`).
    """

    purifier: Purifier
    mode: str = static(default="exact")
    steps: int = static(default=1)
    difference: float | None = static(default=None)

    def __post_init__(self):
        make_operands(self, "purifier")
        number = isinstance(self.difference, int | float) and not isinstance(self.difference, bool)
        if self.difference is not None and not (number and 0 < self.difference < math.inf):
            raise ValueError(f"difference={self.difference!r}; it must be above 0, in units of [0, 1], or None")
        if self.mode not in MODES:
            raise ValueError(f"mode={self.mode!r}; known: {', '.join(MODES)}")
        if not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps={self.steps!r}; at least 1 step must have a gradient")
        if self.mode == "exact" and _holds(self.purifier, Jpeg, Truncate):
            raise ValueError("mode='exact'; JPEG and truncation have no gradient: known: truncated, straight_through")

    @property
    def has_loops(self) -> bool:
        """True where steps have no gradient: outside of a trace on CPU they run as a Python loop (`loop.has_loops`)."""
        return self.mode != "exact"

    def __call__(self, keys: Keys, images: Images) -> Images:
        if self.mode == "straight_through":
            return _straight_through(self.purifier(keys, lax.stop_gradient(images)), images)
        pieces = _pieces(self, self.purifier, keys)
        left = sum(piece.steps for piece in pieces if piece.counts)
        for piece in pieces:
            # Steps of this piece that lie before the last `steps` of all.
            frozen = max(min(left - self.steps, piece.steps), 0) if self.mode == "truncated" and piece.counts else 0
            left -= piece.steps if piece.counts else 0
            if self.mode == "truncated" and isinstance(piece.operands[0], Jpeg | Truncate):
                frozen = piece.steps
            if frozen:
                images = _straight_through(_run(piece, lax.stop_gradient(images), 0, frozen), images)
            if frozen < piece.steps:
                images = _run(piece, images, frozen, piece.steps)
        return images


def _holds(purifier, *kinds):
    """Whether a stage of these kinds is somewhere in a purifier."""
    parts = jax.tree.leaves(purifier, is_leaf=lambda part: isinstance(part, kinds))
    return any(isinstance(part, kinds) for part in parts)


class _Piece(NamedTuple):
    """`images = step(images, index, first, *operands)`, `steps` times; those that do not count are linear."""

    step: Callable[..., Any]
    steps: int
    operands: tuple[Any, ...]
    counts: bool = True


def _pieces(adaptive, purifier, keys):
    """The steps of a purifier in their order, each with the keys that it would have had inside."""
    if isinstance(purifier, Identity):
        return []
    if isinstance(purifier, Chain):
        stages = enumerate(purifier.stages)
        return [piece for number, stage in stages for piece in _pieces(adaptive, stage, fold(keys, number))]
    if isinstance(purifier, Repeat):
        turns = range(purifier.count)
        return [piece for number in turns for piece in _pieces(adaptive, purifier.purifier, fold(keys, number))]
    if isinstance(purifier, Average | TopEnergy):  # one step, with steps of its own inside
        inside = dataclasses.replace(adaptive, purifier=purifier.purifier)
        return [_Piece(_whole, 1, (dataclasses.replace(purifier, purifier=inside), keys))]
    if isinstance(purifier, Langevin):
        if adaptive.difference is not None:
            return [_Piece(_smoothed_step, purifier.steps, (purifier, keys, np.float32(adaptive.difference)))]
        return [_Piece(_langevin_step, purifier.steps, (purifier, keys))]
    if isinstance(purifier, Diffusion):
        calls = len(purifier.levels())
        operands = (purifier, keys)
        ends = [_Piece(step, 1, operands, counts=False) for step in (_add_noise, _to_unit_range)]
        return [ends[0], _Piece(_reverse_step, calls, operands), ends[1]]
    return [_Piece(_whole, 1, (purifier, keys))]


def _run(piece, images, first, last):
    """Steps `first` … `last` - 1 of a piece."""
    if piece.step is _whole:
        return _whole(images, 0, 0, *piece.operands)
    few = last - first <= UNROLLED and jax.default_backend() == "cpu"
    if few and not loop.runs_in_python(images, piece.operands):
        for number in range(first, last):
            images = _compiled_step(_Recomputed(piece.step), images, np.uint32(number), np.uint32(0), piece.operands)
        return images
    return loop.repeat(_Recomputed(piece.step), images, last - first, np.uint32(first), *piece.operands)


class _Recomputed:
    """A step whose inner values are computed again for its gradient; equal for equal steps, so that `jit` finds it."""

    def __init__(self, step):
        self.step = step

    def __call__(self, images, index, first, *operands):
        return jax.checkpoint(self.step)(images, index, first, *operands)

    def __eq__(self, other):
        return isinstance(other, _Recomputed) and self.step == other.step

    def __hash__(self):
        return hash((_Recomputed, self.step))


@functools.partial(jax.jit, static_argnums=0)
def _compiled_step(step, images, index, first, operands):
    return step(images, index, first, *operands)


def _straight_through(purified, images):
    """The value of `purified` and the gradient of `images`; what is added is exactly 0."""
    return purified + (images - lax.stop_gradient(images))


def _langevin_step(images, index, first, purifier, keys):
    return purifier.step(images, first + index, purifier.energy, purifier.step_size, purifier.temperature, keys)


def _smoothed_step(images, index, first, purifier, keys, difference):
    noise = normal(fold(keys, first + index), images.shape[1:])
    rate = purifier.step_size**2 / (2 * purifier.temperature)
    seen = images + purifier.step_size * noise / 2 if purifier.midpoint else images
    return images - rate * _slope(purifier.energy, seen, difference) + purifier.step_size * noise


@jax.custom_vjp
def _slope(energy, images, difference):
    """The gradient of an energy; its own derivative is a central difference at the distance `difference`."""
    return slopes(energy, images)


def _slope_forward(energy, images, difference):
    return _slope(energy, images, difference), (energy, images, difference)


def _slope_backward(saved, cotangent):
    # The second derivative is symmetric, and that of one image does not depend on the others.
    energy, images, difference = saved
    length = jnp.sqrt(jnp.mean(cotangent**2, (1, 2, 3), keepdims=True))
    step = difference * cotangent / jnp.maximum(length, 1e-30)
    ahead, behind = (_slope(energy, images + sign * step, difference) for sign in (1, -1))
    return None, (ahead - behind) * length / (2 * difference), None


_slope.defvjp(_slope_forward, _slope_backward)


def _add_noise(images, index, first, purifier, keys):
    return add_noise(images, keys, *purifier.start())


def _reverse_step(images, index, first, purifier, keys):
    return reverse_step(images, first + index, purifier.noise, jnp.asarray(purifier.coefficients()), keys)


def _to_unit_range(images, index, first, purifier, keys):
    return to_unit_range(images)


def _whole(images, index, first, purifier, keys):
    return purifier(keys, images)
