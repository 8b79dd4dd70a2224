"""`jaxpurify list`: everything that has a name, so that commands and specs need not be guessed."""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import inspect
from typing import Any

from jaxpurify.cli.options import read_options

Section = tuple[str, tuple[str, ...], Sequence[tuple[str, ...]]]
PAPER = ("paper", "paper-hlb", "paper-hlb-s", "paper-cinic10", "paper-tiny-imagenet")
PROTOCOLS = ("demo", "cpu", "cpu-small", *PAPER)


@dataclasses.dataclass(frozen=True)
class Options:
    """Print every attack, purifier, preset, network, protocol, schedule and bundled weight."""


def main(arguments: list[str]) -> int | None:
    """Runs the command."""
    read_options(Options, arguments, command="list")
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for title, columns, rows in sections():
        table = Table(*columns, title=Text(title, style="bold"), box=box.SIMPLE_HEAD, title_justify="left")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        if console.is_terminal:
            console.print(table)
        else:
            print(f"{title}\n" + "\n".join("  " + "  ".join(cell for cell in row if cell) for row in rows) + "\n")
    return None


def sections() -> list[Section]:
    """Title, column names and rows of every kind of name, as the catalogues hold them."""
    from jaxpurify.attack.catalogue import ATTACKS
    from jaxpurify.cli.network import constructor_parameters
    from jaxpurify.evaluate.crafting import not_in_specs, spec_options
    from jaxpurify.evaluate.presets import PRESETS as SCENARIOS
    from jaxpurify.evaluate.protocol import protocol
    from jaxpurify.evaluate.purifiers import PRESETS, PURIFIERS
    from jaxpurify.evaluate.stored_poison import STORED
    from jaxpurify.generate.diffusion import RECIPES as DIFFUSION_RECIPES
    from jaxpurify.generate.energy import RECIPES as ENERGY_RECIPES
    from jaxpurify.networks.catalogue import NETWORKS
    from jaxpurify.train.schedule import SCHEDULES
    from jaxpurify.weights.catalogue import BUNDLED, load_weights

    attacks = [
        (
            name,
            attack.summary,
            "needs --surrogate" if attack.needs_surrogate else "",
            ", ".join(
                (
                    _options(attack.craft, {"apply", "params", "key", "images", "labels", *not_in_specs(attack)}),
                    *spec_options(attack),
                )
            ),
            attack.source,
        )
        for name, attack in {**ATTACKS, "stored": STORED}.items()
    ]
    weights = [
        (name, kind, "x".join(map(str, shape)), _made(load_weights(name)[1])) for name, (kind, shape) in BUNDLED.items()
    ]
    networks = [(name, _texts(constructor_parameters(name).values())) for name in NETWORKS]
    scenarios = [
        (name, preset.protocol, ", ".join(preset.attacks), ", ".join(preset.defences))
        for name, preset in SCENARIOS.items()
    ]
    recipes = [
        (f"{kind} {name}", _settings(recipe))
        for kind, known in (("energy", ENERGY_RECIPES), ("diffusion", DIFFUSION_RECIPES))
        for name, recipe in known.items()
    ]
    known = (protocol(name) for name in PROTOCOLS)
    protocols = [(each.name, each.train, each.test, f"{each.victim}, {each.recipe.epochs} epochs") for each in known]
    return [
        ("Attacks", ("name", "what it does", "", "options", "source"), attacks),
        ("Purifiers", ("name", "options"), [(name, _purifier_options(name)) for name in PURIFIERS]),
        ("Purifier presets", ("name", "stands for"), list(PRESETS.items())),
        ("Scenario presets (evaluate --preset)", ("name", "protocol", "attacks", "defences"), scenarios),
        ("Protocols", ("name", "trains on", "tests on", "victim"), protocols),
        ("Training presets (generate --preset)", ("name", "settings"), recipes),
        ("Networks", ("name", "options"), networks),
        ("Learning-rate schedules", ("name",), [(name,) for name in SCHEDULES]),
        ("Bundled weights", ("name", "kind", "images", ""), weights),
    ]


def _options(function: Callable, without: set[str]) -> str:
    """The parameters that a spec can set, with their defaults."""
    return _texts(each for each in inspect.signature(function).parameters.values() if each.name not in without)


def _texts(parameters: Iterable[inspect.Parameter]) -> str:
    named = [each for each in parameters if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)]
    return ", ".join(
        each.name if each.default is each.empty else f"{each.name}={_short(each.default)}" for each in named
    )


def _purifier_options(name: str) -> str:
    from jaxpurify.evaluate.purifiers import PURIFIERS
    from jaxpurify.purify.diffusion import Diffusion
    from jaxpurify.purify.langevin import Langevin

    struct = {"langevin": Langevin, "diffusion": Diffusion}.get(name)
    own = _options(PURIFIERS[name], {"shape"})
    more = _options(struct, {"energy", "noise", "schedule", "trained"}) if struct is not None else ""
    return ", ".join(part for part in (more, own) if part)


def _settings(recipe: Any) -> str:
    """The settings of a recipe that are plain numbers and words."""
    fields = ((field.name, getattr(recipe, field.name)) for field in dataclasses.fields(recipe))
    return ", ".join(f"{name}={_short(value)}" for name, value in fields if isinstance(value, int | float | str))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else repr(value)


def _made(card: dict[str, Any]) -> str:
    """How bundled weights came to be, from their card."""
    minutes = card["seconds"] / 60
    made = f"{card['recipe']['steps']:,} updates on {card['source']}, {minutes:.0f} min: {card['command']}"
    said = card.get("scores", {}).items()
    scores = ", ".join(f"{name} {value if isinstance(value, str) else _short(value)}" for name, value in said)
    return f"{made}; {card['protocol']}; {scores}" if scores else made
