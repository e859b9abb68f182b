"""jaxtyping's checks of our own functions, at a price that thousands of tests can pay.

`--jaxtyping-packages=palpate,beartype.beartype` checks every argument and every result. Two things about it cost more
than the checks themselves, and are done otherwise here:

- Each call is bound to its signature, and its arguments are checked a second time beside the result. Here beartype
  checks each of them once. That an extent is the same in several arrays is known as ever: jaxtyping notes it per call.
- While one of our modules is imported, compiled files are looked for under a name of jaxtyping's own, also those of
  torch and transformers, which have none of that name and are compiled anew by every process.
"""

import functools
import inspect
import typing
from collections.abc import Callable
from functools import partial
from types import FunctionType, ModuleType
from typing import Any
from unittest.mock import patch

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, TypeCheckError, _decorator, _import_hook, _storage

as_jaxtyping_does = _decorator.jaxtyped

refusing = beartype(conf=BeartypeConf(violation_type=TypeCheckError))
"""What is refused is a TypeError, as jaxtyping has it: some of our code catches those."""


def install() -> None:
    """From now on; to be called before palpate is imported."""
    jaxtyping.jaxtyped = _decorator.jaxtyped = checked
    _import_hook._JaxtypingLoader.exec_module = imported


def checked(thing: Any = None, *, typechecker: Callable[[Any], Any]) -> Any:
    """A function or dataclass that refuses what its annotations do not allow."""
    if thing is None:
        return partial(checked, typechecker=typechecker)
    # Checked from inside, a generator would refuse its arguments only when it is asked for something.
    if not isinstance(thing, FunctionType) or inspect.isgeneratorfunction(thing):
        return as_jaxtyping_does(thing, typechecker=typechecker)
    same = FunctionType(thing.__code__, thing.__globals__, thing.__name__, thing.__defaults__, thing.__closure__)
    same.__kwdefaults__, same.__qualname__, same.__module__ = thing.__kwdefaults__, thing.__qualname__, thing.__module__
    same.__annotations__ = {name: understood(each, thing) for name, each in thing.__annotations__.items()}
    alone = refusing(same)  # by beartype, which is what scripts/test names
    if not any(has_array(each) for each in same.__annotations__.values()):
        return functools.update_wrapper(alone, thing)

    @functools.wraps(thing)
    def with_extents(*args: Any, **kwargs: Any) -> Any:
        known = _storage.push_shape_memo({})
        try:
            return alone(*args, **kwargs)
        except TypeCheckError as error:
            error.add_note(_storage.shape_str(known))
            raise
        finally:
            _storage.pop_shape_memo()

    return with_extents


def understood(annotation: Any, function: FunctionType) -> Any:
    """What an annotation means; Any where a name in it is not there when the program runs, as jaxtyping has it."""
    found = _decorator._destring_annotation(annotation, function.__globals__)
    return Any if isinstance(found, str) else found


def has_array(annotation: Any) -> bool:
    """Whether there is an array with named extents in it."""
    if inspect.isclass(annotation) and issubclass(annotation, AbstractArray):
        return True
    parts = annotation if isinstance(annotation, list | tuple) else typing.get_args(annotation)
    return any(has_array(part) for part in parts)


def imported(loader: "_import_hook._JaxtypingLoader", module: ModuleType) -> None:
    """Run one of our modules; what it imports is found where it always is."""
    name = partial(_import_hook._optimized_cache_from_source, loader._typechecker.get_hash())
    with patch("importlib._bootstrap_external.cache_from_source", name):
        code = loader.get_code(module.__name__)
    assert code is not None
    exec(code, module.__dict__)
