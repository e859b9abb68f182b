"""What learning prompts asks for, and what it takes for the truth."""

from pathlib import Path

import numpy as np
import pytest

from palpate.datasets import Case, LabelledImage
from palpate.datasets.case import Region
from palpate.images import Image
from palpate.models.frame import Frame
from palpate.models.promptable import LearnedClass
from palpate.training.learn_items import Sought
from palpate.training.scenes import Scene, sights_of
from phantoms import rectangle

FRAME = Frame(size=32, mask_size=32)
PIXELS = np.arange(32 * 32, dtype=np.int16).reshape(32, 32)
LIVER = rectangle((32, 32), 0, 0, 15, 7)
SPLEEN = rectangle((32, 32), 16, 24, 31, 31)


def scene(name: str, labels: np.ndarray, *regions: Region) -> Scene:
    case = Case(
        "d", name, name, Path(name), Path(name), lambda _: LabelledImage(Image(PIXELS), labels), regions=regions
    )
    (sight,) = sights_of(case, frame=FRAME, encoder_hash="e")
    return sight.scene


def test_one_image_with_two_sets_of_labels_is_two_truths() -> None:
    sought = Sought((LearnedClass("liver", 1), LearnedClass("spleen", 2)), FRAME)
    first = scene("a", LIVER.astype(np.uint8), Region("liver", (1,)))
    second = scene("b", SPLEEN * np.uint8(2), Region("spleen", (2,)))
    assert first.key == second.key  # one embedding
    for one, index, where in ((first, 0, LIVER), (second, 1, SPLEEN)):
        shares, counted = sought.shares(one, 8)
        assert shares[index].sum().item() * 16 == pytest.approx(where.sum())
        assert counted[index].all()
        assert not counted[1 - index].any()  # nobody looked for the other one
