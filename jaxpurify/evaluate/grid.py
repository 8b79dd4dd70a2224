"""Runs a scenario: poison the training set, purify it, train a victim, measure, write one row."""

from collections.abc import Callable
import dataclasses
import functools
from pathlib import Path
import time
from typing import Any

import jax
from jaxtyping import Array, Key
import numpy as np

from jaxpurify.attack.choose import check_target, poison_count
from jaxpurify.data.poison import Poison, load_poison, poison_dataset, save_poison
from jaxpurify.evaluate.counts import Counts
from jaxpurify.evaluate.crafting import adaptive_purifier, attack_of, attackers_purifier, choose_targets, craft
from jaxpurify.evaluate.models import Models
from jaxpurify.evaluate.purified import purified_poisoned, purify_key
from jaxpurify.evaluate.purifiers import make_purifier
from jaxpurify.evaluate.row import NONE, adaptive, crafting_receipt, row_config, victim_seed
from jaxpurify.evaluate.scenario import Scenario
from jaxpurify.evaluate.specs import canonical
from jaxpurify.evaluate.stored_poison import STORED
from jaxpurify.evaluate.victims import applied_scale, attack_success, target_hits
from jaxpurify.networks.freeze import Frozen
from jaxpurify.purify.dataset import purify
from jaxpurify.random import named
from jaxpurify.records import append_row, finished, git, locked, make_row, run_id

Progress = Callable[[str, int, int], None]


