"""`jaxpurify craft`: makes a poison, and writes the poisoned data set where one is asked for."""

from collections.abc import Iterator
import dataclasses
import functools
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxpurify.cli.options import Source, check_output, check_place, check_seed, check_two_classes, read_options
from jaxpurify.cli.progress import progress_display


@dataclasses.dataclass(frozen=True)
class Options:
    """Make a poison for a training set.

    Attributes:
      attack: e.g. "badnets(count=100)"; `jaxpurify list` shows all with their options. Surrogates stay as they are:
        sleeper_agent trains them again in grids (`jaxpurify evaluate`) only.
      source: digits, tfds:NAME/SPLIT, folder:PATH, npz:PATH, cinic10:PATH/SPLIT or tiny-imagenet:PATH/SPLIT,
        each with an optional slice such as [:1000].
      out: the .npz file of the poison, or its folder.
      format: npz is our own file. benchmark is a folder that the poisoning benchmark reads; it needs --targets, and
        the indices in it are positions in SOURCE.
      surrogate: the attacker's classifier, a .safetensors file from `jaxpurify train`; several are an ensemble.
      target: the class that the attacker wants.
      targets: where the images come from that a targeted attack wants misclassified, such as tfds:cifar10/test.
      target_index: their positions there.
      setup: a file of the poisoning benchmark's trials, which names target class, target image and poisons; needs
        --targets. The positions in it are those of SOURCE and of --targets.
      trial: which of them.
      through: a purifier, such as "langevin(steps=150)", that the attacker crafts through.
      gradient: of --through: exact, truncated (the last --gradient-steps steps only) or straight_through (identity).
      gradient_steps: how many of the last steps a truncated gradient goes through.
      gradient_difference: take the second derivatives of energies as differences at this distance, such as 0.01;
        those of ReLU networks are zero otherwise.
      apply_to: also write the poisoned data set here, as the kind of thing that the source is.
      size: stretch every image to this height and width first.
      seed: of all random numbers.
      force: replace what is written if it exists.
    """

    attack: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ATTACK")]
    source: Source
    out: Path
    surrogate: tuple[Path, ...] = ()
    target: int | None = None
    targets: str | None = None
    target_index: tuple[int, ...] = ()
    setup: Path | None = None
    trial: int = 0
    through: str | None = None
    gradient: Literal["exact", "truncated", "straight_through"] = "exact"
    gradient_steps: int = 8
    gradient_difference: float | None = None
    format: Literal["npz", "benchmark"] = "npz"
    apply_to: Path | None = None
    size: int | None = None
    seed: int = 0
    force: bool = False


def main(arguments: list[str]) -> int | None:
    """Runs the command."""
    options = read_options(Options, arguments, command="craft")
    check_seed(options.seed)
    places = {"force": options.force, "source": options.source}
    places["reads"] = (*options.surrogate, *filter(None, (options.setup, *_read_places(options))))
    if options.format == "npz":
        check_output(options.out, suffix=".npz", **places)
    else:
        check_place(options.out, **places)
    if options.apply_to is not None:
        check_place(options.apply_to, **places)
        if options.apply_to.resolve() == options.out.resolve():
            raise ValueError(f"{options.out} cannot hold both the poison and the poisoned data; name two places")

    import jax

    from jaxpurify.data.interchange import write_benchmark
    from jaxpurify.data.poison import poison_dataset, save_poison
    from jaxpurify.data.sources import check_save, load_source, save_dataset
    from jaxpurify.evaluate.crafting import adaptive_purifier, check_gradient, craft

    entry, settings = attack_options(options.attack, options.target)
    if options.setup is None and options.trial:
        raise ValueError(f"--trial {options.trial} goes with --setup, the file of trials")
    dataset = setup = None
    if options.setup is not None:
        dataset = load_source(options.source, size=options.size)
        setup = _trial(options, entry, settings, dataset.labels)
        options = dataclasses.replace(options, target_index=(setup.target_index,))
        settings |= {"target": setup.base_class, "bases": setup.base_index}
        if "source" in entry.options:
            settings.setdefault("source", setup.target_class)
    if entry.needs_target and "target" not in settings:
        raise ValueError(f"attack {options.attack!r} needs --target, the class that the attacker wants")
    if entry.needs_surrogate != bool(options.surrogate):
        wanted = "needs --surrogate FILE.safetensors" if entry.needs_surrogate else "uses no --surrogate"
        raise ValueError(f"attack {options.attack!r} {wanted}")
    _check_targets(options, entry)
    check_gradient(_through(options))
    if options.format == "benchmark":
        _check_benchmark(options.attack, entry, settings)
    dataset = load_source(options.source, size=options.size) if dataset is None else dataset
    members = tuple(_classifier(path, dataset.images.shape[1:]) for path in options.surrogate)
    check_two_classes(dataset.labels, options.source)
    targets = None if options.targets is None else _load_targets(options, dataset, settings.get("target"), setup)
    if entry.needs_targets:
        settings["targets"] = targets
    if options.through is not None:
        settings["transform"] = adaptive_purifier(_through(options), dataset.images.shape[1:])
    if options.apply_to is not None:
        check_save(dataset, options.apply_to, force=options.force)

    surrogate = members if len(members) > 1 else next(iter(members), None)
    with progress_display(unit="steps") as progress:
        report = functools.partial(progress, f"craft {entry.craft.__name__}")
        poison = craft(entry, settings, surrogate, dataset, jax.random.key(options.seed), progress=report)
    if options.format == "npz":
        save_poison(options.out, poison, force=options.force)
    else:
        write_benchmark(options.out, dataclasses.replace(poison, targets=targets), force=options.force)
    about = ", ".join(f"{name} {value}" for name, value in poison.how.items())
    print(f"{len(poison):,} poisons of {len(dataset):,} images ({about}); {options.out}")
    if options.apply_to is not None:
        written = save_dataset(poison_dataset(dataset, poison), options.apply_to, force=options.force)
        print(f"poisoned data set: {written}")
    return None


