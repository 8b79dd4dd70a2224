"""Numbers with their uncertainty, and measures of what a purifier did to images."""

from collections.abc import Iterable
import math
from statistics import NormalDist
from typing import Any, NamedTuple

from jaxtyping import Float64
import numpy as np

from jaxpurify.records import Summary


def mean_and_error(values: Iterable[float]) -> Summary:
    """Mean, standard error s / √n with the sample deviation s (n - 1 in its denominator; None for n = 1), and n.

    Raises:
      ValueError: no value, or one that is not finite.
    """
    array = np.asarray(list(values), np.float64)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise ValueError(f"values are {array.tolist()}; at least one is needed, and all of them finite")
    error = float(array.std(ddof=1) / math.sqrt(array.size)) if array.size > 1 else None
    return Summary(float(array.mean()), error, array.size)


class Interval(NamedTuple):
    """A confidence interval of a rate."""

    low: float
    high: float


def wilson_interval(successes: float | int, trials: int, *, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a rate: (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n), two-sided.

    `successes` may be fractions, such as the shares of several victims that each of `trials` targets fooled.
    Unlike p ± z √(p(1-p)/n) it stays inside [0, 1] and has a width at 0 of n (Wilson 1927).

    Raises:
      ValueError: not 0 <= successes <= trials with at least one trial, or `confidence` outside (0, 1).
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"successes is {successes} of {trials} trials; it must be 0 … trials, with at least one trial")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must be between 0 and 1")
    square = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    rate = successes / trials
    centre = rate + square / (2 * trials)
    half = math.sqrt(square * (rate * (1 - rate) / trials + square / (4 * trials**2)))
    scale = 1 + square / trials
    # The bounds are exactly 0 at no success and 1 at nothing but successes; rounding must not lose that.
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == trials else (centre + half) / scale
    return Interval(low, high)


def auroc(negative_scores: Any, positive_scores: Any) -> float:
    """The probability that a positive has a higher score than a negative, ties counted half.

    The area under the ROC curve, 0.5 for scores that say nothing. For energies: negatives are clean images,
    positives poisoned ones.

    Raises:
      ValueError: one side is empty or holds NaN.
    """
    negative = np.sort(np.asarray(negative_scores, np.float64).ravel())
    positive = np.asarray(positive_scores, np.float64).ravel()
    for name, scores in (("negative", negative), ("positive", positive)):
        if not scores.size or np.isnan(scores).any():
            raise ValueError(
                f"{name}_scores holds {scores.size} numbers, {np.isnan(scores).sum()} of them NaN; give some"
            )
    below = np.searchsorted(negative, positive, side="left")
    not_above = np.searchsorted(negative, positive, side="right")
    return float((below + not_above).mean() / 2 / negative.size)


def psnr(first: Any, second: Any) -> Float64[np.ndarray, "batch"]:
    """Peak signal-to-noise ratio of each pair of images in decibel: -10 log₁₀ mean (a - b)²; ∞ for equal ones.

    Args:
      first, second: images [B, H, W, C], both uint8 or both floats in [0, 1].

    Raises:
      ValueError: shapes or types differ.
    """
    first, second = _units(first, "first"), _units(second, "second")
    if first.shape != second.shape:
        raise ValueError(f"images of shapes {first.shape} and {second.shape} cannot be compared")
    error = ((first - second) ** 2).mean((1, 2, 3))
    with np.errstate(divide="ignore"):
        return -10 * np.log10(error)


def perturbation_survival(purified_poisoned: Any, purified_clean: Any, delta: Any) -> Float64[np.ndarray, "batch"]:
    """How much of a perturbation outlives purification: ‖Ψ(x + delta) - Ψ(x)‖₂ / ‖delta‖₂ of each image.

    1 for a purifier that does nothing, 0 for one that removes delta entirely. Purify both with the same keys:
    with other noise the ratio measures the noise.

    Args:
      purified_poisoned: Ψ(x + delta) [B, H, W, C], uint8 or floats in [0, 1].
      purified_clean: Ψ(x), likewise.
      delta: the perturbations as they were added, floats in units of [0, 1], [B, H, W, C] or one [H, W, C].

    Raises:
      ValueError: shapes do not fit, or a delta is zero.
    """
    poisoned, clean = _units(purified_poisoned, "purified_poisoned"), _units(purified_clean, "purified_clean")
    delta = np.asarray(delta, np.float64)
    delta = delta[None] if delta.ndim == 3 else delta
    if poisoned.shape != clean.shape or delta.shape[1:] != clean.shape[1:] or len(delta) not in (1, len(clean)):
        raise ValueError(f"images {poisoned.shape} and {clean.shape} and delta {delta.shape} do not fit together")
    strength = np.sqrt((delta**2).sum((1, 2, 3)))
    if not strength.all():
        raise ValueError(f"delta of image {int(np.argmin(strength))} is zero; there is nothing that could survive")
    return np.sqrt(((poisoned - clean) ** 2).sum((1, 2, 3))) / strength


def _units(images: Any, name: str) -> np.ndarray:
    images = np.asarray(images)
    if images.ndim != 4:
        raise ValueError(f"{name} images have the shape {images.shape}; it must be [B, H, W, C]")
    return images.astype(np.float64) / (255 if images.dtype == np.uint8 else 1)
