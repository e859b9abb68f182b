"""The surface measures against the two packages that define them, on random masks."""

import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from scipy import ndimage

from palpate.metrics import assd, dice, hausdorff95, iou, nsd, surface_distances

surface_distance = pytest.importorskip("surface_distance.metrics")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # monai's imports, not ours
    torch = pytest.importorskip("torch")
    monai = pytest.importorskip("monai.metrics")

pytestmark = pytest.mark.filterwarnings(
    "ignore:Please (use|import):DeprecationWarning",  # surface-distance names scipy's modules by their old names
    "ignore:monai.metrics:FutureWarning",  # monai uses its own deprecated argument
    "ignore:the (prediction|ground truth) of class:UserWarning",  # monai, about the empty masks given on purpose
)

CASES_A_KIND = 51
KINDS = ("blobs", "thin", "crumbs", "boxes at the edge", "one voxel")
close = {"rel": 1e-6, "abs": 1e-6}
Case = tuple[np.ndarray, np.ndarray, tuple[float, ...], float]


def body(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Never empty."""
    mask = np.zeros(shape, dtype=bool)
    if kind == "blobs":
        smooth = ndimage.gaussian_filter(rng.normal(size=shape), 1.5)
        mask = smooth > np.quantile(smooth, rng.uniform(0.3, 0.9))
    elif kind == "thin":
        for _ in range(rng.integers(1, 4)):
            along = rng.integers(len(shape))
            line = [slice(int(place), int(place) + 1) for place in rng.integers(0, shape)]
            line[along] = slice(None)
            mask[tuple(line)] = True
    elif kind == "crumbs":
        mask = rng.random(shape) < rng.uniform(0.02, 0.7)
    elif kind == "boxes at the edge":
        for _ in range(rng.integers(1, 3)):
            mask[
                tuple(
                    slice(None, int(n)) if rng.random() < 0.5 else slice(int(n), None) for n in rng.integers(1, shape)
                )
            ] = True
    mask[tuple(rng.integers(0, shape))] = True
    return mask


def cases(kind: str, ndim: int) -> Iterator[Case]:
    rng = np.random.default_rng([KINDS.index(kind), ndim])
    for number in range(CASES_A_KIND):
        shape = tuple(int(n) for n in rng.integers(2, 18 if ndim == 2 else 11, size=ndim))
        reference = body(kind, shape, rng)
        prediction = body(kind, shape, rng)
        if number % 3 == 0:  # a near miss
            prediction = np.roll(reference, 1, axis=int(rng.integers(ndim)))
        if number % 2:  # distances that often equal the tolerance; all of it is exact in floating point
            spacing = tuple(rng.choice([0.5, 1.0, 1.25, 2.5, 3.0], size=ndim).tolist())
            tolerance = float(rng.choice([0.0, 0.5, 1.0, 2.0, 2.5, 5.0]))
        else:
            spacing = tuple(rng.uniform(0.3, 4, size=ndim).tolist())
            tolerance = float(rng.uniform(0, 5))
        yield prediction, reference, spacing, tolerance


def as_monai(mask: np.ndarray) -> "torch.Tensor":
    return torch.from_numpy(mask)[None, None]


def oracle(prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...]) -> dict[str, np.ndarray]:
    return surface_distance.compute_surface_distances(reference, prediction, spacing)


each_kind = pytest.mark.parametrize(("kind", "ndim"), [(kind, ndim) for kind in KINDS for ndim in (2, 3)])


@each_kind
def test_surfels_are_those_of_surface_distance(kind: str, ndim: int) -> None:
    for prediction, reference, spacing, tolerance in cases(kind, ndim):
        ours = surface_distances(prediction, reference, spacing_mm=spacing)
        theirs = oracle(prediction, reference, spacing)
        assert np.sort(ours.to_reference) == pytest.approx(theirs["distances_pred_to_gt"], **close)
        assert np.sort(ours.to_prediction) == pytest.approx(theirs["distances_gt_to_pred"], **close)
        assert ours.nsd(tolerance) == pytest.approx(
            surface_distance.compute_surface_dice_at_tolerance(theirs, tolerance), **close
        )
        # Where a share of the area is 95 % exactly, the oracle's rounding decides which element is the last.
        low, high = (surface_distance.compute_robust_hausdorff(theirs, 95 + hair) for hair in (-1e-7, 1e-7))
        assert low - 1e-6 <= ours.hausdorff95() <= high + 1e-6
        if low == high:
            assert ours.hausdorff95() == pytest.approx(surface_distance.compute_robust_hausdorff(theirs, 95), **close)
        # Its two averages, joined with the areas as weights.
        there, back = surface_distance.compute_average_surface_distance(theirs)
        there_area, back_area = theirs["surfel_areas_gt"].sum(), theirs["surfel_areas_pred"].sum()
        assert ours.reference_area.sum() == pytest.approx(there_area, **close)
        assert ours.prediction_area.sum() == pytest.approx(back_area, **close)
        joined = (there * there_area + back * back_area) / (there_area + back_area)
        assert ours.assd() == pytest.approx(joined, **close)


def monai_nsd(
    prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...], tolerance: float, subvoxels: bool
) -> float:
    return monai.compute_surface_dice(
        as_monai(prediction),
        as_monai(reference),
        class_thresholds=[tolerance],
        include_background=True,
        spacing=spacing,
        use_subvoxels=subvoxels,
    ).item()


@each_kind
def test_voxels_and_overlap_are_those_of_monai(kind: str, ndim: int) -> None:
    for number, (prediction, reference, spacing, tolerance) in enumerate(cases(kind, ndim)):
        ours = surface_distances(prediction, reference, spacing_mm=spacing, surface="voxel")
        pair = as_monai(prediction), as_monai(reference)
        settings = {"include_background": True, "spacing": spacing}
        # Monai takes most of the time here, so its two surfaces take turns (in pairs: every second spacing is round).
        subvoxels = number // 2 % 2 == 1
        share = (
            nsd(prediction, reference, spacing_mm=spacing, tolerance_mm=tolerance) if subvoxels else ours.nsd(tolerance)
        )
        assert share == pytest.approx(monai_nsd(prediction, reference, spacing, tolerance, subvoxels), **close)
        assert ours.hausdorff95() == pytest.approx(
            monai.compute_hausdorff_distance(*pair, percentile=95, **settings).item(), **close
        )
        assert ours.assd() == pytest.approx(
            monai.compute_average_surface_distance(*pair, symmetric=True, **settings).item(), **close
        )
        assert dice(prediction, reference) == pytest.approx(monai.compute_dice(*pair).item(), **close)
        assert iou(prediction, reference) == pytest.approx(monai.compute_iou(*pair).item(), **close)


def test_there_are_at_least_500_random_cases() -> None:
    assert CASES_A_KIND * len(KINDS) * 2 >= 500


@pytest.mark.parametrize("shape", [(5, 6), (4, 5, 6)])
def test_empty_masks_are_those_of_the_oracles(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "Inf", np.inf, raising=False)  # surface-distance is older than numpy 2
    nothing, something = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    something[1:3, 1:4] = True
    spacing = (2.0,) * len(shape)
    for prediction, reference in ((nothing, something), (something, nothing)):
        theirs = oracle(prediction, reference, spacing)
        ours = surface_distances(prediction, reference, spacing_mm=spacing)
        assert ours.nsd(2.0) == surface_distance.compute_surface_dice_at_tolerance(theirs, 2.0) == 0
        assert ours.hausdorff95() == surface_distance.compute_robust_hausdorff(theirs, 95) == np.inf
        pair = as_monai(prediction), as_monai(reference)
        voxels = surface_distances(prediction, reference, spacing_mm=spacing, surface="voxel")
        assert voxels.nsd(2.0) == monai_nsd(prediction, reference, spacing, 2.0, False) == 0
        assert (
            voxels.assd()
            == monai.compute_average_surface_distance(*pair, include_background=True, symmetric=True).item()
            == np.inf
        )
    none = as_monai(nothing), as_monai(nothing)
    assert np.isnan(monai_nsd(nothing, nothing, spacing, 2.0, False))
    assert np.isnan(monai.compute_hausdorff_distance(*none, include_background=True, percentile=95).item())
    for measure in (nsd, hausdorff95, assd):
        assert np.isnan(measure(nothing, nothing, spacing_mm=spacing))


def test_the_challenge_mode_is_the_three_dimensional_algorithm_on_a_slab() -> None:
    for prediction, reference, _, tolerance in cases("blobs", 2):
        slab = oracle(prediction[..., None], reference[..., None], (1, 1, 1))
        ours = nsd(prediction, reference, spacing_mm=(0.5, 0.5), tolerance_mm=tolerance, mode="challenge")
        assert ours == pytest.approx(surface_distance.compute_surface_dice_at_tolerance(slab, tolerance), **close)
