from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from palpate.errors import ImageError, SettingError
from palpate.images import Image, Source
from palpate.images.intensity import (
    WINDOWS,
    AsIs,
    Intensity,
    MinMax,
    Percentiles,
    Window,
    intensity_for,
    parse_intensity,
    to_uint8,
)


def row(*values: float, dtype: type = np.int16) -> Image:
    return Image(np.array([values], dtype=dtype))


def seen(image: Image, intensity: Intensity) -> list[int]:
    return to_uint8(image, intensity)[0].tolist()


class TestWindow:
    def test_soft_tissue_goes_from_minus_160_to_240(self) -> None:
        # (40 + 160) / 400 * 255 = 127.5 and (39 + 160) / 400 * 255 = 126.9; both are cut, not rounded.
        assert seen(row(-1000, -160, 39, 40, 240, 3000), WINDOWS["soft-tissue"]) == [0, 0, 126, 127, 255, 255]

    def test_the_papers_windows(self) -> None:
        # arXiv 2503.19700: abdomen -360..440 HU, lung -1000..400 HU.
        assert str(WINDOWS["abdomen-wide"]) == "abdomen-wide window 40/800 (-360..440)"
        assert str(WINDOWS["lung-wide"]) == "lung-wide window -300/1400 (-1000..400)"

    def test_what_does_not_fill_the_window_is_stretched_all_the_same(self) -> None:
        # As in MedSAM's preparation: the clipped volume is stretched, not the window. 0..100 -> 0..255.
        assert seen(row(0, 20, 100), WINDOWS["soft-tissue"]) == [0, 51, 255]

    def test_it_works_on_the_whole_volume(self) -> None:
        slices = np.array([[[-160, 40]], [[240, 40]]], dtype=np.int16)
        assert to_uint8(Image(slices), WINDOWS["soft-tissue"]).tolist() == [[[0, 127]], [[255, 127]]]

    @pytest.mark.parametrize("value", [-1000, 3000])
    def test_a_window_that_shows_nothing_says_so(self, value: int) -> None:
        with pytest.raises(ImageError, match=rf"window 40/400 \(-160..240\) all pixels .* {value}.*another --window"):
            to_uint8(row(value, value + np.sign(value) * 5), WINDOWS["soft-tissue"])

    def test_unsigned_values_below_the_window_do_not_wrap(self) -> None:
        assert seen(row(0, 100, 400, dtype=np.uint16), Window(200, 200)) == [0, 0, 255]


class TestPercentiles:
    def test_zero_stays_zero_and_does_not_count(self) -> None:
        # Non-zero values 100, 200, 300 between the 0th and 100th percentile: 0, 127.5, 255.
        assert seen(row(0, 100, 200, 300, 0), Percentiles(0, 100)) == [0, 0, 127, 255, 0]

    def test_the_brightest_and_darkest_half_percent_are_clipped(self) -> None:
        # 1..1001: the 0.5th percentile of 1001 values is 1 + 0.005 * 1000 = 6, the 99.5th is 996.
        image = Image(np.arange(1, 1002, dtype=np.int16)[None])
        pixels = to_uint8(image, Percentiles())[0]
        assert not pixels[:6].any()
        assert pixels[6:10].tolist() == [0, 0, 0, 1]  # 9 is the first above 6 + 990 / 255 = 9.88, so 10 is
        assert (pixels[995:] == 255).all()
        assert pixels[994] == 254

    def test_a_bright_spot_does_not_darken_the_rest(self) -> None:
        values = np.tile(np.arange(100, 200, dtype=np.int16), 10)
        values[0] = 30000
        assert to_uint8(Image(values[None]), Percentiles())[0].max() == 255
        assert np.median(to_uint8(Image(values[None]), Percentiles())) > 100

    def test_values_below_zero_are_values(self) -> None:
        assert seen(row(-10, 0, 10), Percentiles(0, 100)) == [0, 0, 255]

    def test_one_value_beside_zero_stands_out_from_it(self) -> None:
        assert seen(row(0, 7, 7), Percentiles()) == [0, 255, 255]


class TestDisplayValues:
    def test_eight_bits_are_kept(self) -> None:
        pixels = np.array([[3, 200]], dtype=np.uint8)
        assert to_uint8(Image(pixels), AsIs()) is pixels

    def test_more_bits_cannot_be_kept(self) -> None:
        with pytest.raises(ImageError, match="int16 cannot be taken as 8-bit; use --window min-max"):
            to_uint8(row(0, 300), AsIs())

    def test_more_bits_are_stretched(self) -> None:
        assert seen(row(1000, 2000, 3000, dtype=np.uint16), MinMax()) == [0, 127, 255]

    def test_a_drawing_of_two_values_is_stretched(self) -> None:
        assert to_uint8(Image(np.array([[False, True]])), MinMax()).tolist() == [[0, 255]]

    def test_channels_are_stretched_together(self) -> None:
        colour = Image(np.array([[[0, 100, 200], [400, 50, 255]]], dtype=np.uint16), colour=True)
        assert to_uint8(colour, MinMax()).tolist() == [[[0, 63, 127], [255, 31, 162]]]


