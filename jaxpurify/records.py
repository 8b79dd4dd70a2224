"""Result rows as JSON lines: one line a run, appended when the run ends, never averaged before writing.

A row describes one (data, attack, defence, victim, seed). Grids are stopped and continued at any time:
what is already in the file is skipped by its `run_id`, and a line that a killed process left unfinished
is passed over. Every fraction is in [0, 1]; null stands where a quantity has no meaning.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import functools
import hashlib
import importlib.metadata
import json
import logging
import math
import os
from pathlib import Path
import platform
import subprocess
import sys
from typing import Any, NamedTuple

from jaxpurify.destination import replacing

try:
    import fcntl
except ImportError:  # Windows has no advisory locks; a single appending process is safe without one.
    fcntl = None  # type: ignore[assignment]

Row = dict[str, Any]
StrPath = str | os.PathLike[str]

IDENTITY = ("protocol", "data", "attack", "defence", "victim", "seed")
FRACTIONS = ("natural_accuracy", "poison_success", "poison_success_worst", "trigger_success_clean")
MANDATORY = (*IDENTITY, "adaptive", *FRACTIONS, "poisons", "epsilon", "seconds", "config")
PACKAGES = ("jaxpurify", "jax", "jaxlib", "flax", "optax", "numpy")

_log = logging.getLogger(__name__)


class Summary(NamedTuple):
    """Mean, standard error of the mean and number of runs; null where too few runs give none."""

    mean: float | None
    standard_error: float | None
    n: int


def run_id(config: Mapping[str, Any]) -> str:
    """First 12 hexadecimal digits of the SHA-256 of `config` as canonical JSON (sorted keys, no spaces).

    Equal settings give equal ids whatever the order of keys. 1 and 1.0 differ, as do numbers of different precision.

    Raises:
      ValueError: a value that JSON cannot hold, NaN and infinity included.
    """
    return hashlib.sha256(_line(config, "config").encode()).hexdigest()[:12]


def make_row(**fields: Any) -> Row:
    """Checks the fields of one run and adds `device`, `versions`, `git` and `run_id` (those given are kept).

    Mandatory: `protocol`, `data`, `attack`, `defence`, `victim` (text; `"none"` for a control), `seed`,
    `adaptive` (did the attacker know the defence), `natural_accuracy`, `poison_success`,
    `poison_success_worst` (the worst class), `trigger_success_clean` (same trigger or target on a victim
    trained on clean data), each in [0, 1] or None, `poisons` (count), `epsilon` (in [0, 1] image units),
    `seconds` and `config`. `config` must itself name protocol, data, attack, defence, victim and seed,
    because `run_id` hashes `config` alone and two different runs must not share an id. Further fields, such
    as `labels_changed`, are kept as they are.

    Raises:
      ValueError: a field is missing, of the wrong kind or out of range.
    """
    missing = [name for name in MANDATORY if name not in fields]
    if missing:
        raise ValueError(f"row lacks {', '.join(missing)}; a field without meaning is given as None")
    row = {name: _plain(value, name) for name, value in fields.items()}
    for name in ("protocol", "data", "attack", "defence", "victim"):
        if not isinstance(row[name], str) or not row[name]:
            raise ValueError(f"{name}={row[name]!r} must be non-empty text; controls are named 'none'")
    for name in ("seed", "poisons"):
        _check_number(name, row[name], whole=True)
    for name in ("epsilon", "seconds"):
        _check_number(name, row[name])
    for name in FRACTIONS:
        _check_number(name, row[name], highest=1.0)
    if not (row["adaptive"] is None or isinstance(row["adaptive"], bool)):
        raise ValueError(f"adaptive={row['adaptive']!r} must be True, False or None")
    if not isinstance(row["config"], dict):
        raise ValueError(f"config={row['config']!r} must be a mapping of settings")
    unnamed = [name for name in IDENTITY if name not in row["config"]]
    if unnamed:
        raise ValueError(f"config lacks {', '.join(unnamed)}; without them different runs would share a run_id")
    row.setdefault("device", device())
    row.setdefault("versions", versions())
    row.setdefault("git", git())
    row.setdefault("run_id", run_id(row["config"]))
    return row


@contextlib.contextmanager
def locked(path: StrPath) -> Iterator[None]:
    """Keeps other processes that ask for the same lock waiting; the file at `path` stays. Missing folders are made."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def append_row(path: StrPath, row: Mapping[str, Any]) -> None:
    """Appends one line durably: one write, flushed to the disk, under a lock against other processes.

    A last line without its newline (left by a killed process) is closed first, so that it cannot swallow
    the new row. Missing folders are made.

    Raises:
      ValueError: a value that JSON cannot hold.
    """
    line = _line(row, "row").encode() + b"\n"
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b", buffering=0) as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        length = file.seek(0, os.SEEK_END)
        if length:
            file.seek(length - 1)
            if file.read(1) != b"\n":
                line = b"\n" + line
        written = file.write(line)
        os.fsync(file.fileno())
        if written != len(line):
            raise OSError(f"{path}: wrote {written} of {len(line)} bytes; is the disk full?")


