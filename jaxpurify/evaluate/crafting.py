"""How an attack of the catalogue is called: what it sees of a surrogate, its targets, what it goes through."""

from collections.abc import Callable, Sequence
import dataclasses
import inspect
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key
import numpy as np

from jaxpurify.attack.budget import levels
from jaxpurify.attack.catalogue import Attack, named_attack
from jaxpurify.attack.choose import check_whole, poison_count
from jaxpurify.attack.matching import Passenger, check_criterion
from jaxpurify.data.augment import ContinuousShift
from jaxpurify.data.dataset import Dataset
from jaxpurify.data.poison import Poison, Targets
from jaxpurify.evaluate.purifiers import make_purifier
from jaxpurify.evaluate.specs import parse_spec
from jaxpurify.evaluate.stored_poison import STORED
from jaxpurify.networks.freeze import Frozen
from jaxpurify.networks.partition import split_trainable
from jaxpurify.purify.adaptive import Adaptive
from jaxpurify.purify.filter import TopEnergy
from jaxpurify.random import named
from jaxpurify.sharding import batch_mesh
from jaxpurify.types import Purifier

# Callables, arrays and devices, which a spec cannot hold, what returns several poisons, and what would do nothing:
# nobody refreshes MetaPoison's members here, and features of frozen networks draw nothing.
_NOT_IN_SPECS = {
    "trigger", "transform", "targets", "overlay", "mesh", "separately", "targets_together", "bases", "retrain",
    "refresh", "refresh_every", "draws", "progress",
}  # fmt: skip
END_TO_END = "end_to_end"  # what a spec says of features: those after every block
# Options that are names, and what refuses those that are none.
_NAMES = {"loss": Passenger, "criterion": check_criterion}
# What a spec says of the purifier that an attacker crafts through, for every attack that follows a gradient.
ADAPTIVE = ("through", "gradient", "gradient_steps", "gradient_difference")


def attack_of(spec: str) -> tuple[Attack, dict[str, Any], dict[str, Any]]:
    """The attack that `spec` names, its own options, and those of the purifier that it goes through.

    `through="langevin(steps=150)"` makes any attack that follows a gradient adaptive; `gradient`, `gradient_steps` and
    `gradient_difference` are `Adaptive`'s mode, steps and difference. `augment=4` makes an attack that takes an
    augmentation craft through shifts of up to 4 pixels and mirroring (`data.augment.ContinuousShift`). `hidden=True`
    hides the poisons of gradient matching in the surrogate's own features. `end_to_end=True` makes an attack on
    features follow those after every block of the surrogate, for victims that are fine-tuned or trained from scratch.
    `stored(path="…")` is a poison from a file (`evaluate.stored_poison`).

    Raises:
      ValueError: an unknown attack, positional options, an option that it does not take, a fraction where a whole
        number is due, a budget outside [1/255, 1], or an option that would do nothing without another one.
    """
    part = parse_spec(spec)
    entry = STORED if part.name == "stored" else named_attack(part.name)
    if part.positional:
        raise ValueError(f"attack {spec!r}: options are written name=value")
    known = [name for name in entry.options if name not in not_in_specs(entry)] + spec_options(entry)
    unknown = [name for name in part.options if name not in known]
    if unknown:
        raise ValueError(f"attack {part.name!r} takes no option {unknown[0]!r}; known: {', '.join(known)}")
    pixels = part.options.get("augment", 0)
    if isinstance(pixels, bool) or not isinstance(pixels, int) or pixels < 0:
        raise ValueError(f"augment={pixels!r}; it must be a number of pixels, 0 or more, by which images are shifted")
    _check_options(entry, part.options)
    through = {name: value for name, value in part.options.items() if name in ADAPTIVE}
    if through and "through" not in through:
        raise ValueError(f"attack {spec!r}: {next(iter(through))} goes with through='…', the purifier")
    if not isinstance(through.get("through", ""), str):
        raise ValueError(f"through={through['through']!r}; it must be a purifier in quotes, as 'langevin(steps=150)'")
    check_gradient(through)
    return entry, {name: value for name, value in part.options.items() if name not in through}, through


def not_in_specs(entry: Attack) -> set[str]:
    """Options of an attack's function that specs cannot say; `patch` where it is an image and no size."""
    patch = inspect.signature(entry.craft).parameters.get("patch")
    return _NOT_IN_SPECS | ({"patch"} if patch is not None and patch.annotation is not int else set())


def spec_options(entry: Attack) -> list[str]:
    """Options that specs of an attack take beside those of its function."""
    own = [END_TO_END] if entry.sees == "features" else []
    return [*own, *ADAPTIVE] if "transform" in entry.options else own