class TestAllRules:
    rules = (*WINDOWS.values(), Percentiles(), MinMax(), AsIs())

    @pytest.mark.parametrize("rule", rules, ids=str)
    @pytest.mark.parametrize(
        ("value", "dtype"), [(0, np.uint8), (-1024, np.int16), (0.25, np.float64), (True, np.bool_)]
    )
    def test_a_constant_image_shows_nothing(self, rule: Intensity, value: float, dtype: type) -> None:
        with pytest.raises(ImageError, match="a constant image shows nothing to segment"):
            to_uint8(Image(np.full((3, 4), value, dtype=dtype)), rule)

    @given(
        arrays(np.float64, (3, 4), elements=st.floats(-1e30, 1e30))
        | arrays(np.int32, (2, 3, 4))
        | arrays(np.uint16, (1, 9)),
        st.sampled_from((Window(0, 1e4), Percentiles(), MinMax())),
    )
    def test_any_values_become_0_to_255_or_an_error(self, values: np.ndarray, rule: Intensity) -> None:
        image = Image(values)
        try:
            pixels = to_uint8(image, rule)
        except ImageError:
            return
        assert pixels.dtype == np.uint8
        assert pixels.shape == image.array.shape
        assert pixels.max() == 255

    @pytest.mark.parametrize("rule", [Window(0, 1e40), MinMax()], ids=str)
    def test_values_beyond_single_precision_are_no_surprise(self, rule: Intensity) -> None:
        assert seen(row(-1e39, 0, 1e39, dtype=np.float64), rule) == [0, 127, 255]

    def test_the_image_is_left_alone(self) -> None:
        image = row(-500, 0, 7, 900)
        before = image.array.copy()
        for rule in (WINDOWS["lung"], Percentiles(), MinMax()):
            to_uint8(image, rule)
        assert np.array_equal(image.array, before)


class TestTheRuleForAnImage:
    @staticmethod
    def image(modality: str, *, dtype: type = np.int16, colour: bool = False, read_as: str | None = None) -> Image:
        source = None if read_as is None else Source(Path("image"), read_as)
        shape = (2, 2, 3) if colour else (2, 2)
        return Image(np.zeros(shape, dtype=dtype), modality=modality, colour=colour, source=source)

    def test_ct_takes_the_soft_tissue_window(self) -> None:
        assert intensity_for(self.image("CT")) == Window(40, 400, "soft-tissue")

    @pytest.mark.parametrize("modality", ["MR", "US", "PET"])
    def test_scanners_without_a_scale_take_percentiles(self, modality: str) -> None:
        assert intensity_for(self.image(modality)) == Percentiles(0.5, 99.5)

    @pytest.mark.parametrize("modality", ["photo", "XR"])
    def test_display_values_stay_as_they_are(self, modality: str) -> None:
        assert intensity_for(self.image(modality, dtype=np.uint8)) == AsIs()
        assert intensity_for(self.image(modality, dtype=np.uint16)) == MinMax()

    @pytest.mark.parametrize("modality", ["US", "MR", "unknown"])
    def test_colour_is_for_display_whatever_the_scanner(self, modality: str) -> None:
        assert intensity_for(self.image(modality, dtype=np.uint8, colour=True, read_as="dicom")) == AsIs()

    @pytest.mark.parametrize("read_as", ["nifti", "nrrd", "dicom"])
    def test_unknown_greys_of_medical_files_are_treated_like_mr(self, read_as: str) -> None:
        assert intensity_for(self.image("unknown", read_as=read_as)) == Percentiles()

    @pytest.mark.parametrize("read_as", ["raster", "npz", None])
    def test_unknown_greys_of_pictures_are_display_values(self, read_as: str | None) -> None:
        assert intensity_for(self.image("unknown", dtype=np.uint8, read_as=read_as)) == AsIs()
        assert intensity_for(self.image("unknown", read_as=read_as)) == MinMax()


class TestWhatAPersonNames:
    @pytest.mark.parametrize(
        ("text", "rule"),
        [
            ("40/400", Window(40, 400)),
            ("-600/1500", Window(-600, 1500)),
            ("+40/0.5", Window(40, 0.5)),
            ("-160..240", Window(40, 400)),
            ("-1000..-200", Window(-600, 800)),
            ("0.5..1.5", Window(1, 1)),
            ("bone", WINDOWS["bone"]),
            ("percentiles", Percentiles()),
            ("min-max", MinMax()),
            ("as-is", AsIs()),
        ],
    )
    def test_it_is_understood(self, text: str, rule: Intensity) -> None:
        assert parse_intensity(text) == rule

    @pytest.mark.parametrize("text", ["40/0", "40/-5", "240..-160", "5..5"])
    def test_a_window_needs_a_width(self, text: str) -> None:
        with pytest.raises(SettingError, match="has no width"):
            parse_intensity(text)

    @pytest.mark.parametrize(
        "text", ["", "liver", "40", "40/400/3", "nan/400", "1e3/5", "40 / 400", "..", "1..", "Bone"]
    )
    def test_anything_else_gets_the_list(self, text: str) -> None:
        with pytest.raises(
            SettingError, match="choose soft-tissue, lung, bone, brain, abdomen-wide, lung-wide, or give"
        ):
            parse_intensity(text)
