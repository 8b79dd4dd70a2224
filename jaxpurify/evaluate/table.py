"""The results table for the terminal, for a README and for the HTML report, all from the same summary."""

from collections.abc import Iterable, Mapping
from html import escape
import io
import re
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from jaxpurify.evaluate.summary import (
    NONE,
    Block,
    Group,
    Line,
    adaptive_text,
    blocks,
    epsilon_text,
    percent,
    success_text,
)
from jaxpurify.records import Summary

COLUMNS = ("Natural accuracy", "Poison success", "Highest target", "Worst class", "Clean floor", "Excess")
WIDE = 100  # characters; where there are fewer, names of attacks and defences need the room of a column
HIGHEST = "Highest target: the target class with the highest success, a mean over its runs. "
WITHOUT = "Without the poison: the same trigger or target on a victim trained on clean data behind the defence. "
LEGEND = (
    "Percent, mean ± standard error over n runs (a seed and a victim each; no error at n = 1). Poison success: of all "
    "triggered test images, or of the target images, where Wilson's 95 % interval in brackets takes the error's place. "
    f"{HIGHEST}Worst class: the true class of test images with the highest success, averaged over runs. Clean floor: "
    "the same trigger or target on a victim trained on clean data. Excess: success above that floor, in percentage "
    f"points. {WITHOUT}Adaptive: the attacker knew the defence. –: has no meaning here or was not measured."
)


