"""Where DICOM planes lie, and whether a pile of them makes a volume.

A plane is one single-frame instance or one frame of an enhanced instance. `stack` is the gate in front of every
volume: planes are sorted along their normal, and a pile with a hole, a double, or planes of several kinds is refused
by name, because a volume that silently skips a slice puts every mask beyond it in the wrong place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from pydicom.dataset import Dataset

from palpate.errors import GeometryError, SeriesError
from palpate.images.geometry import LPS_TO_RAS, Affine, affine_from_spacing, checked_affine

GAP_TOLERANCE = 0.2
"""How far a slice may lie from its place on a regular grid, as a part of the slice distance.

Headers round: positions written to 0.1 mm on a 0.625 mm grid are off by up to 16 %. One missing slice moves some
other by 50 % or more, so nothing that matters hides in between.
"""

SAME_PLACE_MM = 1e-3
"""Two slices nearer than this share one position."""

ORIENTATION_TOLERANCE = 1e-4
"""How much direction cosines may differ within a series: printing noise passes, a localizer does not."""

PIXEL_SPACING_TOLERANCE = 1e-4
"""How much pixel spacings may differ within a series, relative to the first."""

COSINE_TOLERANCE = 1e-2
"""How far rows and columns may be from unit length and from a right angle (headers with three digits exist)."""

FAR_MM = 1e6
"""Nothing in a patient is a kilometre long or away; a header that says so is damaged."""

_CENTIMETRES = 3  # the code of cm in an ultrasound region's physical units


@dataclass(frozen=True, eq=False)
class Plane:
    """One slice's place, in LPS+ as DICOM says it. `name` is what an error calls it."""

    name: str
    rows: int
    columns: int
    samples: int
    spacing: tuple[float, float]
    """Distance in mm between rows, then between columns (DICOM's order)."""
    thickness: float
    position: Float[np.ndarray, "3"] | None
    orientation: Float[np.ndarray, "6"] | None

    @property
    def placed(self) -> bool:
        """Whether the header says where in the patient this plane lies."""
        return self.position is not None and self.orientation is not None


def plane_of(dataset: Dataset, *, name: str, frame: int = 0) -> Plane:
    """The place of an instance, or of one frame of an enhanced one.

    Raises:
        GeometryError: a spacing, position or orientation that cannot be.
    """
    position = _numbers(_of_frame(dataset, frame, "PlanePositionSequence", "ImagePositionPatient"), 3)
    orientation = _numbers(_of_frame(dataset, frame, "PlaneOrientationSequence", "ImageOrientationPatient"), 6)
    if position is not None and not (np.abs(position) < FAR_MM).all():  # written so that NaN fails too
        raise GeometryError(f"{name} lies at {position.tolist()}; repair its ImagePositionPatient")
    if orientation is not None:
        row, column = orientation[:3], orientation[3:]
        off = [abs(np.linalg.norm(row) - 1), abs(np.linalg.norm(column) - 1), abs(row @ column)]
        if not max(off) <= COSINE_TOLERANCE:
            raise GeometryError(
                f"{name} has the orientation {orientation.tolist()}; two unit vectors at a right angle are needed: "
                "repair its ImageOrientationPatient"
            )
    return Plane(
        name=name,
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        samples=int(dataset.get("SamplesPerPixel") or 1),
        spacing=_pixel_spacing(dataset, frame, name),
        thickness=_thickness(dataset, frame),
        position=position,
        orientation=orientation,
    )


def plane_affine(plane: Plane) -> Affine:
    """The affine (RAS+) of a single plane; its third column is the slice thickness along the normal.

    A plane that does not say where it lies gets the place that pictures get (see `affine_from_spacing`).
    """
    if plane.position is None or plane.orientation is None:
        return affine_from_spacing((plane.spacing[1], plane.spacing[0], plane.thickness))
    return _affine(plane, _normal(plane.orientation) * plane.thickness)


def frames_affine(plane: Plane) -> Affine:
    """The affine of frames that do not say where they lie: a film, stacked one millimetre apart."""
    return affine_from_spacing((plane.spacing[1], plane.spacing[0], 1.0))


