"""Hits and trials a class: counts that can be added up over batches, devices and hosts without any error."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float64, Int, Integer
import numpy as np

from jaxpurify.struct import struct


@struct
class Counts:
    """How often something happened, for every class.

    Padding has mask 0 and is not counted, so that batches of one static shape give exact means. Rates are of
    the merged counts, never means of batch means.

    Attributes:
      hits: how many counted examples of each class were hits [classes].
      trials: how many examples of each class were counted [classes].
    """

    hits: Integer[Array | np.ndarray, "classes"]
    trials: Integer[Array | np.ndarray, "classes"]

    @classmethod
    def of(
        cls,
        hits: Bool[Array | np.ndarray, "batch"],
        labels: Int[Array | np.ndarray, "batch"],
        mask: Bool[Array | np.ndarray, "batch"] | None = None,
        *,
        classes: int,
    ) -> "Counts":
        """The counts of one batch; runs inside `jit` too.

        Args:
          hits: whether the event happened.
          labels: the class to which each example counts, in 0 … classes-1.
          mask: which examples count; None: all.
          classes: how many classes there are.
        """
        counted = jnp.ones(labels.shape, bool) if mask is None else jnp.asarray(mask)
        both = jnp.stack([counted & jnp.asarray(hits), counted], 1).astype(jnp.int32)
        table = jnp.zeros((classes, 2), jnp.int32).at[jnp.asarray(labels)].add(both)
        return cls(table[:, 0], table[:, 1])

    def merge(self, other: "Counts") -> "Counts":
        """The counts of both."""
        return Counts(self.hits + other.hits, self.trials + other.trials)

    @property
    def fraction(self) -> float:
        """Hits per trial over all examples; NaN without any."""
        hits, trials = int(np.asarray(self.hits).sum()), int(np.asarray(self.trials).sum())
        return hits / trials if trials else float("nan")

    @property
    def per_class(self) -> Float64[np.ndarray, "classes"]:
        """Hits per trial of every class; NaN for classes without any."""
        hits, trials = np.asarray(self.hits, np.float64), np.asarray(self.trials, np.float64)
        return np.divide(hits, trials, out=np.full(trials.shape, np.nan), where=trials > 0)

    @property
    def average(self) -> float:
        """The mean over classes of their rates, classes without examples left out; NaN without any."""
        return float(np.mean(self._known)) if len(self._known) else float("nan")

    @property
    def lowest(self) -> float:
        """The rate of the class with the lowest: the worst class of an accuracy."""
        return float(np.min(self._known, initial=1.0)) if len(self._known) else float("nan")

    @property
    def highest(self) -> float:
        """The rate of the class with the highest: the worst class of an attack's success."""
        return float(np.max(self._known, initial=0.0)) if len(self._known) else float("nan")

    @property
    def _known(self):
        return self.per_class[~np.isnan(self.per_class)]
