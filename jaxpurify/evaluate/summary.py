"""Result rows gathered for tables: blocks of one protocol, data set and victim, with the controls always listed."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxpurify.evaluate.alike import block_key, circumstances, digest, split, told_apart
from jaxpurify.evaluate.statistics import wilson_interval
from jaxpurify.records import IDENTITY, Summary, distinct, summarise

NONE = "none"


class Line(NamedTuple):
    """One defence against one attack. `runs` is 0 for a control that was not run.

    `control` is what victims were trained on in the place of the poisoned set, or None; `weights` tells the purifier's
    models apart where a table has several of one name, else it is empty.
    """

    defence: str
    control: str | None
    adaptive: bool | None
    weights: str
    runs: int
    natural: Summary
    success: Summary
    highest: Summary
    worst: Summary
    floor: Summary
    excess: Summary
    # Target images hit, each by the share of its victims, and all of them; None where success is not of target images.
    hits: tuple[float, int] | None

    @property
    def label(self) -> str:
        name = "undefended" if self.defence == NONE else self.defence
        return ", ".join((name, *self.remarks))

    @property
    def remarks(self) -> tuple[str, ...]:
        """What is to be said of the defence beside its name."""
        return tuple(filter(None, (self.weights, "without the poison" if self.control else "")))


class Group(NamedTuple):
    """One attack with one budget; `attack` is "none" for victims trained on clean data.

    `circumstances` are what else differs between attackers: their surrogates, where these are not one network like
    the victim's, how many targets they are after, how strong the trigger is at test.
    """

    attack: str
    epsilon: float | None
    poisons: int | None
    labels_changed: bool | None
    circumstances: tuple[str, ...]
    lines: tuple[Line, ...]

    @property
    def title(self) -> str:
        return "no attack" if self.attack == NONE else self.attack

    @property
    def budget(self) -> str:
        """The attack's budget in words, e.g. `ε = 8/255, 500 poisons, labels unchanged`."""
        if self.attack == NONE:
            return "clean control"
        bound = "no ε bound" if self.epsilon is None else f"ε = {epsilon_text(self.epsilon)}"
        return ", ".join((bound, poisons_text(self.poisons), self.labels, *self.circumstances))

    @property
    def labels(self) -> str:
        if self.attack == NONE:
            return "labels unchanged"
        return {None: "labels not stated", True: "labels changed", False: "labels unchanged"}[self.labels_changed]


class Block(NamedTuple):
    """What may be compared with each other: one protocol, one data set, one victim, trained in one way."""

    protocol: str
    data: str
    victim: str
    training: str
    groups: tuple[Group, ...]


def blocks(rows: Iterable[Mapping[str, Any]]) -> list[Block]:
    """Gathers rows for a table; the clean control opens each block, the undefended victim each attack.

    Controls without any row are listed with `runs` 0, so that their absence is seen. Order is that of the
    first row otherwise. Excess is `poison_success - trigger_success_clean`, taken run by run.

    Raises:
      ValueError: there are no rows, or a row does not say what it belongs to.
    """
    rows = distinct(rows)
    if not rows:
        raise ValueError("no rows to tabulate; expected at least one result row")
    for row in rows:
        missing = [name for name in IDENTITY if name not in row]
        if missing:
            raise ValueError(f"row {row.get('run_id')!r} lacks {', '.join(missing)}; expected a result row")
    found = []
    for (protocol, data, victim, training), settings, members in told_apart(split(rows, block_key), "settings"):
        attacks = dict(split(members, _attack_key))
        clean: tuple[Any, ...] = (NONE, None, None, None, (), "")
        attacks = {clean: _once(attacks.pop(clean, [])), **attacks}
        parts = told_apart(list(attacks.items()), "made with")
        groups = tuple(
            Group(*key, circumstances=tuple(filter(None, (*said, made))), lines=lines(group))
            for (*key, said), made, group in parts
        )
        found.append(Block(protocol, data, victim, ", ".join(filter(None, (training, settings))), groups))
    return found


def excess(row: Mapping[str, Any]) -> float | int | None:
    """Poison success above the floor of a victim trained on clean data, or None where either is unknown."""
    success, floor = row.get("poison_success"), row.get("trigger_success_clean")
    return None if success is None or floor is None else success - floor


def epsilon_text(epsilon: float | int | None) -> str:
    """ε as a fraction of 255 where it is one (`8/255`), else in decimals; `–` where it has no meaning."""
    if epsilon is None:
        return "–"
    levels = epsilon * 255
    return f"{round(levels)}/255" if round(levels) > 0 and abs(levels - round(levels)) < 1e-3 else f"{epsilon:.3g}"


def poisons_text(poisons: int | None) -> str:
    """How many poisons, in words."""
    return "poison count not stated" if poisons is None else f"{poisons:,} poison{'' if poisons == 1 else 's'}"