def stack(planes: Sequence[Plane], *, what: str) -> tuple[list[int], Affine]:
    """The order of planes along their normal, and the affine (RAS+) of the volume they make.

    Slices may be sheared against each other (gantry tilt): the affine's third column is the true step from slice to
    slice, so nothing is resampled and nothing is refused.

    Raises:
        SeriesError: mixed sizes, orientations or spacings, planes without a place, two planes in one place, or
            a gap.
    """
    _same(planes, [(p.rows, p.columns) for p in planes], "size", what)
    _same(planes, [p.samples for p in planes], "number of colour channels", what)
    unplaced = [p.name for p in planes if not p.placed]
    if unplaced:
        raise SeriesError(
            f"{what} makes no volume: {_listed(unplaced)} without ImagePositionPatient and ImageOrientationPatient, "
            "so their order is unknown; give one of the files instead of the folder"
        )
    orientations = np.array([p.orientation for p in planes])
    usual = np.median(orientations, axis=0)
    turned = np.abs(orientations - usual).max(axis=1) > ORIENTATION_TOLERANCE
    if turned.any():
        odd = [plane.name for plane, is_odd in zip(planes, turned.tolist(), strict=True) if is_odd]
        raise SeriesError(
            f"{what} mixes orientations: {_listed(odd)} "
            "not parallel to the rest (a localizer?); move these to a folder of their own"
        )
    spacings = np.array([p.spacing for p in planes])
    usual = np.median(spacings, axis=0)
    scaled = (np.abs(spacings - usual) > PIXEL_SPACING_TOLERANCE * usual).max(axis=1)
    if scaled.any():
        odd = [plane.name for plane, is_odd in zip(planes, scaled.tolist(), strict=True) if is_odd]
        raise SeriesError(
            f"{what} mixes pixel spacings: {_listed(odd)} "
            f"unlike the usual {usual[1]:g} x {usual[0]:g} mm; move these to a folder of their own"
        )
    positions = np.array([p.position for p in planes])
    orientation = planes[0].orientation
    assert orientation is not None  # all are placed
    heights = positions @ _normal(orientation)
    order = [int(index) for index in np.argsort(heights, kind="stable")]
    step = _step([planes[i] for i in order], positions[order], heights[order], what)
    return order, _affine(planes[order[0]], step)


def _step(
    planes: Sequence[Plane],
    positions: Float[np.ndarray, "slices 3"],
    heights: Float[np.ndarray, "slices"],
    what: str,
) -> Float[np.ndarray, "3"]:
    """The vector from slice to slice of planes in order, if they are evenly spaced."""
    gaps = np.diff(heights)
    doubles = np.flatnonzero(gaps < SAME_PLACE_MM)
    if len(doubles):
        first = int(doubles[0])
        raise SeriesError(
            f"{what} holds two slices in one place, {len(doubles)} times: {planes[first].name} and "
            f"{planes[first + 1].name}; if it was acquired several times (dynamic, diffusion, echoes), put each "
            "repetition in a folder of its own, if files are there twice, remove the copies"
        )
    step = (positions[-1] - positions[0]) / (len(planes) - 1)
    off = np.linalg.norm(positions - positions[0] - np.outer(np.arange(len(planes)), step), axis=1)
    if off.max() > GAP_TOLERANCE * (heights[-1] - heights[0]) / (len(planes) - 1):
        usual = float(np.median(gaps))
        worst = int(np.argmax(np.abs(gaps - usual)))
        if abs(gaps[worst] - usual) <= GAP_TOLERANCE * usual:
            raise SeriesError(
                f"the slices of {what} are evenly high but do not lie on one line "
                f"(see {planes[int(np.argmax(off))].name}); the table moved, or two acquisitions are mixed: "
                "put each in a folder of its own"
            )
        missing = round(gaps[worst] / usual) - 1
        guess = f"{missing} {'slice is' if missing == 1 else 'slices are'} missing" if missing > 0 else "uneven"
        raise SeriesError(
            f"{what} is not evenly spaced: {planes[worst].name} and {planes[worst + 1].name} are "
            f"{gaps[worst]:.4g} mm apart, the others {usual:.4g} mm ({guess}); export the series again, or move the "
            "part you need to a folder of its own"
        )
    return step


def _affine(first: Plane, step: Float[np.ndarray, "3"]) -> Affine:
    assert first.position is not None
    assert first.orientation is not None
    affine = np.eye(4)
    affine[:3, 0] = first.orientation[:3] * first.spacing[1]
    affine[:3, 1] = first.orientation[3:] * first.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = first.position
    return checked_affine(LPS_TO_RAS @ affine, what=first.name)


