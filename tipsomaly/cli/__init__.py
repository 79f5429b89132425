"""The `tipsomaly` command. Exit status: 0 all good, 1 when an input failed, 2 for wrong usage."""

import sys
import warnings
from typing import Annotated

import typer

from tipsomaly import __version__
from tipsomaly.cli import detect, evaluate, models, reference, tables, train  # noqa: F401 - their commands
from tipsomaly.cli.options import app
from tipsomaly.cli.process import run
from tipsomaly.errors import FetchError, ModelError, TipsomalyError, one_line, printable


def _version(wanted: bool) -> None:
    if wanted:
        print(f"tipsomaly {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which.")] = False,
) -> None:
    pass


def main() -> None:
    """Run the command; a mistake of the user's is one line on stderr, never a traceback."""
    run(_main)


def _main() -> None:
    warnings.filterwarnings("ignore", module="PIL")  # a picture is used or refused; half-words would blur that
    try:
        app(prog_name="tipsomaly")
    except MemoryError:
        print("error: the memory is full; take a smaller --batch-size or --image-size", file=sys.stderr)
        sys.exit(1)
    except TipsomalyError as error:
        print(f"error: {error}", file=sys.stderr)
        usage = isinstance(error, ModelError) and not isinstance(error, FetchError)
        sys.exit(2 if usage else 1)
    except OSError as error:
        where = f"{printable(error.filename)}: " if error.filename else ""
        print(f"error: {where}{error.strerror or one_line(error)}", file=sys.stderr)
        sys.exit(1)
