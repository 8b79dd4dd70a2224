"""Checks of the numbers in a recipe, so that a wrong one is refused before anything is trained."""

import math
from typing import Any


def check_least(recipe: Any, **least: int) -> None:
    """Raises `ValueError` unless each named field of `recipe` is finite and at least its number."""
    for name, smallest in least.items():
        value = getattr(recipe, name)
        if not (math.isfinite(value) and value >= smallest):
            raise ValueError(f"{name}={value}; it must be at least {smallest}")


def check_above_zero(recipe: Any, *names: str) -> None:
    """Raises `ValueError` unless each named field of `recipe` is finite and above 0."""
    for name in names:
        value = getattr(recipe, name)
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name}={value}; it must be a number above 0")
