"""`jaxpurify generate`: trains the energy or the diffusion model that purifiers use."""

from collections.abc import Callable
import contextlib
import dataclasses
import itertools
import json
from pathlib import Path
import shlex
import shutil
import time
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from jaxpurify import checkpoint
from jaxpurify.cli.network import make_network, network_options
from jaxpurify.cli.options import Source, check_output, check_seed, read_options, sibling
from jaxpurify.cli.progress import progress_display
from jaxpurify.data.augment import Flip
from jaxpurify.data.dataset import Dataset
from jaxpurify.data.sources import load_source
from jaxpurify.destination import replacing
from jaxpurify.generate.diffusion import RECIPES as DIFFUSION_RECIPES
from jaxpurify.generate.diffusion import DiffusionRecipe, train_diffusion
from jaxpurify.generate.energy import RECIPES as ENERGY_RECIPES
from jaxpurify.generate.energy import EnergyRecipe, train_energy
from jaxpurify.networks.stored import save_network
from jaxpurify.random import named
from jaxpurify.sharding import batch_mesh

RECORD = "run.json"


@dataclasses.dataclass(frozen=True)
class Common:
    """What both kinds of model share.

    Attributes:
      source: clean images: digits, tfds:NAME/SPLIT, folder:PATH, npz:PATH, cinic10:PATH/SPLIT or
        tiny-imagenet:PATH/SPLIT, each with an optional slice such as [:1000].
      out: the .safetensors file to write.
      flip: mirror training images at random.
      size: stretch every image to this height and width first.
      resume_dir: where checkpoints are kept until OUT is written; default OUT.checkpoints.
      seed: of all random numbers.
      force: replace OUT if it exists.
    """

    source: Source
    out: Path
    flip: bool = False
    size: int | None = None
    resume_dir: Path | None = None
    seed: int = 0
    force: bool = False


@dataclasses.dataclass(frozen=True)
class EnergyOptions(Common):
    """Train an energy on clean images, for `langevin`. Killed, the same command continues from its checkpoint.

    Attributes:
      preset: published settings, which other options then change: puregen (the code behind the published weights)
        or hill (the code of Hill et al., where the values that the paper prints come from). It sets no network.
      network: conv_energy, residual_energy, or a spec such as "conv_energy(features=64)". Published: residual_energy
        (puregen), conv_energy (hill).
      features: channels of the network's first layer.
      recipe: how it is trained.
    """

    preset: str = "puregen"
    network: str = "conv_energy"
    features: int | None = None
    recipe: Annotated[EnergyRecipe, tyro.conf.arg(name="")] = EnergyRecipe()  # noqa: RUF009 - frozen


@dataclasses.dataclass(frozen=True)
class DiffusionOptions(Common):
    """Train a noise predictor on clean images, for `diffusion`. Killed, the same command continues.

    Attributes:
      preset: published settings, which other options then change: puregen. It sets no network.
      network: unet_s, unet_m, unet_l (published), or a spec such as "unet(block_channels=(32, 64),
        attention_levels=(1,))".
      recipe: how it is trained.
    """

    preset: str = "puregen"
    network: str = "unet_s"
    recipe: Annotated[DiffusionRecipe, tyro.conf.arg(name="")] = DiffusionRecipe()  # noqa: RUF009 - frozen


KINDS = {"energy": EnergyOptions, "diffusion": DiffusionOptions}
PRESETS: dict[str, dict[str, Any]] = {"energy": ENERGY_RECIPES, "diffusion": DIFFUSION_RECIPES}


