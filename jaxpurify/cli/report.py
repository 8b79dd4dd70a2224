"""`jaxpurify report`: the results table of existing rows, on the terminal, as Markdown or as an HTML page.

`jaxpurify report purifier` is in a file of its own.
"""

import dataclasses
from pathlib import Path

import tyro

from jaxpurify.cli.options import check_output, read_options


@dataclasses.dataclass(frozen=True)
class Options:
    """Print the results table of rows that are there already; nothing is run.

    `jaxpurify report purifier SOURCE --poison FILE.npz --purifier SPEC --out PAGE.html` measures a purifier instead.

    Attributes:
      results: a results.jsonl file, or the folder that holds it.
      out: also write the table as one self-contained HTML page.
      markdown: print the table as Markdown.
      force: replace OUT if it exists.
    """

    results: tyro.conf.Positional[Path]
    out: Path | None = None
    markdown: bool = False
    force: bool = False


def main(arguments: list[str]) -> int | None:
    """Runs the command."""
    if arguments[:1] == ["purifier"]:
        from jaxpurify.cli import report_purifier

        return report_purifier.main(arguments[1:])
    options = read_options(Options, arguments, command="report")
    path = options.results / "results.jsonl" if options.results.is_dir() else options.results
    if options.out is not None:
        check_output(options.out, force=options.force, suffix=".html", reads=(path,))

    from jaxpurify.evaluate.per_target import target_lists, target_markdown
    from jaxpurify.evaluate.table import markdown_table
    from jaxpurify.evaluate.transfer import matrix_markdown, transfer_matrices
    from jaxpurify.records import read_rows

    rows = read_rows(path)
    if options.markdown:
        table = markdown_table(rows)  # first: it refuses what are no rows of results
        others = (*map(matrix_markdown, transfer_matrices(rows)), *map(target_markdown, target_lists(rows)))
        print("\n".join([table, *others]))
    else:
        print_table(rows)
    if options.out is not None:
        from jaxpurify.evaluate.report import demo_report

        demo_report(options.out, rows, title=f"Results of {path}")
    return None


def print_table(rows: list) -> None:
    """The results table, transfer matrices and success by target, in colour on a terminal, else as plain text."""
    from rich.console import Console

    from jaxpurify.evaluate.per_target import target_lists, target_table
    from jaxpurify.evaluate.table import plain_text, results_table
    from jaxpurify.evaluate.transfer import matrix_table, transfer_matrices

    console = Console()
    width = console.width if console.is_terminal else 120
    results = results_table(rows, width=width)  # first: it refuses what are no rows of results
    others = (*map(matrix_table, transfer_matrices(rows)), *map(target_table, target_lists(rows)))
    for table in (results, *others):
        if console.is_terminal:
            console.print(table)
        else:
            print(plain_text(table, width=width), end="")
