"""Fewer network calls at equal purification strength: poison success and accuracy against calls an image.

    TFDS_DATA_DIR=../shared/tfds python -m experiments.equal_strength

Langevin dynamics of n steps of size e diffuses an image by e √n: steps twice as long reach as far with a quarter of
them. Diffusion adds the noise of timestep 75 whatever the number of steps back. Rows are appended to
experiments/results/equal_strength.jsonl; those present are skipped. The first of each family is the published one.
"""

import dataclasses

import tyro

from experiments.grid import run_grid
from jaxpurify.evaluate.protocol import protocol
from jaxpurify.evaluate.scenario import Scenario

# Half of a class at twice the published budget: an attack that a purifier weakens without stopping it, so that a
# difference in strength would show.
ATTACK = "narcissus(epsilon=16/255, count=250, steps=500, batch_size=128, learning_rate=0.01, choice='random')"
LANGEVIN = tuple(
    f"langevin(steps={steps}, step_size={0.00625 * (150 / steps) ** 0.5:.4g})" for steps in (150, 50, 38, 17)
)
DIFFUSION = tuple(f"diffusion(timestep=75, steps={steps})" for steps in (75, 25, 5))


@dataclasses.dataclass(frozen=True)
class Config:
    """The curve.

    Attributes:
      family: langevin or diffusion.
      seeds: each is a poison and a victim of protocol cpu-small.
      workers: processes, one a core.
      part: which of them this is; set by the first process.
    """

    family: str = "langevin"
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    workers: int = 2
    part: int | None = None

    def scenarios(self, part: int, parts: int) -> list[Scenario]:
        """A part of the seeds."""
        defences = {"langevin": LANGEVIN, "diffusion": DIFFUSION}[self.family]
        return [Scenario(protocol("cpu-small"), (ATTACK,), defences, self.seeds[part::parts])]


def main() -> None:
    """Runs the curve with one process a core, or one part of it in this process."""
    run_grid("experiments.equal_strength", tyro.cli(Config), "equal_strength")


if __name__ == "__main__":
    main()
