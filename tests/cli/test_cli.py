"""Every command: errors of one line without a password, help, pipes, Ctrl-C, and both ways to start it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deerflow_mongo import __version__

from ..child_processes import communicate
from ..demo.recordings import copied_sample
from .command import COMMAND, UNREACHABLE, output_of, process


@pytest.mark.parametrize(
    ("arguments", "exit_code", "text"),
    [
        (["demo", "--url", UNREACHABLE], 1, "MongoDB cannot be reached"),
        (["demo", "--url", "$NO_SUCH_VARIABLE"], 2, "no variable NO_SUCH_VARIABLE"),
        (["demo", "--url", "http://me:hunter2@host/"], 2, "url is not a valid MongoDB URI"),
        (["demo", "--url", UNREACHABLE, "--data-dir", "x"], 2, "`data_dir` goes with `url: embedded` only"),
        (["demo", "--driver", "odbc"], 2, "`driver`"),
        (["demo", "--users", "0"], 2, "--users"),
        (["check", "--config", "no-such.yaml"], 2, "no-such.yaml cannot be read"),
        (["check", "--config", "x.yaml", "--url", UNREACHABLE], 2, "--config has the whole configuration"),
        (["check", "--url", UNREACHABLE], 1, "Start it"),
    ],
)
def test_error_is_one_sentence_without_a_password(arguments: list[str], exit_code: int, text: str) -> None:
    output = output_of(*arguments, exit_code=exit_code)
    assert text in output
    assert "hunter2" not in output


def test_help_has_the_options_and_an_example() -> None:
    for command in ("demo", "check", "events"):
        output = output_of(command, "--help")
        assert "--url" in output
        assert "--database" in output
        assert f"Examples: deerflow-mongo {command}" in output


def test_version_is_shown() -> None:
    assert output_of("--version") == f"deerflow-mongo {__version__}"


def test_python_m_deerflow_mongo_is_the_command_and_names_itself_in_its_help() -> None:
    done = process("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: python -m deerflow_mongo [OPTIONS] COMMAND")
    done = process("check", "--help")
    assert done.stdout.startswith("Usage: python -m deerflow_mongo check")
    assert "  python -m deerflow_mongo check --config config.yaml" in done.stdout
    assert process("--version").stdout == f"deerflow-mongo {__version__}\n"
    assert process("no-such-command").returncode == 2


def test_console_script_names_itself_in_its_help() -> None:
    code = "import sys; sys.argv = ['x', 'check', '--help']; from deerflow_mongo.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
    assert done.stdout.startswith("Usage: deerflow-mongo check")
    assert "  deerflow-mongo check --config config.yaml" in done.stdout


# -- the process ----------------------------------------------------------------------------------


def test_pipe_gets_plain_text_and_errors_go_to_stderr(mongodb_url: str, database_name: str) -> None:
    good = process("demo", "--url", mongodb_url, "--database", database_name, TERM="xterm-256color")
    assert (good.returncode, good.stderr) == (0, "")
    assert "\x1b" not in good.stdout
    bad = process("demo", "--url", UNREACHABLE)
    assert (bad.returncode, bad.stdout) == (1, "")
    assert bad.stderr.startswith("error: MongoDB cannot be reached")
    assert bad.stderr.count("\n") == 1


def test_output_to_an_ascii_terminal_is_escaped(mongodb_url: str, database_name: str) -> None:
    with copied_sample(title="苏超联赛") as file:
        place = ("--url", mongodb_url, "--database", database_name)
        done = process("demo", "--verbose", *place, str(file), PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()


@pytest.mark.parametrize(
    "start",
    [
        "from deerflow_mongo.cli import main; main()",
        "import runpy; runpy.run_module('deerflow_mongo', run_name='__main__')",
    ],
)
def test_without_its_packages_the_command_names_the_extra(start: str) -> None:
    code = f"import sys; sys.modules['typer'] = None; {start}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "the command deerflow-mongo needs typer, which is not installed. "
        "Install it with: pip install 'deerflow-mongo[cli]'\n"
    )


def test_closed_pipe_leaves_no_traceback(mongodb_url: str, database_name: str) -> None:
    command = [*COMMAND, "demo", "--url", mongodb_url, "--database", database_name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:  # noqa: S603
        assert demo.stdout is not None
        assert demo.stderr is not None
        demo.stdout.close()
        assert "Traceback" not in demo.stderr.read()


@pytest.fixture
def ctrl_c_enabled() -> Iterator[None]:
    """Child processes react to SIGINT also where the tests run in a background job, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c_enabled")
@pytest.mark.parametrize(("users", "stage"), [("1000", b"replaying"), ("3", b"checking")])
def test_ctrl_c_stops_the_demo_and_the_embedded_server(tmp_path: Path, users: str, stage: bytes) -> None:
    place = ["--data-dir", str(tmp_path / "data"), "--users", users]
    controller, terminal = pty.openpty()
    command = [*COMMAND, "demo", *place]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=terminal, text=True) as demo:  # noqa: S603
        os.close(terminal)
        _until_shown(controller, stage)
        pid = int(json.loads((tmp_path / "data" / "server.json").read_text())["pid"])
        demo.send_signal(signal.SIGINT)
        printed = _rest_of(controller)
        output, _ = communicate(demo)
    assert (demo.returncode, output) == (130, ""), printed
    assert b"Traceback" not in printed
    assert b"stopped; the storage is closed" in printed
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def _until_shown(controller: int, text: bytes) -> None:
    shown = b""
    while text not in shown:
        shown += os.read(controller, 65_536)


def _rest_of(controller: int) -> bytes:
    rest = b""
    with contextlib.suppress(OSError):  # the terminal's other end is gone
        while part := os.read(controller, 65_536):
            rest += part
    os.close(controller)
    return rest
