"""The command line: what belongs to us, what to pytest, and how errors leave."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from purecc.launch.cli import main, make_parser, split_tiers
from purecc.launch.layout import COMFYUI_VARIABLE, PROJECT
from purecc.launch.server import free_port, port_is_free


@pytest.mark.parametrize(
    ("line", "tiers", "rest"),
    [
        ("test", ["unit", "host", "browser"], []),
        ("test unit", ["unit"], []),
        ("test unit -k train --maxfail 1 --co host", ["unit", "host"], ["-k", "train", "--maxfail", "1", "--co"]),
        ("test -x --comfyui there unit", ["unit"], ["-x"]),
        ("test -k browser", ["unit", "host", "browser"], ["-k", "browser"]),
        ("test unit -m host", ["unit"], ["-m", "host"]),
    ],
)
def test_the_rest_goes_to_pytest_in_order(line: str, tiers: list[str], rest: list[str]) -> None:
    _, unknown = make_parser().parse_known_args(line.split())
    assert split_tiers(unknown) == (tiers, rest)


def test_an_error_for_the_user_is_one_message_and_exit_code_1(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["serve", "--comfyui", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "is not a ComfyUI folder" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("port", ["0", "65536", "-1", "web"])
def test_a_port_that_is_none_is_refused(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", f"--port={port}"])
    assert f"{port} is no port" in capsys.readouterr().err


def test_a_file_is_no_folder_for_the_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there").touch()
    with pytest.raises(SystemExit):
        main(["demo", "--out", str(tmp_path / "there")])  # before anything is set up
    assert "is a file; name a folder" in capsys.readouterr().err
    assert make_parser().parse_args(["demo", "--out", str(tmp_path)]).out == tmp_path


def test_a_folder_that_cannot_be_made_is_told_before_anything_is_set_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("purecc.launch.cli.set_up", lambda *_, **__: pytest.fail("set up"))
    (tmp_path / "file").touch()
    assert main(["demo", "--out", str(tmp_path / "file" / "below")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("\nerror: ") and "below" in error and "Traceback" not in error


def test_unknown_arguments_of_the_other_commands_are_refused() -> None:
    with pytest.raises(SystemExit):
        main(["demo", "--steps", "3"])


def test_a_part_of_the_pictures_that_is_none_is_refused_before_anything_is_set_up(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["pictures", "01", "99"]) == 1
    assert "no pictures named 99; the parts are 01, 02" in capsys.readouterr().err


def test_run_py_explains_itself_without_setting_anything_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(COMFYUI_VARIABLE, raising=False)
    done = subprocess.run([sys.executable, str(PROJECT / "run.py"), "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert all(word in done.stdout for word in ("demo", "serve", "pictures", "test"))


def test_a_taken_port_is_seen() -> None:
    import socket

    port = free_port()
    assert port_is_free(port)
    with socket.create_server(("127.0.0.1", port)):
        assert not port_is_free(port)
