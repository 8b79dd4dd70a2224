"""`report purifier` measures a purifier on a poison file and writes one page, or says in one line why it cannot."""

import numpy as np
import pytest

from jaxpurify.cli.main import main
from jaxpurify.data.poison import Poison, load_poison, save_poison
from jaxpurify.data.sources import load_source

CRAFT = ("craft", "pattern(epsilon=0.2, count=20)", "digits[:200]", "--target", "3", "--out", "poison.npz")
REPORT = ("report", "purifier", "digits[:200]", "--poison", "poison.npz", "--out", "page.html")


@pytest.fixture
def poisoned(here):
    assert main(list(CRAFT)) == 0


def test_one_command_gives_one_page(poisoned, here, everything, capsys):
    purifier = "langevin(steps=4)|jpeg|diffusion(timestep=6, steps=1)"
    assert main([*REPORT, "--purifier", purifier, "--count", "8", "--steps", "2", "4"]) == 0
    output = capsys.readouterr().out
    assert "crossing, Langevin steps: 4/4" in output and "crossing, diffusion timesteps: 4/4" in output
    line = output.splitlines()[-1]
    assert line.startswith("AUROC ") and line.endswith("; page.html") and "median survival" in line
    assert everything() == ["page.html", "poison.npz"]
    page = (here / "page.html").read_text()
    assert "8 of 20 poisons" in page and "What langevin(steps=4)" in page
    assert main([*REPORT, "--purifier", "jpeg"]) == 2  # the page exists


def test_of_a_filter_the_purifier_inside_is_measured(poisoned, here, capsys, energy_weights):
    options = ["--purifier", "filt('jpeg(quality=20)', fraction=0.1)", "--energy", str(energy_weights)]
    assert main([*REPORT, *options]) == 0
    output = capsys.readouterr().out
    assert "purify: 40/40" in output and "crossing" not in output.splitlines()[-1]
    page = (here / "page.html").read_text()
    assert "does to the images that it chooses" in page and "The filter&#x27;s choice was left out" in page


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--purifier", "blur"), "unknown purifier 'blur'"),
        (("--purifier", "jpeg", "--count", "0"), "count 0"),
        (("--purifier", "jpeg", "--steps", "0", "3"), "steps 0 3; all of them must be at least 1"),
        (("--purifier", "jpeg", "--poison", "absent.npz"), "absent.npz"),
        (("--purifier", "jpeg", "--seed", "-1"), "seed -1"),
        (("--purifier", "jpeg", "--steps", "5"), "--steps 5; jpeg has no steps to choose"),
        (("--purifier", "jpeg", "--out", "poison.npz", "--force"), "poison.npz must end with .html"),
    ],
)
def test_bad_requests(poisoned, refused, everything, options, complaint):
    assert complaint in refused(*REPORT, *options)
    assert everything() == ["poison.npz"]


def test_a_poison_of_another_data_set_is_refused(poisoned, refused, everything):
    complaint = "levels from training image"
    message = refused("report", "purifier", "digits[10:210]", *REPORT[3:], "--purifier", "jpeg")
    assert message.count("poison.npz: poison") == 1 and complaint in message and "another data set" in message
    assert everything() == ["poison.npz"]


def test_a_poison_that_changes_no_image(poisoned, refused, here):
    poison, clean = load_poison("poison.npz"), load_source("digits[:200]")
    relabelled = Poison(images=clean.images[poison.index], labels=poison.labels, index=poison.index)
    save_poison("same.npz", relabelled)
    report = (*REPORT[:4], "same.npz", *REPORT[5:], "--purifier", "jpeg")
    assert "no poison of same.npz differs from its image in digits[:200]" in refused(*report)
    save_poison(
        "large.npz", Poison(images=np.zeros((1, 9, 9, 1), np.uint8), labels=np.zeros(1, int), index=np.zeros(1, int))
    )
    report = (*REPORT[:4], "large.npz", *REPORT[5:], "--purifier", "jpeg")
    assert "do not match training images of shape (8, 8, 1)" in refused(*report)
