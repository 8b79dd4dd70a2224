"""PureGen's Table 1 (arXiv:2405.18627) at a size that two cores can compute: Narcissus from scratch, by defence.

    TFDS_DATA_DIR=../shared/tfds python -m experiments.puregen_table1 --protocol cpu
    TFDS_DATA_DIR=../shared/tfds python -m experiments.puregen_table1 --protocol cpu-small

Rows are appended to experiments/results/puregen_table1_PROTOCOL.jsonl; those present are skipped, so that a run can be
stopped and continued at any time. `--defences` and `--seeds` compute a part of the grid. The table of what is there:
`jaxpurify report experiments/results/puregen_table1_cpu.jsonl`.

The target class is the seed's last digit, so that seeds 0 to 9 are the ten classes. Budget, trigger strength, count
and training length were chosen on seeds 100, 101 and 104, which are not reported (see `CHOSEN`). Diffusion is strided:
the published noise with 5 network calls for 75 or 125 (Filt), and 2 for 50 in Reps, which blurs more than all 50 would:
its accuracy is lower for that.

Receipt (22 November 2026), `--protocol cpu`: 100 minutes for none, ebm and ddpm and 112 for the others, of two cores of
a Xeon (Sapphire Rapids) that also did other work, so that `seconds` of rows are too long. Success above the clean
floor, highest success of a target class, natural accuracy (percent): undefended 38.3, 90.7, 75.7; EBM 24.4, 92.8, 74.5;
DDPM -13.3, 55.5, 71.2; Naive -15.1, 43.9, 70.4; Reps -23.4, 22.1, 64.6; Filt -20.5, 24.6, 72.0; JPEG-50 10.3, 76.1,
72.6. Of these Filt, and Naive, meet all targets that were set: at most a quarter of the undefended excess, less than
half of the highest success, at most 6 points of accuracy. The floor is that of victims of clean images that were not
purified, though purified training alone may be less open to a trigger: the excess of purified rows is a lower bound,
until `--controls` has run.

Receipt (29 November 2026), `--protocol cpu-small --seeds 0 1 … 9`: 125 minutes of two cores of an EPYC (Zen 4), paused
in between and sharing them with other work, so that `seconds` of rows are too long. Columns as above: undefended 36.0,
91.4, 71.9; EBM 17.0, 85.0, 71.2; EBM in 50 steps 20.3, 87.9, 70.9; DDPM -14.2, 33.7, 68.0; JPEG-25 -8.9, 42.4, 70.5;
JPEG-75 36.0, 92.4, 72.0; JPEG-85 31.4, 88.4, 71.8. Second and third seeds (`--defences none ebm ddpm --seeds 10 … 29`,
some 10 minutes of a core each); all thirty: undefended 38.3, 91.6, 71.9; EBM 20.2, 83.8, 71.0; DDPM -10.0, 36.8, 67.8.
`--defences ebm-fast --seeds 12 14 16 20 … 29` (18 minutes of two cores): 17.9, 84.6, 70.9, where EBM has 22.0, 83.2,
70.6 on these seeds.
"""

import dataclasses
from typing import Literal, NamedTuple

import tyro

from experiments.grid import run_grid
from jaxpurify.evaluate.protocol import protocol
from jaxpurify.evaluate.scenario import Scenario

# With as many network calls as two cores can make; `published` is what the paper's protocol uses.
SHORT = {
    "none": "none",
    "jpeg-25": "jpeg(quality=25)",
    "jpeg-50": "jpeg(quality=50)",
    "jpeg-75": "jpeg(quality=75)",
    "jpeg-85": "jpeg(quality=85)",
    "ebm": "langevin(steps=150)",
    "ebm-50": "langevin(steps=50, step_size=0.01083, midpoint=True)",
    "ebm-fast": "langevin(steps=50, step_size=0.01083, temperature=0.85e-4, midpoint=True)",
    "ddpm": "diffusion(timestep=75, steps=5)",
    "naive": "langevin(steps=150)|diffusion(timestep=75, steps=5)",
    "reps": "repeat('langevin(steps=10)|diffusion(timestep=50, steps=2)', 5)",
    "filt": "filt('diffusion(timestep=125, steps=5)', fraction=0.5)",
    "filt-compat": "filt('diffusion(timestep=125, steps=5)', fraction=0.5, compat=True)",
}
# Columns of each protocol, and the seeds of each, of which the last digit is the target class.
COLUMNS = {
    "cpu": ((("none", "jpeg-50", "ebm", "ddpm", "naive", "reps", "filt"), 10),),
    "cpu-small": ((("none", "ebm", "ddpm"), 30), (("jpeg-25", "jpeg-75", "jpeg-85", "ebm-50"), 10)),
    "paper": ((tuple(SHORT), 10),),
}


class Chosen(NamedTuple):
    """What a protocol's attack and victims are: poisons, which images of the class, and so on."""

    count: int
    choice: str
    trigger_scale: float
    epochs: int
    crafting: str


