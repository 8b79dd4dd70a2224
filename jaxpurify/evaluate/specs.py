"""The text form of attacks and defences: `name(option=value)`, joined by `|`; literals only, nothing is run."""

import ast
import re
from typing import Any, NamedTuple

_PART = re.compile(r"^\s*([a-z][a-z0-9_-]*)\s*(\(.*\))?\s*$", re.DOTALL)


class Spec(NamedTuple):
    """One part of a spec: a name, its positional and its keyword options."""

    name: str
    positional: tuple[Any, ...]
    options: dict[str, Any]


def parse_specs(text: str) -> list[Spec]:
    """`langevin(steps=150)|diffusion(timestep=75)` as a list of parts, from left to right.

    Values are Python literals, and quotients of numbers such as `8/255`.

    Raises:
      ValueError: the text is not of that form.
    """
    return [parse_spec(part) for part in _split(text)]


def parse_spec(text: str) -> Spec:
    """One part, `name` or `name(option=value, …)`.

    Raises:
      ValueError: the text is not of that form.
    """
    name, call = _call(text)
    options = {str(keyword.arg): _literal(keyword.value, text) for keyword in call.keywords}
    return Spec(name, tuple(_literal(value, text) for value in call.args), options)


def canonical(text: str) -> str:
    """A spec without needless spaces: `badnets( count = 10 )` is `badnets(count=10)`, and so the same row.

    Options keep their order, and text in quotes stays as it is.

    Raises:
      ValueError: the text is no spec.
    """
    return "|".join(map(_spelled, _split(text)))


def _spelled(text: str) -> str:
    parse_spec(text)  # refuses what is no literal
    name, call = _call(text)
    options = [_value(value) for value in call.args]
    options += [f"{keyword.arg}={_value(keyword.value)}" for keyword in call.keywords]
    return f"{name}({', '.join(options)})" if options else name


def _value(node: ast.expr) -> str:
    if not isinstance(node, ast.BinOp):
        return ast.unparse(node)
    right = f"({_value(node.right)})" if isinstance(node.right, ast.BinOp) else _value(node.right)
    return f"{_value(node.left)}/{right}"


def _call(text: str) -> tuple[str, ast.Call]:
    """The name, and its options as a call that is not made."""
    match = _PART.match(text)
    if match is None:
        raise ValueError(f"{text.strip()!r} is not of the form name or name(option=value, …)")
    try:
        call = ast.parse(f"spec{match[2] or '()'}", mode="eval").body
    except (SyntaxError, ValueError):
        raise ValueError(f"{text.strip()!r}: the options are not Python literals") from None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise ValueError(f"{text.strip()!r} is not of the form name or name(option=value, …)")
    names = [keyword.arg for keyword in call.keywords]
    if None in names or len(set(names)) < len(names):
        raise ValueError(f"{text.strip()!r}: each option is given once, as option=value")
    return match[1], call


def _split(text: str) -> list[str]:
    """Parts between the `|` that are outside of brackets and quotes."""
    parts, depth, quote, start = [], 0, "", 0
    for position, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character == "|" and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    return [*parts, text[start:]]


def _literal(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        above, below = _literal(node.left, text), _literal(node.right, text)
        if all(isinstance(value, int | float) for value in (above, below)) and below:
            return above / below
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        raise ValueError(f"{text.strip()!r}: {ast.unparse(node)!r} is not a literal") from None
