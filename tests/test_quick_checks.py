"""What is quicker than jaxtyping refuses what jaxtyping refuses."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from beartype import beartype
from jaxtyping import Bool, Float

if version("jaxtyping") != "0.3.11":
    pytest.skip("conftest.py leaves another jaxtyping as it is", allow_module_level=True)

from quick_checks import as_jaxtyping_does, checked

if TYPE_CHECKING:
    from decimal import Decimal

Check = Callable[[Any], Any]
Image = Float[np.ndarray, "height width"]
ZEROS = np.zeros((3, 4))


@pytest.fixture(params=[checked, as_jaxtyping_does], ids=["ours", "jaxtyping's"])
def check(request: pytest.FixtureRequest) -> Check:
    return request.param(typechecker=beartype)


def wider(image: Image, *, by: int = 1) -> Float[np.ndarray, "height wider"]:
    return np.zeros((len(image) + (by == 7), image.shape[1] + by))


def where(image: Image, mask: Bool[np.ndarray, "height width"]) -> int:
    return int(mask.sum())


def each(images: "list[Image]") -> "tuple[Image, ...]":
    return tuple(images)


def called(name: "str", *more: int, length: "Decimal | None" = None, **others: bool) -> "str":
    return name if not more else more[0]  # type: ignore[return-value]


def counted(up_to: int) -> Iterator[int]:
    yield from range(up_to)


@dataclass(frozen=True)
class Pair:
    image: Image
    name: "str" = "pair"

    def named(self, name: str) -> "Pair":
        return Pair(self.image, name)


@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (wider, ([[1.0]],), {}),
        (wider, (np.zeros(3),), {}),
        (wider, (np.zeros((3, 4), dtype=int),), {}),
        (wider, (ZEROS,), {"by": 1.5}),
        (wider, (ZEROS,), {"by": 7}),  # the result is higher than the image
        (where, (ZEROS, np.zeros((4, 3), dtype=bool)), {}),
        (each, ([np.zeros(3)],), {}),
        (called, (1,), {}),
        (called, ("x", "y"), {}),
        (called, ("x",), {"other": "y"}),
        (called, ("x", 1), {}),  # and so is the result
        (counted, ("x",), {}),
        (Pair, (np.zeros(3),), {}),
        (Pair, (ZEROS, 3), {}),
        (Pair.named, (Pair(ZEROS), 3), {}),
    ],
)
def test_what_is_wrong_is_refused(
    check: Check, function: Callable[..., object], arguments: tuple[object, ...], named: dict[str, object]
) -> None:
    right = check(function)
    with pytest.raises(TypeError, match=r"violates type hint|Type-check error"):
        right(*arguments, **named)


def test_what_is_right_goes_through(check: Check) -> None:
    assert check(wider)(ZEROS, by=2).shape == (3, 6)
    assert check(wider)(np.zeros((5, 5))).shape == (5, 6)  # extents are those of one call
    assert check(where)(ZEROS, ZEROS == 0) == 12
    assert check(each)([ZEROS, ZEROS])[1] is ZEROS
    assert check(called)("x", length="any", other=True) == "x"  # the program has no Decimal to compare with
    assert list(check(counted)(2)) == [0, 1]
    assert check(Pair)(ZEROS).named("b").name == "b"


def test_a_function_within_another_names_its_own_extents(check: Check) -> None:
    @check
    def outer(image: Image) -> Image:
        assert check(wider)(np.zeros((7, 7))).shape == (7, 8)
        return image

    assert outer(ZEROS) is ZEROS


def test_it_looks_like_the_function_that_it_is(check: Check) -> None:
    for function in (wider, called):
        made = check(function)
        assert (made.__name__, made.__wrapped__, made.__annotations__) == (
            *(function.__name__, function, function.__annotations__),
        )


def test_our_own_modules_are_checked(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--jaxtyping-packages"):
        pytest.skip("without --jaxtyping-packages nothing is")
    from palpate.metrics import dice

    with pytest.raises(Exception, match="violates type hint"):
        dice(np.zeros(3, dtype=bool), "no mask")  # type: ignore[arg-type]