# The sets of cpu and cpu-small are a fifth and a tenth of the published one: half of a class is
# poisoned in them, a tenth of one there.
QUICK = "steps=500, batch_size=128, learning_rate=0.01"
CHOSEN = {
    "cpu": Chosen(500, "random", 1.5, 10, QUICK),
    "cpu-small": Chosen(250, "random", 1.5, 15, QUICK),
    # 1000 passes over the 5,000 images of the class.
    "paper": Chosen(500, "last", 1.0, 200, "steps=14286, batch_size=350, learning_rate=0.005"),
}


def published(ebm_weights: str, ddpm_weights: str) -> dict[str, str]:
    """The defences with their published numbers of network calls, and with weights."""
    energy, noise = f", weights={ebm_weights!r}", f", weights={ddpm_weights!r}"
    ebm, ddpm = f"langevin(steps=150{energy})", f"diffusion(timestep=75{noise})"
    reps, filtered = f"langevin(steps=10{energy})|diffusion(timestep=50{noise})", f"diffusion(timestep=125{noise})"
    return SHORT | {
        "ebm": ebm,
        "ebm-50": f"langevin(steps=50, step_size=0.01083, midpoint=True{energy})",
        "ebm-fast": f"langevin(steps=50, step_size=0.01083, temperature=0.85e-4, midpoint=True{energy})",
        "ddpm": ddpm,
        "naive": f"{ebm}|{ddpm}",
        "reps": f'repeat("{reps}", 5)',
        "filt": f'filt("{filtered}", fraction=0.5{energy})',
        "filt-compat": f'filt("{filtered}", fraction=0.5, compat=True{energy})',
    }


@dataclasses.dataclass(frozen=True)
class Config:
    """The grid.

    Attributes:
      protocol: cpu, cpu-small or paper.
      defences: short names, see `SHORT`; default: those of the protocol's table.
      seeds: default: ten, one a class; under cpu-small thirty, three a class, for none, ebm and ddpm.
      epsilon: of the trigger in training, in 1/255.
      count: poisons, all of the target class.
      trigger_scale: strength of the trigger at test, times that in training.
      epochs: of the victims. Where these three are None, what was chosen for the protocol holds.
      ebm_weights, ddpm_weights: .safetensors files, under the protocol paper only, which needs both: the bundled models
        were trained on half of its training images.
      controls: also the triggers on victims of the clean set behind every defence.
      workers: processes, one a core; under the protocol paper one for all devices.
      part: which of them this is; set by the first process.
    """

    protocol: Literal["cpu", "cpu-small", "paper"] = "cpu"
    defences: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    epsilon: int = 8
    count: int | None = None
    trigger_scale: float | None = None
    epochs: int | None = None
    ebm_weights: str | None = None
    ddpm_weights: str | None = None
    controls: bool = False
    workers: int = 2
    part: int | None = None

    def _known(self) -> dict[str, str]:
        """Specs of the defences by their short names."""
        unknown = sorted(set(self.defences) - set(SHORT))
        if unknown:
            raise ValueError(f"unknown defences {', '.join(unknown)}; known: {', '.join(SHORT)}")
        if self.protocol != "paper":
            if self.ebm_weights or self.ddpm_weights:
                raise ValueError(f"protocol {self.protocol} uses the bundled models; leave weights out, or use paper")
            return SHORT
        if not (self.ebm_weights and self.ddpm_weights):
            raise ValueError("protocol paper needs ebm_weights and ddpm_weights: the bundled models know its images")
        return published(self.ebm_weights, self.ddpm_weights)

    def scenarios(self, part: int = 0, parts: int = 1) -> list[Scenario]:
        """A part of the grid."""
        known = self._known()
        chosen = CHOSEN[self.protocol]
        budget = f"epsilon={self.epsilon}/255, count={self.count or chosen.count}"
        attack = f"narcissus({budget}, {chosen.crafting}, choice={chosen.choice!r})"
        victims = protocol(self.protocol)
        recipe = dataclasses.replace(victims.recipe, epochs=self.epochs or chosen.epochs)
        victims = dataclasses.replace(victims, recipe=recipe)
        columns = COLUMNS[self.protocol]
        if self.defences and self.seeds:
            columns = ((self.defences, len(self.seeds)),)
        elif self.defences:
            seeds_of = {name: count for names, count in columns for name in names}
            counts = dict.fromkeys(seeds_of.get(name, 10) for name in self.defences)
            columns = tuple(
                (tuple(name for name in self.defences if seeds_of.get(name, 10) == count), count) for count in counts
            )
        strength = chosen.trigger_scale if self.trigger_scale is None else self.trigger_scale
        grids = []
        for names, seed_count in columns:
            seeds = (self.seeds or tuple(range(seed_count)))[part::parts]
            defences = tuple(known[name] for name in names)
            grids.append(Scenario(victims, (attack,), defences, seeds, strength, purified_controls=self.controls))
        return grids


def main() -> None:
    """Runs the grid with one process a core, or one part of it in this process."""
    config = tyro.cli(Config)
    if config.protocol == "paper":  # a process takes all of an accelerator
        config = dataclasses.replace(config, workers=1)
    name = f"puregen_table1_{config.protocol.replace('-', '_')}"
    run_grid("experiments.puregen_table1", config, name)


if __name__ == "__main__":
    main()
