"""What makes a row of a grid that row: its config, of which `run_id` is the hash, and the seeds behind it."""

from typing import Any

import jax

from jaxpurify.evaluate.crafting import attack_of
from jaxpurify.random import named

NONE = "none"


def row_config(scenario: Any, attack: str, defence: str, seed: int, classes: int, victim: int = 0) -> dict[str, Any]:
    """The config of one row.

    Args:
      scenario: the `Scenario`.
      attack, defence: specs, or `none`.
      seed: of the poison.
      classes: of the data.
      victim: number of the victim among those trained on the same set.
    """
    # Settings that most tables leave alone are named where they differ, so that earlier rows keep their ids.
    other: dict[str, tuple[Any, Any]] = {"targets": (scenario.targets, 1), "surrogates": (scenario.surrogates, 1)}
    other["victim_seed"] = (victim, 0)
    if attack != NONE:
        other["surrogate"] = (scenario.attackers.victim, scenario.victims.victim)
        other["surrogate_defence"] = (scenario.surrogate_defence, "")
        other["surrogate_training"] = (scenario.surrogate_training, "plain")
    return {
        "protocol": scenario.protocol.name,
        "data": scenario.protocol.train,
        "attack": attack,
        "defence": defence,
        "victim": scenario.victim,
        "seed": seed,
        "target": seed % classes,
        "trigger_scale": scenario.trigger_scale,
        "settings": scenario.victims.config(),
        **{name: value for name, (value, usual) in other.items() if value != usual},
    }


def victim_seed(seed: int, number: int) -> int:
    """The seed with which victim `number` is trained: that of the row for the first one, drawn from it for others."""
    if not number:
        return seed
    return int(jax.random.randint(named(jax.random.key(seed), f"victim {number}"), (), 0, 2**31 - 1))


def adaptive(attack: str, scenario: Any) -> bool:
    """Whether the attacker knew the defence: crafted through it, or trained the surrogate behind it."""
    if attack == NONE:
        return False
    entry, _, through = attack_of(attack)
    return bool(through or (scenario.surrogate_defence and entry.needs_surrogate))
