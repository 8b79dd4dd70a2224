"""Progress: bars on a terminal, plain lines now and then otherwise, both with rate and time left."""

from collections.abc import Callable, Iterator
import contextlib
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

PLAIN_SECONDS = 10.0
Report = Callable[..., None]


@contextlib.contextmanager
def progress_display(console: Console | None = None, *, unit: str = "") -> Iterator[Report]:
    """Yields `report(what, finished, total, note="")`: one bar for what is being done, with rate and time left.

    Args:
      console: where bars go; default the terminal behind stderr. Without a terminal there is a plain line on
        stdout every ten seconds.
      unit: what is counted, such as `images`; the rate is shown in it.
    """
    console = Console(stderr=True) if console is None else console
    if not console.is_terminal:
        yield _plain_lines(unit)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[pace]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        paces: dict[str, tuple[_Pace, TaskID]] = {}

        def report(what: str, finished: int, total: int, note: str = "") -> None:
            if what not in paces:
                for _, task in paces.values():
                    bars.remove_task(task)
                paces.clear()
                paces[what] = (_Pace(unit, finished), bars.add_task(what, total=total, pace=""))
            pace, task = paces[what]
            bars.update(task, completed=finished, total=total, pace=pace.text(finished, total, note))

        yield report


class _Pace:
    """Rate and time left since the first report; what was finished before it, in an earlier run, does not count."""

    def __init__(self, unit: str, finished: int):
        self.unit, self.first, self.start = unit, finished, time.monotonic()

    def text(self, finished: int, total: int, note: str) -> str:
        parts = [note] if note else []
        done, seconds = finished - self.first, time.monotonic() - self.start
        if done > 0 and seconds > 0:
            if self.unit:
                parts.append(f"{done / seconds:.1f} {self.unit}/s")
            if finished < total:
                parts.append(f"{clock((total - finished) * seconds / done)} left")
        return ", ".join(parts)


def clock(seconds: float) -> str:
    """Seconds as `m:ss`, or `h:mm:ss` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _plain_lines(unit: str) -> Report:
    shown: dict[str, tuple[_Pace, float]] = {}

    def report(what: str, finished: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        pace, last = shown.get(what, (_Pace(unit, finished), float("-inf")))
        if finished >= total or now - last >= PLAIN_SECONDS:
            last = now
            print(f"{what}: {finished}/{total} {pace.text(finished, total, note)}".rstrip(), flush=True)
        shown[what] = (pace, last)

    return report
