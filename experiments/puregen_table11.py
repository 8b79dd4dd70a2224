"""PureGen's Table 11 (arXiv:2405.18627) at a size that two cores can compute: Narcissus that knows of the energy.

    TFDS_DATA_DIR=../shared/tfds python -m experiments.puregen_table11

The attacker crafts the trigger through Langevin dynamics (`generation`), trains the surrogate on images behind it
(`surrogate`), does both, or neither (`baseline`, the attack of Table 1). As published, the attacker's chains are
shorter than the defender's: 50 steps. Their derivative is that of the last four, by differences: the exact one of an
energy of ReLU layers is the identity almost everywhere. All variants poison the same images, the last of the class, and
craft in 200 steps (--steps) where Table 1 takes 500: through chains each costs fifty times as much. Rows are appended
to experiments/results/puregen_table11_cpu_small.jsonl; those present are skipped.

Receipt (29 November 2026): 140 minutes of two cores of an EPYC (Zen 4), one of them on another table for an hour, both
paused in between and shared with other work, so that `seconds` of rows are too long; a crafting step through 50 steps
took 1.8 seconds of a core. Success above the clean floor, highest success of a target class, of none, EBM, DDPM:
baseline 36.5, 75.3; 10.2, 38.9; -4.3, 13.3. Generation 29.6, 66.2; 11.7, 40.7; -4.5, 15.2. Surrogate 23.5, 62.6; 10.1,
45.2; -5.4, 13.4. Both 29.4, 70.6; 10.2, 49.6; -0.7, 14.4. Class by class knowing the energy gains 1.4 ± 1.1, -0.1 ± 2.0
and -0.1 ± 1.1 points above the floor behind it, of three classes.
"""

import dataclasses

import tyro

from experiments.grid import run_grid
from experiments.puregen_table1 import Config as Table1
from jaxpurify.evaluate.scenario import Scenario

KNOWN = "langevin(steps=50)"
THROUGH = f"through='{KNOWN}', gradient='truncated', gradient_steps=4, gradient_difference=0.01"
VARIANTS = ("baseline", "generation", "surrogate", "both")


@dataclasses.dataclass(frozen=True)
class Config:
    """The table.

    Attributes:
      variants: baseline, generation, surrogate, both.
      defences: short names of Table 1.
      seeds: target classes, one victim each.
      steps: of crafting, the same for all variants.
      workers: processes, one a core.
      part: which of them this is; set by the first process.
    """

    variants: tuple[str, ...] = VARIANTS
    defences: tuple[str, ...] = ("none", "ebm", "ddpm")
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 200
    workers: int = 2
    part: int | None = None

    def scenarios(self, part: int, parts: int) -> list[Scenario]:
        """A part of every variant."""
        (baseline,) = Table1(protocol="cpu-small", defences=self.defences, seeds=self.seeds).scenarios()
        attack = baseline.attacks[0].replace("steps=500", f"steps={self.steps}").replace("'random'", "'last'")
        baseline = dataclasses.replace(baseline, attacks=(attack,))
        adaptive = attack.removesuffix(")") + f", {THROUGH})"
        known = {
            "baseline": baseline,
            "generation": dataclasses.replace(baseline, attacks=(adaptive,)),
            "surrogate": dataclasses.replace(baseline, surrogate_defence=KNOWN),
            "both": dataclasses.replace(baseline, attacks=(adaptive,), surrogate_defence=KNOWN),
        }
        # Of three seeds one process has two: the other one has two of the last variants.
        first = [(part + number // 2) % parts for number in range(len(self.variants))]
        mine = [self.seeds[start::parts] for start in first]
        return [
            dataclasses.replace(known[variant], seeds=own) for variant, own in zip(self.variants, mine, strict=True)
        ]


def main() -> None:
    """Runs the table with one process a core, or one part of it in this process."""
    run_grid("experiments.puregen_table11", tyro.cli(Config), "puregen_table11_cpu_small")


if __name__ == "__main__":
    main()
