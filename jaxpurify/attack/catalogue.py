"""Every attack by name, with what a command line must know to call it."""

from collections.abc import Callable
import dataclasses
import inspect
from typing import Any

from jaxpurify.attack.badnets import badnets
from jaxpurify.attack.blended import blended
from jaxpurify.attack.bullseye import bullseye
from jaxpurify.attack.class_noise import class_noise
from jaxpurify.attack.clean_label_backdoor import clean_label_backdoor
from jaxpurify.attack.convex_polytope import convex_polytope
from jaxpurify.attack.gradient_matching import gradient_matching
from jaxpurify.attack.hidden_trigger import hidden_trigger
from jaxpurify.attack.linear_noise import linear_noise
from jaxpurify.attack.metapoison import metapoison
from jaxpurify.attack.narcissus import narcissus
from jaxpurify.attack.pattern import pattern
from jaxpurify.attack.poison_frogs import poison_frogs
from jaxpurify.attack.random_noise import random_noise
from jaxpurify.attack.sig import sig
from jaxpurify.attack.sleeper_agent import sleeper_agent
from jaxpurify.attack.wanet import wanet
from jaxpurify.attack.watermark import watermark


@dataclasses.dataclass(frozen=True)
class Attack:
    """An attack and how it is called.

    Attributes:
      craft: the function. `(images, labels, key, *, …) -> Poison` where `sees` is `nothing`, else
        `(apply, params, key, images, labels, *, …) -> Poison`.
      summary: one line.
      sees: what `apply` gives of a surrogate: `logits`, its penultimate `features`, or logits as a function of its
        trainable `parameters`; `nothing` where there is no surrogate.
      needs_target: whether it takes `target=`; indiscriminate attacks have none.
      labels_changed: whether it changes labels unless asked not to.
      source: the paper.
      norm: of its `epsilon`: `linf`, in units of [0, 1] a value, or `l2`.
    """

    craft: Callable[..., Any]
    summary: str
    sees: str
    needs_target: bool
    labels_changed: bool
    source: str
    norm: str = "linf"

    @property
    def needs_surrogate(self) -> bool:
        """Whether it optimises against a trained classifier."""
        return self.sees != "nothing"

    @property
    def options(self) -> tuple[str, ...]:
        """The names of its keyword arguments."""
        parameters = inspect.signature(self.craft).parameters.values()
        return tuple(each.name for each in parameters if each.kind is each.KEYWORD_ONLY)

    @property
    def needs_targets(self) -> bool:
        """Whether it takes `targets=`, the images that are to be misclassified."""
        return "targets" in self.options


ATTACKS: dict[str, Attack] = {
    "badnets": Attack(
        badnets, "small patch in a corner, labels changed (or kept)", "nothing", True, True, "arXiv:1708.06733"
    ),
    "blended": Attack(
        blended, "faint picture over the whole image, labels changed (or kept)", "nothing", True, True,
        "arXiv:1712.05526",
    ),
    "sig": Attack(sig, "sinusoidal or ramp signal, labels kept", "nothing", True, False, "arXiv:1902.11237"),
    "wanet": Attack(wanet, "smooth warp with covers, labels changed", "nothing", True, True, "arXiv:2102.10369"),
    "pattern": Attack(
        pattern, "fixed random low-norm pattern, labels changed", "nothing", True, True, "after arXiv:1712.05526"
    ),
    "clean_label_backdoor": Attack(
        clean_label_backdoor, "patch on images moved away from their class (CLBD), labels kept", "logits", True, False,
        "arXiv:1912.02771",
    ),
    "narcissus": Attack(
        narcissus, "optimised universal trigger, labels kept", "parameters", True, False, "arXiv:2204.05255"
    ),
    "hidden_trigger": Attack(
        hidden_trigger, "features of a patch that no training image shows (HTBD), labels kept", "features", True,
        False, "arXiv:1910.00033",
    ),
    "sleeper_agent": Attack(
        sleeper_agent, "hidden patch by gradient matching with retraining, labels kept", "parameters", True, False,
        "arXiv:2106.08970",
    ),
    "gradient_matching": Attack(
        gradient_matching, "Witches' Brew: the poisons' gradient is the target's, labels kept", "parameters", True,
        False, "arXiv:2009.02276",
    ),
    "metapoison": Attack(
        metapoison, "poisons through unrolled training steps, labels kept", "parameters", True, False,
        "arXiv:2004.00225",
    ),
    "bullseye": Attack(
        bullseye, "poisons surround the target in feature space, labels kept", "features", True, False,
        "arXiv:2005.00191",
    ),
    "convex_polytope": Attack(
        convex_polytope, "the target's feature as a mixture of the poisons', labels kept", "features", True, False,
        "arXiv:1905.05897",
    ),
    "poison_frogs": Attack(
        poison_frogs, "poisons with the target's features, labels kept", "features", True, False, "arXiv:1804.00792"
    ),
    "watermark": Attack(
        watermark, "the target faintly over the poisons, labels kept", "nothing", True, False, "arXiv:2102.13624"
    ),
    "random_noise": Attack(
        random_noise, "random signs, no aim: the control of targeted attacks, labels kept", "nothing", True, False,
        "arXiv:2009.02276",
    ),
    "class_noise": Attack(
        class_noise, "one random perturbation a class, indiscriminate", "nothing", False, False, "arXiv:2406.15093"
    ),
    "linear_noise": Attack(
        linear_noise, "linearly separable patches (LSP), indiscriminate", "nothing", False, False, "arXiv:2111.00898",
        norm="l2",
    ),
}  # fmt: skip


def named_attack(name: str) -> Attack:
    """The attack called `name`; ValueError lists the known names."""
    if name not in ATTACKS:
        raise ValueError(f"attack is {name!r}; known: {', '.join(ATTACKS)}, stored")
    return ATTACKS[name]
