"""The objective of MetaPoison: the targets' loss after training steps that the gradient goes through."""

import dataclasses
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt8
import optax

from jaxpurify.attack.choose import check_draws, check_whole
from jaxpurify.attack.crafting import Crafting
from jaxpurify.attack.matching import CRITERIA
from jaxpurify.attack.view import RowLosses, View
from jaxpurify.data.image import to_float
from jaxpurify.random import image_keys, named
from jaxpurify.struct import static, struct

Rows = Float[Array, "rows height width channels"]
DEPTHS = ("last", "mean")


@struct
class Unrolled:
    """Σ over members of criterion(f(x_target; θ_K)), and its gradient for delta (arXiv:2004.00225).

    Attributes:
      applies, members: one callable and one tree of parameters for each member.
      targets, wanted: stored images of the targets, uint8 [T, H, W, C], and the class that each shall get.
      view: what training sees of poisons.
      clean, clean_labels: stored images [N, H, W, C] and labels from which clean rows are drawn, or None.
      others: positions [M] of those that may be drawn; None: all.
      inner_rate: of the unrolled steps.
      unroll: how many.
      criterion, depths: of the targets; at the "last" depth or the "mean" of depths 1 … K.
      clean_count: clean rows beside the poisons, drawn anew for each inner step.
      later_poisons: whether steps after the first see poisons.
      draws: of the view, averaged.

    Raises:
      ValueError: `unroll` below 1, unknown `depths`, or inner steps without any row.
    """

    applies: tuple
    members: tuple
    targets: UInt8[Array, "targets height width channels"]
    wanted: Int[Array, "targets"]
    view: View = View()
    clean: UInt8[Array, "clean height width channels"] | None = None
    clean_labels: Int[Array, "clean"] | None = None
    others: Int[Array, "others"] | None = None
    inner_rate: Any = 0.1
    unroll: int = static(default=2)
    criterion: str = static(default="xent")
    depths: str = static(default="last")
    clean_count: int = static(default=0)
    later_poisons: bool = static(default=True)
    draws: int = static(default=1)

    def __post_init__(self):
        check_draws(self.draws, self.view.transform, self.view.augment)
        check_whole(unroll=self.unroll, clean_count=self.clean_count)
        if self.unroll < 1:
            raise ValueError(f"unroll is {self.unroll}; it must be at least 1")
        if self.depths not in DEPTHS:
            raise ValueError(f"depths is {self.depths!r}; known: {', '.join(DEPTHS)}")
        if not self.later_poisons and not self.clean_count:
            raise ValueError("later_poisons is False and clean_count is 0; later steps would see no image")

    def with_surrogate(self, applies: tuple, members: tuple) -> "Unrolled":
        """The same objective on other networks."""
        return dataclasses.replace(self, applies=applies, members=members)

    def __call__(self, delta: Rows, key: Key[Array, ""], crafting: Crafting) -> tuple[Float[Array, ""], Rows]:
        def total(delta):
            return sum((self._outer(place, delta, key, crafting) for place in range(len(self.members))), jnp.zeros(()))

        return jax.value_and_grad(total)(delta)

    def _outer(self, place, delta, key, crafting):
        apply, params = self.applies[place], self.members[place]
        targets = to_float(self.targets)
        losses = []
        for depth in range(self.unroll):
            step_key = jax.random.fold_in(named(key, "inner"), depth)

            # The inner step is computed again in the backward pass: its activations are not kept.
            @jax.checkpoint
            def inner(params, delta, step_key, depth=depth):
                gradient = jax.grad(self._training_loss)(params, apply, delta, step_key, crafting, depth)
                return jax.tree.map(lambda leaf, slope: leaf - self.inner_rate * slope, params, gradient)

            params = inner(params, delta, step_key)
            if self.depths == "mean" or depth == self.unroll - 1:
                losses.append(CRITERIA[self.criterion](apply(params, targets), self.wanted))
        return jnp.stack(losses).mean()

    def _training_loss(self, params, apply, delta, key, crafting, depth):
        """The mean cross-entropy over the poisons (where this depth sees them) and over fresh clean rows."""
        total, count = jnp.zeros(()), self.clean_count
        if depth == 0 or self.later_poisons:
            keys = image_keys(named(key, "images"), crafting.index)
            rows = crafting.float_images(), crafting.labels, keys
            total = RowLosses(apply, self.view, self.draws)(params, delta, rows).sum()
            count += len(crafting.index)
        if self.clean is not None and self.clean_labels is not None and self.clean_count:
            others = jnp.arange(len(self.clean)) if self.others is None else self.others
            drawn = jax.random.choice(named(key, "clean"), len(others), (self.clean_count,), replace=False)
            chosen = others[drawn]
            logits = apply(params, lax.stop_gradient(to_float(self.clean[chosen])))
            labels = self.clean_labels[chosen]
            total = total + optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()
        return total / count
