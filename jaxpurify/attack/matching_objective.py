"""The objective of gradient matching over an ensemble, as the crafting loop calls it."""

from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key
import optax

from jaxpurify.attack.crafting import Crafting
from jaxpurify.attack.matching import CRITERIA, Passenger
from jaxpurify.attack.second_order import reverse_over_reverse, two_pass
from jaxpurify.attack.surrogate import as_operand
from jaxpurify.random import fold, image_keys, named
from jaxpurify.struct import static, struct
from jaxpurify.types import Images, Keys, PyTree

Rows = Float[Array, "rows height width channels"]
MATCHES = ("all", "minibatch")
ENGINES = ("two-pass", "reverse")


@struct
class View:
    """What a victim sees of perturbed rows: purified (`transform`), then augmented; both may be None."""

    transform: PyTree = None
    augment: PyTree = None

    def __call__(self, keys: Keys, images: Images, draw: int = 0) -> Images:
        if self.transform is not None:
            images = self.transform(fold(fold(keys, 0), draw), images)
        if self.augment is not None:
            images = self.augment(fold(fold(keys, 1), draw), images)
        return images


@struct
class RowLosses:
    """The training loss of each row, averaged over `draws` draws of the view."""

    apply: PyTree
    view: View = View()
    draws: int = static(default=1)

    def __call__(self, params: PyTree, delta: Rows, rows: tuple) -> Float[Array, "rows"]:
        images, labels, keys = rows
        total = jnp.zeros(len(labels))
        for draw in range(self.draws):
            logits = self.apply(params, self.view(keys, images + delta, draw))
            total = total + optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return total / self.draws


@struct
class Matching:
    """Σ over members of Φ(p; t), p the poisons' gradient and t the targets', and its gradient for delta.

    Attributes:
      applies, members: one callable and one tree of parameters for each member of the ensemble.
      targets: t of each member; leaves have a leading axis T with one gradient a target where `passengers` are
        summed over targets, and T = 1 where t is the mean over all of them.
      clean: the targets' gradients for their true labels in the same form, or None.
      hidden: `(params, images) -> features` of one network each member, or None.
      hidden_weight: of mean((φ(a(x + δ)) - φ(b(x)))²), a and b two draws of the view.
      private_clip, private_noise: C and σ: p is clipped to the norm C and gets noise N(0, (C σ)²); C None: neither.
      loss_weight: λ of λ L, the poisons' own training loss ("centreg").
    """

    applies: tuple
    members: tuple
    targets: tuple
    passenger: Passenger
    view: View
    clean: tuple | None = None
    hidden: PyTree = None
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
        if self.draws < 1 or (self.micro_batch is not None and self.micro_batch < 1):
            raise ValueError(f"micro_batch is {self.micro_batch} and draws is {self.draws}; at least 1 each")

    def __call__(self, delta: Rows, key: Key[Array, ""], crafting: Crafting) -> tuple[Float[Array, ""], Rows]:
        keys = image_keys(named(key, "images"), crafting.index)
        images = crafting.float_images()
        value, gradient = jnp.zeros(()), jnp.zeros_like(delta)
        for place in range(len(self.members)):
            noise_key = jax.random.fold_in(named(key, "private"), place)
            one, slope = self._member(place, delta, (images, crafting.labels, keys), noise_key)
            value, gradient = value + one, gradient + slope
        return value, gradient

    def _member(self, place, delta, rows, noise_key):
        """One member's value and gradient: over all rows at once, or a mean over mini-batches matched each alone."""
        if self.match == "all" or self.micro_batch is None or self.micro_batch >= len(delta):
            value, gradient = self._matched(place, delta, rows, noise_key, self.micro_batch)
        else:
            values, gradients = [], []
            for number, first in enumerate(range(0, len(delta), self.micro_batch)):
                last = first + self.micro_batch
                part = jax.tree.map(lambda leaf, first=first, last=last: leaf[first:last], rows)
                one, slope = self._matched(place, delta[first:last], part, jax.random.fold_in(noise_key, number), None)
                values.append(one)
                gradients.append(slope)
            # As published, each mini-batch's loss gives its own rows their gradient; only the report is a mean.
            value, gradient = jnp.stack(values).mean(), jnp.concatenate(gradients)
        if self.hidden is None:
            return value, gradient
        distance, slope = jax.value_and_grad(self._distance)(delta, place, rows)
        return value + self.hidden_weight * distance, gradient + self.hidden_weight * slope

    def _matched(self, place, delta, rows, noise_key, micro_batch):
        def objective(poison):
            if self.private_clip is not None:
                poison = clipped_and_noised(poison, self.private_clip, self.private_noise, noise_key)
            clean = None if self.clean is None else self.clean[place]
            per_target = jax.vmap(lambda target, clean: self.passenger(poison, target, clean))
            return per_target(self.targets[place], clean).sum()

        losses = RowLosses(self.applies[place], self.view, self.draws)
        common = (losses, self.members[place], delta, rows, objective)
        if self.engine == "reverse":
            return reverse_over_reverse(*common, loss_weight=self.loss_weight)
        return two_pass(*common, micro_batch=micro_batch, loss_weight=self.loss_weight)

    def _distance(self, delta, place, rows):
        images, _, keys = rows
        perturbed = self.hidden(self.members[place], self.view(fold(keys, 2), images + delta))
        clean = self.hidden(self.members[place], self.view(fold(keys, 3), images))
        return jnp.square(perturbed - clean).mean()


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
