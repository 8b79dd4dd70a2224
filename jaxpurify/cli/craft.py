"""`jaxpurify craft`: makes a poison, and writes the poisoned data set where one is asked for."""

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import tyro

from jaxpurify.cli.options import check_output, check_place, check_seed, check_two_classes, read_options

# Callables, which a spec cannot hold.
NOT_IN_SPECS = {"trigger", "transform"}


@dataclasses.dataclass(frozen=True)
class Options:
    """Make a poison for a training set.

    Attributes:
      attack: e.g. "badnets(count=100)"; `jaxpurify list` shows all with their options.
      source: digits, tfds:NAME/SPLIT, folder:PATH or npz:PATH, each with an optional slice such as [:1000].
      out: the .npz file of the poison.
      surrogate: the attacker's classifier, a .safetensors file from `jaxpurify train`.
      target: the class that the attacker wants.
      apply_to: also write the poisoned data set here, as the kind of thing that the source is.
      size: stretch every image to this height and width first.
      seed: of all random numbers.
      force: replace what is written if it exists.
    """

    attack: tyro.conf.Positional[str]
    source: tyro.conf.Positional[str]
    out: Path
    surrogate: Path | None = None
    target: int | None = None
    apply_to: Path | None = None
    size: int | None = None
    seed: int = 0
    force: bool = False


def main(arguments: list[str]) -> int | None:
    """Runs the command."""
    options = read_options(Options, arguments, command="craft")
    check_seed(options.seed)
    check_output(options.out, force=options.force, source=options.source, suffix=".npz")
    if options.apply_to is not None:
        check_place(options.apply_to, force=options.force, source=options.source)
        if options.apply_to.resolve() == options.out.resolve():
            raise ValueError(f"{options.out} cannot hold both the poison and the poisoned data; name two places")

    import jax

    from jaxpurify.data.poison import poison_dataset, save_poison
    from jaxpurify.data.sources import check_save, load_source, save_dataset
    from jaxpurify.networks.stored import load_network

    entry, settings = attack_options(options.attack, options.target)
    if entry.needs_target and "target" not in settings:
        raise ValueError(f"attack {options.attack!r} needs --target, the class that the attacker wants")
    if entry.needs_surrogate != (options.surrogate is not None):
        wanted = "needs --surrogate FILE.safetensors" if entry.needs_surrogate else "uses no --surrogate"
        raise ValueError(f"attack {options.attack!r} {wanted}")
    surrogate = None if options.surrogate is None else load_network(options.surrogate)[0]
    dataset = load_source(options.source, size=options.size)
    check_two_classes(dataset.labels, options.source)
    if options.apply_to is not None:
        check_save(dataset, options.apply_to, force=options.force)

    key = jax.random.key(options.seed)
    try:
        if surrogate is None:
            poison = entry.craft(dataset.images, dataset.labels, key, **settings)
        else:
            poison = entry.craft(_apply, surrogate, key, dataset.images, dataset.labels, **settings)
    except TypeError as error:  # a value of the wrong type, such as epsilon='large'
        raise ValueError(f"attack {options.attack!r}: {error}") from error
    save_poison(options.out, poison, force=options.force)
    about = ", ".join(f"{name} {value}" for name, value in poison.how.items())
    print(f"{len(poison):,} poisons of {len(dataset):,} images ({about}); {options.out}")
    if options.apply_to is not None:
        written = save_dataset(poison_dataset(dataset, poison), options.apply_to, force=options.force)
        print(f"poisoned data set: {written}")
    return None


def attack_options(spec: str, target: int | None = None) -> tuple[Any, dict[str, Any]]:
    """The catalogue's entry of an attack spec, and its options.

    Raises:
      ValueError: unknown attack, an option that it does not take, or two targets.
    """
    from jaxpurify.attack.catalogue import named_attack
    from jaxpurify.evaluate.specs import parse_spec

    part = parse_spec(spec)
    entry = named_attack(part.name)
    if part.positional:
        raise ValueError(f"attack {spec!r}: options are written name=value")
    parameters = inspect.signature(entry.craft).parameters.values()
    known = [each.name for each in parameters if each.kind == each.KEYWORD_ONLY and each.name not in NOT_IN_SPECS]
    unknown = [name for name in part.options if name not in known]
    if unknown:
        raise ValueError(f"attack {part.name!r} takes no option {unknown[0]!r}; known: {', '.join(known)}")
    settings = dict(part.options)
    if target is not None:
        if not entry.needs_target:
            raise ValueError(f"attack {part.name!r} has no target; leave --target out")
        if settings.setdefault("target", target) != target:
            raise ValueError(f"attack {spec!r} and --target {target} name two targets")
    return entry, settings


def _apply(model, images):
    return model(images)
