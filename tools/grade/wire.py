"""Answers between the process of a hand-in and the process of a check.

What comes from a hand-in is unpickled with a short list of allowed classes, so that it cannot run
code where the check runs. A function stays where it is: the check calls it through the pipe.
"""

import builtins
import dataclasses
import importlib
import io
import pickle
import types
from multiprocessing.connection import Connection

import numpy as np
import pandas as pd
import torch

MAX_BYTES = 200_000_000
PLAIN = {"set", "frozenset", "complex", "range", "slice", "bytearray"}
COPIED = (type, np.ndarray, np.generic, np.dtype, set, frozenset, complex, range, slice, bytearray)
NUMPY = {"_reconstruct", "scalar", "ndarray", "dtype", "_frombuffer"}


class Remote:
    """A function or another object of the hand-in, used by the check through the pipe.

    Args:
        ask: Sends a request and returns the answer to it.
        number: The object's place in the hand-in's list.
    """

    def __init__(self, ask, number: int):
        self._ask, self._number = ask, number

    def __call__(self, *args, **kwargs):
        return self._ask((self._number, None, args, kwargs))

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask((self._number, name, (), {}))


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.copy())


def frame(columns: list, index: list) -> pd.DataFrame:
    names = [name for name, _ in columns]
    made = pd.DataFrame({i: values for i, (_, values) in enumerate(columns)}, index=index)
    return made.set_axis(names, axis=1)


def series(values, index: list, name) -> pd.Series:
    return pd.Series(values, index=index, name=name)


def remote(number: int) -> int:
    raise AssertionError("the reader puts its own function here")


class _Writer(pickle.Pickler):
    """Writes a hand-in's values; what is neither plain nor an array stays, and gets a number."""

    def __init__(self, file, shared: dict[int, str], kept: list):
        super().__init__(file, protocol=5)
        self.shared, self.kept = shared, kept

    def persistent_id(self, value):
        return self.shared.get(id(value))

    def reducer_override(self, value):
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu()
            value = value.float() if value.dtype == torch.bfloat16 else value  # NumPy has none
            return tensor, (value.numpy(),)
        if isinstance(value, pd.DataFrame):
            columns = [(name, value.iloc[:, i].to_list()) for i, name in enumerate(value.columns)]
            return frame, (columns, value.index.to_list())
        if isinstance(value, pd.Series):
            return series, (value.to_list(), value.index.to_list(), value.name)
        if isinstance(value, COPIED) or _is_ours(type(value)) or _rebuilds(value):
            return NotImplemented
        self.kept.append(value)
        return remote, (len(self.kept) - 1,)


def _rebuilds(value) -> bool:
    """Is it one of the functions that the reader calls to make a value again?"""
    if isinstance(value, types.FunctionType) and value.__module__ == __name__:
        return True
    module = getattr(value, "__module__", None) or ""
    return getattr(value, "__name__", "") in NUMPY and module.startswith("numpy")


def _is_ours(kind: type) -> bool:
    return dataclasses.is_dataclass(kind) and kind.__module__.startswith("prompteol_utils.")


class _Reader(pickle.Unpickler):
    """Reads a hand-in's values and nothing that could run code."""

    def __init__(self, file, shared: dict[str, object], ask):
        super().__init__(file)
        self.shared, self.ask = shared, ask

    def persistent_load(self, name):
        return self.shared[name]

    def find_class(self, module: str, name: str):
        if module == "builtins" and name in PLAIN:
            return getattr(builtins, name)
        if module.split(".")[0] == "numpy" and (name in NUMPY or module == "numpy.dtypes"):
            return getattr(importlib.import_module(module), name)
        if module == __name__ and name in ("tensor", "frame", "series"):
            return globals()[name]
        if module == __name__ and name == "remote":
            return lambda number: Remote(self.ask, number)
        if module.startswith("prompteol_utils.") and "." not in name:
            found = getattr(importlib.import_module(module), name)
            if isinstance(found, type) and _is_ours(found):
                return found
        raise pickle.UnpicklingError(f"an answer may not hold {module}.{name}")


class _ToHandIn(pickle.Pickler):
    """Writes the check's arguments; objects that both processes share go by their name."""

    def __init__(self, file, shared: dict[int, str]):
        super().__init__(file, protocol=5)
        self.shared = shared

    def persistent_id(self, value):
        return self.shared.get(id(value))


class _FromCheck(pickle.Unpickler):
    def __init__(self, file, shared: dict[str, object]):
        super().__init__(file)
        self.shared = shared

    def persistent_load(self, name):
        return self.shared[name]


def shared_objects(names: dict[str, object]) -> dict[str, object]:
    """What both processes have from before they parted, and what is too special to be copied."""
    plain = (str, int, float, bool, type(None), list, tuple, dict, set, np.ndarray, np.generic)
    plain = (*plain, torch.Tensor, pd.DataFrame, pd.Series)
    return {name: value for name, value in names.items() if not isinstance(value, plain)}


def _ids(shared: dict[str, object]) -> dict[int, str]:
    return {id(value): name for name, value in shared.items()}


def send_error(pipe: Connection, error: BaseException) -> None:
    """In the hand-in's process: say why there is no answer."""
    pipe.send_bytes(pickle.dumps(("error", (type(error).__name__, str(error)[:300]))))


def serve(pipe: Connection, answer, shared: dict[str, object]) -> None:
    """In the hand-in's process: send the answer, then do what the check asks of its functions."""
    kept: list = []

    def send(kind: str, value) -> None:
        file = io.BytesIO()
        _Writer(file, _ids(shared), kept).dump((kind, value))
        pipe.send_bytes(file.getvalue())

    send("value", answer)
    while True:
        try:
            request = pipe.recv_bytes()
        except EOFError:
            return
        number, name, args, kwargs = _FromCheck(io.BytesIO(request), shared).load()
        try:
            value = getattr(kept[number], name) if name else kept[number](*args, **kwargs)
            send("value", value)
        except Exception as error:
            send("error", (type(error).__name__, str(error)[:300]))


class HandInError(Exception):
    """A hand-in's code raised, or its process ended."""


def _raise(name: str, text: str):
    """The error that a hand-in's function raised, as far as Python has one of that name."""
    kind = getattr(builtins, str(name), None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        raise kind(text)
    raise HandInError(f"{name}: {text}")


def receive(pipe: Connection, shared: dict[str, object]):
    """In the check's process: the answer, whose functions run in the hand-in's process.

    Raises:
        HandInError: Its code raised, its process ended, or the answer is none that can be sent.
    """

    def read():
        try:
            message = pipe.recv_bytes(MAX_BYTES)
            kind, value = _Reader(io.BytesIO(message), shared, ask).load()
        except (EOFError, OSError):
            raise HandInError("its process ended, or the answer is larger than 200 MB") from None
        except Exception as error:
            raise HandInError(f"the answer cannot be read: {error}"[:300]) from None
        return _raise(*value) if kind == "error" else value

    def ask(request):
        file = io.BytesIO()
        _ToHandIn(file, _ids(shared)).dump(request)
        try:
            pipe.send_bytes(file.getvalue())
        except OSError:
            raise HandInError("its process ended") from None
        return read()

    return read()
