"""What gradient matching minimises: how far a poison gradient is from a target gradient, and the target's criterion.

`p` is the gradient of the training loss on the poisons, `t` that of the attacker's criterion on the targets, both
trees over the same trainable parameters. Sums run over all tensors jointly; G = ‖t‖.
"""

from collections.abc import Callable
import dataclasses

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import optax

from jaxpurify.struct import static, struct
from jaxpurify.types import PyTree

Vector = Float[Array, "tensors"]
Scalar = Float[Array, ""]

PASSENGERS = (
    "similarity",
    "similarity-narrow",
    "top5-similarity",
    "top10-similarity",
    "top20-similarity",
    "scalar_product",
    "cosine1",
    "SE",
    "MSE",
)
REPEL = ("intended", "compat")
_SMALLEST = 1e-30


@struct
class Passenger:
    """The passenger loss Φ(p; t) of the gradient-matching framework (arXiv:2009.02276, published code).

    | name | Φ |
    |---|---|
    | similarity | 1 - Σ⟨t, p⟩ / (G ‖p‖) |
    | similarity-narrow | the same + ½ Σ ‖p_i‖² / G over the output layer's tensors |
    | topK-similarity, K = 5, 10, 20 | sums and ‖p‖ over the K tensors of largest ‖t_i‖; G stays the full norm |
    | scalar_product | -Σ⟨t, p⟩ / G |
    | cosine1 | -(1/G) Σ_i cos(t_i, p_i), divided by G as published |
    | SE | ½ Σ ‖t - p‖² / G |
    | MSE | Σ_i mean((t_i - p_i)²) / G |

    Attributes:
      name: one of `PASSENGERS`.
      norm_weight: λ of the additional term λ ‖p‖ ("normreg").
      repel_weight: λ of the repelling term, 0 for none.
      repel: "intended": + λ ⟨c, p⟩ / (‖c‖ ‖p‖), where c is the targets' gradient for their true labels.
        "compat": the inner products are multiplied by 1 - λ, which is what the published code computes, because it
        uses t in the place of c.
      output: positions, in the order of `jax.tree.leaves`, of the output layer's tensors for
        "similarity-narrow"; empty: the last two tensors.

    Raises:
      ValueError: an unknown name, or "compat" with SE or MSE, which have no inner product.
    """

    name: str = static(default="similarity")
    norm_weight: float | Float[Array, ""] = 0.0
    repel_weight: float | Float[Array, ""] = 0.0
    repel: str = static(default="intended")
    output: tuple[int, ...] = static(default=())

    def __post_init__(self):
        if self.name not in PASSENGERS:
            raise ValueError(f"loss is {self.name!r}; known: {', '.join(PASSENGERS)}")
        if self.repel not in REPEL:
            raise ValueError(f"repel is {self.repel!r}; known: {', '.join(REPEL)}")
        if self.repel == "compat" and self.name in ("SE", "MSE"):
            raise ValueError(f"repel is 'compat' with loss {self.name!r}; it has no inner product to scale")

    def __call__(self, poison: PyTree, target: PyTree, clean: PyTree | None = None) -> Scalar:
        """Φ(p; t); `clean` is c, without which the intended repelling term is left out."""
        p, t = jax.tree.leaves(poison), jax.tree.leaves(target)
        value = self._base(p, t) + self.norm_weight * _norm(_squares(p))
        if self.repel == "intended" and clean is not None:
            c = jax.tree.leaves(clean)
            value = value + self.repel_weight * _inner(c, p).sum() / (_norm(_squares(c)) * _norm(_squares(p)))
        return value

    def value_and_gradient(self, poison: PyTree, target: PyTree, clean: PyTree | None = None) -> tuple[Scalar, PyTree]:
        """Φ and ∂Φ/∂p, the direction in which the second pass differentiates."""
        return jax.value_and_grad(self)(poison, target, clean)

    def for_parameters(self, params: PyTree) -> "Passenger":
        """The same loss that knows which tensors of `params` are the output layer's."""
        return self if self.output else dataclasses.replace(self, output=output_positions(params))

    def _base(self, p: list, t: list) -> Scalar:
        p_squares, t_squares = _squares(p), _squares(t)
        whole = _norm(t_squares)
        if self.name in ("SE", "MSE"):
            difference = [one - other for one, other in zip(t, p, strict=True)]
            if self.name == "SE":
                return 0.5 * _squares(difference).sum() / whole
            return sum((jnp.mean(each**2) for each in difference), start=jnp.zeros(())) / whole
        inner = _inner(t, p)
        if self.repel == "compat":
            inner = (1.0 - self.repel_weight) * inner
        if self.name == "scalar_product":
            return -inner.sum() / whole
        if self.name == "cosine1":
            return -(inner / jnp.sqrt(jnp.maximum(t_squares * p_squares, _SMALLEST))).sum() / whole
        if self.name.startswith("top"):
            largest = _largest(t_squares, int(self.name.removeprefix("top").removesuffix("-similarity")))
            return 1.0 - (inner * largest).sum() / (whole * _norm(p_squares * largest))
        value = 1.0 - inner.sum() / (whole * _norm(p_squares))
        if self.name == "similarity-narrow":
            output = self.output or tuple(range(len(p)))[-2:]
            value = value + 0.5 * sum(p_squares[position] for position in output) / whole
        return value


