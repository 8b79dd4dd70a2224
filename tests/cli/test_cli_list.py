"""`jaxpurify list` names everything that the catalogues hold, and help is at hand for every command."""

import subprocess
import sys

import pytest

from jaxpurify import attack
from jaxpurify.attack.catalogue import ATTACKS
from jaxpurify.cli.list_names import PROTOCOLS
from jaxpurify.cli.main import COMMANDS, main
from jaxpurify.evaluate.protocol import protocol
from jaxpurify.evaluate.purifiers import PRESETS, PURIFIERS
from jaxpurify.networks.catalogue import NETWORKS
from jaxpurify.train.schedule import SCHEDULES
from jaxpurify.weights.catalogue import BUNDLED


def test_list_prints_every_name(capsys):
    assert main(["list"]) == 0
    words = capsys.readouterr().out.replace("(", " ").replace(",", " ").split()
    for names in (ATTACKS, PURIFIERS, PRESETS, NETWORKS, PROTOCOLS, SCHEDULES, BUNDLED, ("demo", "cpu-narcissus")):
        assert set(names) <= set(words)


def test_every_protocol_is_listed():
    with pytest.raises(ValueError, match="known: ") as caught:
        protocol("absent")
    assert str(caught.value).rsplit("known: ", 1)[1] == ", ".join(PROTOCOLS)


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"demo"}))
def test_help_shows_the_options(name, capsys):
    assert main([name, "--help"]) == 0
    assert f"jaxpurify {name}" in capsys.readouterr().out


def test_the_help_needs_no_jax():
    program = "import sys, jaxpurify.cli.main as m; m.main(['--help']); m.main(['purify', '--help']); "
    program += "assert not {'jax', 'numpy', 'flax'} & set(sys.modules), 'heavy import'"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert all(f"  {name} " in shown for name in COMMANDS) and "--purifier" in shown


def test_every_attack_that_is_listed_is_a_function_of_the_package():
    assert {name: getattr(attack, name) for name in ATTACKS} == {name: each.craft for name, each in ATTACKS.items()}
