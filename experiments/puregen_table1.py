"""PureGen's Table 1 (arXiv:2405.18627) at a size that two cores can compute: Narcissus from scratch, by defence.

    TFDS_DATA_DIR=../shared/tfds python -m experiments.puregen_table1 --protocol cpu
    TFDS_DATA_DIR=../shared/tfds python -m experiments.puregen_table1 --protocol cpu-small

Rows are appended to experiments/results/puregen_table1_PROTOCOL.jsonl; those present are skipped, so that a run can be
stopped and continued at any time. `--defences` and `--seeds` compute a part of the grid. The table of what is there:
`jaxpurify report experiments/results/puregen_table1_cpu.jsonl`.

The target class is the seed's last digit, so that seeds 0 to 9 are the ten classes. Budget, trigger strength, count
and training length were chosen on seeds 100, 101 and 104, which are not reported (see `Config`). Diffusion is strided:
the published noise with 5 network calls for 75.

Receipt (22 November 2026): `--protocol cpu --defences none ddpm`, then `--defences none ebm`; 100 minutes of two cores
of a Xeon (Sapphire Rapids) that also did other work, so that `seconds` of rows are too long. Success above the clean
floor: undefended 38.3 ± 4.4, after diffusion -13.3 ± 5.6 (natural accuracy 75.7 to 71.2 %). JPEG, Naive, Reps and Filt
under `cpu`, and all of `cpu-small`, were not run yet.
"""

import dataclasses
from typing import Literal

import tyro

from experiments.grid import run_grid
from jaxpurify.evaluate.protocol import protocol
from jaxpurify.evaluate.scenario import Scenario

ALL = {
    "none": "none",
    "jpeg-25": "jpeg(quality=25)",
    "jpeg-50": "jpeg(quality=50)",
    "jpeg-75": "jpeg(quality=75)",
    "jpeg-85": "jpeg(quality=85)",
    "ebm": "langevin(steps=150)",
    "ddpm": "diffusion(timestep=75, steps=5)",
    "naive": "langevin(steps=150)|diffusion(timestep=75, steps=5)",
    "reps": "repeat('langevin(steps=10)|diffusion(timestep=50, steps=2)', 5)",
    "filt": "filt('diffusion(timestep=125, steps=5)', fraction=0.5)",
}
COLUMNS = {"cpu": ("none", "jpeg-50", "ebm", "ddpm", "naive", "reps", "filt"), "cpu-small": ("none", "ebm", "ddpm")}
# Poisons, strength of the trigger at test, epochs of the victims. The sets of cpu and cpu-small are a fifth and a tenth
# of the published one: half of a class is poisoned, where it takes a tenth of one there.
CHOSEN = {"cpu": (500, 1.5, 10), "cpu-small": (250, 1.5, 15), "paper": (500, 3.0, 200)}


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
      epochs: of the victims. Where these three are None, what was chosen for the protocol holds.
      workers: processes, one a core.
      part: which of them this is; set by the first process.
    """

    protocol: Literal["cpu", "cpu-small", "paper"] = "cpu"
    defences: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    epsilon: int = 8
    count: int | None = None
    trigger_scale: float | None = None
    epochs: int | None = None
    workers: int = 2
    part: int | None = None

    def scenario(self, part: int, parts: int) -> Scenario:
        """A part of the grid."""
        usual_count, usual_scale, usual_epochs = CHOSEN[self.protocol]
        count = usual_count if self.count is None else self.count
        scale = usual_scale if self.trigger_scale is None else self.trigger_scale
        epochs = usual_epochs if self.epochs is None else self.epochs
        attack = (
            f"narcissus(epsilon={self.epsilon}/255, count={count}, steps=500, batch_size=128, "
            "learning_rate=0.01, choice='random')"
        )
        names = self.defences or COLUMNS.get(self.protocol, tuple(ALL))
        seeds = self.seeds or tuple(range(30 if self.protocol == "cpu-small" else 10))
        victims = protocol(self.protocol)
        victims = dataclasses.replace(victims, recipe=dataclasses.replace(victims.recipe, epochs=epochs))
        return Scenario(victims, (attack,), tuple(ALL[name] for name in names), seeds[part::parts], scale)


def main() -> None:
    """Runs the grid with one process a core, or one part of it in this process."""
    config = tyro.cli(Config)
    name = f"puregen_table1_{config.protocol.replace('-', '_')}"

    def scenarios(part: int, parts: int) -> list[Scenario]:
        return [config.scenario(part, parts)]

    run_grid("experiments.puregen_table1", scenarios, name, workers=config.workers, part=config.part)


if __name__ == "__main__":
    main()
