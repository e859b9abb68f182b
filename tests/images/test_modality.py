import numpy as np
import pytest

from palpate.errors import SettingError
from palpate.images import Image
from palpate.images.modality import MODALITIES, with_modality


def image(*values: float, dtype: type = np.int16, **fields: str) -> Image:
    return Image(np.array([values], dtype=dtype), **fields)


def test_air_gives_ct_away() -> None:
    guessed = with_modality(image(-1000, 40))
    assert (guessed.modality, guessed.modality_origin) == ("CT", "guessed")
    assert with_modality(image(-1000.0, 40.0, dtype=np.float32)).modality == "CT"


@pytest.mark.parametrize("darkest", [-500, -499, 0])
def test_nothing_else_is_guessed_of_greys(darkest: int) -> None:
    same = with_modality(image(darkest, 3000))
    assert (same.modality, same.modality_origin) == ("unknown", "unknown")


def test_colour_is_a_photo() -> None:
    guessed = with_modality(Image(np.zeros((2, 2, 3), dtype=np.uint8), colour=True))
    assert (guessed.modality, guessed.modality_origin) == ("photo", "guessed")


def test_the_header_is_believed() -> None:
    told = image(-1000, 40, modality="PET", modality_origin="header")
    assert with_modality(told) is told


@pytest.mark.parametrize("name", MODALITIES)
def test_a_person_has_the_last_word_in_any_case(name: str) -> None:
    for spelled in (name, name.lower(), name.upper()):
        given = with_modality(image(-1000, 40, modality="CT", modality_origin="header"), spelled)
        assert (given.modality, given.modality_origin) == (name, "given")


@pytest.mark.parametrize("name", ["", "CTA", "mri", "ultrasound"])
def test_a_modality_that_does_not_exist_gets_the_list(name: str) -> None:
    with pytest.raises(SettingError, match="choose one of CT, MR, US, PET, XR, photo, unknown"):
        with_modality(image(0, 1), name)


def test_settling_it_keeps_pixels_and_place() -> None:
    before = image(0, 1)
    after = with_modality(before, "MR")
    assert after.array is before.array
    assert np.array_equal(after.affine, before.affine)


def test_a_drawing_has_no_air() -> None:
    assert with_modality(Image(np.array([[False, True]]))).modality == "unknown"
