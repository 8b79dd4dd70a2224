"""Fewer network calls at equal purification strength: poison success and accuracy against calls an image.

    TFDS_DATA_DIR=../shared/tfds python -m experiments.equal_strength

Langevin dynamics of n steps of size e diffuses an image by e √n: steps twice as long reach as far with a quarter of
them. What the last long steps leave is noise that no further step smooths, so that `COLDER` ones move as far downhill
(e² n / T is the same) with less of it: how much less was chosen on `train[20000:20096]`, on which as much of a
perturbation survives 50 of them as the published 150 (0.87), and images keep their sharpness. `MIDPOINT` steps take
the slope at half of their noise, which leaves less of it without adding less; the same images were looked at before any
victim was trained. Diffusion adds the noise of timestep 75 whatever the number of steps back. Rows are appended to
experiments/results/equal_strength.jsonl; those present are skipped. The first of each family is the published one.

Receipt (22 November 2026), on two cores of a Xeon (Sapphire Rapids), about 50 minutes for each family: the table in
README.md. Diffusion: 25 calls for 75 change poison success by -0.6 ± 2.2 points and accuracy by -0.2 ± 0.7 (mean and
standard error of differences over four seeds), 5 calls by 3.1 ± 3.3 and 0.7 ± 0.4. Langevin: 50 steps for 150 by
-1.8 ± 5.2 and -1.0 ± 0.4, 38 by 0.3 ± 3.7 and -0.9 ± 0.5, 17 by -2.3 ± 4.3 and -2.6 ± 0.2: as strong, less accurate.
Colder (20 minutes of two cores): 50 steps by 7.4 ± 4.3 and -0.5 ± 0.2, 38 by 9.8 ± 3.8 and -0.2 ± 0.4: as accurate and
hardly cleaning, although a single perturbation survives no better. Midpoint (29 November 2026, 13 minutes of two cores
of an EPYC, on poisons crafted anew there): 50 steps for 150 by -0.3 ± 4.0 and -0.3 ± 0.2. Ten classes of Table 1 under
cpu-small (column ebm-50 there) tell more: 3.3 ± 1.5 and -0.2 ± 0.2, as accurate and a little weaker. At a temperature
of 0.85e-4, which goes further downhill with the same noise, they are stronger (column ebm-fast).
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
COLDER = tuple(
    f"langevin(steps={steps}, step_size={0.00625 * 2**0.5:.4g}, temperature={1e-4 * 2 * steps / 150:.4g})"
    for steps in (50, 38)
)
MIDPOINT = (f"langevin(steps=50, step_size={0.00625 * 3**0.5:.4g}, midpoint=True)",)
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
        defences = {"langevin": LANGEVIN + COLDER + MIDPOINT, "diffusion": DIFFUSION}[self.family]
        return [Scenario(protocol("cpu-small"), (ATTACK,), defences, self.seeds[part::parts])]


def main() -> None:
    """Runs the curve with one process a core, or one part of it in this process."""
    run_grid("experiments.equal_strength", tyro.cli(Config), "equal_strength")


if __name__ == "__main__":
    main()
