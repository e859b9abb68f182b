import numpy as np
import pytest
from PIL import Image as Picture

from palpate.errors import PromptError
from palpate.images import Image
from palpate.inference.preview import COLOURS, LegendLine, Tile, colour_of, draw
from palpate.inference.session import Session
from palpate.prompts import Box, MaskPrompt, Points, Prompt, Scribble, Target
from phantoms import picture, rectangle

SHAPE = (64, 64)
GAP, SCALE = 8, 12  # one tile: 768 pixels for 64, eight pixels from the corner
WHITE, BLACK_IMAGE = (255, 255, 255), np.zeros(SHAPE, dtype=np.uint8)
GREEN, RED = (90, 230, 120), (255, 95, 95)


def tile(
    *prompts: Prompt,
    labels: np.ndarray = BLACK_IMAGE,
    pixels: np.ndarray = BLACK_IMAGE,
    pixel_size: tuple[float, float] = (1.0, 1.0),
    title: str = "",
    letters: tuple[str, str, str, str] | None = None,
) -> Tile:
    targets = [Target(prompts)] if prompts else []
    return Tile(pixels, labels, targets, title, pixel_size, letters)


def drawn(*tiles: Tile, legend: int = 0, caption: str = "a phantom") -> np.ndarray:
    lines = [LegendLine(label, f"label {label}") for label in range(1, legend + 1)]
    return np.asarray(draw(tiles, lines, caption=caption))


