"""Errors read well, and are what Python's own habits expect."""

from __future__ import annotations

import pytest

from cfm import errors

ALL = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("error", ALL)
def test_the_message_is_shown_as_it_was_written(error: type[errors.CfmError]) -> None:
    # KeyError alone would show a repr: quotes, and "\\n" for a line break.
    assert str(error("first line\nsecond 'line'")) == "first line\nsecond 'line'"
    assert issubclass(error, errors.CfmError)


def test_missing_names_are_key_errors_and_wrong_values_value_errors() -> None:
    kinds = {errors.UnknownModelError: KeyError, errors.MissingKeyError: KeyError, errors.DownloadError: OSError}
    for error in ALL:
        if error is not errors.CfmError:
            assert issubclass(error, kinds.get(error, ValueError))