def check_gradient(through: dict[str, Any]) -> None:
    """Raises ValueError for an option of the purifier crafted through that its kind of gradient does not use."""
    mode = through.get("gradient", "exact")
    if "gradient_steps" in through and mode != "truncated":
        raise ValueError(f"gradient_steps={through['gradient_steps']!r} goes with gradient='truncated', not {mode!r}")
    if through.get("gradient_difference") is not None and mode == "straight_through":
        difference = through["gradient_difference"]
        raise ValueError(f"gradient_difference={difference!r}: a straight_through gradient has no derivatives")


def _check_options(entry, options):
    """Refuses values that an attack would refuse only after surrogates were trained, or would not notice."""
    parameters = inspect.signature(entry.craft).parameters
    annotations = {name: parameters[name].annotation for name in options if name in parameters}
    check_whole(**{name: options[name] for name, kind in annotations.items() if kind in (int, int | None)})
    if not isinstance(options.get("base"), str):
        check_whole(base=options.get("base"))
    for name, kind in annotations.items():
        if kind is bool and not isinstance(options[name], bool):
            raise ValueError(f"{name}={options[name]!r}; it must be True or False")
    for name in ("steps", "restarts"):
        if options.get(name) is not None and options[name] < 1:
            raise ValueError(f"{name} is {options[name]}; it must be at least 1")
    for name, check in _NAMES.items():
        if name in options:
            check(options[name])
    if "epsilon" in options and entry.norm == "linf":
        unbounded = options["epsilon"] is None and annotations["epsilon"] == float | None
        if not unbounded:
            levels(options["epsilon"])
    if not isinstance(options.get("hidden", False), bool):
        raise ValueError(f"hidden={options['hidden']!r}; it must be True, the surrogate's features, or False")
    if not isinstance(options.get(END_TO_END, False), bool):
        raise ValueError(f"{END_TO_END}={options[END_TO_END]!r}; it must be True, the outputs of all blocks, or False")
    if entry is STORED and not isinstance(options.get("path"), str):
        raise ValueError(f"path={options.get('path')!r}; stored(path='…') names a file or folder")
    if "hidden_weight" in options and not options.get("hidden"):
        raise ValueError(f"hidden_weight={options['hidden_weight']!r} goes with hidden=True")


def adaptive_purifier(options: dict[str, Any], shape: tuple[int, ...]) -> Adaptive | None:
    """The purifier that the attacker crafts through, or None. A filter ranks the images of one step of the attack.

    Raises:
      ValueError: an unknown purifier or gradient, or a purifier that no attacker has.
    """
    if not options:
        return None
    mode, steps = options.get("gradient", "exact"), options.get("gradient_steps", 8)
    purifier = attackers_purifier(options["through"], shape)
    return Adaptive(purifier, mode, steps, options.get("gradient_difference"))


def attackers_purifier(spec: str, shape: tuple[int, ...]) -> Purifier:
    """`make_purifier` for what an attacker crafts through or trains behind.

    Raises:
      ValueError: as there, or a filter that would have to know the poisons.
    """
    purifier = make_purifier(spec, shape)
    if isinstance(purifier, TopEnergy) and purifier.compat:
        raise ValueError(f"purifier {spec!r}: a filter with compat=True is for tables, not for attackers")
    return purifier


def choose_targets(test: Dataset, key: Key[Array, ""], target: int, count: int, base: Any = None) -> Targets:
    """`count` images of one class other than `target` and `base`, class and images drawn with `key`.

    Raises:
      ValueError: the class drawn has fewer images, or there is no such class.
    """
    others = [label for label in range(len(test.classes)) if label not in (target, base)]
    if not others:
        raise ValueError(f"target {target} and base {base} leave none of {len(test.classes)} classes for the targets")
    true_class = others[int(jax.random.randint(named(key, "class"), (), 0, len(others)))]
    members = np.flatnonzero(test.labels == true_class)
    if len(members) < count:
        raise ValueError(f"{count} target images are asked for; class {true_class} has {len(members)} test images")
    index = np.asarray(jax.random.permutation(named(key, "images"), members))[:count]
    return Targets(test.images[index], test.labels[index], index)


