import importlib
import os
import pkgutil
import subprocess
import sys

import pytest

import palpate


def run(code: str) -> subprocess.CompletedProcess[str]:
    """In a fresh interpreter, where warnings are errors."""
    command = [sys.executable, "-W", "error", "-c", code]
    paths = os.pathsep.join(path for path in sys.path if path)
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": paths})


def test_importing_palpate_is_silent_and_light() -> None:
    heavy = ("torch", "transformers", "numpy", "scipy", "pydantic", "nibabel", "pydicom", "PIL", "typer")
    done = run(f"import sys, palpate; sys.exit(bool(set({heavy!r}) & set(sys.modules)))")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_prompts_and_images_need_no_torch() -> None:
    done = run(
        "import sys, palpate; palpate.Box(0, 0, 1, 1); palpate.Image; palpate.Session; palpate.metrics.dice;"
        "palpate.images.read; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_public_name_is_there() -> None:
    for name in palpate.__all__:
        assert getattr(palpate, name) is not None
        assert name in dir(palpate)


def test_the_list_of_names_is_sorted_and_complete() -> None:
    assert palpate.__all__ == sorted(set(palpate.__all__))
    assert set(palpate._HOME) <= set(palpate.__all__)
    rooms = {name for name in palpate.__all__ if name not in palpate._HOME}
    assert rooms == {"datasets", "errors", "evaluation", "images", "metrics", "prompts"}


@pytest.mark.parametrize("room", ["datasets", "evaluation", "images", "metrics", "prompts"])
def test_every_room_lists_what_it_offers(room: str) -> None:
    module = importlib.import_module(f"palpate.{room}")
    assert module.__all__ == sorted(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_a_name_is_the_same_wherever_it_is_taken_from() -> None:
    assert palpate.Box is palpate.prompts.Box
    assert palpate.Image is palpate.images.Image
    assert palpate.PalpateError is palpate.errors.PalpateError


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'palpate' has no attribute 'boxes'"):
        palpate.boxes  # noqa: B018


def test_a_star_import_gives_the_public_names() -> None:
    names: dict[str, object] = {}
    exec("from palpate import *", names)
    assert set(palpate.__all__) <= set(names)


def test_every_error_is_a_palpate_error_with_a_sentence() -> None:
    raised = [thing for thing in vars(palpate.errors).values() if isinstance(thing, type)]
    assert len(raised) > 10
    for error in raised:
        assert issubclass(error, palpate.PalpateError)
        assert error.__doc__
        assert error.__doc__.endswith(".")
        assert error.__name__ in palpate.errors.__doc__


@pytest.mark.slow
def test_importing_any_module_writes_nothing() -> None:
    modules = sorted(
        module.name
        for module in pkgutil.walk_packages(palpate.__path__, "palpate.")
        if not module.name.endswith("__main__")
    )
    assert "palpate.inference.session" in modules
    optional = {"SimpleITK"}
    done = run(
        f"""
import importlib
for name in {modules!r}:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in {optional!r}:
            raise
"""
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done.stderr
