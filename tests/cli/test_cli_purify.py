"""`jaxpurify purify` keeps what it must keep, changes what it must change, and cleans up after itself."""

import errno
import re
import socket

import jax
import numpy as np
import pytest

from jaxpurify.cli.main import main
from jaxpurify.data.npz import np as npz_numpy
from jaxpurify.data.sources import load_source
from jaxpurify.evaluate.purifiers import make_purifier
from jaxpurify.purify.dataset import purify

JPEG = ("--purifier", "jpeg(quality=50)")


def test_a_folder_keeps_order_names_labels_and_length(photographs, here, everything, capsys):
    before = load_source(photographs)
    assert main(["purify", photographs, "--out", "clean", *JPEG]) == 0
    after = load_source("folder:clean")
    assert after.names == before.names and len(after) == 13 and after.classes == ("cat", "dog")
    np.testing.assert_array_equal(after.labels, before.labels)
    expected = purify(make_purifier("jpeg(quality=50)", (12, 12, 3)), before.images, key=jax.random.key(0))
    np.testing.assert_array_equal(after.images, expected)
    changed = (after.images != before.images).reshape(13, -1).mean(1)
    assert (changed > 0.5).all()
    assert "folder:clean; report clean.html" in capsys.readouterr().out
    assert [name for name in everything() if "/" not in name] == ["clean", "clean.html", "photos"]
    assert "cat/5.png" in (here / "clean.html").read_text()


def test_photographs_through_the_bundled_energy(photographs, here, capsys, monkeypatch):
    """Right after installation: no weights, no data and no network connection are needed."""

    def refuse(*_):
        raise OSError("this command must not connect to anything")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    command = ["purify", photographs, "--purifier", "puregen-ebm", "--size", "32"]
    assert main([*command, "--out", "clean"]) == 0
    before, after = load_source(photographs, size=32), load_source("folder:clean")
    assert after.images.shape == (13, 32, 32, 3) and after.names == before.names
    change = np.abs(after.images.astype(int) - before.images)
    assert 1 < change.mean() < 30  # changed, and still the same photographs


def test_an_archive_keeps_labels_and_class_names(archive, here, capsys):
    assert main(["purify", archive, "--out", "clean.npz", *JPEG, "--batch-size", "8", "--report", "page.html"]) == 0
    before, after = load_source(archive), load_source("npz:clean.npz")
    assert after.classes == before.classes == ("a", "b", "c")
    np.testing.assert_array_equal(after.labels, before.labels)
    assert after.images.shape == before.images.shape and (after.images != before.images).any()
    assert sorted(path.name for path in here.iterdir()) == ["clean.npz", "data.npz", "page.html"]
    line = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(
        r"purified 20 images in [\d.]+ s \([\d.]+ images/s\); mean change L2 [\d.]+, L∞ [\d.]+/255; "
        r"npz:clean.npz; report page.html",
        line,
    )


def test_a_slice_of_digits_through_an_energy_has_energies_in_its_report(here, energy_weights, capsys):
    spec = f"jpeg(quality=90)|langevin(steps=2, weights='{energy_weights}')"
    command = ["purify", "digits[:40]", "--purifier", spec, "--batch-size", "16"]
    assert main([*command, "--out", "a.npz"]) == 0
    assert "Energy before and after" in (here / "a.npz.html").read_text()
    assert main([*command, "--out", "b.npz", "--seed", "1"]) == 0
    a, b = (load_source(f"npz:{name}.npz") for name in "ab")
    before = load_source("digits[:40]")
    np.testing.assert_array_equal(a.labels, before.labels)
    assert (a.images != b.images).any() and (a.images != before.images).any()
    assert "energies after: 40/40" in capsys.readouterr().out


def test_images_do_not_depend_on_the_batch_size(archive, here, energy_weights):
    spec = f"langevin(steps=2, weights='{energy_weights}')"
    for size in ("8", "16"):
        assert main(["purify", archive, "--out", f"{size}.npz", "--purifier", spec, "--batch-size", size]) == 0
    eight, sixteen = (load_source(f"npz:{size}.npz").images for size in ("8", "16"))
    assert (eight != load_source(archive).images).any()
    np.testing.assert_array_equal(eight, sixteen)


def test_images_can_be_resized_first(photographs, here):
    assert main(["purify", photographs, "--out", "clean", *JPEG, "--size", "8"]) == 0
    assert load_source("folder:clean").images.shape == (13, 8, 8, 3)


