import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from iblip.export.artifact.directory import new_build
from iblip.export.artifact.manifest import MANIFEST
from iblip.export.errors import BuildDirectoryError


def make(destination: Path, word: str) -> None:
    with new_build(destination) as work:
        (work / MANIFEST).write_text(word)


def fail_half_way(destination: Path) -> None:
    with new_build(destination) as work:
        (work / MANIFEST).write_text("half")
        raise ZeroDivisionError


def test_a_build_appears_whole_and_replaces_the_one_before(tmp_path):
    make(tmp_path / "build", "one")
    make(tmp_path / "build", "two")
    assert (tmp_path / "build" / MANIFEST).read_text() == "two"
    assert [path.name for path in tmp_path.iterdir() if "building" in path.name] == []


def test_a_failed_build_leaves_the_old_one(tmp_path):
    make(tmp_path / "build", "one")
    with pytest.raises(ZeroDivisionError):
        fail_half_way(tmp_path / "build")
    assert (tmp_path / "build" / MANIFEST).read_text() == "one"
    assert [path.name for path in tmp_path.iterdir() if "building" in path.name] == []


def test_a_file_elsewhere_is_not_said_to_be_the_builds(tmp_path):
    missing = tmp_path / "elsewhere" / "file"
    with (
        pytest.raises(
            BuildDirectoryError, match=rf"^{missing}: No such file or directory\. Nothing"
        ),
        new_build(tmp_path / "builds" / "demo"),
    ):
        missing.read_bytes()


def test_a_failed_build_leaves_no_directory_that_it_made(tmp_path):
    with pytest.raises(ZeroDivisionError):
        fail_half_way(tmp_path / "new" / "builds" / "demo")
    assert list(tmp_path.iterdir()) == []
    make(tmp_path / "new" / "builds" / "demo", "one")
    assert (tmp_path / "new" / "builds" / "demo" / MANIFEST).read_text() == "one"


def test_a_killed_build_leaves_the_old_one_and_the_next_one_cleans_up(tmp_path):
    destination = tmp_path / "build"
    make(destination, "one")
    script = (
        "import sys, time, pathlib\n"
        "from iblip.export.artifact.directory import new_build\n"
        f"with new_build(pathlib.Path({str(destination)!r})) as work:\n"
        f"    (work / {MANIFEST!r}).write_text('half')\n"
        "    print('building', flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"building\n"
        os.kill(process.pid, signal.SIGKILL)
    assert (destination / MANIFEST).read_text() == "one"
    assert len(list(tmp_path.glob(".build.building-*"))) == 1
    make(destination, "two")
    assert (destination / MANIFEST).read_text() == "two"
    assert list(tmp_path.glob(".build.building-*")) == []


def test_readers_never_find_the_destination_missing(tmp_path):
    destination = tmp_path / "build"
    make(destination, "0")
    script = (
        "import sys, pathlib\n"
        f"path = pathlib.Path({str(destination / MANIFEST)!r})\n"
        "print('reading', flush=True)\n"
        "while not pathlib.Path(sys.argv[1]).exists(): path.read_text()\n"
    )
    stop = tmp_path / "stop"
    command = [sys.executable, "-c", script, str(stop)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        reader.stdout.readline()
        for word in range(20):
            make(destination, str(word))
            time.sleep(0.01)
        stop.touch()
        assert reader.wait(timeout=60) == 0


def test_what_is_not_a_build_is_not_replaced(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    with pytest.raises(BuildDirectoryError, match="is not a build"):
        make(tmp_path / "precious", "one")
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "years of work"


def test_two_builds_of_one_directory_do_not_mix(tmp_path):
    with (
        new_build(tmp_path / "build") as work,
        pytest.raises(BuildDirectoryError, match="another process is building"),
        new_build(tmp_path / "build"),
    ):
        pass
    assert not work.exists() or (tmp_path / "build").exists()


@pytest.fixture
def tiny_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_told_and_the_old_build_stays(tiny_disk):
    make(tiny_disk / "build", "one")
    with (
        pytest.raises(BuildDirectoryError, match=r"the disk is full: .* are free"),
        new_build(tiny_disk / "build") as work,
    ):
        (work / "weights").write_bytes(bytes(2**20))
    assert (tiny_disk / "build" / MANIFEST).read_text() == "one"
