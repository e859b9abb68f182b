"""A mask that any hand would get agrees with itself; one that hangs on a pixel does not."""

import numpy as np
import pytest
import torch

from fake_runtime import FakeFindingRuntime
from palpate.errors import PromptError, SettingError
from palpate.images import Image
from palpate.inference.agreement import agreement, moved
from palpate.inference.runtimes.torch import TorchRuntime
from palpate.inference.session import Session
from palpate.models.catalogue import SAM_PROMPTS
from palpate.prompts import Box, MaskPrompt, Points, Prompt, Scribble, Target
from phantoms import picture, rectangle
from tiny_networks import tiny_sam

SHAPE = (64, 64)  # the fake model's own canvas: it finds what is bright inside the box
BODY = rectangle(SHAPE, 20, 20, 39, 39)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def on(session: Session, pixels: np.ndarray) -> Session:
    session.set_image(Image(pixels))
    return session


class TestWhatItSays:
    def test_a_mask_that_no_box_changes_agrees_wholly(self, fake_session: Session) -> None:
        # The box has 5 pixels of room on each side, and its sides move by 0.05 x 30 = 1.5.
        found = agreement(on(fake_session, picture((BODY, 255))), Target((Box(15, 15, 44, 44),)), rng=rng())
        assert found.dice == (1.0,) * 8
        assert found.mean == 1.0
        assert np.array_equal(found.mask, BODY)
        assert np.array_equal(found.share, BODY.astype(np.float32))

    def test_a_mask_that_the_box_cuts_agrees_less(self, fake_session: Session) -> None:
        white = np.full(SHAPE, 255, dtype=np.uint8)
        white[0] = 0
        target = Target((Box(20, 20, 39, 39),))  # its mask is the box, and so is that of every draw
        found = agreement(on(fake_session, white), target, draws=200, amount=0.1, rng=rng())
        assert len(found.dice) == 200
        # Each side moves by -2..2 of 20 pixels: at the least 16 x 16 of 20 x 20 are left.
        assert 2 * 16**2 / (16**2 + 20**2) <= min(found.dice) < found.mean < 1
        # The sides are where boxes differ: the middle is always in, the pixel just outside in a quarter of the draws
        # (a side that moves out by 1 to 2 pixels takes it in).
        assert found.share[30, 30] == 1
        assert found.share[30, 42] == 0
        assert 0.15 < found.share[30, 40] < 0.35

    def test_nothing_found_agrees_with_nothing(self, fake_session: Session) -> None:
        found = agreement(on(fake_session, picture((BODY, 255))), Target((Box(50, 50, 60, 60),)), rng=rng())
        assert found.dice == (0.0,) * 8
        assert not found.share.any()

    def test_beside_what_was_learned_it_is_that_of_what_is_found_there(self) -> None:
        # The box cuts a grey body, which the class does not take for its own, and not the bright one in the middle.
        grey, body = rectangle(SHAPE, 10, 10, 49, 49), rectangle(SHAPE, 25, 25, 34, 34)
        session = on(Session(FakeFindingRuntime()), picture((grey, 180), (body, 255)))
        target = Target((Box(15, 15, 44, 44),), name="bright")
        alone = agreement(session, target, rng=rng())
        beside = agreement(session, target, mode="semi-autonomous", rng=rng())
        assert alone.mean < beside.mean == 1.0
        assert np.array_equal(beside.mask, body)

    def test_on_a_volume_it_is_that_of_the_prompted_slice(self, fake_session: Session) -> None:
        pixels = np.stack([picture((BODY, 255)), picture((rectangle(SHAPE, 2, 2, 60, 60), 255))])
        session = on(fake_session, pixels)
        for target, body in (
            (Target((Box(15, 15, 44, 44, z=0),)), BODY),
            (Target((Box(0, 0, 63, 63),), z_range=(1, 1)), pixels[1] > 0),  # the range says which slice
        ):
            assert np.array_equal(agreement(session, target, rng=rng()).mask, body)
        assert session.runtime.encodes == 2


class TestWhatItCosts:
    @pytest.mark.parametrize(
        "prompts",
        [(Box(15, 15, 44, 44),), (Points([(30, 30)]),), (Points([(30, 30), (5, 5)], [1, 0]), Box(9, 9, 50, 50))],
    )
    def test_one_batch_and_no_second_look_at_the_image(
        self, fake_session: Session, prompts: tuple[Prompt, ...]
    ) -> None:
        session = on(fake_session, picture((BODY, 255)))
        agreement(session, Target(prompts), draws=5, rng=rng())
        assert (session.runtime.encodes, [len(batch) for batch in session.runtime.batches]) == (1, [6])

    def test_the_same_generator_gives_the_same_answer(self, fake_session: Session) -> None:
        session, target = on(fake_session, picture((BODY, 255))), Target((Box(21, 21, 38, 38), Points([(25, 25)])))
        first, again, other = (agreement(session, target, amount=0.2, rng=rng(seed)) for seed in (1, 1, 2))
        assert first.dice == again.dice != other.dice
        assert np.array_equal(first.share, again.share)

    def test_a_lone_point_has_the_mask_that_the_session_gives_it(self) -> None:
        # The network names three candidates for it, of which the session takes the best.
        runtime = TorchRuntime(tiny_sam(), "tiny", "0" * 64, "e" * 64, SAM_PROMPTS, torch.device("cpu"))
        session = on(Session(runtime), rng(5).integers(0, 256, SHAPE, dtype=np.uint8))
        found = agreement(session, Target((Points([(20, 30)]),)), draws=3, rng=rng())
        assert np.array_equal(found.mask, session.predict(Points([(20, 30)])).mask)


