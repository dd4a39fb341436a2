"""The ``tesseral`` command: which subcommands there are, and how a failure is reported."""

import functools
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from textwrap import shorten
from typing import Annotated, Any, NoReturn

import typer

from tesseral import __version__
from tesseral._errors import TesseralError
from tesseral.cli import (
    analyze,
    bench,
    cluster,
    demo,
    doctor,
    evaluate,
    generate,
    migrate,
    quantize,
    regress,
    serve,
)

Commands = Mapping[str, "Callable[..., None] | Commands"]
"""By name: a subcommand, or a group of them."""

COMMANDS: Commands = {
    "demo": demo.demo,
    "doctor": doctor.doctor,
    "analyze": analyze.analyze,
    "quantize": quantize.quantize,
    "migrate": migrate.migrate,
    "eval": evaluate.evaluate,
    "generate": generate.generate,
    "serve": serve.serve,
    "cluster": cluster.cluster,
    "regress": regress.regress,
    "bench": bench.BENCHES,
}
"""One file per subcommand; heavy rooms are imported inside its function."""

GROUPS = {
    "bench": "Measure ours against others and against what could be.\n\n"
    "Example: tesseral bench attention --quick"
}
"""What the help says of a group of subcommands."""

USERS_MISTAKE = 2
FAILURE = 1
INTERRUPTED = 130


def main() -> None:
    """Run the command line; the entry point of the ``tesseral`` script."""
    build(COMMANDS)()


def build(commands: Commands) -> typer.Typer:
    """Return the application that offers ``commands`` by name."""
    app = _group(
        "Exact attention, 4-bit language models, tensor clustering and tensor regression.\n\n"
        "Example: tesseral demo",
        commands,
        completion=True,
    )
    app.callback()(_options)
    return app


def _group(words: str, commands: Commands, *, completion: bool = False) -> typer.Typer:
    app = typer.Typer(
        help=words,
        no_args_is_help=True,
        add_completion=completion,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # brackets in help texts are brackets
    )
    for name, command in commands.items():
        if isinstance(command, Mapping):
            app.add_typer(_group(GROUPS[name], command), name=name)
        else:
            app.command(name)(reporting(command))
    return app


def reporting(command: Callable[..., None]) -> Callable[..., None]:
    """Wrap a subcommand so that an expected failure becomes one line and an exit code.

    A user's mistake exits 2, an operating system's refusal and memory that ran out 1, Ctrl-C 130.
    Any other exception is a bug and keeps its traceback. Warnings are a line each.
    """

    @functools.wraps(command)
    def run(*args: object, **options: object) -> None:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                command(*args, **options)
            sys.stdout.flush()  # a full disk shows here, not when the interpreter exits
        except TesseralError as error:
            _fail(str(error), USERS_MISTAKE)
        except KeyboardInterrupt:
            _fail("interrupted; nothing was left half-written.", INTERRUPTED)
        except BrokenPipeError:
            raise  # whoever read our output has gone: typer leaves without a word
        except OSError as error:
            _drop_unwritable_output()
            place = "" if error.filename is None else f": {error.filename}"
            _fail(f"{error.strerror or error}{place}", FAILURE)
        except (MemoryError, RuntimeError) as error:
            if not _tells_of_memory(error):
                raise
            _fail(shorten(str(error), 300) or "there is not enough memory.", FAILURE)

    return run


def _tells_of_memory(error: Exception) -> bool:
    """Return whether memory ran out: the system's, or a device's as torch says it."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def _show_warning(message: Warning | str, *_: Any, **_of_the_code: Any) -> None:
    typer.echo(f"tesseral: warning: {message}", err=True)


def _drop_unwritable_output() -> None:
    """Point stdout nowhere if it takes no more, or the exiting interpreter would complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"tesseral: {message}", err=True)
    raise typer.Exit(code)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tesseral {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Options of the command itself; typer wants them as a function."""
