"""Frozen dataclasses that are pytrees: the unit from which purifiers and records are built."""

from collections.abc import Callable
import dataclasses
import math
from typing import Any, TypeVar, dataclass_transform

import jax

Class = TypeVar("Class", bound=type)


def static(**kwargs: Any) -> Any:
    """A field that is part of the compiled program (step counts, modes) instead of a traced leaf."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


@dataclass_transform(frozen_default=True, field_specifiers=(static, dataclasses.field))
def struct(cls: Class) -> Class:
    """Makes `cls` a frozen dataclass and a pytree whose leaves are its fields, `static` ones excepted.

    Construction runs `__init__` and `__post_init__`, so values are checked there. Unflattening skips
    both: inside `jit`, `vmap` and `eval_shape` the leaves are tracers or shapes, which a check would
    refuse. Static fields must be hashable; changing one recompiles, changing a leaf does not.
    """
    frozen: Any = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(frozen)
    leaves = tuple(field.name for field in fields if not field.metadata.get("static"))
    meta = tuple(field.name for field in fields if field.metadata.get("static"))

    def flatten_with_keys(self):
        keyed = [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in leaves]
        return keyed, tuple(getattr(self, name) for name in meta)

    def flatten(self):
        return [getattr(self, name) for name in leaves], tuple(getattr(self, name) for name in meta)

    def unflatten(aux, children):
        self = object.__new__(frozen)
        for name, value in zip(leaves + meta, (*children, *aux), strict=True):
            object.__setattr__(self, name, value)
        return self

    jax.tree_util.register_pytree_with_keys(frozen, flatten_with_keys, unflatten, flatten)
    return frozen


def is_count(value: Any, least: int, most: float | int = math.inf) -> bool:
    """Whether `value` is a whole number from `least` to `most`; `True` is none."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def as_operand(function: Callable[..., Any] | None) -> Any:
    """`function` as a pytree: callable structs stay as they are, their weights remain traced leaves.

    A plain function becomes part of the compiled program; the same function again finds it again.
    """
    if function is not None and jax.tree_util.all_leaves([function]):
        return jax.tree_util.Partial(function)
    return function


def make_operands(instance: Any, *names: str) -> None:
    """`as_operand` for the named fields of a struct; for its `__post_init__`."""
    for name in names:
        object.__setattr__(instance, name, as_operand(getattr(instance, name)))
