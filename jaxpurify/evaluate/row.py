"""What makes a row of a grid that row: its config, of which `run_id` is the hash, and the seeds behind it."""

import hashlib
from typing import Any

import jax
import numpy as np

from jaxpurify.data.dataset import Dataset
from jaxpurify.data.poison import Poison
from jaxpurify.evaluate.crafting import attack_of
from jaxpurify.evaluate.protocol import fine_tuning_settings
from jaxpurify.evaluate.purifiers import Shape, known_parts, weights_digest
from jaxpurify.evaluate.stored_poison import STORED, file_digest
from jaxpurify.random import named

NONE = "none"
CONTROL = "purified clean"


def row_config(
    scenario: Any, attack: str, defence: str, seed: int, train: Dataset, victim: int = 0, control: bool = False
) -> dict[str, Any]:
    """The config of one row.

    Args:
      scenario: the `Scenario`.
      attack, defence: specs, or `none`.
      seed: of the poison.
      train: the clean training set; its classes and the shape of its images are used.
      victim: number of the victim among those trained on the same set.
      control: whether it is a victim of the purified clean set.
    """
    # Settings that most tables leave alone are named where they differ, so that earlier rows keep their ids.
    other: dict[str, tuple[Any, Any]] = {"victim_seed": (victim, 0), "control": (CONTROL if control else None, None)}
    shape = train.images.shape[1:]
    if scenario.training == "fine-tune":
        other["fine_tuning"] = (fine_tuning_settings(scenario.victims), None)
    if attack != NONE:
        entry, options, _ = attack_of(attack)
        if entry is STORED:
            other["file"] = (file_digest(options["path"]), None)
        other["attacker_weights"] = (_attacker_weights(scenario, attack, shape), [])
        if entry.needs_targets:
            other["targets"] = (scenario.targets, 1)
        if scenario.training == "linear" and entry.sees == "parameters":
            other["trained"] = ("linear", None)
        if entry.needs_surrogate:
            other["surrogates"] = (scenario.surrogates, 1)
            other["surrogate"] = (scenario.attackers.victim, scenario.victims.victim)
            other["surrogate_defence"] = (scenario.surrogate_defence, "")
            other["surrogate_training"] = (scenario.surrogate_training, "plain")
            other["stagger"] = (scenario.stagger, "")
    if defence != NONE:
        other["weights"] = (weights_digest(defence, shape), None)
    return {
        "protocol": scenario.protocol.name,
        "data": scenario.protocol.train,
        "attack": attack,
        "defence": defence,
        "victim": scenario.victim,
        "seed": seed,
        "target": seed % len(train.classes),
        "trigger_scale": scenario.trigger_scale,
        "settings": scenario.victims.config(),
        **{name: value for name, (value, usual) in other.items() if value != usual},
    }


def _attacker_weights(scenario: Any, attack: str, shape: Shape) -> list[str]:
    """Of the purifiers that the attacker crafts through and trains behind."""
    entry, _, through = attack_of(attack)
    specs = (through.get("through"), scenario.surrogate_defence if entry.needs_surrogate else "")
    digests = [weights_digest(spec, shape) for spec in specs if spec]
    return [digest for digest in digests if digest is not None]


def crafting_receipt(poison: Poison) -> dict[str, Any]:
    """How a poison was made, with its last objective, which images it is about, and the first digits of its SHA-256."""
    digest = hashlib.sha256()
    for array in (poison.index, poison.labels, poison.images):
        digest.update(np.ascontiguousarray(array).tobytes())
    targets = None if poison.targets is None else poison.targets.index.tolist()
    return poison.how | {"target_index": targets, "sha256": digest.hexdigest()[:12]}


def victim_seed(seed: int, number: int) -> int:
    """The seed with which victim `number` is trained: that of the row for the first one, drawn from it for others."""
    if not number:
        return seed
    return int(jax.random.randint(named(jax.random.key(seed), f"victim {number}"), (), 0, 2**31 - 1))


def adaptive(attack: str, defence: str, scenario: Any, shape: Shape, how: dict[str, Any] | None = None) -> bool:
    """Whether the attacker knew the defence: crafted through a part of it, or trained the surrogate behind one.

    Of a poison from a file there is only its own word, `how["adaptive"]`: that it was crafted through some purifier.
    """
    if NONE in (attack, defence):
        return False
    entry, _, through = attack_of(attack)
    if entry is STORED:
        return bool((how or {}).get("adaptive"))
    known = (through.get("through"), scenario.surrogate_defence if entry.needs_surrogate else "")
    return any(known_parts(spec, shape) & known_parts(defence, shape) for spec in known if spec)
