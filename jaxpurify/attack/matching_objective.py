"""The objective of gradient matching over an ensemble, as the crafting loop calls it."""

from collections.abc import Sequence
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key
import optax

from jaxpurify.attack.choose import check_draws, check_whole
from jaxpurify.attack.crafting import Crafting
from jaxpurify.attack.matching import CRITERIA, Passenger
from jaxpurify.attack.second_order import apply_rows, reverse_over_reverse, two_pass
from jaxpurify.attack.view import HiddenDistance, PurifiedLosses, PurifiedRows, RowLosses, View
from jaxpurify.random import image_keys, named
from jaxpurify.struct import as_operand, static, struct
from jaxpurify.types import Images, PyTree

Rows = Float[Array, "rows height width channels"]
MATCHES = ("all", "minibatch")
ENGINES = ("two-pass", "reverse")


@struct
class Matching:
    """Σ over members of Φ(p; t), p the poisons' gradient and t the targets', and its gradient for delta.

    Attributes:
      applies, members: one callable and one tree of parameters for each member of the ensemble.
      targets: t of each member; leaves have a leading axis T with one gradient a target where `passengers` are
        summed over targets, and T = 1 where t is the mean over all of them.
      passenger: Φ; the output layer that it may ask for is each member's own unless it names one.
      clean: the targets' gradients for their true labels in the same form, or None.
      hidden: one `(params, images) -> features` for each member, or None.
      hidden_weight: of the mean `HiddenDistance` of the rows that are matched together.
      private_clip, private_noise: C and σ: p is clipped to the norm C and gets noise N(0, (C σ)²); C None: neither.
      loss_weight: λ of λ L, the poisons' own training loss ("centreg").
    """

    applies: tuple
    members: tuple
    targets: tuple
    passenger: Passenger
    view: View
    clean: tuple | None = None
    hidden: tuple | None = None
    hidden_weight: Any = 1.0
    private_clip: Any = None
    private_noise: Any = 0.0
    loss_weight: Any = 0.0
    draws: int = static(default=1)
    match: str = static(default="all")
    micro_batch: int | None = static(default=None)
    engine: str = static(default="two-pass")

    def __post_init__(self):
        if self.match not in MATCHES:
            raise ValueError(f"match is {self.match!r}; known: {', '.join(MATCHES)}")
        if self.engine not in ENGINES:
            raise ValueError(f"engine is {self.engine!r}; known: {', '.join(ENGINES)}")
        check_draws(self.draws, self.view.transform, self.view.augment)
        check_whole(micro_batch=self.micro_batch)
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ValueError(f"micro_batch is {self.micro_batch}; it must be at least 1")

    def __call__(self, delta: Rows, key: Key[Array, ""], crafting: Crafting) -> tuple[Float[Array, ""], Rows]:
        keys = image_keys(named(key, "images"), crafting.index)
        rows = crafting.float_images(), crafting.labels, keys
        private = [jax.random.fold_in(named(key, "private"), place) for place in range(len(self.members))]
        size = self.micro_batch
        if self.match == "all" or size is None or size >= len(delta):
            return self._together(delta, rows, private, size, crafting.axes)
        values, gradients = [], []
        for number, first in enumerate(range(0, len(delta), size)):
            part, of_part = jax.tree.map(lambda leaf, first=first: leaf[first : first + size], (delta, rows))
            own = [jax.random.fold_in(noise_key, number) for noise_key in private]
            one, slope = self._together(part, of_part, own, None)
            values.append(one)
            gradients.append(slope)
        # As published, each mini-batch's loss gives its own rows their gradient; only the report is a mean.
        return jnp.stack(values).mean(), jnp.concatenate(gradients)

    def _together(self, delta, rows, private, micro_batch, axes=()):
        """Value and gradient of rows that are matched together, over the devices of `axes`, summed over members."""
        if micro_batch is not None:
            micro_batch = math.ceil(micro_batch / jax.lax.axis_size(axes))
        seen, pull = delta, lambda gradient: gradient
        if self.view.transform is not None:
            # Outside of the engine: it differentiates twice, which purifiers need not allow.
            purify = PurifiedRows(self.view, self.draws)
            seen, pull = apply_rows(purify, delta, rows, micro_batch=micro_batch)
        value, gradient = jnp.zeros(()), jnp.zeros_like(seen)
        for place, noise_key in enumerate(private):
            one, slope = self._matched(place, seen, rows, noise_key, micro_batch, axes)
            value, gradient = value + one, gradient + slope
        gradient = pull(gradient)
        if self.hidden is None:
            return value, gradient
        distance = HiddenDistance(self.hidden, self.members, self.view)
        distances, pull = apply_rows(distance, delta, rows, micro_batch=micro_batch)
        slope = pull(jnp.full_like(distances, 1 / (len(distances) * jax.lax.axis_size(axes))))
        far = jax.lax.pmean(distances.mean(), axes)
        return value + self.hidden_weight * far, gradient + self.hidden_weight * slope

    def _matched(self, place, seen, rows, noise_key, micro_batch, axes):
        passenger = self.passenger.for_parameters(self.members[place])

        def objective(poison):
            if self.private_clip is not None:
                poison = clipped_and_noised(poison, self.private_clip, self.private_noise, noise_key)
            clean = None if self.clean is None else self.clean[place]
            per_target = jax.vmap(lambda target, clean: passenger(poison, target, clean))
            return per_target(self.targets[place], clean).sum()

        if self.view.transform is None:
            losses = RowLosses(self.applies[place], self.view, self.draws)
        else:
            losses = PurifiedLosses(self.applies[place], self.view)
        common = (losses, self.members[place], seen, rows, objective)
        if self.engine == "reverse":
            return reverse_over_reverse(*common, loss_weight=self.loss_weight)
        return two_pass(*common, micro_batch=micro_batch, loss_weight=self.loss_weight, axes=axes)


