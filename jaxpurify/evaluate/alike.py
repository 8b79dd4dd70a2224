"""Which result rows may be averaged: those that differ in nothing but the seeds."""

from collections.abc import Iterable, Mapping
from typing import Any

from jaxpurify.records import run_id

Part = tuple[tuple[Any, ...], list[Any]]


def block_key(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Protocol, data, victim, its training in words and all of its settings: rows that differ are not compared."""
    config = row.get("config") or {}
    settings = config.get("fine_tuning") or config.get("settings", {}).get("recipe", {})
    # A linear victim's new layer is trained by settings of its own.
    training = f"{settings['epochs']} epochs" if "epochs" in settings and not row["victim"].endswith("-linear") else ""
    return row["protocol"], row["data"], row["victim"], training, digest(row, "settings", "fine_tuning")


def circumstances(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What a row's config says of the attacker beside the attack itself, in words; usual settings are not mentioned."""
    config = row.get("config") or {}
    behind, count, targets = (config.get(name) for name in ("surrogate_defence", "surrogates", "targets"))
    training = config.get("surrogate_training")
    scale = row.get("trigger_scale", config.get("trigger_scale", 1.0))
    said = {
        f"made on {config.get('surrogate')}": config.get("surrogate"),
        "surrogate trained on adversarial examples": training == "adversarial",
        f"surrogate trained behind {behind}": behind,
        f"{count} surrogates": count,
        f"stopped at different epochs ({config.get('stagger')})": config.get("stagger"),
        f"{targets} targets": targets,
        f"trigger × {scale:g} at test": scale != 1.0 and row.get("target_hits") is None,
    }
    return tuple(text for text, applies in said.items() if applies)


def digest(row: Mapping[str, Any], *names: str, without: tuple[str, ...] = ()) -> str:
    """Six hexadecimal digits of what the row's config says under `names`, but for the settings `without`; else empty.

    Words do not hold it all: two files of one name, models trained anew, other rates of learning.
    """
    config = row.get("config") or {}
    said = {name: config[name] for name in names if name in config}
    if isinstance(said.get("settings"), Mapping):
        said["settings"] = {name: value for name, value in said["settings"].items() if name not in without}
    return run_id(said)[:6] if said else ""


def split(rows: Iterable[Any], key: Any) -> list[Part]:
    """The rows of each key, in the order of their first row."""
    parts: dict[Any, list[Any]] = {}
    for row in rows:
        parts.setdefault(key(row), []).append(row)
    return list(parts.items())


def told_apart(parts: list[Part], what: str) -> list[tuple[tuple[Any, ...], str, list[Any]]]:
    """Takes the digest from the end of each key, and names it as `what` where keys are equal without it."""
    names = [key[:-1] for key, _ in parts]

    def mark(key: tuple[Any, ...]) -> str:
        return f"{what} {key[-1] or 'not stated'}" if names.count(key[:-1]) > 1 else ""

    return [(key[:-1], mark(key), rows) for key, rows in parts]