def read_rows(path: StrPath) -> list[Row]:
    """All rows in the order of writing; lines left unfinished by a killed process are passed over and logged.

    Raises:
      ValueError: there is no such file, or a line holds JSON that is no object.
    """
    if not Path(path).is_file():
        raise ValueError(f"no results file at {path}; expected a file of JSON lines")
    rows = []
    for number, line in enumerate(Path(path).read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode(errors="replace"))
        except json.JSONDecodeError:
            _log.warning("%s, line %d: unfinished row passed over", path, number)
            continue
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: expected a JSON object, got {type(row).__name__}")
        rows.append(row)
    return rows


def finished(path: StrPath) -> set[str]:
    """The `run_id`s already in the file: what a grid skips when it is continued. Empty without a file."""
    if not Path(path).exists():
        return set()
    return {row["run_id"] for row in read_rows(path) if "run_id" in row}


def to_parquet(path_jsonl: StrPath, path_parquet: StrPath) -> None:
    """Writes the rows as one Parquet table, one column a field of any row.

    Nested values (`config`, `versions`) and columns of mixed kinds become JSON text, because settings
    differ from run to run and Parquet wants one type a column.
    """
    import pyarrow
    import pyarrow.parquet

    rows = read_rows(path_jsonl)
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: _column([row.get(name) for row in rows]) for name in names}
    with replacing(Path(path_parquet), force=True) as temporary:
        pyarrow.parquet.write_table(pyarrow.table(columns), temporary)


def summarise(
    rows: Iterable[Mapping[str, Any]],
    by: Sequence[str] = ("data", "attack", "defence", "victim"),
    metric: str | Callable[[Mapping[str, Any]], float | None] = "poison_success",
) -> dict[tuple[Any, ...], Summary]:
    """Mean, standard error s/√n (s with n − 1) and n of `metric` for every distinct value of the fields `by`.

    `metric` is a field or a function of a row. Rows where it is null are left out of n, and a group without
    any value has mean None and n 0. Of rows with one `run_id` the last counts: a run done twice is one run.
    Groups come in the order of their first row; the standard error of a single run is None.
    """
    groups: dict[tuple[Any, ...], list[float]] = {}
    for row in distinct(rows):
        values = groups.setdefault(tuple(row.get(name) for name in by), [])
        value = row.get(metric) if isinstance(metric, str) else metric(row)
        if value is not None:
            values.append(float(value))
    return {key: _summary(values) for key, values in groups.items()}


def distinct(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows with the last of each `run_id` only, in the order of first appearance."""
    latest: dict[Any, Mapping[str, Any]] = {}
    for position, row in enumerate(rows):
        latest[row.get("run_id", position)] = row
    return list(latest.values())


def device() -> str:
    """The accelerators in use, or the processor, as text such as `NVIDIA H100 x1` or `cpu x1 (AMD EPYC, 2 cores)`.

    JAX is asked only if the program has loaded it: reading a results file must not claim an accelerator.
    """
    host = f"{_processor()}, {os.cpu_count()} cores"
    jax = sys.modules.get("jax")
    if jax is None:
        return f"cpu ({host})"
    devices = jax.local_devices()
    name = f"{devices[0].device_kind} x{len(devices)}"
    return f"{name} ({host})" if devices[0].platform == "cpu" else name


@functools.cache
def _processor() -> str:
    """Its model where Linux tells it, because rates and last bits differ between models; else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, models), platform.machine()) or "unknown processor"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers; those not installed are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache  # The code that runs is the code at the start, whatever is committed meanwhile.
def git() -> str | None:
    """Commit of the checkout that this package runs from, `-dirty` if its Python files differ; else None."""
    root = Path(__file__).resolve().parents[1]
    try:
        top, commit = (
            _ask_git(root, "rev-parse", *what).stdout.strip() for what in (("--show-toplevel",), ("--verify", "HEAD"))
        )
        # A package installed below another project's checkout must not borrow that project's commit.
        if not top or not commit or Path(top).resolve() != root:
            return None
        changed = _ask_git(root, "diff", "--quiet", "HEAD", "--", "*.py").returncode != 0
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}-dirty" if changed else commit


def _ask_git(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


def _summary(values: Sequence[float]) -> Summary:
    if not values:
        return Summary(None, None, 0)
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Summary(mean, None, 1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return Summary(mean, math.sqrt(variance / len(values)), len(values))


def _check_number(name: str, value: Any, *, whole: bool = False, highest: float = math.inf) -> None:
    if value is None:
        return
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not 0 <= value <= highest:
        accepted = "a whole number" if whole else "a number"
        bounds = "at least 0" if math.isinf(highest) else f"in [0, {highest:g}]"
        raise ValueError(f"{name}={value!r} must be None or {accepted} {bounds}")


def _plain(value: Any, name: str) -> Any:
    """`value` in JSON's own types: arrays and NumPy or JAX scalars become numbers and lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, name) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{name}={value!r} must be finite; a value without meaning is given as None")
        return float(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return _plain(value.tolist(), name)
    raise ValueError(f"{name}={value!r} must be text, a number, a flag, None, or lists and mappings of these")


def _line(content: Mapping[str, Any], name: str) -> str:
    return json.dumps(_plain(content, name), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _column(values: list[Any]) -> list[Any]:
    kinds = {float if type(value) is int else type(value) for value in values if value is not None}
    if len(kinds) <= 1 and not kinds & {dict, list}:
        return values
    return [None if value is None else json.dumps(value, sort_keys=True) for value in values]