def output_positions(params: PyTree) -> tuple[int, ...]:
    """Positions of the output layer's tensors: leaves below a top-level entry "linear", or the last two leaves.

    The published loss takes the last two tensors in order of definition; a tree of named arrays keeps its leaves in
    alphabetical order instead, so that they have to be named.
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    found = tuple(place for place, path in enumerate(paths) if path and getattr(path[0], "key", None) == "linear")
    return found or tuple(range(len(paths)))[-2:]


def _squares(tensors: list) -> Vector:
    return jnp.stack([jnp.sum(jnp.square(tensor)) for tensor in tensors])


def _inner(one: list, other: list) -> Vector:
    return jnp.stack([jnp.sum(first * second) for first, second in zip(one, other, strict=True)])


def _norm(squares: Vector) -> Scalar:
    # A root at 0 has no gradient; a poison gradient of exactly 0 then stays where it is.
    return jnp.sqrt(jnp.maximum(squares.sum(), _SMALLEST))


def _largest(squares: Vector, count: int) -> Vector:
    """1 for the `count` largest entries, 0 for the others."""
    _, chosen = lax.top_k(squares, min(count, squares.shape[0]))
    return jnp.zeros_like(squares).at[chosen].set(1.0)


# --- criteria of the target --------------------------------------------------------------------------


def cross_entropy(logits: Float[Array, "batch classes"], labels: Int[Array, "batch"]) -> Scalar:
    """The mean cross-entropy ("xent")."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def negative_cross_entropy(logits: Float[Array, "batch classes"], labels: Int[Array, "batch"]) -> Scalar:
    """Minus the mean cross-entropy ("unxent"), for the targets' true labels: self-betrayal."""
    return -cross_entropy(logits, labels)


def carlini_wagner(logits: Float[Array, "batch classes"], labels: Int[Array, "batch"]) -> Scalar:
    """mean max(max_k z_k - z_y, -100) ("cw"); the maximum includes y, as published, so that it is never below 0."""
    return jnp.maximum(logits.max(-1) - _of_label(logits, labels), -100.0).mean()


def signed_carlini_wagner(logits: Float[Array, "batch classes"], labels: Int[Array, "batch"]) -> Scalar:
    """mean (max over k ≠ y of z_k - z_y) ("cw2"): below 0 where every image is classified as y."""
    labelled = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    return (jnp.where(labelled, -jnp.inf, logits).max(-1) - _of_label(logits, labels)).mean()


def _of_label(logits, labels):
    return jnp.take_along_axis(logits, labels[:, None], -1)[:, 0]


CRITERIA: dict[str, Callable[..., Scalar]] = {
    "xent": cross_entropy,
    "cw": carlini_wagner,
    "cw2": signed_carlini_wagner,
    "unxent": negative_cross_entropy,
}


def check_criterion(name: str) -> None:
    """Raises ValueError, which lists the known ones, unless `name` is a criterion."""
    if name not in tuple(CRITERIA):  # not in a dict, which refuses lists in its own words
        raise ValueError(f"criterion is {name!r}; known: {', '.join(CRITERIA)}")
