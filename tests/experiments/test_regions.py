"""Blobs of an image: what has an edge, in the place where it is, and nothing that is labelled already."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from phantoms import disk

SCRIPT = Path(__file__).parents[2] / "experiments" / "lite_medsam_robust" / "regions.py"
SHAPE = (300, 420)


@pytest.fixture
def regions() -> ModuleType:
    spec = spec_from_file_location("regions", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["regions"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A bright and a dark disk on a grey ground with noise; another one is cut by the border."""
    bright, dark = disk(SHAPE, centre=(110, 90), radius=30), disk(SHAPE, centre=(300, 200), radius=24)
    cut = disk(SHAPE, centre=(100, 298), radius=30)
    grey = 110 + rng.normal(0, 6, SHAPE) + 90 * bright - 80 * dark + 90 * cut
    return np.clip(grey, 0, 255).astype(np.uint8), bright, dark


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_bright_and_dark_are_found_in_their_place(
    regions: ModuleType, scene: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    pixels, bright, dark = scene
    found = regions.blobs(pixels, np.zeros(SHAPE, dtype=bool))
    assert {blob.shape for blob in found} == {SHAPE}
    for wanted in (bright, dark):
        assert max(dice(blob, wanted) for blob in found) > 0.93
    for blob in found:
        assert blob[1:-1, 1:-1].sum() == blob.sum()
    for i, one in enumerate(found):
        assert all((one & other).sum() < 0.15 * min(one.sum(), other.sum()) for other in found[:i])


def test_what_is_labelled_is_not_found_again(
    regions: ModuleType, scene: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    pixels, bright, dark = scene
    found = regions.blobs(pixels, bright)
    assert max(dice(blob, dark) for blob in found) > 0.93
    assert all((blob & bright).sum() < 0.3 * blob.sum() for blob in found)


def test_a_region_counts_where_the_model_agrees(
    regions: ModuleType, scene: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    class Agreeing:
        """A model that fills the disk in the box where it is bright, and finds half of it where it is dark."""

        def set_image(self, image: object) -> None:
            pass

        def predict(self, box: object) -> object:
            x0, y0, x1, y1 = (int(getattr(box, name)) for name in ("x_min", "y_min", "x_max", "y_max"))
            middle = ((x0 + x1) / 2, (y0 + y1) / 2)
            mask = disk(SHAPE, centre=middle, radius=(x1 - x0 + 1) / 2)
            if pixels[int(middle[1]), int(middle[0])] < 100:
                mask[: int(middle[1])] = False
            return type("Answer", (), {"mask": mask})()

    pixels, bright, dark = scene
    labels = regions.agreed(Agreeing(), pixels, [bright, dark])
    assert set(np.unique(labels)) == {0, 1}
    assert dice(labels == 1, bright) > 0.95
    assert not regions.agreed(Agreeing(), pixels, []).any()