def craft(
    entry: Attack,
    settings: dict[str, Any],
    surrogate: Frozen | Sequence[Frozen] | None,
    train: Dataset,
    key: Key[Array, ""],
    *,
    retrain: Callable[..., Frozen] | None = None,
    progress: Callable[[int, int], None] | None = None,
    trained: str | None = None,
) -> Poison:
    """Calls an attack.

    Args:
      entry: the attack.
      settings: its keyword arguments, as `attack_of` reads them from a spec.
      surrogate: the attacker's model, or the members of an ensemble; None for attacks without one.
      train: the clean training set.
      key: consumed.
      retrain: (images, labels, key) to a new surrogate, for attacks that train theirs again on what is poisoned so
        far; called once for each member of an ensemble.
      progress: called with (finished steps, all steps); an attack without steps is one.
      trained: the one layer that victims train, whose gradients are then matched (`"linear"` for victims on frozen
        features); None: all of the network.

    Raises:
      ValueError: a setting of the wrong type or value.
    """
    stepwise = "progress" in entry.options
    if "mesh" in entry.options:
        settings = settings | {"mesh": _shared_poisons(entry, settings, train)}
    if progress is not None and stepwise:
        settings = settings | {"progress": progress}
    pixels = settings.get("augment")
    if pixels is not None:
        colour = (train.images.mean((0, 1, 2)) / 255).astype(np.float32)
        settings = settings | {"augment": ContinuousShift(pixels, fill=jnp.asarray(colour)) if pixels else None}
    try:
        poison = _called(entry, settings, surrogate, train, key, retrain, trained)
    except TypeError as error:  # a value of the wrong type, such as epsilon='large'
        given = ", ".join(
            f"{name}={value!r}" for name, value in settings.items() if isinstance(value, int | float | str)
        )
        raise ValueError(f"{entry.craft.__name__}({given}): {error}") from error
    if progress is not None and not stepwise:
        progress(1, 1)
    return poison


def _shared_poisons(entry, settings, train):
    """The devices that share the poisons of each restart: all that can, where the restarts do not go evenly over all.

    None for mini-batches and the engine `reverse`, which `split_over` leaves to the compiler, and behind a filter,
    which ranks all poisons. Two devices on two cores of an EPYC: ResNet-9 of width 16 crafts 128 poisons 1.5 times as
    fast as one does.
    """
    defaults = {name: option.default for name, option in inspect.signature(entry.craft).parameters.items()}
    given = defaults | settings
    bases = given["bases"]
    if bases is None:
        count = poison_count(given["count"], given["fraction"], len(train))
    else:
        count = len(set(np.asarray(bases).tolist()))
    mesh = batch_mesh(count)
    apart = given["engine"] == "two-pass" and given["match"] == "all"
    apart = apart and not isinstance(getattr(given["transform"], "purifier", None), TopEnergy)
    return mesh if apart and mesh.size > 1 and given["restarts"] % jax.local_device_count() else None


def _called(entry, settings, surrogate, train, key, retrain, trained):
    """The attack on what it sees of the surrogate."""
    if surrogate is None:
        return entry.craft(train.images, train.labels, key, **settings)
    params = surrogate if isinstance(surrogate, Frozen) else tuple(surrogate)
    if entry.sees == "parameters":
        apply, params = split_trainable(params, trained)
        if "hidden" in settings:
            settings = settings | {"hidden": _hidden(apply) if settings["hidden"] else None}
        if retrain is not None and "retrain" in entry.options:
            settings = settings | {"retrain": _Retrained(retrain, surrogate, trained)}
    elif settings.get(END_TO_END):
        apply = _answer
        params = params.block_outputs if isinstance(params, Frozen) else tuple(each.block_outputs for each in params)
    else:
        apply = _features if entry.sees == "features" else _answer
    settings = {name: value for name, value in settings.items() if name != END_TO_END}
    return entry.craft(apply, params, key, train.images, train.labels, **settings)


class _Retrained:
    """A surrogate, or as many members as an ensemble has, from a function that trains one classifier."""

    def __init__(self, retrain: Callable[..., Frozen], surrogate: Frozen | Sequence[Frozen], trained: str | None):
        self.retrain, self.trained = retrain, trained
        self.members = None if isinstance(surrogate, Frozen) else len(surrogate)

    def __call__(self, images, labels, key):
        if self.members is None:
            return split_trainable(self.retrain(images, labels, key), self.trained)
        keys = [jax.random.fold_in(key, member) for member in range(self.members)]
        return split_trainable([self.retrain(images, labels, own) for own in keys], self.trained)


def _hidden(apply):
    """The penultimate features of a network, or of each member, as a function of what training moves."""
    if isinstance(apply, tuple):
        return tuple(_hidden(member) for member in apply)
    return dataclasses.replace(apply, method="features")


def _answer(model: Frozen, images):
    return model(images)


def _features(model: Frozen, images):
    return model.features(images)
