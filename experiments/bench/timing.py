"""How two libraries are timed against each other: in one process, taking turns, with the same work."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
import os
from pathlib import Path
import statistics
import time
from typing import Any

import jax
import numpy as np


class DifferentWork(ValueError):
    """The two sides of a comparison compute different numbers."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """One side of a comparison.

    Attributes:
      call: does the work once and returns what has to be waited for.
      sample: numbers that every side must get right, compared once before anything is timed.
    """

    call: Callable[[], Any]
    sample: Callable[[], tuple[np.ndarray, ...]]


@dataclasses.dataclass(frozen=True)
class Work:
    """One row: the same work by our library and by variants of a peer.

    Attributes:
      items: how many of `unit` one call does.
      unit: what is counted, such as "images/s".
      ours: our side.
      peers: by variant, what builds that side; it may raise where a variant cannot be had on this machine.
      note: in what the sides differ, if they do.
      precision: the number type of products and convolutions, "float32" or "bfloat16".
      tolerance: how far the samples of two sides may lie apart, see `check_agreement`.
      forms: by name, other ways in which our library does the same work; timed beside `ours`, never the ratio's.
    """

    items: int
    unit: str
    ours: Contender
    peers: Mapping[str, Callable[[], Contender]]
    note: str = ""
    precision: str = "float32"
    tolerance: float = 1e-3
    forms: Mapping[str, Callable[[], Any]] = dataclasses.field(default_factory=dict)


def check_agreement(name: str, ours: Sequence[np.ndarray], peer: Sequence[np.ndarray], tolerance: float = 1e-3) -> None:
    """Raises `DifferentWork` unless ‖a − b‖ ≤ `tolerance` · ‖a‖ for each pair of arrays.

    Lengths and not single numbers, because rounding that moves one unit across the kink of a ReLU changes the
    gradient for a few pixels by percents.
    """
    for position, (one, other) in enumerate(zip(ours, peer, strict=True)):
        if one.shape != other.shape:
            raise DifferentWork(f"{name}: output {position} is {other.shape}, ours is {one.shape}")
        length = float(np.linalg.norm(one))
        difference = float(np.linalg.norm(one - other))
        if not difference <= tolerance * length:
            raise DifferentWork(f"{name}: output {position} differs by {difference:.3g} of {length:.3g}")


def timed(call: Callable[[], Any], repeats: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that `repeats` calls take, the last result waited for."""
    start = clock()
    result = None
    for _ in range(repeats):
        result = call()
    jax.block_until_ready(result)
    return clock() - start


def alternate(
    calls: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    seconds: float,
    pause: float = 0.05,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Calls a second of every contender in every round; each timed region lasts about `seconds` or longer.

    The first call of each warms it up (and compiles it), the second tells how often it must be repeated. Every
    round starts with another contender, so that none always runs after the same one.

    Args:
      calls: by name, what is timed.
      rounds: how often each is timed, at least 1.
      pause: seconds of rest before a region, in which the other library's threads stop spinning.
      clock: seconds that only grow.

    Raises:
      ValueError: `rounds` below 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds}; at least 1 is needed")
    repeats = {}
    for name, call in calls.items():
        timed(call, 1, clock)
        repeats[name] = max(1, math.ceil(seconds / max(timed(call, 1, clock), 1e-9)))
    rates: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(pause)
            rates[name].append(repeats[name] / timed(calls[name], repeats[name], clock))
    return rates


class Disturbance:
    """How many cores other processes keep busy, from /proc/stat; None where there is no such file.

    It matters which way it errs: two threads of OpenMP wait for each other by spinning, so that PyTorch loses more than
    its share to a competitor, four fifths of its speed on two cores with two busy processes beside it.
    """

    def __init__(self):
        self.start = self._read()

    def cores(self) -> float | None:
        """Cores in use by others on average since this was made."""
        end = self._read()
        if self.start is None or end is None:
            return None
        everyone, own, wall = (after - before for before, after in zip(self.start, end, strict=True))
        return max(0.0, (everyone - own) / wall)

    @staticmethod
    def _read() -> tuple[float, float, float] | None:
        try:
            user, nice, system, _, _, interrupts, soft, stolen = map(
                int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9]
            )
        except FileNotFoundError:
            return None
        used = (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")
        return used, time.process_time(), time.perf_counter()


def compare(ours: Sequence[float], peers: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """The measured fields of a row from rates [rounds], those of one position taken in the same round.

    `peer` is the variant with the highest median rate. A ratio is ours over a peer's in the same round, so that
    a disturbance of the whole machine cancels; median, smallest and largest are over rounds. `variants` has the
    same for every variant.

    Raises:
      ValueError: no peers, or a peer with another number of rounds.
    """
    if not peers:
        raise ValueError("peers is empty; a ratio needs at least one")
    variants = {}
    for name, rates in peers.items():
        ratios = [one / other for one, other in zip(ours, rates, strict=True)]
        variants[name] = {
            "rate": statistics.median(rates),
            "ratio_median": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
        }
    best = max(variants, key=lambda name: variants[name]["rate"])
    chosen = dict(variants[best])
    return {
        "ours": statistics.median(ours),
        "peer": chosen.pop("rate"),
        **chosen,
        "peer_variant": best,
        "variants": variants,
    }


def bound(row: Mapping[str, Any]) -> str:
    """What keeps a row behind its best peer, in a few words; "" where the row has no count of operations.

    Both sides are charged the operations of the peer, `gflop_per_item`, and set against the matrix product of their
    own library. Ours over the peer's rate is then the product of two factors: one matrix product over the other, and
    the share of its own that each side achieves. The smaller factor is what bounds the row.
    """
    if "achieved_gflops" not in row:
        return ""
    achieved, peak = row["achieved_gflops"], row["matmul_gflops"]
    shares = {"ours": achieved["ours"] / peak["jax"], "peer": achieved["peer"] / peak["torch"]}
    products, use = peak["jax"] / peak["torch"], shares["ours"] / shares["peer"]
    if products < use:
        cause = "bound by JAX's matrix product"
    else:
        cause = "bound by what is not a large matrix product: narrow convolutions, passes over memory, single threads"
    return (
        f"ours {achieved['ours']:.0f} of {peak['jax']:.0f} GFLOP/s ({shares['ours']:.0%} of JAX's {row['precision']} "
        f"matrix product), {row['peer_variant']} {achieved['peer']:.0f} of {peak['torch']:.0f} ({shares['peer']:.0%} "
        f"of PyTorch's); factors {products:.2f} of the products and {use:.2f} of their use: {cause}"
    )
