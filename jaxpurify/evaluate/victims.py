"""The victim of a row: how it is trained, and how often it does what the attacker wants."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxpurify.data.dataset import Dataset
from jaxpurify.data.poison import Poison, triggered_test_set
from jaxpurify.evaluate.counts import Counts
from jaxpurify.evaluate.metrics import natural_accuracy, poison_success, predict
from jaxpurify.evaluate.protocol import Protocol, fine_tuning_recipe
from jaxpurify.networks.freeze import Frozen
from jaxpurify.random import named
from jaxpurify.train.transfer import fine_tune, linear_transfer
from jaxpurify.types import StoredImages

TRAININGS = ("scratch", "linear", "fine-tune")


def train_victim(
    training: str,
    protocol: Protocol,
    pretrained: Callable[[], Frozen],
    dataset: Dataset,
    seed: int,
    *,
    embedded: Callable[[StoredImages], np.ndarray] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Any:
    """A classifier trained on `dataset`.

    Args:
      training: `scratch`, `linear` or `fine-tune`, see `Scenario`.
      protocol: network, recipe and augmentation.
      pretrained: gives the network whose features are used; not called for `scratch`.
      dataset: the training set.
      seed: of weights, batches and augmentation.
      embedded: images to the features of `pretrained` for a `linear` victim, if they need not be computed here.
      progress: called with (finished epochs, all epochs).

    Raises:
      ValueError: an unknown `training`.
    """
    if training == "scratch":
        return protocol.classifier(dataset, seed, progress=progress)
    key, classes = named(jax.random.key(seed), training), len(dataset.classes)
    if training == "linear":
        model = pretrained()
        features = None if embedded is None else embedded(dataset.images)
        options: dict[str, Any] = {"classes": classes, "features": features, **protocol.head}
        return linear_transfer(model, dataset.images, dataset.labels, key, **options)[0]
    if training != "fine-tune":
        raise ValueError(f"training={training!r}; known: {', '.join(TRAININGS)}")
    recipe = fine_tuning_recipe(protocol)
    settings: dict[str, Any] = {"augment": protocol.augment, "progress": progress}
    return fine_tune(pretrained(), dataset.images, dataset.labels, key, recipe=recipe, classes=classes, **settings)[0]


def attack_success(victim: Any, poison: Poison, test: Dataset, *, scale: float = 1.0) -> Counts | None:
    """How often `victim` takes what the attacker shows it for the attacker's class; None for indiscriminate attacks.

    Triggered attacks are counted on all triggered test images of other classes, or of the source class where
    `how["source"]` names one; targeted ones on their target images. Self-betrayal (`how["criterion"]` is "unxent")
    wants no class but any wrong one.

    Args:
      victim: images [B, H, W, C] in [0, 1] to logits.
      poison: its trigger or targets, and its target class, are used.
      test: the clean test set.
      scale: strength of an additive trigger relative to training.
    """
    if poison.target is None:
        return None
    if poison.trigger is None:
        shown = poison.targets
        if shown is None:
            return None
        if _away(poison):
            right = natural_accuracy(victim, shown.images, shown.labels)
            return Counts(right.trials - right.hits, right.trials)
        return poison_success(victim, shown.images, shown.labels, poison.target)
    source = poison.how.get("source")
    if source is not None:
        test = test.select(test.labels == source)
    shown = triggered_test_set(test, poison, scale=applied_scale(poison, scale))
    return poison_success(victim, shown.images, shown.labels, poison.target)


def applied_scale(poison: Poison, scale: float) -> float:
    """The strength of the poison's trigger at test: `scale` where it is additive; 1 for patches and warps."""
    return scale if hasattr(poison.trigger, "delta") else 1.0


def target_hits(victim: Any, poison: Poison) -> list[bool] | None:
    """For each target image whether `victim` does what the attacker wants; None for attacks without any.

    Published trials of triggered attacks have a target too, which carries the trigger already.
    """
    if poison.targets is None:
        return None
    predictions = predict(victim, poison.targets.images)
    hits = predictions != poison.targets.labels if _away(poison) else predictions == poison.target
    return hits.tolist()


def _away(poison):
    """Whether targets are only to leave their true class."""
    return poison.how.get("criterion") == "unxent"
