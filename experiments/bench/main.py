"""Our library beside plain PyTorch and diffusers on this machine's CPU.

    python -m experiments.bench.main [--rounds 5] [--rows NAME …] [--variants NAME …] [--quick]

Both libraries run in one process and take turns; each has all cores. Before a row is timed, its two sides must give the
same numbers from the same weights. Compiling is not timed. The PyTorch side comes in three variants: `idiomatic` (NCHW,
eager, as people write it), `tuned` (channels_last, frozen weights, fused optimizer, inference mode) and `compiled`
(`torch.compile` of the tuned one); in rows in bfloat16 its networks run under `torch.autocast`. Prints one table and,
for each missed row, what bounds it; appends a row for each work to runs/bench/results.jsonl.
"""

from collections.abc import Callable
import dataclasses
import functools
import importlib.metadata
import os
from pathlib import Path
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
import torch
import torch._inductor.config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
import tyro

from experiments.bench import classifier, diffusion, generative, langevin, matching
from experiments.bench.peers import VARIANTS
from experiments.bench.table import print_rows
from experiments.bench.timing import DifferentWork, Disturbance, Work, alternate, check_agreement, compare
from jaxpurify import records
from jaxpurify.cli.memory import keep_memory, restart_with_large_heaps

ROWS: dict[str, tuple[str, Callable[[bool], Work]]] = {
    "langevin-conv": ("Langevin, conv energy nf 32, batch 64", langevin.conv),
    "langevin-conv-bf16": ("Langevin, conv energy nf 32, batch 64, bf16", langevin.in_bfloat16(langevin.conv)),
    "langevin-sngan": ("Langevin, SNGAN energy nf 32, batch 64", langevin.residual),
    "langevin-sngan-bf16": ("Langevin, SNGAN energy nf 32, batch 64, bf16", langevin.in_bfloat16(langevin.residual)),
    "langevin-sngan-128": ("Langevin, SNGAN energy nf 128, batch 64", langevin.residual_wide),
    "langevin-sngan-128-bf16": (
        "Langevin, SNGAN energy nf 128, batch 64, bf16",
        langevin.in_bfloat16(langevin.residual_wide),
    ),
    "resnet9": ("train ResNet-9 width 16, batch 128", classifier.resnet9),
    "resnet18": ("train ResNet-18, batch 128", classifier.resnet18_cifar),
    "hlb": ("train HLB-S, batch 128", classifier.hlb),
    "gradient-matching": ("gradient-matching step, ResNet-9 width 16, 128 poisons", matching.step),
    "restarts": ("gradient matching, 8 restarts of 128 poisons", matching.restarts),
    "diffusion": ("diffusion calls, tiny UNet, batch 32", diffusion.tiny),
    "diffusion-s": ("diffusion calls, UNet S, batch 32", diffusion.size_s),
    "one-shot": ("one-shot denoising, 53 M UNet, batch 32", diffusion.one_shot),
    "energy-training": ("energy training step, conv nf 32, K 20, batch 64", generative.energy_training),
    "end-to-end": ("purify 1,000 CIFAR-10 images, 20 Langevin steps, file to file", generative.end_to_end),
}
MATMUL_SIZE = 2048


@dataclasses.dataclass(frozen=True)
class Config:
    """Times our library beside PyTorch.

    Attributes:
      rounds: how often each side of a row is timed.
      rows: which rows, by default all.
      variants: which PyTorch variants.
      quick: little work and short regions, to see that everything runs; the numbers mean nothing.
      out: file to which rows are appended.
    """

    rounds: int = 5
    rows: tuple[str, ...] = tuple(ROWS)
    variants: tuple[str, ...] = VARIANTS
    quick: bool = False
    out: Path = Path("runs/bench/results.jsonl")

    def __post_init__(self):
        if self.rounds < 1:
            raise ValueError(f"rounds={self.rounds}; at least 1 is needed")
        for name, given, known in (("rows", self.rows, ROWS), ("variants", self.variants, VARIANTS)):
            unknown = [entry for entry in given if entry not in known]
            if unknown or not given:
                raise ValueError(f"{name}: {', '.join(unknown) or 'nothing'} given; known are {', '.join(known)}")


