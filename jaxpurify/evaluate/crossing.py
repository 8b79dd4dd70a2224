"""How far to purify: distances to the poisoned and the clean image over steps (PureGen, arXiv:2405.18627, Fig. 3)."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any, NamedTuple

from jaxtyping import Array, Float64, Int64, Integer, Key, UInt8
import numpy as np

from jaxpurify.evaluate.statistics import perturbation_survival
from jaxpurify.purify.combine import Average, Chain, Repeat
from jaxpurify.purify.dataset import purify
from jaxpurify.purify.diffusion import Diffusion
from jaxpurify.purify.filter import TopEnergy
from jaxpurify.purify.langevin import Langevin
from jaxpurify.types import Purifier, StoredImages

# Multiples of a purifier's own number of steps at which it is looked at.
MULTIPLES = (0.25, 0.5, 0.75, 1.0, 1.5)


class Crossing(NamedTuple):
    """Distances ‖·‖₂ of values in [0, 1], one row a number of steps, the first of them 0, and one column an image.

    Attributes:
      steps: numbers of steps [S], ascending.
      to_poisoned: ‖(x + δ) − Ψ(x + δ)‖ [S, N]: how far the purifier moved.
      to_clean: ‖x − Ψ(x + δ)‖ [S, N]: how far the result is from the image before it was poisoned.
      survival: ‖Ψ(x + δ) − Ψ(x)‖ / ‖δ‖ [S, N] under the same noise: how much of the perturbation is left.
    """

    steps: Int64[np.ndarray, "steps"]
    to_poisoned: Float64[np.ndarray, "steps images"]
    to_clean: Float64[np.ndarray, "steps images"]
    survival: Float64[np.ndarray, "steps images"]

    @property
    def point(self) -> float | None:
        """The number of steps at which the mean of `to_poisoned` overtakes that of `to_clean`; None if it never does.

        Between two measured numbers along a straight line. From there on the result is nearer to the clean image
        than to the poisoned one; the paper stops there: at about 150 Langevin steps and 75 diffusion timesteps for
        ε = 8/255.
        """
        gap = (self.to_poisoned - self.to_clean).mean(1)
        over = np.flatnonzero((gap[:-1] < 0) & (gap[1:] >= 0))
        if not over.size:
            return None
        before, first = gap[over[0]], self.steps[over[0]]
        return float(first + (self.steps[over[0] + 1] - first) * before / (before - gap[over[0] + 1]))


class Part(NamedTuple):
    """A part of a purifier whose number of steps can be varied.

    Attributes:
      name: what is counted.
      own: the number that the purifier has.
      at: a number of steps to the purifier with that many.
      most: the largest number that there is; None: any.
    """

    name: str
    own: int
    at: Callable[[int], Purifier]
    most: int | None = None

    def grid(self, multiples: Sequence[float] = MULTIPLES) -> list[int]:
        """Numbers of steps around its own."""
        return self.possible(sorted({max(1, round(multiple * self.own)) for multiple in multiples if self.own}))

    def possible(self, steps: Sequence[int]) -> list[int]:
        """Those of `steps` that there are."""
        return [number for number in steps if self.most is None or number <= self.most]


def crossing(
    part: Callable[[int], Purifier],
    clean: UInt8[np.ndarray, "_ _ _ _"],
    poisoned: UInt8[np.ndarray, "_ _ _ _"],
    steps: Sequence[int],
    *,
    key: Key[Array, ""],
    index: Integer[np.ndarray, "_"] | None = None,
    batch_size: int = 128,
    progress: Callable[[int, int], None] | None = None,
) -> Crossing:
    """Purifies the same images with every number of steps, poisoned and clean, all with the same noise.

    Distances are between images as they are stored, rounded to 8 bits.

    Args:
      part: a number of steps to the purifier, such as `Part.at`.
      clean: x, uint8 [N, H, W, C].
      poisoned: x + δ, uint8 [N, H, W, C], every image different from its clean one.
      steps: at least one number of steps, 1 or more; 0 is added.
      key: consumed, as in `purify`.
      index: position of each image in its source [N]; default 0 … N-1.
      batch_size: images in flight, at most N.
      progress: called with (finished purifications of the set, all of them).

    Raises:
      ValueError: shapes that differ, no step or one below 1, an image without a perturbation, or as in `purify`.
    """
    if clean.shape != poisoned.shape or not len(clean):
        raise ValueError(f"clean images {clean.shape} and poisoned ones {poisoned.shape} must have the same shape")
    grid = sorted(set(steps))
    if not grid or grid[0] < 1:
        raise ValueError(f"steps are {list(steps)}; at least one is needed, and all of them at least 1")
    delta = (poisoned.astype(np.float64) - clean) / 255
    still = np.flatnonzero(~delta.any((1, 2, 3)))
    if still.size:
        raise ValueError(f"image {still[0]} has no perturbation; leave such images out")
    to_poisoned, to_clean, survival = [np.zeros(len(clean))], [_distance(clean, poisoned)], [np.ones(len(clean))]
    batch_size = min(batch_size, len(clean))
    for number, count in enumerate(grid):
        results = []
        for turn, images in enumerate((poisoned, clean)):
            results.append(purify(part(count), images, key=key, index=index, batch_size=batch_size))
            if progress is not None:
                progress(2 * number + turn + 1, 2 * len(grid))
        to_poisoned.append(_distance(results[0], poisoned))
        to_clean.append(_distance(results[0], clean))
        survival.append(perturbation_survival(results[0], results[1], delta))
    return Crossing(np.array([0, *grid], np.int64), *(np.stack(rows) for rows in (to_poisoned, to_clean, survival)))


def parts(purifier: Any) -> list[Part]:
    """The parts of a purifier with a number of steps; those of a chain each on its own, none for JPEG and the like.

    A `Repeat` is one part, counted in repetitions.
    """
    if isinstance(purifier, Langevin):
        return [Part("Langevin steps", purifier.steps, lambda steps: dataclasses.replace(purifier, steps=steps))]
    if isinstance(purifier, Diffusion):
        most = purifier.trained or purifier.schedule.length - purifier.compat
        return [Part("diffusion timesteps", purifier.timestep, lambda steps: _diffusion(purifier, steps), most)]
    if isinstance(purifier, Repeat):
        return [Part("repetitions", purifier.count, lambda count: dataclasses.replace(purifier, count=count))]
    if isinstance(purifier, Chain):
        return [part for stage in purifier.stages for part in parts(stage)]
    if isinstance(purifier, Average):
        return [_within(purifier, part) for part in parts(purifier.purifier)]
    return parts(purifier.purifier) if isinstance(purifier, TopEnergy) else []


def _within(average: Average, part: Part) -> Part:
    return part._replace(at=lambda number: dataclasses.replace(average, purifier=part.at(number)))


def _diffusion(purifier: Diffusion, timestep: int) -> Diffusion:
    """Another timestep, with network calls in proportion where the purifier takes fewer than its timestep."""
    if purifier.steps is None:
        return dataclasses.replace(purifier, timestep=timestep)
    calls = max(1, round(purifier.steps * timestep / purifier.timestep))
    return dataclasses.replace(purifier, timestep=timestep, steps=min(calls, timestep))


def _distance(first: StoredImages, second: StoredImages) -> Float64[np.ndarray, "images"]:
    return np.sqrt(np.square(first.astype(np.float64) - second).sum((1, 2, 3))) / 255