class TestHowPromptsMove:
    def drawn(self, prompt: Prompt, *, amount: float = 0.05, shape: tuple[int, int] = (400, 500)) -> list[Prompt]:
        target, generator = Target((prompt,)), rng()
        return [moved(target, amount=amount, shape=shape, rng=generator).prompts[0] for _ in range(50)]

    def test_boxes_by_a_share_of_their_sides(self) -> None:
        steps = [box.x_max - 139 for box in self.drawn(Box(100, 100, 139, 299, z=3)) if isinstance(box, Box)]
        assert max(map(abs, steps)) <= 0.05 * 40
        assert max(steps) > 1 > -1 > min(steps)

    def test_clicks_by_pixels_of_the_screen_each_for_itself(self) -> None:
        # 0.2 x 0.05 of 500 columns are 5 pixels.
        places = np.array([p.coordinates for p in self.drawn(Points([(100, 50), (498, 2)], [1, 0]))])
        steps = places - [(100, 50), (498, 2)]
        assert np.abs(steps).max() <= 5
        assert np.abs(steps).max() > 4
        assert not np.allclose(steps[:, 0], steps[:, 1])
        assert places[:, 1].max(axis=0).tolist()[0] == 499  # they stop at the border
        assert places[:, 1].min(axis=0).tolist()[1] == 0

    def test_strokes_all_together(self) -> None:
        positive, negative = rectangle((400, 500), 50, 60, 80, 62), rectangle((400, 500), 50, 63, 80, 65)
        seen = set()
        for scribble in self.drawn(Scribble(positive, negative)):
            assert isinstance(scribble, Scribble)
            assert scribble.negative is not None
            (y, x), (y_beside, x_beside) = (np.argwhere(one)[0] for one in (scribble.positive, scribble.negative))
            assert (y_beside - y, x_beside - x) == (3, 0)
            assert scribble.positive.sum() == positive.sum()
            seen.add((int(y) - 60, int(x) - 50))
        assert {abs(step) for pair in seen for step in pair} == {0, 1, 2, 3, 4, 5}

    def test_a_stroke_never_leaves_the_image(self) -> None:
        corner = rectangle((40, 50), 49, 39, 49, 39)
        drawn = self.drawn(Scribble(corner, rectangle((40, 50), 49, 0, 49, 0)), shape=(40, 50), amount=0.5)
        assert all(isinstance(one, Scribble) and one.positive.any() for one in drawn)
        assert any(one.negative is None for one in drawn if isinstance(one, Scribble))

    def test_masks_by_one_pixel_or_not_at_all(self) -> None:
        sizes = {int(one.mask.sum()) for one in self.drawn(MaskPrompt(BODY)) if isinstance(one, MaskPrompt)}
        assert sizes == {18 * 18, 20 * 20, 20 * 20 + 4 * 20}
        thin = rectangle(SHAPE, 5, 5, 20, 5)  # it would vanish
        sizes = {int(one.mask.sum()) for one in self.drawn(MaskPrompt(thin)) if isinstance(one, MaskPrompt)}
        assert sizes == {16, 16 + 2 * 16 + 2}

    def test_nothing_moves_by_nothing(self) -> None:
        for prompt in (Box(10, 10, 20, 20), Points([(10, 12)])):
            assert set(map(str, self.drawn(prompt, amount=0))) == {str(prompt)}
        stroke = rectangle((400, 500), 50, 60, 80, 62)
        drawn = self.drawn(Scribble(stroke), amount=0)
        assert all(isinstance(one, Scribble) and np.array_equal(one.positive, stroke) for one in drawn)


@pytest.mark.parametrize(("setting", "said"), [({"draws": 0}, "at least one"), ({"amount": -0.1}, "from 0 on")])
def test_settings_that_make_no_sense_are_refused(fake_session: Session, setting: dict[str, float], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        agreement(on(fake_session, picture((BODY, 255))), Target((Box(1, 1, 9, 9),)), rng=rng(), **setting)


class TestMasksOfASession:
    """`Session.masks`: what `predict` gives for each, without a label map in which one hides another."""

    def test_overlapping_targets_keep_their_whole_masks(self, fake_session: Session) -> None:
        session = on(fake_session, picture((BODY, 255)))
        boxes = [Box(0, 0, 30, 30), Box(25, 25, 63, 63), Box(0, 0, 63, 63)]
        masks = session.masks([Target((box,)) for box in boxes])
        assert session.runtime.decodes == 1
        assert all(np.array_equal(mask, session.predict(box).mask) for mask, box in zip(masks, boxes, strict=True))

    def test_targets_on_other_slices_come_back_in_their_order(self, fake_session: Session) -> None:
        session = on(fake_session, np.stack([picture((BODY, 255)), picture((~BODY, 255))]))
        masks = session.masks([Target((Box(0, 0, 63, 63, z=z),), z_range=(0, 1)) for z in (1, 0, 1)])
        assert [int(mask[30, 30]) for mask in masks] == [0, 1, 0]
        assert session.runtime.decodes == 2

    def test_what_makes_no_sense_is_refused(self, fake_session: Session) -> None:
        with pytest.raises(PromptError, match="set_image"):
            fake_session.masks([Target((Box(1, 1, 9, 9),))])
        session = on(fake_session, picture((BODY, 255)))
        with pytest.raises(PromptError, match="nothing to segment"):
            session.masks([])
        with pytest.raises(PromptError, match="slice"):
            session.masks([Target((Box(1, 1, 9, 9, z=4),))])
