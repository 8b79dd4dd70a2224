"""The README's library example runs as it is printed."""

from pathlib import Path
import re

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_library_example_runs(capsys):
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert example is not None
    exec(compile(example[1], "README.md", "exec"), {})
    printed = capsys.readouterr().out
    before, after = (float(line.split()[2].rstrip(",")) for line in printed.splitlines())
    assert before > 0.5 and after < before / 2  # the trigger works less often after purification
