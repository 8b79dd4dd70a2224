"""The optimiser of the "hyperlight benchmark" (T. Tysam) with PureGen's constants (arXiv:2405.18627)."""

from collections.abc import Hashable
import dataclasses
import functools

import jax
import optax

from jaxpurify.train.batches import steps_per_epoch
from jaxpurify.train.classifier import Recipe
from jaxpurify.train.schedule import triangular

NORM_FACTOR = 64.5


@dataclasses.dataclass(frozen=True)
class HyperlightRecipe(Recipe):
    """How HLB networks are trained: SGD with Nesterov momentum on the summed loss, with decoupled decay.

    With k = 1024 (1 + 1 / (1 − momentum)): `learning_rate` / k for all parameters and 64.5 times that for those of
    normalisations, both from 0.2 over 1 after a fifth of the steps to 0; a decay of `weight_decay` · batch / k a step
    at full rate, whatever the rate of the group. Published values are the defaults, 15 epochs, but for the label
    smoothing: no source names it for these networks, and 0.2 is that of PureGen's "ResNet18_HLB".

    The loss is a mean over the batch here, so its gradient is multiplied by the batch size.

    Raises:
      ValueError: another `schedule` or momentum, which would do nothing, or as `Recipe`.
    """

    epochs: int = 15
    batch_size: int = 128
    learning_rate: float = 11.6
    momentum: float = 0.87
    weight_decay: float = 0.0157
    label_smoothing: float = 0.2

    def __post_init__(self):
        super().__post_init__()
        usual = Recipe()
        if (self.schedule, self.nesterov) != (usual.schedule, usual.nesterov):
            given = f"schedule={self.schedule!r}, nesterov={self.nesterov}"
            raise ValueError(f"{given}; a HyperlightRecipe is triangular with Nesterov's")

    @property
    def kilostep(self) -> float:
        """k, by which the rates are divided; 8900.92 for momentum 0.87."""
        return 1024 * (1 + 1 / (1 - self.momentum))

    @property
    def rates(self) -> tuple[float, float]:
        """The peak learning rates of ordinary parameters and of those of normalisations: 1.303236e-3, 8.405873e-2."""
        rate = self.learning_rate / self.kilostep
        return rate, NORM_FACTOR * rate

    def optimizer(self, count: int) -> optax.GradientTransformation:
        """The optimizer for `count` training images."""
        steps = self.epochs * steps_per_epoch(count, self.batch_size)
        decay = self.weight_decay * self.batch_size / self.kilostep
        return _optimizer(self.rates, steps, self.batch_size, self.momentum, decay)


@functools.lru_cache  # optimizers are compared by identity, and equal ones must not compile anew
def _optimizer(rates, steps, batch_size, momentum, decay) -> optax.GradientTransformation:
    groups: dict[Hashable, optax.GradientTransformation] = {
        name: optax.chain(
            optax.scale(float(batch_size)),
            optax.add_decayed_weights(decay / rate),
            optax.sgd(triangular(steps, rate), momentum=momentum, nesterov=True),
        )
        for name, rate in zip(("other", "norm"), rates, strict=True)
    }
    return optax.partition(groups, _groups)


def _groups(params):
    """`norm` for the parameters of layers whose published name contains "norm", `other` for the rest.

    The published network has no name for its first normalisation, which is therefore none of them.
    """

    def group(path, _):
        name = jax.tree_util.keystr(path)
        return "norm" if "norm" in name and "whiten_norm" not in name else "other"

    return jax.tree_util.tree_map_with_path(group, params)
