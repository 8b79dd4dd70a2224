"""Purifiers made of purifiers: one after another, the same one several times, several chains averaged."""

import jax.numpy as jnp

from jaxpurify.random import fold
from jaxpurify.struct import as_operand, is_count, make_operands, static, struct
from jaxpurify.types import Images, Keys, Purifier


@struct
class Identity:
    """Returns the images as they are: the undefended control. No key is used."""

    def __call__(self, keys: Keys, images: Images) -> Images:
        return images


@struct
class Chain:
    """The stages one after another, in float without rounding between; stage i gets fold_in(key, i)."""

    stages: tuple[Purifier, ...]

    def __post_init__(self):
        object.__setattr__(self, "stages", tuple(map(as_operand, self.stages)))

    def __call__(self, keys: Keys, images: Images) -> Images:
        for number, stage in enumerate(self.stages):
            images = stage(fold(keys, number), images)
        return images


@struct
class Repeat:
    """The same purifier `count` times (PureGen-Reps, arXiv:2405.18627); pass i gets fold_in(key, i)."""

    purifier: Purifier
    count: int = static(default=1)

    def __post_init__(self):
        make_operands(self, "purifier")
        if not is_count(self.count, 1):
            raise ValueError(f"count={self.count!r}; it must be a whole number of at least 1")

    def __call__(self, keys: Keys, images: Images) -> Images:
        for number in range(self.count):
            images = self.purifier(fold(keys, number), images)
        return images


@struct
class Average:
    """Mean or median over `count` independent runs of a random purifier; run i gets fold_in(key, i)."""

    purifier: Purifier
    count: int = static(default=4)
    kind: str = static(default="mean")

    def __post_init__(self):
        make_operands(self, "purifier")
        if not is_count(self.count, 1):
            raise ValueError(f"count={self.count!r}; it must be a whole number of at least 1")
        if self.kind not in ("mean", "median"):
            raise ValueError(f"kind={self.kind!r}; known: mean, median")

    def __call__(self, keys: Keys, images: Images) -> Images:
        runs = jnp.stack([self.purifier(fold(keys, number), images) for number in range(self.count)])
        return jnp.mean(runs, 0) if self.kind == "mean" else jnp.median(runs, 0)


def chain(*stages: Purifier) -> Chain:
    """The purifier that applies `stages` from left to right."""
    return Chain(stages)


def repeat(purifier: Purifier, count: int) -> Repeat:
    """The purifier that applies `purifier` `count` times."""
    return Repeat(purifier, count)
