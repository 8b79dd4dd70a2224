"""What a grid is: attacks, defences and seeds under one protocol, and what the attacker knows and has."""

import dataclasses
import functools
import math
from typing import Any

from jaxpurify.evaluate.crafting import attack_of
from jaxpurify.evaluate.models import STAGGERS, SURROGATE_SEED, SURROGATE_TRAININGS, staggered
from jaxpurify.evaluate.protocol import Protocol
from jaxpurify.evaluate.specs import canonical
from jaxpurify.evaluate.victims import TRAININGS

SETTINGS = (
    "attacks", "defences", "seeds", "trigger_scale", "targets", "training", "surrogates", "victim_network",
    "surrogate_network", "surrogate_defence", "victim_seeds",
    "surrogate_training", "stagger", "purified_controls",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A grid of rows: every attack and seed, against every defence.

    Attributes:
      protocol: data, victims and their training.
      attacks: specs such as `narcissus(epsilon=16/255, count=100)`.
      defences: purifier specs; `none` is the undefended control.
      seeds: each is one poison and its victims. The target class is seed mod classes.
      trigger_scale: strength of additive triggers at test, times that in training.
      targets: images of one class that a targeted attack is after, drawn from the test set by the seed.
      training: of victims: `scratch`; `linear`: a new last layer on features that are kept, the attacker's own where
        the networks are the same and the surrogate's training is plain; `fine-tune`: a new last layer, and then all of
        that network, as the protocol fine-tunes.
      surrogates: models of the attacker; more than one are an ensemble.
      victim_network, surrogate_network: specs such as `resnet9(width=8)` where they are not the protocol's network.
      surrogate_defence: purifier spec of an attacker who trains the surrogates behind it, on public images and, where
        an attack trains them again, on what is poisoned so far.
      surrogate_training: `plain`, or `adversarial`: on adversarial examples (`defend.ProjectedGradient`), which makes
        the robust surrogate of the published label-consistent backdoor.
      stagger: stops the training of several surrogates after different numbers of epochs: `firstn`, `full` or
        `inbetween`, see `models.staggered`; empty: all are trained to the end. MetaPoison's are published as `firstn`.
      victim_seeds: victims trained on each poisoned set, of other weights and batches, each a row (and a clean control)
        of its own. Tables count all rows as runs: with few seeds their errors are those of training, not of poisons.
      purified_controls: a further control for every defence: victims trained on the clean set behind it, shown the same
        triggers or targets. What they do is due to the purified training alone, the rest to the poison.
    """

    protocol: Protocol
    attacks: tuple[str, ...]
    defences: tuple[str, ...]
    seeds: tuple[int, ...]
    trigger_scale: float = 1.0
    targets: int = 1
    training: str = "scratch"
    surrogates: int = 1
    victim_network: str = ""
    surrogate_network: str = ""
    surrogate_defence: str = ""
    surrogate_training: str = "plain"
    stagger: str = ""
    victim_seeds: int = 1
    purified_controls: bool = False

    def __post_init__(self):
        object.__setattr__(self, "trigger_scale", float(self.trigger_scale))  # 2 and 2.0 are one row
        if not 0 < self.trigger_scale < math.inf:
            raise ValueError(f"trigger_scale={self.trigger_scale}; it must be a number above 0")
        for name in ("attacks", "defences"):
            object.__setattr__(self, name, tuple(map(canonical, getattr(self, name))))
        if self.surrogate_defence:
            object.__setattr__(self, "surrogate_defence", canonical(self.surrogate_defence))
        for text in self.attacks:
            if "retrain_every" in attack_of(text)[1] and self.training == "linear":
                raise ValueError(f"attack {text!r}: linear victims keep the surrogate; no retrain_every")
        if self.victim_seeds < 1:
            raise ValueError(f"victim_seeds={self.victim_seeds}; it must be at least 1")
        if self.targets < 1 or self.surrogates < 1:
            raise ValueError(f"targets={self.targets}, surrogates={self.surrogates}; both must be at least 1")
        twins = [seed for seed in self.seeds if SURROGATE_SEED <= seed < SURROGATE_SEED + self.surrogates]
        if twins:  # a victim of the surrogate's own first weights and batches
            raise ValueError(f"seeds={twins[0]}; the attacker's models are trained with this one, take another")
        if self.training not in TRAININGS:
            raise ValueError(f"training={self.training!r}; known: {', '.join(TRAININGS)}")
        if self.surrogate_training not in SURROGATE_TRAININGS:
            known = ", ".join(SURROGATE_TRAININGS)
            raise ValueError(f"surrogate_training={self.surrogate_training!r}; known: {known}")
        if self.stagger and (self.stagger not in STAGGERS or self.surrogates < 2):
            known = f"known: {', '.join(STAGGERS)}, with at least 2 surrogates"
            raise ValueError(f"stagger={self.stagger!r} and surrogates={self.surrogates}; {known}")
        if self.stagger == "firstn" and self.surrogates > self._surrogate_epochs + 1:
            epochs = f"{self._surrogate_epochs} epochs of a surrogate"
            raise ValueError(f"surrogates={self.surrogates} with stagger='firstn'; there are {epochs}")
        for spec in filter(None, (self.victim_network, self.surrogate_network)):
            self.protocol.with_network(spec)

    @functools.cached_property
    def victims(self) -> Protocol:
        """The protocol with the victims' network."""
        return self.protocol.with_network(self.victim_network) if self.victim_network else self.protocol

    @functools.cached_property
    def attackers(self) -> Protocol:
        """The protocol with the network of the attacker's models."""
        return self.protocol.with_network(self.surrogate_network) if self.surrogate_network else self.protocol

    @property
    def _surrogate_epochs(self) -> int:
        return (self.protocol.surrogate_recipe or self.protocol.recipe).epochs

    @property
    def surrogates_stop_after(self) -> tuple[int, ...]:
        """Epochs of each surrogate; empty where all are trained to the end."""
        return staggered(self.stagger, self._surrogate_epochs, self.surrogates)

    @property
    def victim(self) -> str:
        """Network, width and training as one word for the rows, such as `resnet9-w16` or `resnet9-w16-linear`."""
        return self.victims.victim if self.training == "scratch" else f"{self.victims.victim}-{self.training}"

    def config(self) -> dict[str, Any]:
        """The settings as plain values, for reports."""
        return {name: getattr(self, name) for name in SETTINGS} | self.victims.config()