def run_scenario(
    scenario: Scenario,
    directory: Path | str,
    *,
    results: Path | str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Runs what is missing of the grid and appends it to `directory/results.jsonl`; safe to stop and continue.

    Poisons, surrogates, clean victims and purified clean images are kept in `directory` and used again. Controls are
    always part of the grid: victims trained on clean data for every seed, on which the trigger's floor is measured,
    and the undefended victim of every attack.

    Args:
      scenario: the grid.
      directory: where everything is written.
      results: the file to which rows are appended; default `directory/results.jsonl`.
      progress: called with (what is being done, finished parts, all parts).

    Returns:
      The path of the results file.
    """
    grid = _Grid(scenario, Path(directory), progress or (lambda *_: None), results)
    for seed in scenario.seeds:
        grid.clean(seed)
        for attack in scenario.attacks:
            for defence in dict.fromkeys((NONE, *scenario.defences)):
                grid.cell(attack, defence, seed)
                if scenario.purified_controls and defence != NONE:
                    grid.cell(attack, defence, seed, control=True)
    return grid.results


def kept_poison(directory: Path | str, scenario: Scenario, attack: str, seed: int) -> Poison:
    """The poison of one attack and seed of a scenario that has run in `directory`."""
    return _Grid(scenario, Path(directory), lambda *_: None).poison(canonical(attack), seed)


class _Grid:
    """The state of one run: data and models in memory, everything else on disk."""

    def __init__(self, scenario: Scenario, directory: Path, progress: Progress, results: Path | str | None = None):
        git()  # what is asked first stays: rows name the code that this process has loaded
        self.scenario, self.directory, self.progress = scenario, directory, progress
        self.protocol = scenario.protocol
        self.train, self.test = self.protocol.load()
        self.results = directory / "results.jsonl" if results is None else Path(results)
        self.classes = len(self.train.classes)
        self.floors: dict[tuple[str, int, int], Counts | None] = {}
        for defence in scenario.defences:  # before anything is written
            if defence != NONE:
                make_purifier(defence, self.train.images.shape[1:])
        if scenario.surrogate_defence:
            attackers_purifier(scenario.surrogate_defence, self.train.images.shape[1:])
        for entry, settings, through in map(attack_of, scenario.attacks):
            adaptive_purifier(through, self.train.images.shape[1:])
            if "count" in entry.options:
                poison_count(settings.get("count"), settings.get("fraction"), len(self.train))
            if "target" in settings:
                check_target(settings["target"], self.train.labels)
            if entry is STORED:
                poison_dataset(self.train, craft(entry, settings, None, self.train, jax.random.key(0)))
        directory.mkdir(parents=True, exist_ok=True)
        self.models = Models(
            scenario.victims,
            scenario.attackers,
            self.train,
            scenario.training,
            directory / "models",
            self.progress,
            scenario.surrogate_defence,
            scenario.surrogate_training,
            scenario.surrogates_stop_after,
        )

    def clean(self, seed: int) -> None:
        """Rows of the clean control: no attack, no defence."""
        for number, config in self.missing(NONE, NONE, seed).items():
            start = time.perf_counter()
            victim = self.models.clean_victim(victim_seed(seed, number))
            counts = self.models.natural_accuracy(victim, self.test)
            self.write(config, counts, None, None, None, time.perf_counter() - start)

    def cell(self, attack: str, defence: str, seed: int, control: bool = False) -> None:
        """The rows of victims trained on the poisoned set, or as a control on the clean one, as `defence` leaves it."""
        missing = self.missing(attack, defence, seed, control)
        if not missing:
            return
        start = time.perf_counter()
        poison = self.poison(attack, seed)
        name = f"{attack} seed {seed}, {defence}"
        poisoned = self.train
        if not control:
            poisoned = poison_dataset(self.train, poison)
            poisoned = poisoned.replace_images(self.purified(poison, defence, name))
        for number, config in missing.items():
            own = victim_seed(seed, number)
            if control:
                victim = self.models.clean_victim(own, defence, self.purified_clean)
            else:
                report = f"{name}: victim {number + 1}" if number else f"{name}: victim"
                victim = self.models.victim(poisoned, own, report)
            counts = self.models.natural_accuracy(victim, self.test)
            success = attack_success(victim, poison, self.test, scale=self.scenario.trigger_scale)
            floor = None if success is None else self.floor(attack, seed, number, poison)
            hits = target_hits(victim, poison)
            self.write(config, counts, success, floor, poison, time.perf_counter() - start, hits)
            start = time.perf_counter()

    def floor(self, attack: str, seed: int, number: int, poison: Poison) -> Counts | None:
        """The same trigger or targets on the victim of that number trained on clean data; once for all defences."""
        if (attack, seed, number) not in self.floors:
            victim = self.models.clean_victim(victim_seed(seed, number))
            success = attack_success(victim, poison, self.test, scale=self.scenario.trigger_scale)
            self.floors[attack, seed, number] = success
        return self.floors[attack, seed, number]

    def missing(self, attack: str, defence: str, seed: int, control: bool = False) -> dict[int, dict[str, Any]]:
        """What makes the rows that are not written yet, by the number of their victim."""
        done, numbers = finished(self.results), range(self.scenario.victim_seeds)
        of = (self.scenario, attack, defence, seed, self.train)
        configs = {each: row_config(*of, each, control) for each in numbers}
        return {number: config for number, config in configs.items() if run_id(config) not in done}

    def write(self, config, counts, success, floor, poison: Poison | None, seconds: float, hits=None) -> None:
        how, control = {} if poison is None else poison.how, config.get("control")
        told = {"control": control, "poisons_left_out": len(poison)} if control and poison is not None else {}
        if poison is not None and self.scenario.trigger_scale != 1.0:  # asked for; applied to additive triggers alone
            told["trigger_scale"] = applied_scale(poison, self.scenario.trigger_scale)
        if hits is not None and poison is not None and poison.trigger is not None:
            # Success is of all triggered test images; the published target is counted beside it.
            told, hits = told | {"triggered_target_hits": hits}, None
        row = make_row(
            **{name: config[name] for name in ("protocol", "data", "attack", "defence", "victim", "seed")},
            victim_seed=config.get("victim_seed", 0),
            adaptive=adaptive(config["attack"], config["defence"], self.scenario, self.train.images.shape[1:], how),
            natural_accuracy=counts.fraction,
            natural_accuracy_worst=counts.lowest,
            poison_success=None if success is None else success.fraction,
            poison_success_worst=None if success is None else success.highest,
            trigger_success_clean=None if floor is None else floor.fraction,
            poisons=0 if poison is None or control else len(poison),
            epsilon=how.get("epsilon"),
            labels_changed=how.get("labels_changed"),
            target=None if poison is None else poison.target,
            target_hits=hits,
            crafted=None if poison is None else crafting_receipt(poison),
            seconds=seconds,
            config=config,
            **told,
        )
        append_row(self.results, row)

    def poison(self, attack: str, seed: int) -> Poison:
        """The poison of this attack and seed: crafted once, then read from disk."""
        # Of the attacker's side alone: victims of another network meet the same poison.
        own = dataclasses.replace(self.scenario, victim_network=self.scenario.surrogate_network)
        path = self.directory / "poisons" / f"{run_id(row_config(own, attack, NONE, seed, self.train))}.npz"
        with locked(self.directory / "locks" / path.stem):  # a second process waits, and finds the poison
            if not path.exists():
                save_poison(path, self.crafted(attack, seed))
        return load_poison(path)

    def crafted(self, attack: str, seed: int) -> Poison:
        """A new poison of this attack and seed."""
        entry, settings, through = attack_of(attack)
        if entry.needs_target:
            settings.setdefault("target", seed % self.classes)
        key = named(jax.random.key(seed), f"attack {attack}")
        if entry.needs_targets:
            # Not of the other options: attacks of a seed with the same target and base are after the same images.
            settings["targets"] = choose_targets(
                self.test,
                named(jax.random.key(seed), "targets"),
                settings["target"],
                self.scenario.targets,
                settings.get("base"),
            )
        if through:
            settings["transform"] = adaptive_purifier(through, self.train.images.shape[1:])
        surrogate = None
        if entry.needs_surrogate:
            members = tuple(self.models.surrogate(member) for member in range(self.scenario.surrogates))
            surrogate = members if len(members) > 1 else members[0]
        report = functools.partial(self.progress, f"{attack} seed {seed}: crafting")
        how: dict[str, Any] = {"retrain": self.retrain, "progress": report}
        if self.scenario.training == "linear":  # victims keep the features, and so do surrogates
            how |= {"retrain": None, "trained": "linear"}
        return craft(entry, settings, surrogate, self.train, key, **how)

    def purified(self, poison: Poison, defence: str, name: str) -> np.ndarray:
        if defence == NONE:
            return poison_dataset(self.train, poison).images
        purifier = make_purifier(defence, self.train.images.shape[1:])
        report = functools.partial(self.progress, f"{name}: purify")
        return purified_poisoned(purifier, self.train, poison, self.directory / "purified", progress=report)

    def purified_clean(self, defence: str) -> np.ndarray:
        """The clean training set as `defence` leaves it."""
        nothing = Poison(self.train.images[:0], self.train.labels[:0], np.zeros(0, np.int64))
        return self.purified(nothing, defence, f"clean, {defence}")

    def retrain(self, images: np.ndarray, labels: np.ndarray, key: Key[Array, ""]) -> Frozen:
        """A new surrogate, trained on what an attack has poisoned so far."""
        seed, behind = int(jax.random.randint(key, (), 0, 2**31 - 1)), self.scenario.surrogate_defence
        if behind:
            images = purify(make_purifier(behind, images.shape[1:]), images, key=purify_key())
        poisoned = dataclasses.replace(self.train, images=images, labels=labels)
        return self.scenario.attackers.classifier(poisoned, seed, adversary=self.models.adversary)