def test_identity_may_change_nothing_but_others_may_not(archive, here, refused, everything, energy_weights):
    unchanged = f"langevin(steps=0, weights='{energy_weights}')"
    assert "changed no pixel" in refused("purify", archive, "--out", "clean.npz", "--purifier", unchanged, begun=True)
    assert everything() == ["data.npz"]
    assert main(["purify", archive, "--out", "clean.npz", "--purifier", "identity|identity"]) == 0
    np.testing.assert_array_equal(load_source("npz:clean.npz").images, load_source(archive).images)


def test_force_replaces_what_was_written_before(archive, here, refused):
    command = ["purify", archive, "--out", "clean.npz", *JPEG]
    assert main(command) == 0
    first = load_source("npz:clean.npz").images
    assert "exists already" in refused(*command)
    assert main(["purify", archive, "--out", "clean.npz", "--purifier", "jpeg(quality=5)", "--force"]) == 0
    assert (load_source("npz:clean.npz").images != first).any()


def test_a_full_disk_leaves_no_half_written_data_and_the_work_is_kept(archive, refused, everything, monkeypatch):
    def full(file, **arrays):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    command = ("purify", archive, "--out", "clean.npz", *JPEG)
    with monkeypatch.context() as patch:
        patch.setattr(npz_numpy, "savez_compressed", full)
        message = refused(*command, begun=True)
    assert "No space left on device" in message and "clean.npz.partial" in message
    kept = [f"clean.npz.partial/{name}" for name in ("fingerprint.json", "finished.npy", "images.npy", "saving")]
    assert everything() == ["clean.npz.partial", *kept, "data.npz"]
    assert main(list(command)) == 0
    assert everything() == ["clean.npz", "clean.npz.html", "data.npz"]


def test_a_report_that_cannot_be_written_does_not_cost_the_data(archive, refused, everything, monkeypatch):
    def full(path, document):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("jaxpurify.evaluate.report.write_page", full)
    message = refused("purify", archive, "--out", "clean.npz", *JPEG, begun=True)
    assert "clean.npz is complete" in message and "No space left on device" in message
    assert everything() == ["clean.npz", "data.npz"]


@pytest.mark.parametrize("place", ["evaluate.report.write_page", "data.sources.save_dataset"])
def test_an_interrupt_at_the_end_costs_nothing_and_the_same_command_continues(
    archive, refused, everything, monkeypatch, capfd, place
):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    command = ["purify", archive, "--out", "clean.npz", *JPEG]
    with monkeypatch.context() as patch:
        patch.setattr(f"jaxpurify.{place}", stop)
        assert main(command) == 130
    assert "clean.npz.partial/saving" in everything() and ("clean.npz" in everything()) == place.startswith("evaluate")
    assert "of other images, key or purifier" in refused(
        "purify", archive, "--out", "clean.npz", "--purifier", "jpeg(quality=9)"
    )
    capfd.readouterr()
    assert main(command) == 0
    assert "purified 0 images (" in capfd.readouterr().out
    assert everything() == ["clean.npz", "clean.npz.html", "data.npz"]
    assert "clean.npz exists already" in refused(*command)


def test_a_full_disk_is_noticed_before_the_work(archive, here, refused, everything, monkeypatch):
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr("shutil.disk_usage", lambda place: usage)
    assert "0 MB free" in refused("purify", archive, "--out", "clean.npz", *JPEG)
    assert everything() == ["data.npz"]


def test_a_folder_of_somebody_else_is_not_taken_for_unfinished_work(archive, here, refused, everything):
    (here / "clean.npz.partial").mkdir()
    (here / "clean.npz.partial" / "diary.txt").write_text("mine")
    assert "in the way" in refused("purify", archive, "--out", "clean.npz", *JPEG)
    assert (here / "clean.npz.partial" / "diary.txt").read_text() == "mine"


def test_an_interrupt_keeps_finished_batches(archive, here, everything, monkeypatch, capsys):
    import jaxpurify.purify.dataset as driver

    genuine, calls = driver.loop.call, []

    def interrupt(*operands):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return genuine(*operands)

    command = ["purify", archive, "--out", "clean.npz", *JPEG, "--batch-size", "4"]
    with monkeypatch.context() as patch:
        patch.setattr(driver.loop, "call", interrupt)
        assert main(command) == 130
    assert "run the same command again" in capsys.readouterr().err
    assert "clean.npz" not in everything() and "clean.npz.partial/images.npy" in everything()
    assert main(command) == 0
    assert "purified 12 images (8 more in an earlier run)" in capsys.readouterr().out
