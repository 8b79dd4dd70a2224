"""Noise schedules of diffusion models, in float64 where small differences of large numbers matter."""

import dataclasses
import functools

import numpy as np


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How much signal is left after each noising step; static and hashable, so it never becomes a leaf.

    Index t = 0 … length-1 already has t+1 steps of noise: x_t = √ᾱ_t x + √(1−ᾱ_t) z.

    Attributes:
      kind: `linear` (β from `first` to `last`; DDPM, arXiv:2006.11239) or `cosine` (arXiv:2102.09672).
      length: number of timesteps of the whole schedule.
      first, last: first and last β of the linear kind.
    """

    kind: str = "linear"
    length: int = 1000
    first: float = 1e-4
    last: float = 0.02

    def __post_init__(self):
        if self.kind not in ("linear", "cosine"):
            raise ValueError(f"schedule kind {self.kind!r}; known: linear, cosine")
        if self.length < 1:
            raise ValueError(f"schedule length={self.length}; it must be at least 1")

    def alpha_bars(self) -> np.ndarray:
        """ᾱ [length] in float64: the share of signal variance left at each timestep."""
        return _alpha_bars(self)

    def signal_variance(self, timestep: int) -> float:
        """ᾱ of one timestep, where −1 stands for the clean image (ᾱ = 1)."""
        return 1.0 if timestep < 0 else float(self.alpha_bars()[timestep])


@functools.lru_cache
def _alpha_bars(schedule: Schedule) -> np.ndarray:
    if schedule.kind == "linear":
        betas = np.linspace(schedule.first, schedule.last, schedule.length, dtype=np.float64)
    else:
        position = np.arange(schedule.length + 1) / schedule.length
        signal = np.cos((position + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - signal[1:] / signal[:-1], 0.999)
    return np.cumprod(1 - betas)


LINEAR = Schedule()
