"""What a case's `load` carries with it: functions, options, paths."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from palpate.errors import DatasetError


def told(value: object) -> Any:
    """The same for JSON: functions by their qualified names, options by their values, and paths by their last parts.

    It is the same in every process and every run.

    Raises:
        DatasetError: something that has no name and no value, such as an open file.
    """
    return _told(value, ())


def paths_in(value: Any) -> Iterator[Path]:
    """The paths among the options."""
    if isinstance(value, Path):
        yield value
    for part in _parts(value):
        yield from paths_in(part)


def with_absolute_paths(value: Any) -> Any:
    """The same with absolute paths among its options."""
    if isinstance(value, Path):
        return value.absolute()
    if not any(True for _ in paths_in(value)):
        return value
    if isinstance(value, functools.partial):
        arguments, options = with_absolute_paths(value.args), with_absolute_paths(value.keywords)
        return functools.partial(with_absolute_paths(value.func), *arguments, **options)
    if _is_record(value):
        return replace(
            value, **{one.name: with_absolute_paths(getattr(value, one.name)) for one in fields(value) if one.init}
        )
    if isinstance(value, Mapping):
        return {with_absolute_paths(key): with_absolute_paths(option) for key, option in value.items()}
    return type(value)([with_absolute_paths(part) for part in value])


def _parts(value: Any) -> Iterator[Any]:
    """What lies inside, where `with_absolute_paths` can put something else."""
    if isinstance(value, functools.partial):
        yield from (value.func, value.args, value.keywords)
    elif _is_record(value):
        yield from (getattr(value, one.name) for one in fields(value) if one.init)
    elif isinstance(value, Mapping):
        yield from (*value.keys(), *value.values())
    elif type(value) in (tuple, list, set, frozenset):
        yield from value


def _is_record(value: object) -> bool:
    return is_dataclass(value) and not isinstance(value, type)


def _told(value: Any, above: tuple[int, ...]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return {"path": value.name}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, np.ndarray | np.generic):
        return {"dtype": str(value.dtype), "values": value.tolist()}
    if id(value) in above:  # a function that calls itself
        return {"again": _name(value)}
    deeper = (*above, id(value))

    def inner(part: object) -> Any:
        return _told(part, deeper)

    if isinstance(value, functools.partial):
        return {"partial": inner(value.func), "arguments": inner(value.args), "options": inner(value.keywords)}
    if isinstance(value, types.MethodType):
        return {"method": _name(value), "of": inner(value.__self__)}
    if isinstance(value, types.FunctionType):
        # Only a function made by another has options; a decorated one keeps what its decorator needs.
        made = "<locals>" in value.__qualname__
        kept = [inner(cell.cell_contents) for cell in value.__closure__ or ()] if made else []
        return {"function": _name(value), **({"keeps": kept} if kept else {})}
    if isinstance(value, type | types.BuiltinFunctionType | np.ufunc):
        return {"function": _name(value)}
    if isinstance(value, tuple | list):
        return [inner(part) for part in value]
    if isinstance(value, set | frozenset):
        return {"set": sorted((inner(part) for part in value), key=repr)}
    if isinstance(value, Mapping):
        return {"options": sorted(([inner(key), inner(option)] for key, option in value.items()), key=repr)}
    if _is_record(value):
        return {"is": _name(type(value)), **{one.name: inner(getattr(value, one.name)) for one in fields(value)}}
    if isinstance(value, Callable) and hasattr(value, "__dict__"):
        return {"is": _name(type(value)), "with": inner(vars(value))}
    raise DatasetError(
        f"a case's `load` carries a {type(value).__qualname__}, of which nothing stable can be said; "
        "give it numbers, texts, paths and functions"
    )


def _name(value: object) -> str:
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", "")
    return f"{getattr(value, '__module__', '')}.{name}"
