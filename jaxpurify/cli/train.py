"""`jaxpurify train`: trains a classifier and says how often it is right, on average and in the worst class."""

import dataclasses
from pathlib import Path
import shlex
import time
from typing import Annotated, Literal

import jax
import tyro

from jaxpurify.cli.network import make_network, network_options
from jaxpurify.cli.options import Source, check_output, check_seed, check_two_classes, read_options
from jaxpurify.cli.progress import progress_display
from jaxpurify.data.augment import Compose, Flip, PadCrop
from jaxpurify.data.sources import load_source
from jaxpurify.evaluate.metrics import natural_accuracy
from jaxpurify.networks.stored import save_network
from jaxpurify.random import named
from jaxpurify.train.classifier import Recipe, train_classifier

AUGMENTATIONS = {"none": None, "flip": Flip(), "crop-flip": Compose((PadCrop(4), Flip()))}


@dataclasses.dataclass(frozen=True)
class Options:
    """Train a classifier.

    Attributes:
      source: training images: digits, tfds:NAME/SPLIT, folder:PATH, npz:PATH, cinic10:PATH/SPLIT or
        tiny-imagenet:PATH/SPLIT, each with an optional slice such as [:1000].
      out: the .safetensors file to write.
      test: test images, as a source.
      network: a network, or a spec such as "resnet9(width=16)"; `jaxpurify list` shows all.
      width: of the network, where it has one (16 for resnet9).
      augment: what is done to training images: nothing, mirroring, or padded crops and mirroring.
      recipe: how it is trained.
      size: stretch every image to this height and width first.
      seed: of weights, batches and augmentation.
      force: replace OUT if it exists.
    """

    source: Source
    out: Path
    test: str | None = None
    network: str = "resnet9"
    width: int | None = None
    augment: Literal["none", "flip", "crop-flip"] = "none"
    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = Recipe()  # noqa: RUF009 - frozen
    size: int | None = None
    seed: int = 0
    force: bool = False


def main(arguments: list[str]) -> int | None:
    """Runs the command."""
    options = read_options(Options, arguments, command="train")
    check_seed(options.seed)
    check_output(options.out, force=options.force, source=options.source, suffix=".safetensors")
    dataset = load_source(options.source, size=options.size)
    check_two_classes(dataset.labels, options.source)
    test = None if options.test is None else load_source(options.test, size=options.size)
    if test is not None and (test.classes, test.images.shape[1:]) != (dataset.classes, dataset.images.shape[1:]):
        raise ValueError(f"test source {options.test!r} has other classes or image shapes than {options.source!r}")
    network, settings = network_options(options.network, dataset, width=options.width)
    key = jax.random.key(options.seed)
    model = make_network(network, settings, key, dataset.images.shape[1:], kind="classifier")
    options.recipe.optimizer(len(dataset))  # refuses unknown schedules and too few images

    start = time.perf_counter()
    with progress_display(unit="epochs") as progress:
        classifier, history = train_classifier(
            model,
            dataset.images,
            dataset.labels,
            named(key, "train"),
            recipe=options.recipe,
            augment=AUGMENTATIONS[options.augment],
            progress=lambda finished, total: progress("train", finished, total),
        )
    seconds = time.perf_counter() - start
    measured = dataset if test is None else test
    counts = natural_accuracy(classifier, measured.images, measured.labels)
    worst = dataset.classes[int(min(range(len(counts.trials)), key=lambda label: _rate(counts, label)))]
    card = {
        "source": options.source,
        "command": f"jaxpurify train {shlex.join(arguments)}",
        "seconds": round(seconds, 1),
        "recipe": dataclasses.asdict(options.recipe),
        "loss": float(history["loss"][-1]),
        "accuracy": {"on": measured.source, "average": counts.fraction, "worst_class": counts.lowest},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_network(options.out, classifier, network=network, options=settings, card=card)
    kind = "training images (no --test given)" if test is None else "test images"
    print(
        f"natural accuracy on {len(measured):,} {kind}: average {100 * counts.fraction:.1f} %, worst class "
        f"{100 * counts.lowest:.1f} % ({worst!r}); {seconds:.1f} s; {options.out}"
    )
    return None


def _rate(counts, label: int) -> float:
    """Accuracy of one class; classes without images come last."""
    return counts.per_class[label] if counts.trials[label] else 2.0
