"""The classifiers that many rows of a grid share: clean victims and the attacker's surrogates, trained once."""

from collections.abc import Callable
import functools
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxpurify.data.dataset import Dataset
from jaxpurify.data.sources import load_source
from jaxpurify.defend.projected_gradient import ProjectedGradient
from jaxpurify.evaluate.counts import Counts
from jaxpurify.evaluate.embedded import Embedded
from jaxpurify.evaluate.metrics import accuracy, natural_accuracy
from jaxpurify.evaluate.protocol import Protocol, fine_tuning_settings
from jaxpurify.evaluate.purified import purify_key
from jaxpurify.evaluate.purifiers import make_purifier, weights_digest
from jaxpurify.evaluate.victims import train_victim
from jaxpurify.networks.freeze import Frozen
from jaxpurify.networks.stored import load_network, save_network
from jaxpurify.purify.dataset import fingerprint, purify
from jaxpurify.records import locked, run_id
from jaxpurify.types import StoredImages

SURROGATE_TRAININGS = {"plain": None, "adversarial": ProjectedGradient()}
STAGGERS = ("firstn", "full", "inbetween")
SURROGATE_SEED = 10_000  # of the first one; no victim has it or those of further ones (`Scenario` refuses them)


def staggered(stagger: str, epochs: int, members: int) -> tuple[int, ...]:
    """Epochs after which each of `members` models stops, so that an ensemble sees training at different times.

    "firstn": 0, 1, 2, …; "full": evenly from 0 to `epochs`; "inbetween": evenly between them, without either; "":
    empty, for models that are trained to the end. Names and numbers are those of the framework of arXiv:2102.13624.
    """
    steps = {"full": (0, members - 1), "inbetween": (1, members + 1)}
    if not stagger:
        return ()
    if stagger == "firstn":
        return tuple(range(members))
    first, parts = steps[stagger]
    return tuple(epochs * (first + member) // parts for member in range(members))


class Models:
    """Trained when first asked for, and kept in `directory`.

    Args:
      protocol: the victims' network and how classifiers are trained.
      attackers: the same with the network of the attacker's models.
      train: the clean training set.
      training: how victims are trained, as in `Scenario`.
      directory: where the files are.
      progress: called with (what is being done, finished parts, all parts).
      surrogate_defence: purifier spec; the attacker's models are trained on public images behind it.
      surrogate_training: of the attacker's models, a name in `SURROGATE_TRAININGS`.
      stop_after: epochs after which training of each of the attacker's models stops; empty: all are trained to the end.
    """

    def __init__(
        self,
        protocol: Protocol,
        attackers: Protocol,
        train: Dataset,
        training: str,
        directory: Path,
        progress: Callable[[str, int, int], None],
        surrogate_defence: str = "",
        surrogate_training: str = "plain",
        stop_after: tuple[int, ...] = (),
    ):
        self.protocol, self.attackers, self.train, self.training = protocol, attackers, train, training
        self.directory, self.progress, self.surrogate_defence = directory, progress, surrogate_defence
        self.adversary, self.stop_after = SURROGATE_TRAININGS[surrogate_training], stop_after
        self._trained: dict[tuple[Any, ...], Frozen] = {}

    def victim(self, dataset: Dataset, seed: int, name: str) -> Any:
        """A victim trained on `dataset`; not kept."""
        embedded = self.embedded if self.training == "linear" else None
        settings: dict[str, Any] = {"embedded": embedded, "progress": functools.partial(self.progress, name)}
        return train_victim(self.training, self.protocol, self.pretrained, dataset, seed, **settings)

    @functools.cached_property
    def embedded(self) -> Embedded:
        """Features of the network that transferred victims use; sets that are nearly alike are embedded once."""
        return Embedded(self.pretrained().features)

    def natural_accuracy(self, victim: Any, test: Dataset) -> Counts:
        """`metrics.natural_accuracy`; the features of the test images are the same for all linear victims."""
        if self.training != "linear":
            return natural_accuracy(victim, test.images, test.labels)
        logits = jnp.asarray(self.embedded(test.images)) @ victim.weight + victim.bias[None]
        return accuracy(np.asarray(logits.argmax(-1), np.int32), test.labels)

    @functools.lru_cache(maxsize=8)  # noqa: B019 - these models live as long as the run
    def clean_victim(self, seed: int, defence: str = "", purified: Callable[[str], StoredImages] | None = None) -> Any:
        """The victim trained on clean data, or on what `purified(defence)` says that a defence makes of it."""

        def train(name: str) -> Any:
            clean = self.train if purified is None else self.train.replace_images(purified(defence))
            return self.victim(clean, seed, name)

        if self.training == "linear":  # a second's work, and no network of the catalogue
            return train(f"clean seed {seed}")
        behind = {}
        if purified is not None:
            behind = {"defence": defence, "weights": weights_digest(defence, self.train.images.shape[1:])}
        if self.training == "scratch":
            return self._kept(f"clean-{seed}", train, self.protocol, self.protocol.config() | behind)
        settings = self.protocol.config() | {"fine_tuning": fine_tuning_settings(self.protocol)} | behind
        return self._kept(f"clean-{self.training}-{seed}", train, self.protocol, settings)

    def surrogate(self, member: int = 0) -> Frozen:
        """The attacker's model, or a member of the ensemble: trained on the public images.

        Raises:
          ValueError: the public images have other classes.
        """
        stop_after = self.stop_after[member] if self.stop_after else None
        return self._public(self.attackers, member, self.surrogate_defence, self.adversary, stop_after)

    def pretrained(self) -> Frozen:
        """The network whose features a transferred victim uses, trained plainly on the public images.

        It is the attacker's own where that is trained so too, and both have the same network.
        """
        return self._public(self.protocol, 0, "", None)

    def _public(
        self,
        protocol: Protocol,
        member: int,
        defence: str,
        adversary: Callable | None,
        stop_after: int | None = None,
    ) -> Frozen:
        known = (protocol.victim, member, defence, adversary, stop_after)
        if known not in self._trained:
            self._trained[known] = self._train_public(protocol, member, defence, adversary, stop_after)
        return self._trained[known]

    def _train_public(
        self, protocol: Protocol, member: int, defence: str, adversary: Callable | None, stop_after: int | None
    ) -> Frozen:
        def train(name: str) -> Frozen:
            source = protocol.surrogate_source or protocol.public
            public = load_source(source)
            if len(public.classes) != len(self.train.classes):
                raise ValueError(
                    f"{source} has {len(public.classes)} classes and {self.protocol.train} has "
                    f"{len(self.train.classes)}; this attack's surrogate needs the same ones"
                )
            if defence:
                public = public.replace_images(self._purified(public.images, defence))
            report = functools.partial(self.progress, name)
            options: dict[str, Any] = {"adversary": adversary, "stop_after": stop_after, "progress": report}
            return protocol.classifier(public, SURROGATE_SEED + member, surrogate=True, **options)

        settings = protocol.config()
        decisive = ("public", "network", "options", "surrogate_recipe", "surrogate_source", "augment")
        name = f"surrogate-{member}" if member else "surrogate"
        chosen = {name: settings[name] for name in decisive if name in settings}
        # Named only where they are: a plain model keeps its file.
        if defence:
            chosen |= {"defence": defence, "weights": weights_digest(defence, self.train.images.shape[1:])}
        if adversary:
            chosen["adversary"] = repr(adversary)
        if stop_after is not None:
            chosen["stop_after"] = stop_after
        return self._kept(name, train, protocol, chosen)

    def _purified(self, images: np.ndarray, defence: str) -> np.ndarray:
        purifier, key = make_purifier(defence, images.shape[1:]), purify_key()
        name = run_id(fingerprint(purifier, images, np.arange(len(images)), key))
        report = functools.partial(self.progress, f"public images, {defence}: purify")
        return purify(purifier, images, key=key, directory=self.directory / f"public-{name}", progress=report)

    def _kept(self, name: str, train: Callable[[str], Any], protocol: Protocol, settings: dict[str, Any]) -> Any:
        path = self.directory / f"{name}-{run_id(settings)}.safetensors"
        with locked(self.directory / f".{path.stem}.lock"):  # a second process waits for the first one's model
            if path.exists():
                return load_network(path)[0]
            model = train(f"{name.replace('-', ' seed ')}: training")
            save_network(path, model, network=protocol.network, options=protocol.config()["options"])
            return model
