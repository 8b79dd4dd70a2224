"""Every attack by name, with what a command line must know to call it."""

from collections.abc import Callable
import dataclasses

from jaxpurify.attack.badnets import badnets
from jaxpurify.attack.class_noise import class_noise
from jaxpurify.attack.linear_noise import linear_noise
from jaxpurify.attack.narcissus import narcissus
from jaxpurify.attack.pattern import pattern
from jaxpurify.data.poison import Poison


@dataclasses.dataclass(frozen=True)
class Attack:
    """An attack and how it is called.

    Attributes:
      craft: the function. With `needs_surrogate`: `(apply, params, key, images, labels, *, …) -> Poison`,
        without: `(images, labels, key, *, …) -> Poison`.
      summary: one line.
      needs_surrogate: whether it optimises against a trained classifier.
      needs_target: whether it takes `target=`; indiscriminate attacks have none.
      labels_changed: whether it changes labels unless asked not to.
      source: the paper.
    """

    craft: Callable[..., Poison]
    summary: str
    needs_surrogate: bool
    needs_target: bool
    labels_changed: bool
    source: str


ATTACKS: dict[str, Attack] = {
    "badnets": Attack(
        badnets, "small patch in a corner, labels changed (or kept)", False, True, True, "arXiv:1708.06733"
    ),
    "pattern": Attack(
        pattern, "fixed random low-norm pattern, labels changed", False, True, True, "after arXiv:1712.05526"
    ),
    "narcissus": Attack(narcissus, "optimised universal trigger, labels kept", True, True, False, "arXiv:2204.05255"),
    "class_noise": Attack(
        class_noise, "one random perturbation a class, indiscriminate", False, False, False, "arXiv:2406.15093"
    ),
    "linear_noise": Attack(
        linear_noise, "linearly separable patches (LSP), indiscriminate", False, False, False, "arXiv:2111.00898"
    ),
}


def named_attack(name: str) -> Attack:
    """The attack called `name`; ValueError lists the known names."""
    if name not in ATTACKS:
        raise ValueError(f"attack is {name!r}; known: {', '.join(ATTACKS)}")
    return ATTACKS[name]
