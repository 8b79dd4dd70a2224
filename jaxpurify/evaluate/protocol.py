"""Protocols: which images, which victim and which training a table uses, so that its rows can be compared."""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import nnx
import jax
from jax.sharding import Mesh
import numpy as np

from jaxpurify.data.augment import Compose, Cutout, Flip, PadCrop
from jaxpurify.data.dataset import Dataset
from jaxpurify.data.sources import load_source
from jaxpurify.evaluate.specs import parse_spec
from jaxpurify.networks.freeze import Frozen
from jaxpurify.networks.stored import build
from jaxpurify.random import named
from jaxpurify.sharding import batch_mesh
from jaxpurify.train.classifier import Recipe, train_classifier
from jaxpurify.train.hyperlight import HyperlightRecipe
from jaxpurify.train.transfer import FineTuning
from jaxpurify.types import StoredImages

OF_THE_DATA = ("classes", "channels", "size", "mean", "std")  # options that every network for the same data shares
CIFAR10 = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2471, 0.2435, 0.2616)}
SHARED_SIZE = 32 * 32  # values of one image
FINE_TUNING = 0.001  # of the protocol's learning rate, as in the framework of arXiv:2102.13624
TINY_IMAGENET = {"mean": (0.4802, 0.4481, 0.3975), "std": (0.2302, 0.2265, 0.2262)}


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What stays the same over all rows of a table.

    Attributes:
      name: written into every row.
      train, test: source strings; only `train` is poisoned and purified.
      public: source that the attacker's surrogate and the generative models see, disjoint from both, but for
        `paper-cinic10`.
      network: of victims and surrogates, a name in `NETWORKS`.
      options: of its constructor.
      recipe: how victims are trained.
      augment: keys and images to augmented images, or None.
      surrogate_recipe: how the attacker's model is trained; None: as victims are.
      surrogate_source: what it is trained on, if not `public`.
      head: options of `train_heads` for victims that train a last layer only.
      fine_tuning: how trained networks are fine-tuned; None: as victims are, at a thousandth of the learning rate.
    """

    name: str
    train: str
    test: str
    public: str
    network: str
    options: dict[str, Any]
    recipe: Recipe
    augment: Callable | None
    surrogate_recipe: Recipe | None = None
    surrogate_source: str = ""
    head: dict[str, Any] = dataclasses.field(default_factory=dict)
    fine_tuning: Recipe | None = None

    @property
    def victim(self) -> str:
        """Network and its own options as one word for the rows, such as `resnet9-w16`."""
        own = [
            f"{'w' if name == 'width' else name}{value}"
            for name, value in self.options.items()
            if name not in OF_THE_DATA
        ]
        return "-".join([self.network, *own])

    def with_network(self, spec: str) -> "Protocol":
        """The same data and training with another network: a name, or a spec such as `resnet9(width=8)`.

        Raises:
          ValueError: an unknown network, or options that it does not take.
        """
        part = parse_spec(spec)
        if part.positional:
            raise ValueError(f"network {spec!r}: options are written name=value")
        options = {name: value for name, value in self.options.items() if name in OF_THE_DATA} | part.options
        nnx.eval_shape(lambda: build(part.name, options, nnx.Rngs(0)))
        return dataclasses.replace(self, network=part.name, options=options)

    def classifier(
        self,
        dataset: Dataset,
        seed: int,
        *,
        surrogate: bool = False,
        adversary: Callable | None = None,
        stop_after: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Frozen:
        """A victim, or a surrogate, trained on `dataset`; `seed` sets its weights, batches and augmentation.

        `adversary` and `stop_after` as in `train_classifier`.
        """
        key = jax.random.key(seed)
        model = build(self.network, self.options, nnx.Rngs(named(key, "weights")))
        recipe = self.surrogate_recipe if surrogate and self.surrogate_recipe else self.recipe
        arguments = {
            "recipe": recipe,
            "augment": self.augment,
            "adversary": adversary,
            "stop_after": stop_after,
            "mesh": shared_batches(recipe.batch_size, dataset.images),
            "progress": progress,
        }
        return train_classifier(model, dataset.images, dataset.labels, named(key, "train"), **arguments)[0]

    def config(self) -> dict[str, Any]:
        """The settings as plain values, part of every row; those that most protocols leave alone where they differ."""
        own = {
            "surrogate_source": self.surrogate_source,
            "head": self.head,
            "fine_tuning": self.fine_tuning and _settings(self.fine_tuning),
        }
        return {
            "train": self.train,
            "test": self.test,
            "public": self.public,
            "network": self.network,
            "options": {
                name: list(value) if isinstance(value, tuple) else value for name, value in self.options.items()
            },
            "recipe": _settings(self.recipe),
            "surrogate_recipe": _settings(self.surrogate_recipe or self.recipe),
            "augment": repr(self.augment),
            **{name: value for name, value in own.items() if value},
        }

    def load(self) -> tuple[Dataset, Dataset]:
        """The clean training set and the test set."""
        return load_source(self.train), load_source(self.test)


def fine_tuning_recipe(protocol: "Protocol") -> Recipe:
    """How the protocol fine-tunes: its own recipe for it, or that of victims at a lower rate."""
    lower = dataclasses.replace(protocol.recipe, learning_rate=FINE_TUNING * protocol.recipe.learning_rate)
    return protocol.fine_tuning or lower


def fine_tuning_settings(protocol: "Protocol") -> dict[str, Any]:
    """`fine_tuning_recipe` as plain values, part of the rows of fine-tuned victims."""
    return _settings(fine_tuning_recipe(protocol))


def _settings(recipe: Recipe) -> dict[str, Any]:
    """A recipe for the rows; Nesterov's momentum, which is usual, is not named, so that earlier rows keep their ids."""
    settings = dataclasses.asdict(recipe)
    return settings if not recipe.nesterov else {name: value for name, value in settings.items() if name != "nesterov"}


