"""What a command writes, and where: whole or not at all, and never in place of what isn't a file."""

import os
import stat
import subprocess
import sys
import threading

import pytest

from tinymoe import bench, errors, generate, study
from tinymoe.errors import UserError
from tinymoe.evaluate import __main__ as evaluate
from tinymoe.golden import __main__ as golden
from tinymoe.recipes import __main__ as recipes
from tinymoe.runs.files import check_writable, write_atomically, write_named
from tinymoe.train import __main__ as train

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links, pipes, signals and locks of POSIX")


# --- a file that the user names ---------------------------------------------------------------------------------------


def test_a_link_is_written_through_to_its_file_whole_and_stays_a_link(tmp_path):
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "it.json", tmp_path / "link"
    link.symlink_to(target)
    for data in (b"new", b"again"):  # where there is no file yet, and where there is one
        write_named(link, data)
        assert link.is_symlink() and not target.is_symlink()
        assert target.read_bytes() == data
    assert [file.name for file in (tmp_path / "far").iterdir()] == ["it.json"]


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write_named(pipe, b"numbers")
    reader.join(10)
    assert found == [b"numbers"]
    assert stat.S_ISFIFO(pipe.lstat().st_mode)


def test_a_device_is_written_to_and_stays_a_device(tmp_path):
    """Through a link, so that a mistake destroys the link and not the machine's device."""
    for device in ("/dev/null", "/dev/full"):
        (tmp_path / "device").symlink_to(device)
        if device == "/dev/null":
            write_named(tmp_path / "device", b"numbers")
        else:
            with pytest.raises(OSError, match="No space") as error:
                write_named(tmp_path / "device", b"numbers")
            assert error.value.filename == str(tmp_path / "device")
        assert (tmp_path / "device").is_symlink()
        assert stat.S_ISCHR(os.stat(device).st_mode)
        (tmp_path / "device").unlink()


def test_standard_output_that_is_a_file_gets_the_numbers_after_what_was_printed(tmp_path):
    code = (
        "import pathlib; from tinymoe.runs.files import write_named; print('table');"
        "write_named(pathlib.Path('/dev/stdout'), b'numbers\\n'); print('end')"
    )
    with open(tmp_path / "all", "w") as file:
        subprocess.run([sys.executable, "-c", code], stdout=file, check=True)
    assert (tmp_path / "all").read_text() == "table\nnumbers\nend\n"


def test_a_folder_and_a_place_in_no_folder_are_refused_before_any_work(tmp_path):
    (tmp_path / "astray").symlink_to(tmp_path / "nowhere" / "x.json")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, message in (
        (tmp_path, "is a folder"),
        (tmp_path / "loop", "can't write to .*loop"),
        (tmp_path / ("x" * 256), "can't write to .*name"),
        (tmp_path / "astray", "no folder"),
        (tmp_path / "a/b", "no folder"),
    ):
        with pytest.raises(UserError, match=message):
            check_writable(path)
        with pytest.raises(UserError, match=message):
            write_named(path, b"")
        with pytest.raises(UserError, match=message):  # and not: there is no such run
            evaluate.main([str(tmp_path / "no run"), "--json", str(path)])
        with pytest.raises(UserError, match=message):
            bench.main(["sparse", "--plot", str(path)])


def test_the_longest_of_names_can_be_written(tmp_path):
    for name in ("x" * 255, "春" * 85):
        write_named(tmp_path / name, b"numbers")
        assert (tmp_path / name).read_bytes() == b"numbers"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(28, "No space left on device", "a/metrics.jsonl"),
            "a/metrics.jsonl: No space left on device; free the disk",
        ),
        (OSError(2, "No such file or directory", "a/x"), "a/x: No such file or directory; is its folder still there"),
        (OSError(13, "Permission denied", "a/x"), "a/x: Permission denied; choose another place"),
    ],
)
def test_a_failure_names_the_file_and_what_helps(error, said, capsys):
    def command():
        raise error

    with pytest.raises(SystemExit, match="2"):
        errors.run(command)
    assert capsys.readouterr().err.startswith(f"error: {said}")


def test_what_is_planted_beside_a_file_is_not_followed(tmp_path, monkeypatch):
    mine = tmp_path / "mine"
    mine.write_text("years of work")
    (tmp_path / ".it.partial").symlink_to(mine)
    monkeypatch.setattr("secrets.token_hex", lambda _: "0000")  # even where the name is guessed
    (tmp_path / ".other.0000.partial").symlink_to(mine)
    write_atomically(tmp_path / "it", b"new")
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "other", b"new")
    assert mine.read_text() == "years of work"
    assert (tmp_path / "it").read_bytes() == b"new"
    assert not (tmp_path / "other").exists()


def test_a_full_disk_is_said_of_the_file_and_leaves_nothing(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as error:
        write_atomically(tmp_path / "it", b"new")
    assert error.value.filename == str(tmp_path / "it")
    assert list(tmp_path.iterdir()) == []


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", " ", "\t\n"])
@pytest.mark.parametrize(
    ("main", "before"),
    [
        (train.main, ["--out"]),
        (train.main, ["--resume"]),
        (train.main, ["--config"]),
        *((recipes.main, [recipe, "--out"]) for recipe in recipes.RECIPES),
        (recipes.main, ["prune"]),
        (golden.main, ["--out"]),
        (evaluate.main, []),
        (evaluate.main, [".", "--json"]),
        (study.main, ["collapse", "--out"]),
        (generate.main, []),
        (bench.main, ["sparse", "--plot"]),
    ],
)
def test_an_empty_name_is_refused_by_each_command(main, before, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="the name of a file or a folder is empty"):
        main([*before, name])
    assert list(tmp_path.iterdir()) == []


# --- the pack for authors of kernels ----------------------------------------------------------------------------------


def test_a_pack_killed_at_its_first_file_can_be_written_again(files, tmp_path):
    (tmp_path / ".manifest.json.0123abcd.partial").write_text("{")
    golden.write_pack(tmp_path, files, False)
    assert {file.name for file in tmp_path.iterdir()} == set(files)


def test_a_pack_is_not_written_over_a_link(files, tmp_path):
    golden.write_pack(tmp_path / "pack", files, False)
    (tmp_path / "pack" / "ties.npz").rename(tmp_path / "mine")
    (tmp_path / "pack" / "ties.npz").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match=r"ties\.npz is not a file itself"):
        golden.write_pack(tmp_path / "pack", files, True)
