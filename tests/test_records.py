"""Rows survive kills and concurrent writers, name their run, and are averaged only when read."""

import json
import math
import os
from pathlib import Path
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pyarrow.parquet
import pytest

from jaxpurify import records


def fields(**changes):
    identity = {
        "protocol": "cpu-small",
        "data": "digits",
        "attack": "gradient_matching",
        "defence": "langevin(steps=150)",
        "victim": "resnet9(width=16)",
        "seed": 0,
    }
    identity.update({name: value for name, value in changes.items() if name in identity})
    rest = {
        "adaptive": False,
        "natural_accuracy": 0.91,
        "poison_success": 0.1,
        "poison_success_worst": 0.3,
        "trigger_success_clean": 0.05,
        "poisons": 50,
        "epsilon": 8 / 255,
        "seconds": 12.5,
        "config": {**identity, "epochs": 15},
    }
    return {**identity, **rest, **changes}


def test_run_id_is_the_hash_of_canonical_json():
    config = {"b": 2, "a": [1, 0.5], "c": None}
    # echo -n '{"a":[1,0.5],"b":2,"c":null}' | sha256sum | cut -c 1-12
    assert records.run_id(config) == "ad61a3267f61"
    assert records.run_id({"c": None, "a": (np.int32(1), np.float64(0.5)), "b": jnp.int32(2)}) == "ad61a3267f61"
    assert records.run_id({**config, "b": 3}) != records.run_id(config)


def test_make_row_adds_where_and_with_what_it_ran():
    row = records.make_row(**fields(labels_changed=False))
    assert row["run_id"] == records.run_id(row["config"])
    assert row["labels_changed"] is False
    assert row["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "jax" in row["versions"]
    assert row["device"].startswith("cpu x4 (")
    assert row["git"] is None or len(row["git"].removesuffix("-dirty")) == 40
    assert set(records.MANDATORY) <= set(row)


def test_make_row_keeps_what_is_given_and_converts_array_scalars():
    row = records.make_row(
        **fields(natural_accuracy=jnp.float32(0.5), poison_success=np.float32(0.25), device="TPU v5e x8", git="abc")
    )
    assert (row["natural_accuracy"], row["poison_success"]) == (0.5, 0.25)
    assert type(row["natural_accuracy"]) is float
    assert (row["device"], row["git"]) == ("TPU v5e x8", "abc")


@pytest.mark.parametrize("name", records.MANDATORY)
def test_every_mandatory_field_is_missed_by_name(name):
    given = fields()
    del given[name]
    with pytest.raises(ValueError, match=f"row lacks {name}"):
        records.make_row(**given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"natural_accuracy": 91.0}, r"natural_accuracy=91.0 .* in \[0, 1\]"),
        ({"poison_success": -0.1}, "poison_success=-0.1"),
        ({"poison_success_worst": math.nan}, "poison_success_worst=nan must be finite"),
        ({"trigger_success_clean": True}, "trigger_success_clean=True"),
        ({"poisons": 1.5}, "poisons=1.5 .* whole number"),
        ({"seed": "0"}, "seed='0'"),
        ({"seconds": math.inf}, "seconds=inf"),
        ({"attack": None}, "attack=None must be non-empty text"),
        ({"adaptive": "no"}, "adaptive='no'"),
        ({"config": {"seed": 0}}, "config lacks protocol, data, attack, defence, victim;"),
        ({"target": object()}, "target=<object"),
    ],
)
def test_bad_fields_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        records.make_row(**fields(**change))


def test_null_stands_where_a_field_has_no_meaning():
    row = records.make_row(**fields(attack="none", poison_success=None, poison_success_worst=None, epsilon=None))
    assert row["poison_success"] is None and row["epsilon"] is None


def test_append_read_finished(tmp_path):
    path = tmp_path / "runs" / "new" / "results.jsonl"
    assert records.finished(path) == set()
    rows = [records.make_row(**fields(seed=seed)) for seed in range(3)]
    for row in rows:
        records.append_row(path, row)
    assert records.read_rows(path) == rows
    assert records.finished(path) == {row["run_id"] for row in rows}
    assert len(records.finished(path)) == 3
    with pytest.raises(ValueError, match="no results file"):
        records.read_rows(tmp_path / "absent.jsonl")


@pytest.mark.parametrize("cut", [1, 2, 40, 10**6])
def test_a_torn_last_line_costs_only_itself(tmp_path, cut):
    path = tmp_path / "results.jsonl"
    first, second, third = (records.make_row(**fields(seed=seed)) for seed in range(3))
    records.append_row(path, first)
    whole = path.read_bytes()
    records.append_row(path, second)
    torn = path.read_bytes()[: max(len(whole) + 1, path.stat().st_size - cut)]
    path.write_bytes(torn)
    # Without only its newline the row is complete, and is kept.
    survivors = [first, second] if cut == 1 else [first]
    assert records.read_rows(path) == survivors
    assert records.finished(path) == {row["run_id"] for row in survivors}
    records.append_row(path, third)
    assert records.read_rows(path) == [*survivors, third]
    assert path.read_bytes().startswith(torn + b"\n"), "what was written is never rewritten"


def test_torn_lines_are_logged_and_foreign_json_is_refused(tmp_path, caplog):
    path = tmp_path / "results.jsonl"
    path.write_bytes(b'{"seed":1}\n{"seed":2,"na\n{"seed":3}\n')
    assert [row["seed"] for row in records.read_rows(path)] == [1, 3]
    assert "line 2: unfinished row" in caplog.text
    path.write_bytes(b"[1, 2]\n")
    with pytest.raises(ValueError, match="line 1: expected a JSON object, got list"):
        records.read_rows(path)


