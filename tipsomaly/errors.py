"""What can go wrong, and how it is said: every error of ours is one line that says what was wrong and what to do."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class TipsomalyError(ValueError):
    """Whatever a user can mend. What people have to catch is this or one of its kinds.

    The message is one line that any terminal may print, whatever the names and files that it quotes hold.

    >>> from tipsomaly import Pipeline, TipsomalyError
    >>> try:
    ...     Pipeline.from_pretrained(image_size=100)
    ... except TipsomalyError as error:
    ...     print(error)
    the image size must be a multiple of 14, not 100: try 98
    """

    def __init__(self, message: object) -> None:
        super().__init__(printable(str(message)))


class ImageError(TipsomalyError):
    """A picture cannot be used; the message names it and says why.

    >>> from tipsomaly import Pipeline
    >>> Pipeline.from_pretrained()("nowhere.jpg")
    Traceback (most recent call last):
    tipsomaly.errors.ImageError: nowhere.jpg: no such file
    """


class ModelError(TipsomalyError):
    """A model, a prompt set or a calibration cannot be found, fetched, read or used; the message says which and why.

    >>> from tipsomaly import Calibration
    >>> Calibration.load("nowhere.json")
    Traceback (most recent call last):
    tipsomaly.errors.ModelError: nowhere.json: No such file
    """


class OptionError(ModelError):
    """An option has a value that it cannot have, or two do not go together.

    >>> from tipsomaly import Pipeline
    >>> Pipeline.from_pretrained(sigma=-1)
    Traceback (most recent call last):
    tipsomaly.errors.OptionError: sigma must be a number of pixels from 0 to below 1000, not -1
    """


class FetchError(ModelError):
    """The network, the Hub or the disk does not give or take what is needed: the same call may go well later."""


class DatasetError(TipsomalyError):
    """A data set cannot be used; the message names the file and says why.

    >>> from tipsomaly.data.layouts import read_dataset
    >>> read_dataset("nowhere")
    Traceback (most recent call last):
    tipsomaly.errors.DatasetError: nowhere: no such folder
    """


class TrainingError(TipsomalyError):
    """Training cannot go on; the message says why."""


@contextmanager
def explained(what: str | Path, kind: type[TipsomalyError] = ModelError) -> Iterator[None]:
    """Whatever a parser raises on what it is given becomes an error of ours, in one line that begins with `what`.

    Parsers raise nearly every kind of exception on a hostile file, and other kinds in their next version."""
    try:
        yield
    except TipsomalyError:
        raise
    except OSError as error:
        raise kind(f"{what}: {error.strerror or one_line(error)}") from None
    except Exception as error:
        raise kind(f"{what}: {one_line(error)}") from None


def one_line(error: object, limit: int = 200) -> str:
    """A library's message for one line of ours: its first line, of at most `limit` characters, without anything that a
    terminal would take for a command.

    >>> one_line("cannot open it.\\nTry again")
    'cannot open it'
    """
    lines = str(error).strip().splitlines()
    text = printable(" ".join(lines[0].split()))[:limit].rstrip(".") if lines else ""
    return text or type(error).__name__


def printable(path: str | Path) -> str:
    """A path, or any text from elsewhere, on one line, whatever is in it: escape codes, newlines and marks that turn
    the direction of writing are spelled out."""
    text = str(path)
    return text if text.isprintable() else repr(text)[1:-1]


def short(value: object) -> object:
    """A setting as a message shows it: twelve characters of a digest are enough."""
    return value[:12] if isinstance(value, str) else value