def adaptive_text(line: Line, group: Group) -> str:
    """Did the attacker know the defence: `yes`, `no`, or `–` where there is none to know."""
    if group.attack == NONE or (line.defence == NONE and not line.adaptive):
        return "–"
    return {None: "not stated", True: "yes", False: "no"}[line.adaptive]


def percent(summary: Summary, runs: int, *, signed: bool = False) -> tuple[str, str]:
    """The mean in percent and its error, e.g. `("12.3", "± 0.4")`; `("–", "")` where there is none.

    The error is absent for a single run. A mean over fewer runs than the line has says so.
    """
    if summary.mean is None:
        return "–", ""
    # Adding zero turns the -0.0 of a rounded small negative into 0.0.
    mean = f"{round(100 * summary.mean, 1) + 0.0:{'+' if signed else ''}.1f}"
    error = "" if summary.standard_error is None else f"± {100 * summary.standard_error:.1f}"
    partial = f"(n = {summary.n})" if summary.n != runs else ""
    return mean, " ".join(part for part in (error, partial) if part)


def success_text(line: Line) -> tuple[str, str]:
    """The poison success in percent and its error, or Wilson's 95 % interval where target images were counted."""
    mean, error = percent(line.success, line.runs)
    if line.hits is None:
        return mean, error
    low, high = wilson_interval(*line.hits)
    return mean, f"[{100 * low:.0f}, {100 * high:.0f}]"


def _attack_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    if row["attack"] == NONE:
        return (NONE, None, None, None, (), "")
    config = row.get("config") or {}
    labels_changed = row.get("labels_changed", config.get("labels_changed"))
    poisons = row.get("poisons_left_out", row.get("poisons"))
    made = digest(row, "attacker_weights", "file")
    return (row["attack"], row.get("epsilon"), poisons, labels_changed, circumstances(row), made)


def lines(rows: Sequence[Mapping[str, Any]]) -> tuple[Line, ...]:
    """One line for every defence, its control, and every attacker who knew it; the undefended one first, if only as
    absent.

    All rows are of one attack in the same circumstances.
    """
    parts = told_apart(split(rows, _line_key), "weights")
    if not any(defence == NONE for (defence, _, _), _, _ in parts):
        parts.append(((NONE, None, None), "", []))
    order = [defence for (defence, _, _), _, _ in parts]
    parts.sort(key=lambda part: (part[0][0] != NONE, order.index(part[0][0])))  # a control follows its defence
    return tuple(
        Line(
            defence=defence,
            control=control,
            adaptive=adaptive,
            weights=weights,
            runs=len(members),
            natural=_mean(members, "natural_accuracy"),
            success=_mean(members, "poison_success"),
            highest=_highest(members),
            worst=_mean(members, "poison_success_worst"),
            floor=_mean(members, "trigger_success_clean"),
            excess=_mean(members, excess),
            hits=_hits(members),
        )
        for (defence, adaptive, control), weights, members in parts
    )


def _once(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """One row a clean victim: its rows of other trigger strengths or targets are the same victim."""
    victims = {(row["seed"], (row.get("config") or {}).get("victim_seed"), _line_key(row)): row for row in rows}
    return list(victims.values())


def _line_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    adaptive = row.get("adaptive") if row["attack"] != NONE else None
    return row["defence"], adaptive, row.get("control"), digest(row, "weights")


def _highest(rows: Sequence[Mapping[str, Any]]) -> Summary:
    """The success of the target class with the highest; a run without a target class stands for itself."""
    classes: dict[Any, list[float]] = {}
    for number, row in enumerate(rows):
        if row.get("poison_success") is not None:
            target = row.get("target")
            classes.setdefault((number,) if target is None else target, []).append(row["poison_success"])
    means = [sum(each) / len(each) for each in classes.values()]
    return Summary(max(means, default=None), None, sum(map(len, classes.values())))


def target_shares(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[Any, int], float] | None:
    """The share of victims that each target image fooled, by (poison, place); None unless all rows say.

    Victims trained on one poisoned set are no independent trials of it: an interval is over targets. A poison is named
    by its seed, one from a file by the digest of the file, whatever the seeds of its victims.
    """
    if not rows or any(row.get("target_hits") is None for row in rows):
        return None
    found: dict[tuple[Any, int], list[bool]] = {}
    for row in rows:
        poison = (row.get("config") or {}).get("file", row["seed"])
        for place, hit in enumerate(row["target_hits"]):
            found.setdefault((poison, place), []).append(hit)
    return {target: sum(hits) / len(hits) for target, hits in found.items()}


def _hits(rows: Sequence[Mapping[str, Any]]) -> tuple[float, int] | None:
    shares = target_shares(rows)
    return None if shares is None else (sum(shares.values()), len(shares))


def _mean(rows: Sequence[Mapping[str, Any]], metric: Any) -> Summary:
    return summarise(rows, by=(), metric=metric).get((), Summary(None, None, 0))