def main(arguments: list[str]) -> int | None:
    """Runs the command."""
    if arguments and arguments[0] in ("-h", "--help"):
        print("usage: jaxpurify generate energy|diffusion SOURCE --out FILE.safetensors [options]\n")
        print("jaxpurify generate energy --help and jaxpurify generate diffusion --help show the options.")
        return 0
    if not arguments or arguments[0] not in KINDS:
        raise ValueError(f"{' '.join(arguments[:1]) or 'nothing'!r} is no kind of model; known: {', '.join(KINDS)}")
    kind, *rest = arguments
    options = read_options(_with_recipe(KINDS[kind], _preset(kind, rest)), rest, command=f"generate {kind}")
    check_seed(options.seed)
    if options.recipe.steps < 1:
        raise ValueError(f"--steps {options.recipe.steps}; a model of random weights is none, it must be at least 1")
    check_output(options.out, force=options.force, source=options.source, suffix=".safetensors")
    dataset = load_source(options.source, size=options.size)
    if len(dataset) < options.recipe.batch_size:
        raise ValueError(f"{len(dataset)} images are fewer than one batch of {options.recipe.batch_size}")
    network, settings = network_options(options.network, dataset, features=getattr(options, "features", None))
    key = jax.random.key(options.seed)
    shape = dataset.images.shape[1:]
    model = make_network(network, settings, key, shape, kind={"energy": "energy", "diffusion": "noise"}[kind])
    directory = sibling(options.out, ".checkpoints") if options.resume_dir is None else options.resume_dir

    setting = {"kind": kind, "source": options.source, "size": options.size, "network": network, "options": settings}
    setting |= {"recipe": dataclasses.asdict(options.recipe), "flip": options.flip, "seed": options.seed}
    with _checkpoints(directory, setting) as keep_time:
        train: Callable = {"energy": train_energy, "diffusion": train_diffusion}[kind]
        with progress_display(unit="steps") as progress:

            def report(taken: int, steps: int, metrics: dict[str, Any]) -> None:
                keep_time()
                progress(f"train {kind}", taken, steps, f"loss {metrics['loss']:.4g}")

            model, history = train(
                model,
                dataset.images,
                named(key, "train"),
                recipe=options.recipe,
                augment=Flip() if options.flip else None,
                directory=directory,
                progress=report,
                **({"mesh": batch_mesh(options.recipe.batch_size)} if kind == "energy" else {}),
            )
        card = _card(kind, options, dataset, arguments, history, keep_time())
        options.out.parent.mkdir(parents=True, exist_ok=True)
        save_network(options.out, model, network=network, options=settings, card=card)
    shutil.rmtree(directory)
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in card["metrics"].items())
    print(f"{kind} model on {len(dataset):,} images: {metrics}; {card['seconds']} s; {options.out}")
    return None


def _preset(kind: str, arguments: list[str]) -> Any:
    """The recipe that `--preset` names: the other options are changes of it, so it is needed before they are read."""
    name = "puregen"
    for argument, following in itertools.zip_longest(arguments, arguments[1:]):
        if argument == "--preset" and following is not None:
            name = following
        elif argument.startswith("--preset="):
            name = argument.removeprefix("--preset=")
    if name not in PRESETS[kind]:
        raise ValueError(f"unknown preset {name!r} for a model of kind {kind}; known: {', '.join(PRESETS[kind])}")
    return PRESETS[kind][name]


def _with_recipe(options: type, recipe: Any) -> type:
    """The same options with another recipe as the one that is used where no flag says otherwise."""
    (annotation,) = (field.type for field in dataclasses.fields(options) if field.name == "recipe")
    changed = [("recipe", annotation, dataclasses.field(default=recipe))]
    return dataclasses.make_dataclass(
        options.__name__, changed, bases=(options,), frozen=True, namespace={"__doc__": options.__doc__}
    )


def _card(kind, options, dataset: Dataset, arguments, history: dict[str, np.ndarray], seconds: float) -> dict[str, Any]:
    recipe = options.recipe
    card = {
        "source": options.source,
        "images": len(dataset),
        "command": f"jaxpurify generate {shlex.join(arguments)}",
        "seconds": round(seconds, 1),
        "recipe": dataclasses.asdict(recipe),
        "metrics": {name: float(values[-1]) for name, values in history.items()},
    }
    if kind == "energy":
        return {**card, "langevin": {"step_size": recipe.step_size, "temperature": recipe.temperature}}
    return {**card, "max_timestep": recipe.max_timestep}


def _record(path: Path) -> dict[str, Any]:
    record: Any = None
    try:
        record = json.loads(path.read_text())
        written_here = isinstance(record["setting"], dict) and isinstance(record["seconds"], int | float)
    except (ValueError, TypeError, KeyError):
        written_here = False
    if not written_here:
        raise ValueError(f"{path} is in the way: it is no record of an earlier run")
    return record


@contextlib.contextmanager
def _checkpoints(directory: Path, setting: dict[str, Any]):
    """Guards the folder of checkpoints: it belongs to one setting, and stays only if it holds a checkpoint.

    Yields a function that writes down and returns the seconds spent so far, in all runs together.

    Raises:
      ValueError: the folder belongs to another setting, or to somebody else.
    """
    setting = json.loads(json.dumps(setting))
    path, earlier = directory / RECORD, 0.0
    if path.is_file():
        record = _record(path)
        if record["setting"] != setting:
            changed = [name for name in setting if setting[name] != record["setting"].get(name)]
            raise ValueError(f"{directory} holds checkpoints of another {', '.join(changed)}; remove it or use another")
        earlier = record["seconds"]
    elif directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise ValueError(f"{directory} is in the way: it is needed for checkpoints and holds something else")
    directory.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()

    def keep_time() -> float:
        seconds = earlier + time.perf_counter() - start
        with replacing(path, force=True) as temporary:
            temporary.write_text(json.dumps({"setting": setting, "seconds": seconds}))
        return seconds

    keep_time()
    try:
        yield keep_time
    except BaseException:
        if not checkpoint.steps(directory):
            shutil.rmtree(directory)
        raise