def _normal(orientation: Float[np.ndarray, "6"]) -> Float[np.ndarray, "3"]:
    normal = np.cross(orientation[:3], orientation[3:])
    return normal / np.linalg.norm(normal)


def _same(planes: Sequence[Plane], values: Sequence[Hashable], noun: str, what: str) -> None:
    usual = Counter(values).most_common(1)[0][0]
    odd = [plane.name for plane, value in zip(planes, values, strict=True) if value != usual]
    if odd:
        raise SeriesError(
            f"{what} mixes images of more than one {noun}: {_listed(odd)} unlike the rest ({usual}); move these to a "
            "folder of their own"
        )


def _listed(names: Sequence[str]) -> str:
    """The first few names and the verb that fits them: `a.dcm is`, `a.dcm, b.dcm are`."""
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{shown} {'is' if len(names) == 1 else 'are'}"


def functional_group(dataset: Dataset, frame: int, sequence: str) -> Dataset | None:
    """The item of a functional group macro that holds for one frame: its own, else the one all frames share."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for group in [*per_frame[frame : frame + 1], *shared[:1]]:
        items = group.get(sequence)
        if items:
            return items[0]
    return None


def _of_frame(dataset: Dataset, frame: int, sequence: str, keyword: str) -> Any:
    group = functional_group(dataset, frame, sequence)
    value = group.get(keyword) if group is not None else None
    if value is None and int(dataset.get("NumberOfFrames") or 1) == 1:
        value = dataset.get(keyword)
    return value


def _numbers(value: Any, count: int) -> np.ndarray | None:
    if value is None or value == "":
        return None
    numbers = np.array([float(number) for number in value])
    return numbers if len(numbers) == count else None


def _pixel_spacing(dataset: Dataset, frame: int, name: str) -> tuple[float, float]:
    measures = functional_group(dataset, frame, "PixelMeasuresSequence")
    candidates = [
        measures.get("PixelSpacing") if measures is not None else None,
        dataset.get("PixelSpacing"),
        dataset.get("ImagerPixelSpacing"),  # at the detector, so up to a fifth too large inside the patient
        dataset.get("NominalScannedPixelSpacing"),
        _ultrasound_spacing(dataset),
        _aspect_ratio(dataset),
    ]
    for candidate in candidates:
        numbers = _numbers(candidate, 2)
        if numbers is None:
            continue
        if not ((numbers > 1 / FAR_MM).all() and (numbers < FAR_MM).all()):
            raise GeometryError(f"{name} has a pixel spacing of {numbers.tolist()} mm; repair its PixelSpacing")
        return float(numbers[0]), float(numbers[1])
    return 1.0, 1.0


def _ultrasound_spacing(dataset: Dataset) -> tuple[float, float] | None:
    for region in dataset.get("SequenceOfUltrasoundRegions") or []:
        units = (region.get("PhysicalUnitsXDirection"), region.get("PhysicalUnitsYDirection"))
        # Doppler and M-mode regions measure seconds or cm/s along an axis.
        if units == (_CENTIMETRES, _CENTIMETRES) and region.get("PhysicalDeltaX") and region.get("PhysicalDeltaY"):
            # The sign tells the direction of growth; a distance has none.
            return abs(float(region.PhysicalDeltaY)) * 10, abs(float(region.PhysicalDeltaX)) * 10
    return None


def _aspect_ratio(dataset: Dataset) -> tuple[float, float] | None:
    ratio = _numbers(dataset.get("PixelAspectRatio"), 2)
    if ratio is None or not (ratio > 0).all() or not (ratio < FAR_MM).all():
        return None
    return float(ratio[0] / ratio[1]), 1.0


def _thickness(dataset: Dataset, frame: int) -> float:
    measures = functional_group(dataset, frame, "PixelMeasuresSequence") or Dataset()
    for holder in (measures, dataset):
        for keyword in ("SliceThickness", "SpacingBetweenSlices"):
            value = holder.get(keyword)
            # Some writers leave it empty, zero or negative (a direction); one millimetre is as good as any then.
            if value is not None and value != "" and 1 / FAR_MM < abs(float(value)) < FAR_MM:
                return abs(float(value))
    return 1.0