def clipped_and_noised(gradient: PyTree, clip: Any, noise: Any, key: Key[Array, ""]) -> PyTree:
    """`gradient` · min(1, C / ‖gradient‖) + N(0, (C σ)²), norm over all tensors: a private trainer's gradient."""
    norm = optax.tree.norm(gradient)
    factor = jnp.minimum(1.0, clip / jnp.maximum(norm, 1e-30))
    leaves, structure = jax.tree.flatten(gradient)
    noised = [
        factor * leaf + clip * noise * jax.random.normal(jax.random.fold_in(key, place), leaf.shape)
        for place, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, noised)


def check_batches(match: str, micro_batch: int | None, engine: str = "two-pass") -> None:
    """Raises ValueError where `micro_batch` is missing or would do nothing."""
    if match == "minibatch" and micro_batch is None:
        raise ValueError("match is 'minibatch'; micro_batch must say how many poisons are matched together")
    if engine == "reverse" and match == "all" and micro_batch is not None:
        raise ValueError(f"micro_batch is {micro_batch}; engine 'reverse' keeps all rows in memory that are matched")


def ensemble(apply: Any, params: PyTree) -> tuple[tuple, tuple]:
    """`(applies, members)`: a tuple or list of params is an ensemble, one `apply` for all of it or one a member.

    Raises:
      ValueError: an empty ensemble, or another number of applies than of members.
    """
    members = tuple(params) if isinstance(params, tuple | list) else (params,)
    applies = tuple(apply) if isinstance(apply, tuple | list) else (apply,) * len(members)
    if not members or len(applies) != len(members):
        raise ValueError(f"apply has {len(applies)} functions for {len(members)} members of the ensemble")
    return tuple(as_operand(each) for each in applies), members


def replaced(fresh: Any, members: tuple, by: str) -> tuple[tuple, tuple]:
    """`(applies, members)` of a surrogate that the callback `by` trained in the place of `members`.

    Raises:
      ValueError: `fresh` is no pair of apply and params, or its params have another structure than `members`.
    """
    if not isinstance(fresh, tuple) or len(fresh) != 2:
        raise ValueError(f"{by} returned a {type(fresh).__name__}; it must return (apply, params)")
    applies, trained = ensemble(*fresh)
    if jax.tree.structure(trained) != jax.tree.structure(members):
        raise ValueError(f"{by} returned params of another structure than those that it was called to replace")
    return applies, trained


def target_gradients(
    applies: Sequence[Any],
    members: Sequence[PyTree],
    images: Images,
    labels: Int[Array, "batch"],
    *,
    criterion: str = "xent",
    per_target: bool = False,
) -> tuple[PyTree, ...]:
    """∇_θ criterion(f(x), y) of every member, leaves with a leading axis: T with `per_target`, 1 for their mean."""
    split = (images[:, None], labels[:, None]) if per_target else (images[None], labels[None])
    return tuple(_gradients(criterion, apply, member, *split) for apply, member in zip(applies, members, strict=True))


@functools.partial(jax.jit, static_argnums=0)
def _gradients(criterion, apply, params, images, labels):
    def loss(params, images, labels):
        return CRITERIA[criterion](apply(params, images), labels)

    return jax.vmap(jax.grad(loss), (None, 0, 0))(params, images, labels)