def _read_places(options: Options) -> Iterator[Path | None]:
    """The files or folders of the targets and of a stored poison."""
    from jaxpurify.data.sources import source_path
    from jaxpurify.evaluate.specs import parse_spec

    if options.targets is not None:
        yield source_path(options.targets)
    attack = parse_spec(options.attack)
    if attack.name == "stored" and isinstance(attack.options.get("path"), str):
        yield Path(attack.options["path"])


def attack_options(spec: str, target: int | None = None) -> tuple[Any, dict[str, Any]]:
    """The catalogue's entry of an attack spec, and its options.

    Raises:
      ValueError: unknown attack, an option that it does not take or that does nothing here, or two targets.
    """
    from jaxpurify.evaluate.crafting import attack_of

    entry, settings, through = attack_of(spec)
    if through:
        raise ValueError(f"attack {spec!r}: on the command line the purifier is given by --through")
    if "retrain_every" in settings:
        raise ValueError(
            f"attack {spec!r}: surrogates are trained again by `jaxpurify evaluate` only; no retrain_every"
        )
    if target is not None:
        if not entry.needs_target:
            raise ValueError(f"attack {spec!r} has no target; leave --target out")
        if settings.setdefault("target", target) != target:
            raise ValueError(f"attack {spec!r} and --target {target} name two targets")
    return entry, settings


def _classifier(path, shape):
    """The network of a file, which must answer images of `shape` with logits."""
    import jax

    from jaxpurify.networks.stored import load_network

    network = load_network(path)[0]
    try:
        answer = jax.eval_shape(network, jax.ShapeDtypeStruct((2, *shape), "float32")).shape
    except (TypeError, ValueError):  # a noise predictor takes timesteps too; other channels
        answer = ()
    if len(answer) != 2:
        raise ValueError(f"--surrogate {path} holds no classifier of images of {shape}; `jaxpurify train` makes one")
    return network


def _trial(options, entry, settings, labels):
    """The trial of the benchmark that --setup and --trial name, checked against the labels of the training set."""
    from jaxpurify.data.interchange import read_setups

    if "bases" not in entry.options:
        raise ValueError(f"attack {options.attack!r} chooses its poisons itself; leave --setup out")
    named = [name for name in ("target", "count", "fraction", "base") if name in settings]
    if named or options.target_index:
        raise ValueError(f"--setup says what {(named or ['--target-index'])[0]} says; leave one of them out")
    if options.targets is None:
        raise ValueError("--setup needs --targets SOURCE, the test images among which its target is")
    setups = read_setups(options.setup, labels)
    if not 0 <= options.trial < len(setups):
        raise ValueError(f"--trial {options.trial}; {options.setup} holds trials 0 … {len(setups) - 1}")
    return setups[options.trial]


def _check_targets(options, entry):
    """Refuses target images where nothing uses them, and their absence where something does."""
    needed = entry.needs_targets or options.format == "benchmark"
    if needed and (options.targets is None or not options.target_index):
        what = "--format benchmark" if options.format == "benchmark" else f"attack {options.attack!r}"
        raise ValueError(f"{what} needs --targets SOURCE and --target-index, the images to be misclassified")
    if not needed and (options.targets is not None or options.target_index):
        raise ValueError(f"attack {options.attack!r} uses no --targets; --format benchmark does")
    if options.through is not None and "transform" not in entry.options:
        raise ValueError(f"attack {options.attack!r} follows no gradient; leave --through out")
    if options.through is None and _gradient(options) != _gradient(Options):
        raise ValueError("--gradient and what goes with it are those of --through; name a purifier there")


def _check_benchmark(attack, entry, settings):
    """Refuses, before anything is crafted, what the benchmark's folders have no place for."""
    base = settings.get("base")
    if not entry.needs_target or settings.get("criterion") == "unxent" or base not in (None, settings["target"]):
        raise ValueError(
            f"attack {attack!r}: in the benchmark's folders all poisons are of the class that targets are to be taken "
            "for; use --format npz"
        )


def _load_targets(options, dataset, target, setup):
    """The images that are to be misclassified, checked against the training set and the class that is wanted."""
    import numpy as np

    from jaxpurify.data.poison import Targets
    from jaxpurify.data.sources import load_source

    test = load_source(options.targets, size=options.size)
    if test.images.shape[1:] != dataset.images.shape[1:]:
        raise ValueError(
            f"--targets {options.targets} has images of {test.images.shape[1:]}; "
            f"those of {options.source} are {dataset.images.shape[1:]}"
        )
    chosen = test.select(options.target_index)
    if setup is not None and chosen.labels[0] != setup.target_class:
        found = f"image {setup.target_index} of {options.targets} is of class {chosen.labels[0]}"
        raise ValueError(f"{found}, in {options.setup} of class {setup.target_class}; are they in another order?")
    if target is not None and (chosen.labels == target).any():
        raise ValueError(f"--target is {target}, but a target image is of that class already; choose another")
    return Targets(chosen.images, chosen.labels, np.array(options.target_index))


def _gradient(options):
    return options.gradient, options.gradient_steps, options.gradient_difference


def _through(options):
    """What was said of the purifier, as `attack_of` reads it from a spec."""
    said = {"gradient": options.gradient, "gradient_difference": options.gradient_difference}
    if options.gradient_steps != Options.gradient_steps:
        said["gradient_steps"] = options.gradient_steps
    return {"through": options.through} | said
