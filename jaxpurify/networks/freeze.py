"""The way out of the module system: a network as a pure callable pytree."""

import dataclasses
from typing import Any

from flax import nnx
import jax

from jaxpurify.struct import static, struct
from jaxpurify.types import PyTree


@struct
class Frozen:
    """A network in evaluation mode: a pure function of its arguments and of its state leaves.

    Equal networks with other weights share one compiled program: only the leaves differ. A Frozen is an
    `Energy`, `Noise` or `Classifier` like the module it came from.

    Attributes:
      state: the weights and running statistics, a tree of arrays.
      graphdef: the structure of the network.
      method: which method of the network a call runs.
    """

    state: PyTree
    graphdef: nnx.GraphDef = static()
    method: str = static(default="__call__")

    def __call__(self, *args: Any) -> Any:
        return getattr(nnx.merge(self.graphdef, self.state), self.method)(*args)

    @property
    def pixels_at_once(self) -> int | None:
        """For how many pixels at a time gradients are fastest on CPU; None: for all of them, or not known."""
        return getattr(nnx.merge(self.graphdef, self.state), "pixels_at_once", None)

    @property
    def features(self) -> "Frozen":
        """The same weights as a function from images to the classifier's penultimate features [B, F]."""
        return dataclasses.replace(self, method="features")

    @property
    def block_outputs(self) -> "Frozen":
        """The same weights as a function from images to a list: each block's map [B, h, w, c], and the features [B, F].

        Raises:
          ValueError: the network does not give them; ResNet-9, ResNet-18 and ResNet-34 do.
        """
        network = nnx.merge(self.graphdef, self.state)
        if not hasattr(network, "block_outputs"):
            raise ValueError(f"{type(network).__name__} has no block outputs; known: ResNet9, ResNet (18 and 34)")
        return dataclasses.replace(self, method="block_outputs")


def freeze(model: nnx.Module) -> Frozen:
    """Evaluation-mode view of `model` as a pure callable pytree; `model` is left as it was.

    Batch normalisation uses its running statistics and dropout is off. The leaves are the model's arrays of
    this moment: training the model further does not change the Frozen.
    """
    view = nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False)
    graphdef, state = nnx.split(view)
    return Frozen(nnx.as_pure(state), graphdef)


def class_count(classifier: Any, shape: tuple[int, ...]) -> int:
    """How many logits `classifier` gives for images of `shape` [H, W, C]; a structure that was traced is remembered."""
    return _logits.eval_shape(classifier, jax.ShapeDtypeStruct((1, *shape), "float32")).shape[-1]


@jax.jit
def _logits(classifier, images):
    return classifier(images)
