import errno
import os
import subprocess
import sys
import warnings
from collections.abc import Mapping
from typing import get_type_hints

import pytest
import typer.main
from typer.models import OptionInfo
from typer.testing import CliRunner

import tesseral
from tesseral._errors import BackendError, MissingExtraError, OutputExistsError, ParameterError
from tesseral.cli.main import COMMANDS, build


def run(*arguments, commands=COMMANDS):
    return CliRunner().invoke(build(commands), arguments)


def run_raising(error):
    def command() -> None:
        raise error

    return run("fails", commands={"fails": command, "other": command})


def test_version_is_printed():
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"tesseral {tesseral.__version__}\n")


def test_help_names_every_command():
    result = run("--help")
    assert result.exit_code == 0
    assert all(f"  {name} " in result.stdout for name in COMMANDS)


@pytest.mark.parametrize("words", [(), ("bench",)], ids=["tesseral", "bench"])
def test_the_lists_of_commands_cut_nothing_off(words):
    assert "..." not in run(*words, "--help").stdout.split("Commands:")[1]


def test_a_warning_is_one_line_and_the_command_goes_on():
    def warns() -> None:
        warnings.warn("it is late", UserWarning, stacklevel=1)
        print("done")  # noqa: T201

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        result = run("warns", commands={"warns": warns, "other": warns})
    assert (result.exit_code, result.stdout) == (0, "done\n")
    assert result.stderr == "tesseral: warning: it is late\n"


@pytest.mark.parametrize("words", ["quantize --help", "migrate --help", "cluster --help"])
def test_arguments_are_named_in_capitals(words):
    usage = run(*words.split()).stdout.splitlines()[0]
    usage = usage.translate({ord("{"): None, ord("}"): None})  # typer's, of some versions
    assert usage.endswith(("[OPTIONS] MODEL OUT", "[OPTIONS] DATA"))


def subcommands(commands, *before):
    """Yield the words of every command, those of groups too."""
    for name, command in commands.items():
        yield (*before, name)
        if isinstance(command, Mapping):
            yield from subcommands(command, *before, name)


@pytest.mark.parametrize("words", list(subcommands(COMMANDS)), ids=" ".join)
def test_every_option_is_explained(words):
    """Options that mean the same have one name in all commands."""
    command = typer.main.get_command(build(COMMANDS))
    for word in words:
        command = command.commands[word]
    for option in command.params:
        assert option.param_type_name == "argument" or option.help, option.name
    names = {option.name for option in command.params}
    assert not names & {"output", "outfile", "random_state", "n_jobs", "force", "output_dir"}
    assert "Example: tesseral" in command.help


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_can_complete_commands(shell):
    command = [sys.executable, "-c", "from tesseral.cli.main import main; main()"]
    environment = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    shown = subprocess.run(
        [*command, "--show-completion", shell],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert "TESSERAL" in shown.stdout.upper() or "complete" in shown.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_helps_with_an_example(name):
    result = run(name, "--help")
    assert result.exit_code == 0
    assert f"Example: tesseral {name}" in " ".join(result.stdout.split())


@pytest.mark.parametrize("arguments", [["unknown"], ["doctor", "--unknown"], ["doctor", "extra"]])
def test_a_usage_error_exits_2(arguments):
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Error: " in result.stderr


@pytest.mark.parametrize(
    "error",
    [ParameterError("bits must be 4"), BackendError("none [fits]"), MissingExtraError("no torch")],
)
def test_a_users_mistake_is_one_line_and_exits_2(error):
    result = run_raising(error)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"tesseral: {error}\n"


def test_an_existing_output_is_a_users_mistake_though_it_is_an_os_error():
    result = run_raising(OutputExistsError("out exists"))
    assert (result.exit_code, result.stderr) == (2, "tesseral: out exists\n")


def test_ctrl_c_is_one_line_and_exits_130():
    result = run_raising(KeyboardInterrupt())
    assert result.exit_code == 130
    assert result.stderr == "tesseral: interrupted; nothing was left half-written.\n"


def test_a_full_disk_names_the_file_and_exits_1():
    result = run_raising(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/out/model"))
    assert result.exit_code == 1
    assert result.stderr == "tesseral: No space left on device: /out/model\n"


def test_an_os_error_of_words_alone_is_shown():
    assert run_raising(OSError("odd")).stderr == "tesseral: odd\n"


class OutOfMemoryError(RuntimeError):
    """As torch calls it."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "there is not enough memory."),
        (MemoryError("a cache needs 9 GB"), "a cache needs 9 GB"),
        (OutOfMemoryError("CUDA out of memory.\nTried 2 GB"), "CUDA out of memory. Tried"),
    ],
    ids=["bare", "ours", "torch"],
)
def test_memory_that_ran_out_is_one_line_and_exits_1(error, said):
    result = run_raising(error)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"tesseral: {said}")
    assert result.stderr.count("\n") == 1


def test_a_bug_keeps_its_traceback():
    result = run_raising(ZeroDivisionError("a bug"))
    assert isinstance(result.exception, ZeroDivisionError)


def test_a_closed_pipe_is_left_without_a_word():
    result = run_raising(BrokenPipeError(errno.EPIPE, "Broken pipe"))
    assert (result.exit_code, result.stderr) == (1, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_one_line():
    code = (
        "from tesseral.cli.main import build\n"
        "def speak() -> None: print('words')\n"
        "build({'speak': speak, 'other': speak})()\n"
    )
    buffered = {name: x for name, x in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-c", code, "speak"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env=buffered | {"SKBUILD_EDITABLE_VERBOSE": "0"},
        )
    assert result.returncode == 1
    assert result.stderr == "tesseral: No space left on device\n"


def test_an_option_like_its_metavar_is_named():
    """Of others, typer 0.27 takes the metavar for the name."""

    def options(commands):
        for command in commands.values():
            if isinstance(command, Mapping):
                yield from options(command)
                continue
            for name, hint in get_type_hints(command, include_extras=True).items():
                yield from ((name, more) for more in getattr(hint, "__metadata__", ()))

    found = [
        option.default  # of what is annotated it is the first name
        for name, option in options(COMMANDS)
        if isinstance(option, OptionInfo) and option.metavar == name.upper()
    ]
    assert found
    assert all(isinstance(name, str) for name in found)