def main() -> int:
    """Runs the benchmark; returns 1 if a row failed because its sides compute different numbers, else 0."""
    try:
        config = tyro.cli(Config)
    except ValueError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    threads = os.cpu_count() or 1
    keep_memory(threads)  # for both sides: they are one process
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", threads)
    torch.set_num_threads(threads)
    # Compiling in worker processes would fork a process in which JAX's threads run.
    torch._inductor.config.compile_threads = 1
    seconds = 0.05 if config.quick else 0.5
    console = Console() if sys.stdout.isatty() else Console(width=190)
    peak = functools.cache(lambda precision: _matmul(precision, config.rounds, seconds))
    shared = {
        "device": records.device(),
        "versions": records.versions() | {name: importlib.metadata.version(name) for name in ("torch", "diffusers")},
        "git": records.git(),
        "threads": {"jax": threads, "torch": torch.get_num_threads()},
        "rounds": config.rounds,
        "quick": config.quick,
    }
    rows = []
    for name in config.rows:
        title, build = ROWS[name]
        with console.status(title):
            row = {"work": title, "row": name} | _measure(build, config, seconds) | shared
        row["matmul_gflops"] = peak(str(row["precision"]))
        records.append_row(config.out, row)
        rows.append(row)
    print_rows(console, rows)
    return int(any("failed" in row for row in rows))


def _matmul(precision: str, rounds: int, seconds: float) -> dict[str, float]:
    """GFLOP/s of a matrix product in both libraries: what this machine can give."""
    numbers = np.random.default_rng(0).random((MATMUL_SIZE, MATMUL_SIZE), np.float32)
    ours, peer = jnp.asarray(numbers, precision), torch.from_numpy(numbers).to(getattr(torch, precision))
    # With float32 results, as the convolutions have it: XLA:CPU is slow where a result is bfloat16.
    product = jax.jit(functools.partial(jnp.matmul, preferred_element_type=jnp.float32))
    rates = alternate(
        {"jax": lambda: product(ours, ours), "torch": lambda: peer @ peer}, rounds=rounds, seconds=seconds
    )
    return {name: float(np.median(each)) * 2e-9 * MATMUL_SIZE**3 for name, each in rates.items()}


def _measure(build: Callable[[bool], Work], config: Config, seconds: float) -> dict[str, Any]:
    """The fields of one row that are its own; `skipped` or `failed` hold the reason where there are no numbers."""
    empty = dict.fromkeys(("ours", "peer", "unit", "ratio_median", "ratio_min", "ratio_max", "peer_variant"))
    try:
        work = build(config.quick)
    except ValueError as error:
        return empty | {"precision": "float32", "variants": {}, "skipped": str(error)}
    own = {"unit": work.unit, "precision": work.precision}
    expected = work.ours.sample()
    calls, notes, gflop = {"ours": work.ours.call}, {}, None
    for variant in config.variants:
        try:
            peer = work.peers[variant]()
            check_agreement(variant, expected, peer.sample(), work.tolerance)
            peer.call()
        except DifferentWork as error:
            return empty | own | {"variants": {}, "failed": str(error)}
        except Exception as error:  # torch.compile fails in many ways; what it says is part of the result
            if variant != "compiled":
                raise
            notes[variant] = f"{type(error).__name__}: {error}"
            continue
        calls[variant] = peer.call
        if variant != "compiled" and gflop is None:
            with _Operations() as counter:
                peer.call()
            gflop = counter.total * 1e-9 / work.items
    calls |= {_form(name): call for name, call in work.forms.items()}
    disturbance = Disturbance()
    rates = alternate(calls, rounds=config.rounds, seconds=seconds)
    others = disturbance.cores()
    rates = {name: [work.items * rate for rate in each] for name, each in rates.items()}
    forms = {name: rates.pop(_form(name)) for name in work.forms}
    ours = rates.pop("ours")
    row: dict[str, Any] = own | {"note": work.note, "cores_of_others": others} | compare(ours, rates)
    if forms:
        row["forms"] = compare(ours, forms)["variants"]
    for variant, note in notes.items():
        row["variants"][variant] = {"rate": None, "error": note}
    if gflop:
        row |= {"gflop_per_item": gflop, "achieved_gflops": {"ours": gflop * row["ours"], "peer": gflop * row["peer"]}}
    return row


def _form(name: str) -> str:
    return f"ours, {name}"


class _Operations(TorchDispatchMode):
    """Counts floating-point operations of convolutions, products and attention, gradients included.

    PyTorch's own FlopCounterMode also follows modules, with hooks that `autograd.grad` for a leaf does not allow.
    """

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.total += count(*args, **kwargs, out_val=result)
        return result


if __name__ == "__main__":
    restart_with_large_heaps()
    sys.exit(main())