def extent(drawing: np.ndarray, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """First and last column and row of exactly this colour in the first tile, in pixels of the tile."""
    found = (drawing[GAP : GAP + 768, GAP : GAP + 768] == colour).all(axis=2)
    ys, xs = np.nonzero(found)
    return xs.min(), ys.min(), xs.max(), ys.max()


class TestPrompts:
    def test_a_box_encloses_its_first_and_last_pixel(self) -> None:
        # Columns 10..30 and rows 20..40: from the left edge of pixel 10 to the right edge of pixel 30.
        left, top, right, bottom = extent(drawn(tile(Box(10, 20, 30, 40))), WHITE)
        assert (left, top, right, bottom) == (10 * SCALE, 20 * SCALE, 31 * SCALE - 1, 41 * SCALE - 1)

    def test_a_box_of_one_pixel_is_seen(self) -> None:
        assert extent(drawn(tile(Box(5, 6, 5, 6))), WHITE) == (60, 72, 71, 83)

    def test_a_box_at_the_border_stays_in_the_picture(self) -> None:
        assert extent(drawn(tile(Box(0, 0, 63, 63))), WHITE) == (0, 0, 767, 767)

    @pytest.mark.parametrize(("mark", "colour"), [(1, GREEN), (0, RED)])
    def test_a_click_is_centred_on_its_pixel(self, mark: int, colour: tuple[int, int, int]) -> None:
        left, top, right, bottom = extent(drawn(tile(Points([(20, 40)], [mark]))), colour)
        assert (left + right) / 2 == pytest.approx(20.5 * SCALE, abs=1)
        assert (top + bottom) / 2 == pytest.approx(40.5 * SCALE, abs=1)

    def test_strokes_are_dotted_where_they_were_drawn(self) -> None:
        scribble = Scribble(rectangle(SHAPE, 10, 20, 15, 20), rectangle(SHAPE, 40, 50, 40, 55))
        drawing = drawn(tile(scribble))
        for colour, stroke in ((GREEN, (10, 20, 15, 20)), (RED, (40, 50, 40, 55))):
            wanted = [(value + 0.5) * SCALE for value in stroke]
            assert np.allclose(extent(drawing, colour), wanted, atol=2)

    def test_a_first_guess_is_dotted_along_its_edge(self) -> None:
        drawing = drawn(tile(MaskPrompt(rectangle(SHAPE, 10, 20, 30, 40))))
        assert np.allclose(extent(drawing, WHITE), [10.5 * SCALE, 20.5 * SCALE, 30.5 * SCALE, 40.5 * SCALE], atol=2)
        inside = drawing[GAP + 22 * SCALE : GAP + 39 * SCALE, GAP + 12 * SCALE : GAP + 29 * SCALE]
        assert not inside.any()


class TestOutlines:
    def test_an_outline_lies_on_the_outermost_pixels_of_the_mask(self) -> None:
        labels = rectangle(SHAPE, 10, 20, 30, 40).astype(np.uint8)
        drawing = drawn(tile(labels=labels))
        assert extent(drawing, colour_of(1)) == (10 * SCALE, 20 * SCALE, 31 * SCALE - 1, 41 * SCALE - 1)
        # The anatomy shines through: a fifth of the colour within, nothing without.
        middle = drawing[GAP + 30 * SCALE, GAP + 20 * SCALE]
        assert np.allclose(middle, 0.22 * np.array(colour_of(1)), atol=1)
        assert not drawing[GAP + 30 * SCALE, GAP + 40 * SCALE].any()

    def test_neighbours_keep_their_own_colours(self) -> None:
        labels = np.zeros(SHAPE, dtype=np.uint16)
        labels[10:20, 10:20], labels[10:20, 20:30] = 1, 300
        drawing = drawn(tile(labels=labels))
        assert colour_of(300) != colour_of(1)
        assert extent(drawing, colour_of(1)) == (120, 120, 239, 239)
        assert extent(drawing, colour_of(300)) == (240, 120, 359, 239)

    def test_colours_come_again_after_seven(self) -> None:
        assert colour_of(1) == COLOURS[0]
        assert colour_of(7) == COLOURS[6]
        assert colour_of(8) == COLOURS[0]
        assert len(set(COLOURS)) == 7

    def test_a_mask_that_fills_the_slice_has_no_outline(self) -> None:
        drawing = drawn(tile(labels=np.ones(SHAPE, dtype=np.uint8)))
        assert not (drawing[GAP : GAP + 768, GAP : GAP + 768] == colour_of(1)).all(axis=2).any()

    def test_colour_pictures_keep_their_colours(self) -> None:
        pixels = np.zeros((*SHAPE, 3), dtype=np.uint8)
        pixels[...] = (200, 30, 60)
        assert (drawn(tile(pixels=pixels))[GAP + 100, GAP + 100] == (200, 30, 60)).all()


class TestTheSheet:
    def test_one_tile_and_its_caption(self) -> None:
        assert drawn(tile()).shape == (768 + 3 * GAP + 22, 768 + 2 * GAP, 3)

    def test_many_tiles_come_three_in_a_row(self) -> None:
        # 400 pixels each: two rows of three, the caption and two lines of the legend.
        drawing = drawn(*[tile() for _ in range(5)], legend=2)
        assert drawing.shape == (2 * 400 + 4 * GAP + 3 * 22, 3 * 400 + 4 * GAP, 3)

    @pytest.mark.parametrize(("labels", "lines"), [(1, 1), (8, 8), (9, 9), (300, 9)])
    def test_a_long_legend_is_cut(self, labels: int, lines: int) -> None:
        assert drawn(tile(), legend=labels).shape[0] == 768 + 3 * GAP + 22 * (1 + lines)

    def test_millimetres_are_shown_and_not_pixels(self) -> None:
        # 64 slices of 3 mm and 64 columns of 1 mm: three times as tall as wide.
        drawing = drawn(tile(Box(0, 0, 63, 63), pixel_size=(3.0, 1.0)))
        assert extent(drawing, WHITE) == (0, 0, 255, 767)

    @pytest.mark.parametrize("shape", [(1, 1), (1, 500), (700, 2), (3000, 1000)])
    def test_any_shape_can_be_drawn(self, shape: tuple[int, int]) -> None:
        nothing = np.zeros(shape, dtype=np.uint8)
        drawing = drawn(tile(Box(0, 0, shape[1] - 1, shape[0] - 1), labels=nothing, pixels=nothing))
        assert drawing.shape[1] >= 480


class TestWords:
    """All of them can be read: as many letters' pixels are drawn as on a sheet with room for any line."""

    WORDS = "Dice 0.93  spider_vertebrae_case_0012_slice_0031"
    TEXT = (228, 230, 235)

    def ink(self, drawing: np.ndarray) -> int:
        return int((drawing == self.TEXT).all(axis=2).sum())

    @pytest.mark.parametrize("shape", [(200, 30), (200, 4), (30, 200), (4, 200)])
    @pytest.mark.parametrize("beside", [0, 2], ids=["alone", "of three"])
    def test_a_title_fits_narrow_and_flat_images(self, shape: tuple[int, int], beside: int) -> None:
        nothing = np.zeros(shape, dtype=np.uint8)
        others = [tile() for _ in range(beside)]
        drawing = drawn(tile(labels=nothing, pixels=nothing, title=self.WORDS), *others)
        assert self.ink(drawing) == self.ink(drawn(tile(title=self.WORDS), *others))

    @pytest.mark.parametrize("words", ["ww " * 60, "w" * 120], ids=["at spaces", "within a name"])
    def test_a_title_of_several_lines_has_all_its_letters(self, words: str) -> None:
        per_letter = self.ink(drawn(tile(title="w")))
        drawing = drawn(tile(title=words), tile(), tile())  # 400 pixels wide
        assert self.ink(drawing) >= 0.9 * per_letter * words.count("w")
        assert not (drawing[GAP : GAP + 400, GAP + 401 :] == self.TEXT).any()

    def test_a_flat_image_is_shown_below_its_title(self) -> None:
        bright = np.full((4, 200), 7, dtype=np.uint8)
        drawing = drawn(tile(labels=np.zeros_like(bright), pixels=bright, title="sagittal 12"))
        assert (drawing[GAP + 24 : GAP + 24 + 15, GAP : GAP + 768] == 7).all()

    def test_a_title_does_not_run_into_the_letter_above_the_image(self) -> None:
        nothing = np.zeros((200, 30), dtype=np.uint8)
        drawing = drawn(tile(labels=nothing, pixels=nothing, title="sagittal 12", letters=("R", "L", "A", "P")))
        columns = (drawing[GAP : GAP + 24] == self.TEXT).all(axis=2).any(axis=0)
        gaps = np.diff(np.flatnonzero(columns))
        assert gaps.max() >= 12

    def test_a_long_caption_goes_on_in_another_line(self) -> None:
        nothing = np.zeros((200, 30), dtype=np.uint8)
        narrow = tile(labels=nothing, pixels=nothing)
        assert drawn(narrow, caption="percentiles " * 10).shape == (768 + 3 * GAP + 2 * 22, 480, 3)


class TestOfASession:
    BODY = rectangle(SHAPE, 10, 20, 30, 40)

    def on_volume(self, session: Session, depth: int = 12, **options: str) -> Session:
        session.set_image(Image(np.repeat(picture((self.BODY, 255))[None], depth, axis=0)), **options)
        return session

    @staticmethod
    def tiles(shown: Picture.Image) -> int:
        """How many tiles of 400 pixels; one alone is larger."""
        rows, columns = (shown.height - 3 * GAP) // (400 + GAP), (shown.width - GAP) // (400 + GAP)
        return 1 if shown.width == 768 + 2 * GAP else rows * columns

    def test_a_picture_is_shown_whole(self, fake_session: Session) -> None:
        fake_session.set_image(Image(picture((self.BODY, 255))))
        shown = np.asarray(fake_session.preview(fake_session.predict(Box(5, 15, 35, 45))))
        assert extent(shown, colour_of(1)) == (120, 240, 371, 491)

    def test_one_slice_is_shown_alone(self, fake_session: Session) -> None:
        session = self.on_volume(fake_session)
        assert self.tiles(session.preview(session.predict(Box(5, 15, 35, 45, z=3)))) == 1

    @pytest.mark.parametrize(("last", "tiles"), [(2, 3), (5, 6), (11, 6)])
    def test_a_range_is_shown_by_six_slices_at_most(self, fake_session: Session, last: int, tiles: int) -> None:
        session = self.on_volume(fake_session)
        found = session.predict(Box(5, 15, 35, 45, z=1), z_range=(0, last))
        assert self.tiles(session.preview(found)) == tiles

    def test_many_prompted_slices_can_be_drawn(self, fake_session: Session) -> None:
        session = self.on_volume(fake_session)
        targets = [Target((Box(5, 15, 35, 45, z=z),), z + 1) for z in range(12)]
        assert self.tiles(session.preview(session.predict_all(targets))) == 6

    def test_an_empty_result_can_be_drawn(self, fake_session: Session) -> None:
        session = self.on_volume(fake_session)
        found = session.predict(Box(50, 50, 60, 60, z=3), z_range=(2, 4))
        assert not found.mask.any()
        session.preview(found)

    @pytest.mark.parametrize("axis", ["z", "y", "x"])
    def test_every_axis_can_be_drawn(self, fake_session: Session, axis: str) -> None:
        session = self.on_volume(fake_session, axis=axis)
        session.preview(session.predict(Box(0, 0, 11, 11, z=11)))

    def test_three_hundred_labels_can_be_drawn(self, fake_session: Session) -> None:
        fake_session.set_image(Image(picture((self.BODY, 255))))
        targets = [Target((Box(10 + i % 20, 20 + i // 20, 10 + i % 20, 20 + i // 20),), i + 1) for i in range(300)]
        shown = fake_session.preview(fake_session.predict_all(targets))
        assert shown.height == 768 + 3 * GAP + 22 * 10

    def test_a_mask_of_another_image_is_refused(self, fake_session: Session) -> None:
        found = self.on_volume(fake_session).predict(Box(5, 15, 35, 45, z=3))
        with pytest.raises(PromptError, match="of another image"):
            self.on_volume(fake_session, depth=5).preview(found)

    def test_a_mask_of_another_cut_is_refused(self, fake_session: Session) -> None:
        found = self.on_volume(fake_session, axis="x").predict(Box(0, 0, 9, 9, z=30))
        with pytest.raises(PromptError, match="or cut along another axis"):
            self.on_volume(fake_session, axis="z").preview(found)

    def test_without_an_image_there_is_nothing_to_draw_on(self, fake_session: Session) -> None:
        found = self.on_volume(fake_session).predict(Box(5, 15, 35, 45, z=3))
        with pytest.raises(PromptError, match="no image is set"):
            Session(fake_session.runtime).preview(found)