def results_table(rows: Iterable[Mapping[str, Any]], *, width: int = 120) -> Table:
    """A rich table of mean ± standard error and n, with the clean and the undefended control always listed.

    Args:
      rows: result rows.
      width: of the terminal in characters; below 100 the column "Highest target" is left out.

    Raises:
      ValueError: there are no rows, or a row does not say what it belongs to.
    """
    found = blocks(rows)
    table = Table(box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left", pad_edge=False)
    table.collapse_padding = True
    table.title = Text(_heading(found[0])) if len(found) == 1 else Text(f"{len(found)} settings")
    shown = [place for place, name in enumerate(COLUMNS) if width >= WIDE or name != "Highest target"]
    legend = _legend(found)
    table.caption = Text(legend if width >= WIDE else legend.replace(HIGHEST, ""))
    table.add_column("Attack / defence", overflow="fold")
    table.add_column("Adap-\ntive", justify="center")
    for place in shown:
        table.add_column(COLUMNS[place].replace(" ", "\n"), justify="right", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    for block in found:
        if len(found) > 1:
            table.add_row(Text(_heading(block), style="bold underline"))
            table.add_section()
        for group in block.groups:
            table.add_row(Text(f"{group.title} ({group.budget})", style="bold"))
            for line in group.lines:
                cells = _cells(line)
                numbers = [Text(cells[place][0] + cells[place][1].replace("± ", "±")) for place in shown]
                name, style = (line.label, "") if line.runs else (f"{line.label}, not run", "dim")
                table.add_row(
                    Padding(Text(name), (0, 0, 0, 2)), adaptive_text(line, group), *numbers, str(line.runs), style=style
                )
            table.add_section()
    return table


def text_table(rows: Iterable[Mapping[str, Any]], *, width: int = 120) -> str:
    """The same table as plain text, `width` characters wide at most: no colours, for logs and files."""
    return plain_text(results_table(rows, width=width), width=width)


def plain_text(table: Table, *, width: int = 120) -> str:
    """Any rich table as plain text."""
    console = Console(file=io.StringIO(), width=width, force_terminal=False, color_system=None, highlight=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def markdown_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """The same table as GitHub Markdown, one table for every protocol, data set and victim."""
    names = ("Attack", "ε", "Poisons", "Labels", "Defence", "Adaptive", *COLUMNS, "n")
    lines, found = [], blocks(rows)
    for block in found:
        lines += [f"**{_markdown(_heading(block))}**", ""]
        lines += [_join(names), _join(["---"] * 4 + ["---", ":-:"] + ["--:"] * (len(COLUMNS) + 1))]
        for group in block.groups:
            attack = "none (clean)" if group.attack == NONE else f"`{_markdown(group.attack)}`"
            attack = ", ".join((attack, *map(_markdown, group.circumstances)))
            budget = (epsilon_text(group.epsilon), "–" if group.poisons is None else f"{group.poisons:,}")
            for line in group.lines:
                defence = "undefended" if line.defence == NONE else f"`{_markdown(line.defence)}`"
                defence = ", ".join((defence, *line.remarks))
                numbers = [" ".join(cell).strip() for cell in _cells(line)]
                labels = group.labels.removeprefix("labels ")
                start = (attack, *budget, labels, defence, adaptive_text(line, group))
                lines.append(_join((*start, *numbers, _runs_text(line))))
        lines.append("")
    return "\n".join([*lines, _legend(found), ""])


def html_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """The same table as HTML for the report: one table a setting, one header row an attack, cards on a phone."""
    found = blocks(rows)
    return "".join(map(_html_block, found)) + f'<p class="legend">{escape(_legend(found))}</p>'


def _legend(found: list[Block]) -> str:
    """What the columns mean, and the control where there is one."""
    control = any(line.control for block in found for group in block.groups for line in group.lines)
    return LEGEND if control else LEGEND.replace(WITHOUT, "")


def _html_block(block: Block) -> str:
    names = ("Defence", "Adaptive", *COLUMNS, "n")
    kinds = ("text", "centre", *("number",) * len(COLUMNS), "number")
    head = "".join(f'<th scope="col" class="{kind}">{name}</th>' for name, kind in zip(names, kinds, strict=True))
    body = "".join(_html_group(group) for group in block.groups)
    stated = (
        ("protocol", block.protocol), ("data", block.data), ("victim", block.victim), ("training", block.training)
    )  # fmt: skip
    chips = "".join(f'<span class="chip"><b>{name}</b> {escape(value)}</span>' for name, value in stated if value)
    return (
        f'<div class="setting"><p class="chips">{chips}</p>'
        f'<table class="results"><thead><tr>{head}</tr></thead>{body}</table></div>'
    )


def _html_group(group: Group) -> str:
    title = f'<tr class="attack"><th scope="rowgroup" colspan="{len(COLUMNS) + 3}">{escape(group.title)}'
    title += f" <span>{escape(group.budget)}</span></th></tr>"
    return f"<tbody>{title}{''.join(_html_line(line, group) for line in group.lines)}</tbody>"


def _html_line(line: Line, group: Group) -> str:
    kind = "control" if line.defence == NONE or line.control else "defended"
    cells = [f'<th scope="row">{_breakable(line.label)}</th>']
    known = adaptive_text(line, group)
    cells.append(f'<td class="centre{" absent" if known == "–" else ""}" data-name="Adaptive">{known}</td>')
    bars = ("natural", "success", "success", "success", None, None)
    summaries = _summaries(line)
    for name, (mean, error), summary, bar in zip(COLUMNS, _cells(line), summaries, bars, strict=True):
        mark = ""
        if bar and summary.mean is not None:
            mark = f'<span class="bar {bar}"><i style="width:{100 * summary.mean:.1f}%"></i></span>'
        value = f'<span class="value">{mean.replace("-", "−")}<small>{error}</small></span>'
        absent = " absent" if summary.mean is None else ""
        cells.append(f'<td class="number{absent}" data-name="{name}">{value}{mark}</td>')
    cells.append(f'<td class="number runs" data-name="n">{_runs_text(line)}</td>')
    return f'<tr class="{kind}{" missing" if line.runs == 0 else ""}">{"".join(cells)}</tr>'


def _summaries(line: Line) -> tuple[Summary, ...]:
    return (line.natural, line.success, line.highest, line.worst, line.floor, line.excess)


def _cells(line: Line) -> list[tuple[str, str]]:
    plain = [percent(summary, line.runs) for summary in _summaries(line)[:-1]]
    plain[COLUMNS.index("Poison success")] = success_text(line)
    return [*plain, percent(line.excess, line.runs, signed=True)]


def _runs_text(line: Line) -> str:
    return str(line.runs) if line.runs else "not run"


def _heading(block: Block) -> str:
    stated = (f"protocol {block.protocol}", f"data {block.data}", f"victim {block.victim}", block.training)
    return " · ".join(part for part in stated if part)


def _breakable(text: str) -> str:
    """Escaped text that may break after the joints of a long specification."""
    broken = escape(text)
    for joint in ("|", "(", ",", "_"):
        broken = broken.replace(joint, f"{joint}<wbr>")
    # A browser would break 1e-4 at its hyphen.
    return re.sub(r"[\d.]+e-\d+", r'<span class="number-word">\g<0></span>', broken)


def _markdown(text: str) -> str:
    flat = " ".join(text.replace("`", "'").split())
    return flat.replace("|", "\\|")


def _join(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
