"""Target by target: how many victims of each poisoned set take the target image for the attacker's class."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from jaxpurify.evaluate.alike import block_key, circumstances, digest, split, told_apart
from jaxpurify.evaluate.statistics import wilson_interval
from jaxpurify.evaluate.summary import NONE
from jaxpurify.records import distinct

COLUMNS = ("seed", "image", "taken for class", "victims", "poison success")


class Target(NamedTuple):
    """One target image: the seed of its poison (None: it is from a file), its place among that poison's targets, the
    class that was wanted."""

    seed: int | None
    place: int
    wanted: int | None
    hits: int
    victims: int

    @property
    def cells(self) -> tuple[str, ...]:
        """What a table shows: success in percent with Wilson's 95 % interval over the victims."""
        low, high = wilson_interval(self.hits, self.victims)
        success = f"{100 * self.hits / self.victims:.0f} [{100 * low:.0f}, {100 * high:.0f}]"
        wanted = "–" if self.wanted is None else str(self.wanted)
        seed = "–" if self.seed is None else str(self.seed)
        return (seed, str(self.place), wanted, f"{self.hits} of {self.victims}", success)


class TargetList(NamedTuple):
    """All target images of one attack against one defence, and what else was alike."""

    title: str
    targets: tuple[Target, ...]


def target_lists(rows: Iterable[Mapping[str, Any]]) -> list[TargetList]:
    """A list for every attack and defence with several victims of a poison; one victim tells nothing of a target."""
    told = [row for row in distinct(rows) if row["attack"] != NONE and row.get("target_hits") is not None]
    parts = split((row for row in told if not row.get("control")), _key)
    found = []
    for (attack, defence, said, *block), other, group in told_apart(parts, "settings"):
        protocol, data, victim, training = block
        members: dict[tuple[int | None, int], list[tuple[bool, Any]]] = {}
        for row in group:
            seed = None if "file" in (row.get("config") or {}) else row["seed"]
            for place, hit in enumerate(row["target_hits"]):
                members.setdefault((seed, place), []).append((hit, row.get("target")))
        if max(map(len, members.values())) < 2:
            continue
        behind = "undefended" if defence == NONE else defence
        trained = ", ".join(filter(None, (victim, training, other)))
        title = f"{', '.join((attack, *said))}; {behind}; protocol {protocol}, data {data}, victim {trained}"
        targets = [
            Target(seed, place, hits[0][1], sum(hit for hit, _ in hits), len(hits))
            for (seed, place), hits in sorted(members.items())
        ]
        found.append(TargetList(title, tuple(targets)))
    return found


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    other = digest(row, "settings", "fine_tuning", "attacker_weights", "file", "weights")
    return (row["attack"], row["defence"], circumstances(row), *block_key(row)[:-1], other)


def target_table(found: TargetList) -> Table:
    """The list as a rich table."""
    table = Table(title=Text(found.title), box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for target in found.targets:
        table.add_row(*map(Text, target.cells))
    return table


def target_markdown(found: TargetList) -> str:
    """The list as GitHub Markdown."""
    text = [f"**Poison success by target image: {found.title.replace('|', chr(92) + '|')}**", ""]
    text += ["| " + " | ".join(COLUMNS) + " |", "|" + " --: |" * len(COLUMNS)]
    return "\n".join([*text, *(f"| {' | '.join(target.cells)} |" for target in found.targets), ""])
