"""How an energy is trained: the recipe, the published ones by name, and the optimiser (PureGen, arXiv:2405.18627)."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int
import optax

from jaxpurify.train.schedule import multistep, warmup_cosine
from jaxpurify.train.settings import check_above_zero, check_least


@dataclasses.dataclass(frozen=True)
class EnergyRecipe:
    """How an energy is trained. Pixel quantities are in [0, 1] units: half of the published [-1, 1] values.

    Attributes:
      steps, batch_size: parameter updates; images and chains in each.
      learning_rate: of Adam.
      schedule: `drops`, or `cosine`: 500 steps of warm-up, then half a cosine down to 0.
      drops: shares of all steps at which the learning rate is multiplied by 0.1.
      sgd_after: share of all steps after which plain SGD takes over, for convergence; None: Adam to the end.
      sgd_learning_rate: of SGD on the difference of mean energies (the loss times T).
      langevin_steps: K, length of the chains of each update.
      step_size, temperature: of the chains, as in `Langevin`.
      data_noise: σ, Gaussian noise added to the data (published 0.015 in [-1, 1] units).
      bank_size: persistent chain states, at least `batch_size`.
      bank_start: `data` (images + noise) or `noise` (uniform).
      rejuvenation: chance that a drawn slot is overwritten by data instead of its chain's end.

    Warning:
      The paper's Algorithm 2 prints other values (SGD 5e-5 for 150,000 steps, a bank of uniform noise, σ 0.02,
      ε 0.01 in [-1, 1] units) than the code behind the published weights used. The defaults are the code's
      (`PUREGEN`). `HILL` is the code of Hill et al. (arXiv:2005.13525), where the printed bank, σ and ε come from:
      125,000 steps of Adam, then as many of SGD.
    """

    steps: int = 65_600
    batch_size: int = 128
    learning_rate: float = 1e-4
    schedule: str = "drops"
    drops: tuple[float, ...] = (1 / 3, 0.625, 5 / 6)
    sgd_after: float | None = None
    sgd_learning_rate: float = 5e-5
    langevin_steps: int = 100
    step_size: float = 0.00625
    temperature: float = 1e-4
    data_noise: float = 0.0075
    bank_size: int = 10_000
    bank_start: str = "data"
    rejuvenation: float = 0.05

    def __post_init__(self):
        check_least(self, steps=0, batch_size=1, langevin_steps=0, data_noise=0)
        check_above_zero(self, "learning_rate", "sgd_learning_rate", "step_size", "temperature")
        if not all(0 <= drop <= 1 for drop in self.drops):
            raise ValueError(f"drops={self.drops}; they are shares of the steps, each in [0, 1]")
        if self.bank_size < self.batch_size:
            raise ValueError(f"bank_size={self.bank_size} is smaller than batch_size={self.batch_size}")
        if self.bank_start not in ("data", "noise"):
            raise ValueError(f"bank_start={self.bank_start!r}; known: data, noise")
        if self.schedule not in ("drops", "cosine"):
            raise ValueError(f"schedule={self.schedule!r}; known: drops, cosine")
        if not 0 <= self.rejuvenation <= 1:
            raise ValueError(f"rejuvenation={self.rejuvenation}; it must be in [0, 1]")
        if self.sgd_after is not None and not 0 <= self.sgd_after <= 1:
            raise ValueError(f"sgd_after={self.sgd_after}; it must be in [0, 1], or None")


PUREGEN = EnergyRecipe()
HILL = EnergyRecipe(
    steps=250_000, batch_size=100, drops=(), sgd_after=0.5, step_size=0.005, temperature=5e-5, data_noise=0.01,
    bank_size=50_000, bank_start="noise", rejuvenation=0.0,
)  # fmt: skip

RECIPES = {"puregen": PUREGEN, "hill": HILL}


@functools.lru_cache
def energy_optimizer(recipe: EnergyRecipe) -> optax.GradientTransformation:
    """Adam with the recipe's drops, SGD from `sgd_after` on; `EnergyStep` halves the updates for every restart."""
    if recipe.schedule == "cosine":
        schedule = warmup_cosine(recipe.steps, recipe.learning_rate)
    else:
        schedule = multistep(recipe.steps, recipe.learning_rate, drops=recipe.drops)
    adam = optax.adam(schedule)
    if recipe.sgd_after is None:
        return adam
    # The loss is the difference of energies over T, so T turns its gradient back into that of the difference.
    sgd = optax.sgd(recipe.sgd_learning_rate * recipe.temperature)
    return _switched(adam, sgd, round(recipe.sgd_after * recipe.steps))


class _SwitchedState(NamedTuple):
    """Updates so far, and the states of both parts."""

    taken: Int[Array, ""]
    first: optax.OptState
    second: optax.OptState


def _switched(
    first: optax.GradientTransformation, second: optax.GradientTransformation, boundary: int
) -> optax.GradientTransformation:
    """The updates of `first` for `boundary` steps, then those of `second`; both see every gradient."""

    def init(params):
        return _SwitchedState(jnp.zeros((), jnp.int32), first.init(params), second.init(params))

    def update(updates, state, params=None):
        before, first_state = first.update(updates, state.first, params)
        after, second_state = second.update(updates, state.second, params)
        chosen = jax.tree.map(lambda one, other: jnp.where(state.taken < boundary, one, other), before, after)
        return chosen, _SwitchedState(state.taken + 1, first_state, second_state)

    return optax.GradientTransformation(init, update)
