"""Poisons on victims of networks that they were not made for: Bullseye Polytope, surrogate × victim.

    TFDS_DATA_DIR=../shared/tfds python -m experiments.transfer_matrix
    jaxpurify report experiments/results/transfer_matrix.jsonl

Every network is trained once on the public images. Victims train a new last layer on the features of their own network,
which on the diagonal is the attacker's own. A seed is a target class, a target image, a poison and a victim. Rows are
appended to experiments/results/transfer_matrix.jsonl; those present are skipped.

Receipt (23 November 2026), on one core of an AMD EPYC that other grids used as well: about an hour, most of it the
training of HLB-S on the public images. On the diagonal every target is hit; off it one at most that does not fool
victims trained on clean data too. A single network is the attacker's weakest form (published: ensembles of six).
"""

import dataclasses

import tyro

from experiments.attacks_cpu import GROUPS
from experiments.grid import run_grid
from jaxpurify.evaluate.protocol import protocol
from jaxpurify.evaluate.scenario import Scenario


@dataclasses.dataclass(frozen=True)
class Config:
    """The matrix.

    Attributes:
      networks: specs of surrogates and victims; the empty one is that of the protocol, ResNet-9 of width 16.
      attack: short name, see `attacks_cpu`.
      seeds: one target class each.
      workers: processes, one a core.
      part: which of them this is; set by the first process.
    """

    networks: tuple[str, ...] = ("", "resnet9(width=8)", "hlb_s")
    attack: str = "bullseye"
    seeds: tuple[int, ...] = tuple(range(10))
    workers: int = 2
    part: int | None = None

    def scenarios(self, part: int, parts: int) -> list[Scenario]:
        """A part of the seeds, for every pair of networks."""
        attack = GROUPS["transfer"].attacks[self.attack]
        plain = Scenario(protocol("cpu-small"), (attack,), (), self.seeds[part::parts], training="linear")
        return [
            dataclasses.replace(plain, surrogate_network=surrogate, victim_network=victim)
            for surrogate in self.networks
            for victim in self.networks
        ]


def main() -> None:
    """Runs the matrix with one process a core, or one part of it in this process."""
    run_grid("experiments.transfer_matrix", tyro.cli(Config), "transfer_matrix")


if __name__ == "__main__":
    main()
