"""The transfer matrix: how poisons made on one network do on victims of another."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from jaxpurify.evaluate.alike import circumstances, digest, split, told_apart
from jaxpurify.evaluate.summary import NONE, Line, lines, success_text
from jaxpurify.evaluate.victims import TRAININGS
from jaxpurify.records import distinct


class Matrix(NamedTuple):
    """Poison success of one attack and defence, for surrogates × victims.

    Attributes:
      title: attack and its circumstances, defence, protocol and data.
      surrogates: networks that poisons were made on, one a row.
      victims: networks (with their training) that were trained on them, one a column.
      cells: (surrogate, victim) to what was measured; absent where nothing was run.
    """

    title: str
    surrogates: tuple[str, ...]
    victims: tuple[str, ...]
    cells: dict[tuple[str, str], Line]


def surrogate_of(row: Mapping[str, Any]) -> str:
    """The attacker's network, with its training if that is not plain; the row's config names what is not as usual."""
    config = row.get("config") or {}
    suffix = next((f"-{training}" for training in TRAININGS if row["victim"].endswith(f"-{training}")), "")
    named = config.get("surrogate") or row["victim"].removesuffix(suffix)
    return f"{named}-{config['surrogate_training']}" if "surrogate_training" in config else named


def transfer_matrices(rows: Iterable[Mapping[str, Any]]) -> list[Matrix]:
    """One matrix for every attack and defence for which some victim is of another network than the surrogate.

    Rows without a poison success (clean controls, indiscriminate attacks) have no place in one.
    """
    told = [row for row in distinct(rows) if row["attack"] != NONE and row.get("poison_success") is not None]
    parts = split((row for row in told if not row.get("control")), _key)
    found = []
    for (attack, defence, protocol, data, said), other, group in told_apart(parts, "settings"):
        if all(not (row.get("config") or {}).get("surrogate") for row in group):
            continue
        members = dict(split(group, lambda row: (surrogate_of(row), row["victim"])))
        behind = "undefended" if defence == NONE else defence
        title = "; ".join((", ".join((attack, *said)), behind, f"protocol {protocol}, data {data}"))
        title += f", {other}" if other else ""
        surrogates, victims = (tuple(dict.fromkeys(pair[place] for pair in members)) for place in (0, 1))
        cells = {pair: lines(cell)[-1] for pair, cell in members.items()}
        found.append(Matrix(title, surrogates, victims, cells))
    return found


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    said = tuple(text for text in circumstances(row) if not text.startswith("made on "))
    names = ("settings", "fine_tuning", "attacker_weights", "file", "weights")
    other = digest(row, *names, without=("network", "options"))
    return (*(row[name] for name in ("attack", "defence", "protocol", "data")), said, other)


def matrix_table(matrix: Matrix) -> Table:
    """The matrix as a rich table, in percent: mean ± standard error, or Wilson's 95 % interval of target images."""
    table = Table(title=Text(matrix.title), box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    table.add_column("made on \\ victim")
    for victim in matrix.victims:
        table.add_column(Text(victim), justify="right")
    for surrogate in matrix.surrogates:
        table.add_row(Text(surrogate), *(_cell(matrix.cells.get((surrogate, victim))) for victim in matrix.victims))
    return table


def matrix_markdown(matrix: Matrix) -> str:
    """The matrix as GitHub Markdown."""
    text = [f"**Poison success by surrogate and victim: {matrix.title.replace('|', chr(92) + '|')}**", ""]
    text.append("| made on | " + " | ".join(matrix.victims) + " |")
    text.append("| --- |" + " --: |" * len(matrix.victims))
    for surrogate in matrix.surrogates:
        cells = (_cell(matrix.cells.get((surrogate, victim))) for victim in matrix.victims)
        text.append(f"| {surrogate} | " + " | ".join(cells) + " |")
    return "\n".join([*text, ""])


def _cell(line: Line | None) -> str:
    return "not run" if line is None else f"{' '.join(success_text(line)).strip()}, n = {line.runs}"
