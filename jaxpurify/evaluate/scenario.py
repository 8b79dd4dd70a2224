"""Attack × defence × victim: poison the training set, purify it, train a victim, measure, write one row."""

from collections.abc import Callable
import dataclasses
import functools
import inspect
from pathlib import Path
import shutil
import time
from typing import Any

import jax
import numpy as np

from jaxpurify.attack.catalogue import named_attack
from jaxpurify.data.dataset import Dataset
from jaxpurify.data.poison import Poison, load_poison, poison_dataset, save_poison, triggered_test_set
from jaxpurify.data.sources import load_source
from jaxpurify.evaluate.metrics import natural_accuracy, poison_success
from jaxpurify.evaluate.protocol import Protocol
from jaxpurify.evaluate.purifiers import make_purifier
from jaxpurify.evaluate.specs import parse_spec
from jaxpurify.networks.freeze import Frozen
from jaxpurify.networks.stored import load_network, save_network
from jaxpurify.purify.dataset import purify
from jaxpurify.random import named
from jaxpurify.records import append_row, finished, make_row, run_id

NONE = "none"
Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A grid of rows: every attack and seed, against every defence.

    Attributes:
      protocol: data, victims and their training.
      attacks: specs such as `narcissus(epsilon=16/255, count=100)`.
      defences: purifier specs; `none` is the undefended control.
      seeds: each is one poison and one victim. The target class is seed mod classes.
      trigger_scale: strength of additive triggers at test, times that in training.
    """

    protocol: Protocol
    attacks: tuple[str, ...]
    defences: tuple[str, ...]
    seeds: tuple[int, ...]
    trigger_scale: float = 1.0

    def __post_init__(self):
        for text in self.attacks:
            spec = parse_spec(text)
            parameters = inspect.signature(named_attack(spec.name).craft).parameters.values()
            known = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]
            if spec.positional or not set(spec.options) <= set(known):
                raise ValueError(f"attack {text!r}: give options by name; known: {', '.join(known)}")

    def config(self) -> dict[str, Any]:
        """The settings as plain values, for reports."""
        settings = {"attacks": self.attacks, "defences": self.defences, "seeds": self.seeds}
        return {**settings, "trigger_scale": self.trigger_scale, **self.protocol.config()}


def run_scenario(scenario: Scenario, directory: Path | str, *, progress: Progress | None = None) -> Path:
    """Runs what is missing of the grid and appends it to `directory/results.jsonl`; safe to stop and continue.

    Poisons, surrogates and clean victims are kept in `directory` and used again. A purified set is kept while
    its victim trains. Controls are always part of the grid: a victim trained on clean data for every seed, on
    which the trigger's floor is measured, and the undefended victim of every attack.

    Args:
      scenario: the grid.
      directory: where everything is written.
      progress: called with (what is being done, finished parts, all parts).

    Returns:
      The path of the results file.
    """
    grid = _Grid(scenario, Path(directory), progress or (lambda *_: None))
    for seed in scenario.seeds:
        grid.clean(seed)
        for attack in scenario.attacks:
            for defence in dict.fromkeys((NONE, *scenario.defences)):
                grid.cell(attack, defence, seed)
    return grid.results


def kept_poison(directory: Path | str, scenario: Scenario, attack: str, seed: int) -> Poison:
    """The poison of one attack and seed of a scenario that has run in `directory`."""
    return _Grid(scenario, Path(directory), lambda *_: None).poison(attack, seed)


class _Grid:
    """The state of one run: data and models in memory, everything else on disk."""

    def __init__(self, scenario: Scenario, directory: Path, progress: Progress):
        self.scenario, self.directory, self.progress = scenario, directory, progress
        self.protocol = scenario.protocol
        self.train, self.test = self.protocol.load()
        self.results = directory / "results.jsonl"
        self.classes = len(self.train.classes)
        for defence in scenario.defences:  # a mistake in a spec shows before anything is written
            if defence != NONE:
                make_purifier(defence, self.train.images.shape[1:])
        directory.mkdir(parents=True, exist_ok=True)

    def clean(self, seed: int) -> None:
        """Row of the clean control: no attack, no defence."""
        config = self.config(NONE, NONE, seed)
        if run_id(config) in finished(self.results):
            return
        start = time.perf_counter()
        victim = self.clean_victim(seed)
        counts = natural_accuracy(victim, self.test.images, self.test.labels)
        self.write(config, counts, None, None, None, time.perf_counter() - start)

    def cell(self, attack: str, defence: str, seed: int) -> None:
        """One row: the victim trained on the poisoned set as `defence` leaves it."""
        config = self.config(attack, defence, seed)
        if run_id(config) in finished(self.results):
            return
        start = time.perf_counter()
        poison = self.poison(attack, seed)
        poisoned = poison_dataset(self.train, poison)
        name = f"{attack} seed {seed}, {defence}"
        partial = self.directory / "purified" / run_id(config)
        images = self.purified(poisoned, defence, seed, name, partial)
        victim = self.train_victim(poisoned.replace_images(images), seed, f"{name}: victim")
        counts = natural_accuracy(victim, self.test.images, self.test.labels)
        success = floor = None
        if poison.trigger is not None and poison.target is not None:
            triggered = triggered_test_set(self.test, poison, scale=self.scenario.trigger_scale)
            success = poison_success(victim, triggered.images, triggered.labels, poison.target)
            floor = poison_success(self.clean_victim(seed), triggered.images, triggered.labels, poison.target)
        self.write(config, counts, success, floor, poison, time.perf_counter() - start)
        shutil.rmtree(partial, ignore_errors=True)

    def config(self, attack: str, defence: str, seed: int) -> dict[str, Any]:
        return {
            "protocol": self.protocol.name,
            "data": self.protocol.train,
            "attack": attack,
            "defence": defence,
            "victim": self.protocol.victim,
            "seed": seed,
            "target": seed % self.classes,
            "trigger_scale": self.scenario.trigger_scale,
            "settings": self.protocol.config(),
        }

    def write(self, config, counts, success, floor, poison: Poison | None, seconds: float) -> None:
        how = {} if poison is None else poison.how
        row = make_row(
            **{name: config[name] for name in ("protocol", "data", "attack", "defence", "victim", "seed")},
            adaptive=False,
            natural_accuracy=counts.fraction,
            natural_accuracy_worst=counts.lowest,
            poison_success=None if success is None else success.fraction,
            poison_success_worst=None if success is None else success.highest,
            trigger_success_clean=None if floor is None else floor.fraction,
            poisons=0 if poison is None else len(poison),
            epsilon=how.get("epsilon"),
            labels_changed=how.get("labels_changed"),
            target=None if poison is None else poison.target,
            seconds=seconds,
            config=config,
        )
        append_row(self.results, row)

    def poison(self, attack: str, seed: int) -> Poison:
        """The poison of this attack and seed: crafted once, then read from disk."""
        path = self.directory / "poisons" / f"{run_id(self.config(attack, NONE, seed))}.npz"
        if path.exists():
            return load_poison(path)
        spec = parse_spec(attack)
        entry = named_attack(spec.name)
        options = dict(spec.options)
        if entry.needs_target:
            options.setdefault("target", seed % self.classes)
        key = named(jax.random.key(seed), f"attack {attack}")
        self.progress(f"{attack} seed {seed}: crafting", 0, 1)
        if entry.needs_surrogate:
            surrogate = self.surrogate()
            poison = entry.craft(_apply, surrogate, key, self.train.images, self.train.labels, **options)
        else:
            poison = entry.craft(self.train.images, self.train.labels, key, **options)
        self.progress(f"{attack} seed {seed}: crafting", 1, 1)
        path.parent.mkdir(exist_ok=True)
        save_poison(path, poison)
        return poison

    def purified(self, poisoned: Dataset, defence: str, seed: int, name: str, partial: Path) -> np.ndarray:
        if defence == NONE:
            return poisoned.images
        purifier = make_purifier(defence, poisoned.images.shape[1:])
        return purify(
            purifier,
            poisoned.images,
            key=named(jax.random.key(seed), f"purify {defence}"),
            directory=partial,
            progress=functools.partial(self.progress, f"{name}: purify"),
        )

    def train_victim(self, dataset: Dataset, seed: int, name: str) -> Frozen:
        return self.protocol.classifier(dataset, seed, progress=functools.partial(self.progress, name))

    @functools.lru_cache(maxsize=2)  # noqa: B019 - the grid lives as long as the run
    def clean_victim(self, seed: int) -> Frozen:
        return self.kept(f"clean-{seed}", lambda name: self.train_victim(self.train, seed, name))

    @functools.lru_cache(maxsize=1)  # noqa: B019
    def surrogate(self) -> Frozen:
        """The attacker's model: the victim's network trained on the public images."""

        def train(name: str) -> Frozen:
            public = load_source(self.protocol.public)
            report = functools.partial(self.progress, name)
            return self.protocol.classifier(public, 10_000, surrogate=True, progress=report)

        return self.kept("surrogate", train)

    def kept(self, name: str, train: Callable[[str], Frozen]) -> Frozen:
        digest = run_id(self.protocol.config())
        path = self.directory / "models" / f"{name}-{digest}.safetensors"
        if path.exists():
            return load_network(path)[0]
        model = train(f"{name.replace('-', ' seed ')}: training")
        path.parent.mkdir(exist_ok=True)
        save_network(path, model, network=self.protocol.network, options=self.protocol.config()["options"])
        return model


def _apply(model: Frozen, images):
    return model(images)
