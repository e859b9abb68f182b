"""A lone point may mean a part, an object or a group: SAM names three candidates, and the session takes the best."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from palpate.images import Image
from palpate.inference.runtimes.torch import TorchRuntime
from palpate.inference.session import Session
from palpate.models.catalogue import SAM_PROMPTS
from palpate.models.promptable import PromptBatch, PromptSupport
from palpate.prompts import Box, Points, Prompt, Target
from tiny_networks import tiny_sam

PIXELS = np.random.default_rng(5).integers(0, 256, (64, 64), dtype=np.uint8)


def session(prompts: PromptSupport = SAM_PROMPTS) -> Session:
    network = tiny_sam()
    made = Session(TorchRuntime(network, "tiny", "0" * 64, "e" * 64, prompts, torch.device("cpu")))
    made.set_image(Image(PIXELS))
    return made


def candidates(*prompts: Prompt) -> tuple[float, list[float]]:
    """The predicted IoU of the single mask and of the three candidates."""
    network = tiny_sam()
    frame = network.frame
    canvas = frame.canvas(PIXELS)
    told = frame.prompts(prompts, (64, 64))
    batch = PromptBatch(
        image_index=np.array([0]),
        boxes=None if told.box is None else told.box[None],
        points=None if told.points is None else told.points[None],
        point_labels=None if told.point_labels is None else told.point_labels[None],
    )
    with torch.inference_mode():
        embedding = network.encode(canvas[None])
        one = network.decode(embedding, batch).predicted_iou
        three = network.decode(embedding, batch, multimask_output=True).predicted_iou
    return float(one[0, 0]), three[0].tolist()


@pytest.mark.parametrize("at", [(20, 30), (40, 12), (3, 60)])
def test_a_lone_point_gets_the_candidate_with_the_highest_predicted_iou(at: tuple[int, int]) -> None:
    point = Points((at,), (1,))
    single, three = candidates(point)
    assert single != pytest.approx(max(three), abs=1e-4)
    answer = session().predict(point)
    assert answer.objects[0].predicted_iou == pytest.approx(max(three), abs=1e-5)


@pytest.mark.parametrize(
    "prompts",
    [
        (Points(((20, 30), (25, 33)), (1, 1)),),
        (Box(10, 12, 40, 50),),
        (Box(10, 12, 40, 50), Points(((20, 30),), (1,))),
    ],
    ids=["two points", "box", "box and point"],
)
def test_all_that_says_more_gets_the_single_mask(prompts: tuple[Prompt, ...]) -> None:
    single, three = candidates(*prompts)
    assert all(single != pytest.approx(iou, abs=1e-4) for iou in three)
    assert session().predict(*prompts).objects[0].predicted_iou == pytest.approx(single, abs=1e-5)


def test_each_of_several_points_gets_its_own_best() -> None:
    points = [Points((at,), (1,)) for at in ((20, 30), (40, 12), (3, 60), (55, 55))]
    answer = session().predict_all([Target((point,), label=i + 1) for i, point in enumerate(points)])
    found = [item.predicted_iou for item in answer.objects]
    assert found == pytest.approx([max(candidates(point)[1]) for point in points], abs=1e-5)


def test_a_model_that_is_not_asked_for_candidates_gives_its_single_mask() -> None:
    point = Points(((20, 30),), (1,))
    answer = session(replace(SAM_PROMPTS, best_of_three=False)).predict(point)
    assert answer.objects[0].predicted_iou == pytest.approx(candidates(point)[0], abs=1e-5)


def test_after_training_with_points_their_single_mask_is_the_one_that_was_trained() -> None:
    assert SAM_PROMPTS.best_of_three
    assert SAM_PROMPTS.also_trained_with(("box",)).best_of_three
    assert not SAM_PROMPTS.also_trained_with(("box", "points")).best_of_three
