"""PureGen's Table 1 (arXiv:2405.18627) at a size that two cores can compute: Narcissus from scratch, by defence.

    TFDS_DATA_DIR=../shared/tfds python -m experiments.puregen_table1 --protocol cpu
    TFDS_DATA_DIR=../shared/tfds python -m experiments.puregen_table1 --protocol cpu-small

Rows are appended to experiments/results/puregen_table1_PROTOCOL.jsonl; those present are skipped, so that a run can be
stopped and continued at any time. `--defences` and `--seeds` compute a part of the grid. The table of what is there:
`jaxpurify report experiments/results/puregen_table1_cpu.jsonl`.

The target class is the seed's last digit, so that seeds 0 to 9 are the ten classes. Budget, trigger strength, count
and training length were chosen on seed 100 (see `Config`). Purifiers of the first group of columns are the published ones with
fewer network calls (see experiments/equal_strength.py).
"""

import dataclasses
import os
from pathlib import Path
import sys

import tyro

from experiments.workers import run_workers
from jaxpurify.cli.memory import keep_memory
from jaxpurify.evaluate.protocol import protocol
from jaxpurify.evaluate.scenario import Scenario, run_scenario

RESULTS = Path(__file__).parent / "results"
ALL = {
    "none": "none",
    "jpeg-25": "jpeg(quality=25)",
    "jpeg-50": "jpeg(quality=50)",
    "jpeg-75": "jpeg(quality=75)",
    "jpeg-85": "jpeg(quality=85)",
    "ebm": "langevin(steps=150)",
    "ddpm": "diffusion(timestep=75, steps=15)",
    "naive": "langevin(steps=150)|diffusion(timestep=75, steps=15)",
    "reps": "repeat('langevin(steps=10)|diffusion(timestep=50, steps=10)', 5)",
    "filt": "filt('diffusion(timestep=125, steps=25)', fraction=0.5)",
}
COLUMNS = {"cpu": ("none", "jpeg-50", "ebm", "ddpm", "naive", "reps", "filt"), "cpu-small": ("none", "ebm", "ddpm")}


@dataclasses.dataclass(frozen=True)
class Config:
    """The grid.

    Attributes:
      protocol: cpu, cpu-small or paper.
      defences: short names, see `ALL`; default: those of the protocol's table.
      seeds: default: ten for cpu, one a class; thirty for cpu-small, three a class.
      epsilon: of the trigger in training, in 1/255.
      count: poisons, all of the target class.
      trigger_scale: strength of the trigger at test, times that in training.
      part, parts: which share of the seeds; set by the parent process.
      workers: processes, one a core.
    """

    protocol: str = "cpu"
    defences: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    epsilon: int = 8
    count: int = 100
    trigger_scale: float = 3.0
    part: int | None = None
    parts: int = 1
    workers: int = 2

    def scenario(self) -> Scenario:
        """This part of the grid."""
        attack = (
            f"narcissus(epsilon={self.epsilon}/255, count={self.count}, steps=500, batch_size=128, "
            "learning_rate=0.01, choice='random')"
        )
        names = self.defences or COLUMNS.get(self.protocol, tuple(ALL))
        seeds = self.seeds or tuple(range(30 if self.protocol == "cpu-small" else 10))
        return Scenario(
            protocol(self.protocol),
            (attack,),
            tuple(ALL[name] for name in names),
            seeds[self.part or 0 :: self.parts],
            self.trigger_scale,
        )


def main() -> None:
    """Runs the grid with one process a core, or one part of it in this process."""
    config = tyro.cli(Config)
    if config.part is None and config.workers > 1:
        run_workers("experiments.puregen_table1", sys.argv[1:], config.workers)
        return
    keep_memory()

    def progress(what: str, done: int, total: int) -> None:
        if done in (0, total):
            print(f"[{config.part}] {what} {done}/{total}", flush=True)

    directory = Path("runs") / f"puregen-table1-{config.protocol}"
    results = RESULTS / f"puregen_table1_{config.protocol.replace('-', '_')}.jsonl"
    run_scenario(config.scenario(), directory, results=results, progress=progress)


if __name__ == "__main__":
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path("runs/compiled").absolute()))
    main()