APPEND = """
import sys
from jaxpurify.records import append_row
for count in range(150):
    append_row(sys.argv[1], {"writer": sys.argv[2], "count": count, "padding": "x" * 9000})
"""


def test_two_processes_append_without_mixing_lines(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_bytes(b'{"torn":')
    root = Path(records.__file__).parents[1]
    writers = [subprocess.Popen([sys.executable, "-c", APPEND, str(path), name], cwd=root) for name in "ab"]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    rows = records.read_rows(path)
    for name in "ab":
        assert [row["count"] for row in rows if row["writer"] == name] == list(range(150))
    assert path.read_bytes().count(b"\n") == 301


COUNT = """
from pathlib import Path
import sys, time
from jaxpurify.records import locked
counter = Path(sys.argv[1])
Path(f"{counter}.{sys.argv[2]}").touch()
limit = time.monotonic() + 20
while len(list(counter.parent.glob("counter.[ab]"))) < 2 and time.monotonic() < limit:
    time.sleep(0.001)
for _ in range(30):
    with locked(f"{counter}.lock"):
        value = int(counter.read_text())
        time.sleep(0.002)
        counter.write_text(str(value + 1))
"""


def test_a_lock_keeps_other_processes_waiting(tmp_path):
    (tmp_path / "counter").write_text("0")
    root, command = Path(records.__file__).parents[1], [sys.executable, "-c", COUNT, str(tmp_path / "counter")]
    counting = [subprocess.Popen([*command, name], cwd=root) for name in "ab"]
    assert [each.wait(timeout=60) for each in counting] == [0, 0]
    assert (tmp_path / "counter").read_text() == "60"


def test_git_names_the_commit_of_this_checkout_only(tmp_path):
    root = tmp_path / "checkout"
    package, installed = root / "jaxpurify", root / "site-packages" / "jaxpurify"
    for folder in (package, installed):
        folder.mkdir(parents=True)
        shutil.copy(records.__file__, folder / "records.py")

    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
        done = subprocess.run(["git", "-C", root, *identity, *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def reported(folder):
        code = "import records; print(records.git(), records.device())"
        done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
        commit, device = done.stdout.strip().split(" ", 1)
        assert device.startswith("cpu ("), "without JAX in the program the host itself is named"
        return commit

    assert reported(package) == "None", "no repository"
    git("init", "--quiet")
    assert reported(package) == "None", "no commit yet"
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    assert reported(package) == git("rev-parse", "HEAD")
    assert reported(installed) == "None", "installed below a checkout that is not its own"
    with open(package / "records.py", "a") as file:
        file.write("# changed\n")
    assert reported(package) == git("rev-parse", "HEAD") + "-dirty"


@pytest.mark.parametrize(
    ("told", "named"),
    [
        ("processor\t: 0\nmodel name\t: Xeon (R): 3\nprocessor\t: 1\nmodel name\t: other\n", "Xeon (R): 3"),
        ("Processor\t: 0\nmodel name\t:\n", "aarch64"),
        (None, "aarch64"),
    ],
)
def test_the_host_is_named_by_its_model(told, named, monkeypatch):
    def read_text(path, **_):
        assert path == Path("/proc/cpuinfo")
        if told is None:
            raise FileNotFoundError(path)
        return told

    monkeypatch.setattr(records.Path, "read_text", read_text)
    monkeypatch.setattr(records.platform, "machine", lambda: "aarch64")
    records._processor.cache_clear()
    assert f"({named}, {os.cpu_count()} cores)" in records.device()
    records._processor.cache_clear()


def test_parquet_holds_every_field_of_every_row(tmp_path):
    path, table_path = tmp_path / "results.jsonl", tmp_path / "results.parquet"
    records.append_row(path, records.make_row(**fields(poison_success=1)))
    records.append_row(path, records.make_row(**fields(seed=1, extra="late", mixed=1)))
    records.append_row(path, records.make_row(**fields(seed=2, poison_success=None, mixed="text")))
    records.to_parquet(path, table_path)
    table = pyarrow.parquet.read_table(table_path).to_pydict()
    assert table["seed"] == [0, 1, 2]
    assert table["poison_success"] == [1.0, 0.1, None]
    assert table["extra"] == [None, "late", None]
    assert table["mixed"] == [None, "1", '"text"']
    assert json.loads(table["config"][1])["seed"] == 1
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["results.jsonl", "results.parquet"]


def test_summarise_gives_mean_standard_error_and_n():
    values = [0.1, 0.2, 0.6, None]
    rows = [records.make_row(**fields(seed=seed, poison_success=value)) for seed, value in enumerate(values)]
    rows.append(records.make_row(**fields(defence="none", poison_success=0.9)))
    rows.append(records.make_row(**fields(attack="none", poison_success=None)))
    rows.append({**rows[0]})  # the same run once more is not a further sample
    summary = records.summarise(rows)
    assert list(summary) == [
        ("digits", "gradient_matching", "langevin(steps=150)", "resnet9(width=16)"),
        ("digits", "gradient_matching", "none", "resnet9(width=16)"),
        ("digits", "none", "langevin(steps=150)", "resnet9(width=16)"),
    ]
    defended, undefended, clean = summary.values()
    assert defended.mean == pytest.approx(np.mean(values[:3]))
    assert defended.standard_error == pytest.approx(np.std(values[:3], ddof=1) / np.sqrt(3))
    assert defended.n == 3
    assert undefended == (0.9, None, 1)
    assert clean == (None, None, 0)


def test_summarise_takes_a_function_of_the_row():
    rows = [records.make_row(**fields(seed=seed, poison_success=0.2 + 0.1 * seed)) for seed in range(2)]
    by_function = records.summarise(rows, by=("data",), metric=lambda row: row["poison_success"] - 0.05)
    assert by_function[("digits",)].mean == pytest.approx(0.2)