def shared_batches(batch_size: int, images: StoredImages) -> Mesh | None:
    """The devices that share each batch of a victim: all that can, but on CPU only where that is the faster way.

    XLA:CPU runs most operations of a small network on one thread. On two cores that share a batch ResNet-9 of width 16
    trains 1.17 times as fast; images smaller than 32 × 32 leave too little between the exchanges of statistics.
    """
    mesh = batch_mesh(batch_size)
    faster = jax.default_backend() != "cpu" or images[0].size >= SHARED_SIZE
    return mesh if faster and mesh.size > 1 else None


def protocol(name: str) -> Protocol:
    """The protocol called `name`.

    `demo`: digits. `cpu` and `cpu-small`: CIFAR-10 at sizes that two cores can train; their figures do not
    reproduce published ones. The others are PureGen's settings (arXiv:2405.18627), for accelerators; the folders that
    they name lie in the current one:

    * `paper`: CIFAR-10, ResNet-18, 200 epochs; the generative models see the ImageNet images of CINIC-10.
    * `paper-hlb`: the same with the 25 epochs of the published code's "ResNet18_HLB", the classifier of the paper's
      tables 4 and 10 (which a notebook shows; the paper does not name it): label smoothing, a triangular rate,
      reflected shifts of 4 pixels, cutout of 12.
    * `paper-hlb-s`: the same with "HyperlightBench", the classifier of the paper's table 2, and its optimiser.
    * `paper-cinic10`: CINIC-10, ResNet-18, 80 epochs; the generative models see CIFAR-10, as published, though
      CINIC-10 holds images of it: they have seen a part of what they purify.
    * `paper-tiny-imagenet`: Tiny-ImageNet at 64 x 64, ResNet-34; the generative models see Caltech-256, stretched to
      64 x 64 beforehand (runs for the paper's reviewers used an energy trained on Tiny-ImageNet itself; any other set
      of natural images fits the threat model better). It has other classes, so that the attacker's model is trained on
      the victim's own images: the attacker knows them.

    Linear victims of all of these train their last layer for 40 epochs with Adam (the configuration file; the paper
    prints SGD); fine-tuned ones all of the network for 60. Of published transfer learning these are the optimiser's
    settings alone: its victims see 500 images, 50 a class, of which Bullseye's are not augmented, after pre-training on
    others of CIFAR-10; here they see all of `train`, augmented, after pre-training on `public`.

    .. warning::
       Narcissus' published poisons are the last images of their class in the order of CIFAR-10's files. TFDS has
       another order, so that `choice='last'` poisons other images of the class here.

    .. warning::
       The paper lists random crops as the only augmentation; its code crops and mirrors, and so do these.

    Raises:
      ValueError: unknown name.
    """
    crop = Compose((PadCrop(4), Flip()))
    small = {"width": 16, "classes": 10, "channels": 3, **CIFAR10}
    cpu = Recipe(epochs=20, batch_size=128, learning_rate=0.2, weight_decay=5e-4)
    digits = Recipe(epochs=20, batch_size=50, learning_rate=0.05)
    published = Recipe(epochs=200, batch_size=128, learning_rate=0.1, schedule="multistep", nesterov=False)
    surrogate = dataclasses.replace(cpu, epochs=10)
    eighty = dataclasses.replace(published, epochs=80, schedule="multistep80")
    # The published learning rate 0.2 / 128 is for a sum over the batch, here for its mean.
    hlb = Recipe(epochs=25, batch_size=128, learning_rate=0.2, weight_decay=5e-4, label_smoothing=0.2)
    # Zeros after normalisation, as the published code cuts out, are the mean colour.
    cutout = Compose((PadCrop(4, "reflect"), Flip(), Cutout(12, fill=np.array(CIFAR10["mean"], np.float32))))
    head = {"epochs": 40, "weight_decay": 5e-4, "drops": (0.375, 0.625, 0.875)}
    transfer: dict[str, Any] = {"head": head, "fine_tuning": FineTuning()}
    colour = {"classes": 10, "channels": 3, **CIFAR10}
    tiny = {"classes": 200, "channels": 3, "size": 64, **TINY_IMAGENET}
    cinic_imagenet = "cinic10:CINIC-10/train/imagenet"
    known = {
        "demo": lambda: Protocol(
            "demo", "digits/train", "digits/test", "digits/public", "resnet9",
            {"width": 8, "classes": 10, "channels": 1}, digits, None,
        ),
        "cpu": lambda: Protocol(
            "cpu", "tfds:cifar10/train[:10000]", "tfds:cifar10/test", "tfds:cifar10/train[25000:]", "resnet9",
            small, cpu, crop, surrogate,
        ),
        "cpu-small": lambda: Protocol(
            "cpu-small", "tfds:cifar10/train[:5000]", "tfds:cifar10/test", "tfds:cifar10/train[25000:]", "resnet9",
            small, dataclasses.replace(cpu, epochs=15), crop, surrogate,
        ),
        "paper": lambda: Protocol(
            "paper", "tfds:cifar10/train", "tfds:cifar10/test", cinic_imagenet, "resnet18", colour, published, crop,
            **transfer,
        ),
        "paper-hlb": lambda: Protocol(
            "paper-hlb", "tfds:cifar10/train", "tfds:cifar10/test", cinic_imagenet, "resnet18", colour, hlb, cutout,
            **transfer,
        ),
        "paper-hlb-s": lambda: Protocol(
            "paper-hlb-s", "tfds:cifar10/train", "tfds:cifar10/test", cinic_imagenet, "hlb_s", colour,
            HyperlightRecipe(), Compose((PadCrop(2, "reflect"), Flip())), **transfer,
        ),
        "paper-cinic10": lambda: Protocol(
            "paper-cinic10", "cinic10:CINIC-10/train", "cinic10:CINIC-10/test", "tfds:cifar10/train", "resnet18",
            colour, eighty, crop, **transfer,
        ),
        "paper-tiny-imagenet": lambda: Protocol(
            "paper-tiny-imagenet", "tiny-imagenet:tiny-imagenet-200/train", "tiny-imagenet:tiny-imagenet-200/val",
            "folder:caltech256-64", "resnet34", tiny, published, crop,
            surrogate_source="tiny-imagenet:tiny-imagenet-200/train", **transfer,
        ),
    }  # fmt: skip
    if name not in known:
        raise ValueError(f"unknown protocol {name!r}; known: {', '.join(known)}")
    return known[name]()
