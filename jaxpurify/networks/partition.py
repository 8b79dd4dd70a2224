"""A frozen network in two parts: the numbers that training moves, and everything else."""

from collections.abc import Sequence
from typing import Any

from flax import nnx
import jax

from jaxpurify.networks.freeze import Frozen
from jaxpurify.struct import static, struct
from jaxpurify.types import PyTree


@struct
class Trained:
    """A network as a function of its trainable numbers: `(trainable, images) -> logits`, in evaluation mode.

    Attributes:
      fixed: running statistics and other leaves that training by gradient leaves alone.
      graphdef: the structure of the network.
      method: which method of the network a call runs.
    """

    fixed: PyTree
    graphdef: nnx.GraphDef = static()
    method: str = static(default="__call__")

    def __call__(self, trainable: PyTree, /, *args: Any) -> Any:
        return getattr(nnx.merge(self.graphdef, trainable, self.fixed), self.method)(*args)


def split_trainable(frozen: Frozen | Sequence[Frozen], only: str | None = None) -> tuple[Any, PyTree]:
    """`(apply, trainable)` with `apply(trainable, images)` equal to `frozen(images)`.

    `trainable` holds what the optimiser moves (convolutions, scales and shifts of normalisation, linear layers), so
    that `jax.grad` over it is the gradient that training follows; running statistics and scales that the
    published network fixes travel inside `apply`, a callable pytree.

    Args:
      frozen: one network, or a sequence of networks (an ensemble, architectures may differ).
      only: name of the one layer that training moves, such as `"linear"`, a classifier's last; None: all of them.

    Returns:
      For one network its pair; for a sequence a tuple of applies and a tuple of trainables, member by member.

    Raises:
      ValueError: an empty sequence, something that is not a Frozen, or no layer called `only`.
    """
    if isinstance(frozen, Frozen):
        wanted = nnx.Param if only is None else nnx.All(nnx.Param, lambda path, _: path[0] == only)
        graphdef, trainable, fixed = nnx.split(nnx.merge(frozen.graphdef, frozen.state), wanted, ...)
        if not jax.tree.leaves(trainable):
            raise ValueError(f"the network has no trainable layer {only!r}")
        return Trained(nnx.as_pure(fixed), graphdef, frozen.method), nnx.as_pure(trainable)
    if not isinstance(frozen, tuple | list) or not frozen:
        raise ValueError(f"frozen is {frozen!r}; it must be a Frozen network or a sequence of at least one")
    applies, trainables = zip(*(split_trainable(member, only) for member in frozen), strict=True)
    return applies, trainables
