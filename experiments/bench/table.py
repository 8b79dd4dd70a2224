"""What the benchmark prints."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.bench.peers import VARIANTS
from experiments.bench.timing import bound

# Below this ratio to the best peer a row is printed as missed.
MISSED = 0.9


def print_rows(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints a table of rows as `main` makes them, at least one, and below it what their numbers mean."""
    peaks = {row["precision"]: row["matmul_gflops"] for row in rows}
    table = Table(title=f"{rows[0]['device']}, {rows[0]['threads']['jax']} threads, {rows[0]['rounds']} rounds")
    for heading in ("work", "unit", "ours", *VARIANTS, "ours / best peer", "GFLOP/s"):
        table.add_column(heading, justify="left" if heading in ("work", "unit") else "right")
    for row in rows:
        reason = row.get("skipped") or row.get("failed")
        if reason:
            table.add_row(row["work"], "skipped" if "skipped" in row else "FAILED", reason)
            continue
        cells = [_variant(row["variants"].get(variant)) for variant in VARIANTS]
        ratio = f"{row['ratio_median']:.2f} [{row['ratio_min']:.2f} … {row['ratio_max']:.2f}]"
        miss = " missed" if _missed(row) else ""
        achieved = f"{row['achieved_gflops']['ours']:.0f}" if "achieved_gflops" in row else "–"
        table.add_row(row["work"], row["unit"], _number(row["ours"]), *cells, ratio + miss, achieved)
    console.print(table)
    for precision, peak in peaks.items():
        console.print(f"{precision} matrix product: JAX {peak['jax']:.0f}, PyTorch {peak['torch']:.0f} GFLOP/s.")
    console.print(
        "Beside a PyTorch rate: median of ours over it. The last columns: median and range over rounds against the "
        "fastest variant, and what ours achieves in convolutions and products."
    )
    for row in rows:
        if _missed(row):
            reason = bound(row) or "operations were not counted"
            console.print(f"{row['work']} missed, {row['ratio_median']:.2f}: {reason}.", markup=False)
        for name, entry in row.get("forms", {}).items():
            console.print(
                f"{row['work']}: ours {name} {_number(entry['rate'])} {row['unit']}, ours as in the table is "
                f"{entry['ratio_median']:.2f} times that."
            )
        if row.get("note"):
            console.print(f"{row['work']}: {row['note']}.")
        for variant, entry in row["variants"].items():
            if "error" in entry:
                console.print(f"{row['work']}, {variant}: {entry['error'].splitlines()[0]}", markup=False)
    disturbed = max(row.get("cores_of_others") or 0.0 for row in rows)
    if disturbed > 0.1:
        console.print(
            f"Other processes used up to {disturbed:.1f} cores, which slows PyTorch more: not a fair comparison."
        )
    if rows[0]["quick"]:
        console.print("--quick: these numbers mean nothing.")


def _missed(row: Mapping[str, Any]) -> bool:
    return row["ratio_median"] is not None and row["ratio_median"] < MISSED


def _variant(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "–"
    return "failed" if entry["rate"] is None else f"{_number(entry['rate'])} ({entry['ratio_median']:.2f})"


def _number(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
