"""Sizes as people write them."""

import doctest

import pytest

from palpate.cli import terminal
from palpate.cli.terminal import bytes_of, size_text
from palpate.errors import SettingError


@pytest.mark.parametrize(
    ("text", "size"),
    [("20GB", 20 * 10**9), ("500 mb", 5 * 10**8), ("1.5T", 15 * 10**11), ("12kB", 12_000), ("7", 7), ("7b", 7)],
)
def test_a_size_is_read(text: str, size: int) -> None:
    assert bytes_of(text, "--max-size") == size


@pytest.mark.parametrize("text", ["", "0", "0GB", "-3GB", "GB", "20 gigs", "1e9", "0.1"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match=r"--max-size .*20GB"):
        bytes_of(text, "--max-size")


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (999, "999 bytes"), (16_300_000, "16.3 MB"), (20 * 10**9, "20.0 GB")]
)
def test_a_size_is_written(size: int, text: str) -> None:
    assert size_text(size) == text


def test_the_examples_are_true() -> None:
    found = doctest.testmod(terminal)
    assert found.attempted
    assert not found.failed
