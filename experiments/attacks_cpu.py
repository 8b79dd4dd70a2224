"""Every attack at a size that two cores can compute: undefended, and behind one EBM and one diffusion purifier.

    TFDS_DATA_DIR=../shared/tfds python -m experiments.attacks_cpu --group transfer
    TFDS_DATA_DIR=../shared/tfds python -m experiments.attacks_cpu --group triggered
    TFDS_DATA_DIR=../shared/tfds python -m experiments.attacks_cpu --group targeted
    TFDS_DATA_DIR=../shared/tfds python -m experiments.attacks_cpu --group adaptive

Rows are appended to experiments/results/attacks_cpu.jsonl; those present are skipped, so that a run can be stopped and
continued at any time; `--attacks`, `--defences` and `--seeds` compute a part. `jaxpurify report
experiments/results/attacks_cpu.jsonl` prints the table of what is there.

A seed is a target class (its last digit), a target image, a poison and a victim. All victims are of protocol
`cpu-small` (5,000 images); those of the group `transfer` train a new last layer on the attacker's own features.

Receipt (22 November 2026): `--group transfer --attacks bullseye`, and `--attacks convex_polytope poison_frogs --seeds
1 3 5 7 9`, 20 minutes of one core of a Xeon (Sapphire Rapids). Targets hit, undefended / behind the EBM / behind
diffusion: Bullseye 10 / 3 / 0 of 10, Convex Polytope 4 / 0 / 0 of 5, Frogs 4 / 0 / 0 of 5. The other groups and seeds
were not run yet; their settings are first guesses.
"""

import dataclasses

import tyro

from experiments.grid import run_grid
from jaxpurify.evaluate.protocol import protocol
from jaxpurify.evaluate.scenario import Scenario

DEFENCES = {"none": "none", "ebm": "langevin(steps=150)", "ddpm": "diffusion(timestep=75, steps=5)"}


@dataclasses.dataclass(frozen=True)
class Group:
    """Attacks whose victims are trained alike.

    Attributes:
      training: as in `Scenario`.
      attacks: short name to spec.
      trigger_scale: of additive triggers at test.
    """

    training: str
    attacks: dict[str, str]
    trigger_scale: float = 1.0


NARCISSUS = "narcissus(epsilon=16/255, count=100, steps=500, batch_size=128, learning_rate=0.01, choice='random'"
MATCHING = "gradient_matching(epsilon=16/255, count=150, steps=150, restarts=2"
BULLSEYE = "bullseye(epsilon=8/255, count=25, steps=300, learning_rate=0.01"
POLYTOPE = "convex_polytope(epsilon=8/255, count=25, steps=300, learning_rate=0.01"
# The attacker's derivative of a chain of 150 Langevin steps through its last four, by differences.
THROUGH = "through='langevin(steps=150)', gradient='truncated', gradient_steps=4, gradient_difference=0.01"
GROUPS = {
    "transfer": Group(
        "linear",
        {
            "bullseye": f"{BULLSEYE})",
            "convex_polytope": f"{POLYTOPE}, coefficient_steps=50)",
            "poison_frogs": "poison_frogs(epsilon=8/255, count=25, steps=120)",
            "watermark": "watermark(epsilon=8/255, count=25)",
            "hidden_trigger": "hidden_trigger(epsilon=16/255, count=100, steps=250)",
        },
    ),
    "triggered": Group(
        "scratch",
        {
            "badnets": "badnets(count=100)",
            "blended": "blended(count=100)",
            "sig": "sig(count=250)",
            "wanet": "wanet(count=250)",
            "clean_label_backdoor": "clean_label_backdoor(epsilon=16/255, count=250, clamp_trigger=False)",
            "narcissus": f"{NARCISSUS})",
            "sleeper_agent": "sleeper_agent(epsilon=16/255, count=150, steps=150, retrain_every=50, source_count=250)",
        },
    ),
    "targeted": Group(
        "scratch",
        {
            "gradient_matching": f"{MATCHING})",
            "metapoison": "metapoison(epsilon=16/255, count=150, steps=60)",
        },
    ),
    "adaptive": Group(
        "scratch", {"gradient_matching": f"{MATCHING}, {THROUGH})", "narcissus": f"{NARCISSUS}, {THROUGH})"}
    ),
    "adaptive-transfer": Group(
        "linear", {"bullseye": f"{BULLSEYE}, {THROUGH})", "convex_polytope": f"{POLYTOPE}, {THROUGH})"}
    ),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """A part of the table.

    Attributes:
      group: which attacks.
      attacks, defences: short names; default all of the group, and all three.
      seeds: default ten, one a target class.
      workers: processes, one a core.
      part: which of them this is; set by the first process.
    """

    group: str
    attacks: tuple[str, ...] = ()
    defences: tuple[str, ...] = tuple(DEFENCES)
    seeds: tuple[int, ...] = tuple(range(10))
    workers: int = 2
    part: int | None = None

    def scenario(self, part: int, parts: int) -> Scenario:
        """A part of the table."""
        group = GROUPS[self.group]
        return Scenario(
            protocol("cpu-small"),
            tuple(group.attacks[name] for name in self.attacks or group.attacks),
            tuple(DEFENCES[name] for name in self.defences),
            self.seeds[part::parts],
            group.trigger_scale,
            training=group.training,
        )


def main() -> None:
    """Runs the grid with one process a core, or one part of it in this process."""
    config = tyro.cli(Config)
    name = "attacks_cpu"

    def scenarios(part: int, parts: int) -> list[Scenario]:
        return [config.scenario(part, parts)]

    run_grid("experiments.attacks_cpu", scenarios, name, workers=config.workers, part=config.part)


if __name__ == "__main__":
    main()
