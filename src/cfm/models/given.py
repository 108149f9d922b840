"""Files that an option of a model names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cfm._core.errors import OptionError


def find_file(given: Any, option: str, folder: Path | None = None, hint: str = "") -> Path:
    """The file that a user named: a path, or the name of a file in the folder of the model.

    Parameters
    ----------
    given
        What was typed.
    option
        Name of the option, for messages.
    folder
        The folder of the model.
    hint
        What to give, for the message.

    Raises
    ------
    OptionError
        It is no path, or there is no such file.
    """
    if not isinstance(given, str | Path):
        raise OptionError(f"{option}={given!r}: type the path of a file. {hint}".rstrip())
    path = Path(given).expanduser()
    for place in (path,) if folder is None else (path, folder / path):
        if place.is_file():
            return place
    where = "" if folder is None else f", here or in {folder}"
    raise OptionError(f"{option}={str(given)!r}: there is no such file{where}. {hint}".rstrip())
