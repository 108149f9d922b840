"""Reading pickles of numbers and text. Nothing that a pickle asks for is looked up or called: stand-ins take its place."""

from __future__ import annotations

import io
import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfm._core.errors import CheckpointError

_NUMBER = re.compile("[iuf][1248]")
_ELEMENT = re.compile("[iuf][1248]|U[0-9]{1,5}|O8")

# What a damaged pickle makes the unpickler and numpy raise.
_DAMAGE = (EOFError, ValueError, TypeError, LookupError, AttributeError, OSError, MemoryError, OverflowError)


def read_pickled(path: Path, holds: str = "gene dictionaries") -> Any:
    """What a pickle holds, if it is made of plain values and numpy numbers; anything that would run is refused.

    Parameters
    ----------
    path
        The file.
    holds
        What such files are, for the message.
    """
    return _read(path, holds, _PlainUnpickler)


def read_array(path: Path, holds: str) -> NDArray[Any]:
    """The numpy array of numbers or text in a pickle, under the same care.

    Raises
    ------
    CheckpointError
        Something else, damaged, or hostile.
    """
    found = _read(path, holds, _ArrayUnpickler)
    try:
        array = found.array() if isinstance(found, _Array) else found
    except pickle.UnpicklingError as error:
        raise _refused(path, error) from error
    except _DAMAGE as error:
        raise _damaged(path, holds, error) from error
    if not isinstance(array, np.ndarray):
        raise CheckpointError(
            f"{path} holds no array of numpy, but {type(found).__name__}. Copy the official file again."
        )
    return array


def _read(path: Path, holds: str, unpickler: type[_PlainUnpickler]) -> Any:
    try:
        return unpickler(io.BytesIO(path.read_bytes()), holds).load()
    except pickle.UnpicklingError as error:
        raise _refused(path, error) from error
    except _DAMAGE as error:
        raise _damaged(path, holds, error) from error


def _refused(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} is refused: {error}. Copy the official file again.")


def _damaged(path: Path, holds: str, error: Exception) -> CheckpointError:
    what = "pickled dictionary" if holds == "gene dictionaries" else "pickle"
    return CheckpointError(
        f"{path} is damaged or no {what}: {error or type(error).__name__}. Copy the official file again."
    )


class _Dtype:
    """Stands for numpy's dtype in a pickle: numpy's own would take any state that the file names."""

    kinds = _NUMBER

    def __init__(self, name: object, *_flags: object) -> None:
        if not isinstance(name, str) or not self.kinds.fullmatch(name):
            raise pickle.UnpicklingError(f"it holds a numpy object of type {name!r}, which is no number")
        self.name, self.order = name, "="

    def __setstate__(self, state: tuple[object, ...]) -> None:
        """Numpy's state begins with a version and the order of bytes."""
        if state[1] not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"it holds a number whose bytes have the order {state[1]!r}")
        self.order = str(state[1])

    def numpy(self) -> np.dtype[Any]:
        """Numpy's own."""
        return np.dtype(self.order + self.name)


class _ElementDtype(_Dtype):
    """The same for the elements of an array, which may be text."""

    kinds = _ELEMENT


class _Scalar:
    """Stands for numpy's function of that name: a pickled numpy number becomes Python's own.

    A class and no function, since a pickle may set the attributes of what it names, and a function has some.
    """

    __slots__ = ()

    def __new__(cls, dtype: object, data: object) -> Any:
        if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
            raise pickle.UnpicklingError("it holds a numpy object that is no number")
        return np.frombuffer(data, dtype.numpy(), count=1)[0].item()

    def __setstate__(self, _state: object) -> None:
        raise pickle.UnpicklingError("it changes what it names")


class _Array:
    """Stands for numpy's array and for the function that makes an empty one, which its state then fills."""

    def __init__(self, *_arguments: object) -> None:
        self.state: tuple[object, ...] = ()

    def __setstate__(self, state: tuple[object, ...]) -> None:
        """A version, the shape, the dtype, whether columns come first, and the elements."""
        self.state = state

    def array(self) -> NDArray[Any]:
        """What it stands for."""
        _, shape, dtype, by_column, data = self.state
        return _array(shape, dtype, "F" if by_column else "C", data)


class _Buffer(_Array):
    """Stands for numpy's function that makes an array of a buffer, as the newest protocol has it."""

    def __init__(self, data: object, dtype: object, shape: object, order: object) -> None:
        super().__init__()
        self.state = (1, shape, dtype, order == "F", data)


def _array(shape: object, dtype: object, order: Any, data: object) -> NDArray[Any]:
    if not isinstance(dtype, _ElementDtype) or not isinstance(shape, tuple):
        raise pickle.UnpicklingError("it holds an array of another kind")
    if dtype.name == "O8":
        if not isinstance(data, list) or not all(isinstance(item, str | int | float) for item in data):
            raise pickle.UnpicklingError("it holds an array of objects that are no text")
        if len(data) != math.prod(shape):
            raise ValueError(f"{len(data)} elements for the shape {shape}")
        return np.array([str(item) for item in data], str).reshape(shape, order=order)
    if not isinstance(data, bytes | bytearray):
        raise pickle.UnpicklingError("it holds an array of another kind")
    return np.frombuffer(data, dtype.numpy()).reshape(shape, order=order).copy()


class _PlainUnpickler(pickle.Unpickler):
    """Dictionaries need two names, under numpy's old and new module; no other name is looked up."""

    allowed: dict[tuple[str, str], Callable[..., Any]] = {
        ("numpy.core.multiarray", "scalar"): _Scalar,
        ("numpy._core.multiarray", "scalar"): _Scalar,
        ("numpy", "dtype"): _Dtype,
    }

    def __init__(self, file: io.BytesIO, holds: str) -> None:
        super().__init__(file)
        self._holds = holds

    def find_class(self, module: str, name: str) -> Any:
        """The allowed name, or a refusal."""
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and {self._holds} hold numbers and text only")
        return self.allowed[module, name]


class _ArrayUnpickler(_PlainUnpickler):
    """The same for arrays, which need three names more."""

    allowed = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _ElementDtype,
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("numpy.core.numeric", "_frombuffer"): _Buffer,
        ("numpy._core.numeric", "_frombuffer"): _Buffer,
    }
