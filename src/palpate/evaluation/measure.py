"""One case, measured: every object prompted as the plan says, every answer scored.

Each slice is encoded once; all prompts on it are decoded from that embedding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, UInt8

from palpate.datasets.case import Case, Region
from palpate.errors import DatasetError, PromptError
from palpate.evaluation.found import Look, classes_of, finding_runtime, look, region_of
from palpate.evaluation.protocols import (
    LEARNED_KINDS,
    Protocol,
    VolumePrompts,
    dice_for,
    drawn_by,
    targets_for,
    without_slice,
)
from palpate.evaluation.table import Presence, Row
from palpate.images import read
from palpate.images.slices import slice_first
from palpate.inference.session import Session
from palpate.metrics import NsdMode, dice, iou, leak_ratio, nsd, surface_distances
from palpate.models.promptable import LearnedClass
from palpate.prompts import volumes
from palpate.prompts.clicks import added, next_click
from palpate.prompts.scribbles import human_scribble
from palpate.prompts.types import Box, Points, Prompt, Scribble, Target

Score = Literal["volume", "slice"]
"""Whether an object in a volume is one row, scored in 3D, or one row a slice, scored in 2D."""

Slices = Bool[np.ndarray, "slice row column"]
_Window = Bool[np.ndarray, "_ _ _"]


@dataclass(frozen=True)
class Plan:
    """What is measured, and how.

    - `seeds` is how often protocols with dice are repeated, `seed` where the dice start.
    - `objects` is the most objects of a case to prompt, drawn at random; None prompts all.
    - `volumes` and `score` say where a volume is prompted and how it is scored.
    - `clicks` is how many corrections the click protocols go through.
    - `tolerance` is that of the NSD, in mm, or in pixels where an image has no spacing; `nsd` its definition.
    - `in_pixels` names datasets whose headers' spacing is not to be believed.
    - `without` is how many slices without a class are asked whether it is there, where one slice of an object is all
      that counts (`volumes` is one-slice); else every slice of a volume is asked.
    - `intensity` is how values become grey levels, by a name of `palpate.images.intensity`; None as each image asks.
    """

    protocols: tuple[Protocol, ...]
    seeds: int = 3
    seed: int = 0
    objects: int | None = None
    volumes: VolumePrompts = "middle"
    score: Score = "volume"
    clicks: int = 20
    tolerance: float = 2.0
    nsd: NsdMode = "contour"
    in_pixels: tuple[str, ...] = ()
    intensity: str | None = None
    without: int = 1


@dataclass(frozen=True, eq=False)
class Shown:
    """A slice to look at: what was seen, what was meant, what was found, and what was asked on it."""

    pixels: UInt8[np.ndarray, "row column *colour"]
    reference: Bool[np.ndarray, "row column"]
    prediction: Bool[np.ndarray, "row column"]
    prompts: tuple[Prompt, ...]
    pixel_size: tuple[float, float]
    title: str


Progress = Callable[[int, int], None]
"""Called with prompts answered and prompts in all."""


Unit = Literal["mm", "pixels"]


@dataclass(frozen=True)
class Measured:
    """The rows of one case, and the unit of its distances.

    `presence` is what was believed to be there, and `left_out` names objects that are no class of the model's.
    `reading` and `encoding` are milliseconds; see `palpate.evaluation.modalities.CaseTime`.
    """

    rows: tuple[Row, ...]
    unit: Unit
    presence: tuple[Presence, ...] = ()
    left_out: tuple[str, ...] = ()
    reading: float = 0.0
    encoding: float = 0.0


def measure_case(session: Session, case: Case, plan: Plan, *, progress: Progress | None = None) -> Measured:
    """One case, its rows in the order of its objects and the plan's protocols.

    Raises:
        PalpateError: the case cannot be read, or the model does not take a protocol's prompts.
    """
    start, encoded = time.perf_counter(), session.encoding_seconds
    scene = _Scene.of(session, case, plan)
    # A picture is encoded as soon as it is there.
    reading = time.perf_counter() - start - (session.encoding_seconds - encoded)
    regions, left_out = _chosen(scene, plan)
    presence: list[Presence] = []
    rows: dict[tuple[str, str], list[Row]] = {}
    for one in plan.protocols:
        # One look answers for all objects, so these come first, and the table is put in order afterwards.
        for region, attempt in _found(session, scene, regions, one, plan, presence=presence):
            rows.setdefault((region.name, one.name), []).extend(_rows(scene, region, one, attempt, plan))
    asked = [(region, one) for region in regions for one in plan.protocols]
    for done, (region, one) in enumerate(asked):
        if one.kind not in LEARNED_KINDS:
            for attempt in _attempts(session, scene, region, one, plan):
                rows.setdefault((region.name, one.name), []).extend(_rows(scene, region, one, attempt, plan))
        if progress is not None:
            progress(done + 1, len(asked))
    ordered = [row for region, one in asked for row in rows.get((region.name, one.name), ())]
    times = 1000 * reading, 1000 * (session.encoding_seconds - encoded)
    return Measured(tuple(ordered), scene.unit, tuple(presence), left_out, *times)


def replay(session: Session, case: Case, plan: Plan, row: Row) -> list[Shown]:
    """What happened in one row: the prompted slice, and in a volume also the slice with most mistakes.

    Raises:
        PalpateError: as `measure_case`.
        PromptError: the row is not of this case and plan.
    """
    scene = _Scene.of(session, case, plan)
    regions = {item.name: item for item in case.objects(scene.labels)}
    name, only = row.object, ""
    if name not in regions and scene.is_volume:
        name, _, only = row.object.rpartition("@")
    region = regions.get(name)
    one = next((item for item in plan.protocols if item.name == row.protocol), None)
    if region is None or one is None:
        raise PromptError(f"{case.name} has no object {name!r} or the plan no protocol {row.protocol!r}")
    if one.kind in LEARNED_KINDS:
        attempts = (attempt for _, attempt in _found(session, scene, [region], one, plan))
    else:
        attempts = _attempts(session, scene, region, one, plan)
    for attempt in attempts:
        if (attempt.severity, attempt.seed) == (row.severity, row.seed):
            prompted = sorted({target.z or 0 for target in attempt.targets})
            mistakes = (attempt.prediction ^ region.mask(scene.labels)).sum(axis=(1, 2))
            worst = int(only) if only else int(mistakes.argmax())
            first = prompted[0] if prompted else volumes.middle_slice(region.mask(scene.labels))
            shown = [worst] if only or len(prompted) > 1 else list(dict.fromkeys([first, worst]))
            return [_shown(scene, region, attempt, z) for z in shown]
    raise PromptError(f"severity {row.severity:g} with seed {row.seed} is not in the plan")


@dataclass(frozen=True, eq=False)
class _Scene:
    """A case, read and set in a session; arrays have the slices in front, and a picture has one."""

    case: Case
    labels: np.ndarray
    pixels: np.ndarray
    is_volume: bool
    spacing: tuple[float, float, float]
    unit: Unit
    marks: tuple[np.ndarray, ...]
    classes: tuple[LearnedClass, ...]
    """What the session finds by itself."""
    wanted: tuple[Region | None, ...]
    """The case's object of each class; None where nobody labelled it."""

    @classmethod
    def of(cls, session: Session, case: Case, plan: Plan) -> _Scene:
        labelled = case.read()
        image = labelled.image
        session.set_image(image, intensity=plan.intensity)
        axis = session.axis
        in_mm = image.knows_place and case.dataset not in plan.in_pixels
        classes = classes_of(session)
        spacing = list(image.geometry.spacing[::-1]) if in_mm else [1.0, 1.0, 1.0]
        if axis is not None:
            spacing.insert(0, spacing.pop(axis))
        return cls(
            case=case,
            labels=labelled.labels[None] if axis is None else slice_first(labelled.labels, axis),
            pixels=session.slices,
            is_volume=axis is not None,
            spacing=(spacing[0], spacing[1], spacing[2]),
            unit="mm" if in_mm else "pixels",
            marks=_marks(case, axis, image.shape) if any(one.kind == "scribbles" for one in plan.protocols) else (),
            classes=classes,
            wanted=tuple(region_of(case, one, classes) for one in classes),
        )


@dataclass(frozen=True, eq=False)
class _Attempt:
    """One prompt and its answer. `only` is the slice that counts, where not the whole object does."""

    severity: float
    seed: int
    targets: tuple[Target, ...]
    prediction: Slices
    predicted_iou: float
    milliseconds: float
    only: int | None = None


def _chosen(scene: _Scene, plan: Plan) -> tuple[list[Region], tuple[str, ...]]:
    """The objects to measure, and the names of those that are no class of a session that finds by itself."""
    regions = scene.case.objects(scene.labels)
    left_out: list[str] = []
    if scene.classes:
        left_out = [region.name for region in regions if region not in scene.wanted]
        regions = [region for region in regions if region in scene.wanted]
    if plan.objects is not None and len(regions) > plan.objects:
        rng = dice_for(plan.seed, scene.case.dataset, scene.case.name, "objects")
        regions = [regions[i] for i in sorted(rng.choice(len(regions), size=plan.objects, replace=False).tolist())]
    return regions, tuple(left_out)


def _found(
    session: Session,
    scene: _Scene,
    regions: Sequence[Region],
    one: Protocol,
    plan: Plan,
    *,
    presence: list[Presence] | None = None,
) -> Iterator[tuple[Region, _Attempt]]:
    """Attempts of protocols with learned prompts, those of one look together; nothing for any other protocol.

    What an autonomous look believes to be there is added to `presence`.
    """
    if one.kind not in LEARNED_KINDS:
        return
    finding_runtime(session)  # which says what to do where there is none
    if one.kind == "learned":
        seen = look(session, _looked_at(scene, regions, plan))
        if presence is not None:
            presence += _presence(scene, seen)
        yield from _attempts_of(scene, regions, seen, plan, severity=0.0, seed=0)
        return
    # Whoever goes through a picture or all slices draws every object; a middle slice says nothing of the others.
    everything = not scene.is_volume or plan.volumes != "middle"
    for severity in one.severities:
        for repetition in range(plan.seeds if one.random else 1):
            seed = plan.seed + repetition if one.random else 0
            for some, targets in _drawn(scene, regions, one, plan, severity=severity, seed=plan.seed + repetition):
                slices = [target.z or 0 for target in targets] if everything else range(len(scene.labels))
                seen = look(session, slices, targets, only_drawn=everything)
                yield from _attempts_of(scene, some, seen, plan, severity=severity, seed=seed)


def _attempts_of(
    scene: _Scene, regions: Sequence[Region], seen: Look, plan: Plan, *, severity: float, seed: int
) -> Iterator[tuple[Region, _Attempt]]:
    """One look, object by object. An object that has no such prompt has no attempt."""
    for region in regions:
        number = scene.wanted.index(region)
        own = tuple(target for target in seen.targets if target.label == seen.classes[number].value)
        if seen.targets and not own:
            continue
        only = None
        if scene.is_volume and plan.volumes == "one-slice":
            only = volumes.middle_slice(region.mask(scene.labels))
            own = tuple(target for target in own if target.z == only)
        found = seen.mask(number)
        if scene.case.ignore is not None:
            found = found & (scene.labels != scene.case.ignore)  # what nobody labelled is neither right nor wrong
        milliseconds = seen.milliseconds / (1 if only is None else len(seen.slices))
        yield region, _Attempt(severity, seed, own, found, seen.predicted_iou(number, only), milliseconds, only)


def _looked_at(scene: _Scene, regions: Sequence[Region], plan: Plan) -> list[int]:
    """The slices to look at with nothing drawn: all, because nobody says where the objects are.

    Where the middle slice of an object is all that counts, these, and for each class some slices that are without it.
    """
    if not scene.is_volume or plan.volumes != "one-slice":
        return list(range(len(scene.labels)))
    chosen = [volumes.middle_slice(region.mask(scene.labels)) for region in regions]
    for wanted, region in zip(scene.classes, scene.wanted, strict=True):
        without = [] if region is None else np.flatnonzero(~region.mask(scene.labels).any(axis=(1, 2))).tolist()
        rng = dice_for(plan.seed, scene.case.dataset, scene.case.name, wanted.name, "without")
        chosen += [without[i] for i in rng.permutation(len(without))[: plan.without].tolist()]
    return chosen


def _presence(scene: _Scene, seen: Look) -> list[Presence]:
    """What was believed of each class that the case's labels tell of, on each slice."""
    found: list[Presence] = []
    for number, (wanted, region) in enumerate(zip(seen.classes, scene.wanted, strict=True)):
        if region is None:
            continue
        there, mask = region.mask(scene.labels), seen.mask(number)
        for place, z in enumerate(seen.slices):
            logit = float(seen.object_logits[place, number])
            found.append(
                Presence(
                    dataset=scene.case.dataset,
                    subject=scene.case.subject,
                    case=scene.case.name,
                    slice=z if scene.is_volume else -1,
                    wanted=wanted.name,
                    present=bool(there[z].any()),
                    object_probability=seen.findings[number].probabilities[place],
                    object_logit=logit,
                    pixels=int(mask[z].sum()),
                )
            )
    return found


def _drawn(
    scene: _Scene, regions: Sequence[Region], one: Protocol, plan: Plan, *, severity: float, seed: int
) -> Iterator[tuple[list[Region], list[Target]]]:
    """What a person draws, and for which objects it is asked: everything at once, or each middle slice for itself.

    All objects of the case are drawn where the person draws, whether they are among `regions` or not, and each as the
    protocol's strategy draws it alone.
    """
    present = set(scene.case.objects(scene.labels))
    masks = {region: region.mask(scene.labels) for region in scene.wanted if region is not None and region in present}
    middles: dict[int | None, list[Region]] = {}
    for region in regions:
        alone = scene.is_volume and plan.volumes == "one-slice"
        middles.setdefault(volumes.middle_slice(masks[region]) if alone else None, []).append(region)
    for on, some in middles.items():
        targets: list[Target] = []
        for region, mask in masks.items():
            rng = dice_for(seed, scene.case.dataset, scene.case.name, region.name, drawn_by(one))
            there = mask if on is None else np.zeros_like(mask)
            if on is not None:
                there[on] = mask[on]
            if not there.any():
                continue
            try:
                drawn = targets_for(
                    one, there, scene.pixels, severity=severity, rng=rng, is_volume=scene.is_volume, where=plan.volumes
                )
            except PromptError:
                continue  # there is no such prompt for this object
            wanted = scene.classes[scene.wanted.index(region)]
            targets += [replace(item, label=wanted.value, name=wanted.name, z_range=None) for item in drawn]
        if targets:
            yield some, targets


def _attempts(session: Session, scene: _Scene, region: Region, one: Protocol, plan: Plan) -> Iterator[_Attempt]:
    mask = region.mask(scene.labels)
    if one.kind in ("clicks", "box, then clicks"):
        yield from _clicked(session, scene, mask, plan, box_first=one.kind != "clicks")
        return
    if one.kind == "scribbles":
        for person, marks in enumerate(scene.marks):
            if targets := _scribbled(scene, region, mask, marks, plan):
                only = targets[0].z if scene.is_volume and plan.volumes == "one-slice" else None
                yield _answered(session, scene, targets, severity=0.0, seed=person, only=only)
        return
    for severity in one.severities:
        for repetition in range(plan.seeds if one.random else 1):
            rng = dice_for(plan.seed + repetition, scene.case.dataset, scene.case.name, region.name, one.name)
            try:
                targets = targets_for(
                    one, mask, scene.pixels, severity=severity, rng=rng, is_volume=scene.is_volume, where=plan.volumes
                )
            except PromptError:
                continue  # there is no such prompt for this object (points beside one that fills the image): no row
            if targets:
                only = targets[0].z if scene.is_volume and plan.volumes == "one-slice" else None
                yield _answered(
                    session,
                    scene,
                    targets,
                    severity=severity,
                    seed=plan.seed + repetition if one.random else 0,
                    only=only,
                )


def _answered(
    session: Session, scene: _Scene, targets: Sequence[Target], *, severity: float, seed: int, only: int | None = None
) -> _Attempt:
    for target in targets:
        first, last = target.z_range or (target.z or 0, target.z or 0)
        session.encode(range(first, last + 1))
    start = time.perf_counter()
    result = session.predict_all(targets)
    milliseconds = 1000 * (time.perf_counter() - start)
    found = result.mask[None] if session.axis is None else slice_first(result.mask, session.axis)
    if scene.case.ignore is not None:
        found = found & (scene.labels != scene.case.ignore)  # what nobody labelled is neither right nor wrong
    return _Attempt(severity, seed, tuple(targets), found, result.predicted_iou, milliseconds, only)


def _clicked(session: Session, scene: _Scene, mask: Slices, plan: Plan, *, box_first: bool) -> Iterator[_Attempt]:
    """A user who corrects the largest mistake; in a volume on the middle slice, which alone is scored then."""
    z = volumes.middle_slice(mask)
    on = z if scene.is_volume else None
    box = (Box.around(mask[z], z=on),) if box_first else ()
    found, points, last = np.zeros_like(mask[z]), None, None
    for count in range(0 if box_first else 1, plan.clicks + 1):
        click = next_click(found, mask[z], z=on) if count else None
        if click is not None or last is None:
            points = points if click is None else added(points, click)
            target = Target((*box, *((points,) if points else ())))
            last = _answered(session, scene, [target], severity=float(count), seed=0)
            found = last.prediction[z]
        # Nothing is left to correct: the answer stays as it is, so that every curve has the same length.
        yield _Attempt(float(count), 0, last.targets, last.prediction, last.predicted_iou, last.milliseconds, only=z)


def _scribbled(scene: _Scene, region: Region, mask: Slices, marks: np.ndarray, plan: Plan) -> list[Target]:
    values, counts = np.unique(marks, return_counts=True)
    nothing = int(values[counts.argmax()])
    # One object, and 0 nearly everywhere, with some 1 and perhaps 2: strokes on it and beside it. Else a value an
    # object, and the most frequent one stands where nobody drew. People are too careless to tell it by where they drew.
    looks_like_strokes = nothing == 0 and set(values.tolist()) in ({0, 1}, {0, 1, 2})
    only_one = len(scene.case.objects(scene.labels)) == 1
    is_strokes = (scene.case.scribble_convention or ("strokes" if looks_like_strokes and only_one else "")) == "strokes"
    if not is_strokes and region.values[0] == nothing:
        return []
    drawn = {
        z: scribble
        for z in np.flatnonzero(mask.any(axis=(1, 2))).tolist()
        if (
            scribble := human_scribble(
                marks[z],
                value=region.values[0],
                convention="strokes" if is_strokes else "classes",
                unlabelled=None if is_strokes else nothing,
                z=z,
            )
        )
        is not None
    }
    if not drawn:
        return []
    z = min(drawn, key=lambda number: (abs(number - volumes.middle_slice(mask)), number))
    if not scene.is_volume:
        return [Target((without_slice(drawn[z]),))]
    if plan.volumes == "one-slice":
        return [Target((drawn[z],))]
    slices = np.flatnonzero(mask.any(axis=(1, 2)))
    return [Target((drawn[z],), z_range=(int(slices[0]), int(slices[-1])))]


def _marks(case: Case, axis: int | None, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    marks: list[np.ndarray] = []
    for path in case.scribbles:
        drawn = read(path)
        if drawn.colour or drawn.shape != shape:
            raise DatasetError(
                f"the strokes {path} have shape {drawn.array.shape} and the image {shape}; they must be drawn in one "
                "channel, on the image's own grid"
            )
        marks.append(drawn.array[None] if axis is None else slice_first(drawn.array, axis))
    return tuple(marks)


def _rows(scene: _Scene, region: Region, one: Protocol, attempt: _Attempt, plan: Plan) -> list[Row]:
    mask = region.mask(scene.labels)
    if attempt.only is not None:
        parts = [attempt.only]
    elif plan.score == "slice" and scene.is_volume:
        # A slice with the object that was missed counts, and so does one without it where something was found.
        parts = np.flatnonzero((mask | attempt.prediction).any(axis=(1, 2))).tolist()
    else:
        parts = [None]
    rows: list[Row] = []
    for z in parts:
        shown = slice(None) if z is None else slice(z, z + 1)
        name = region.name if z is None or not scene.is_volume else f"{region.name}@{z}"
        rows.append(
            Row(
                dataset=scene.case.dataset,
                subject=scene.case.subject,
                case=scene.case.name,
                object=name,
                protocol=one.name,
                severity=attempt.severity,
                seed=attempt.seed,
                predicted_iou=attempt.predicted_iou,
                milliseconds=attempt.milliseconds,
                **_scores(attempt.prediction[shown], mask[shown], scene.spacing, plan),
            )
        )
    return rows


def _scores(prediction: Slices, reference: Slices, spacing: tuple[float, float, float], plan: Plan) -> dict[str, float]:
    area = _box_share(reference)
    leak = _leak(prediction, reference)
    prediction, reference = _cropped(prediction, reference)
    mm: tuple[float, ...] = spacing
    if len(reference) == 1:
        prediction, reference, mm = prediction[0], reference[0], spacing[1:]
    distances = surface_distances(prediction, reference, spacing_mm=mm)
    return {
        "dice": dice(prediction, reference),
        "iou": iou(prediction, reference),
        "nsd": distances.nsd(plan.tolerance)
        if plan.nsd == "contour"
        else nsd(prediction, reference, spacing_mm=mm, tolerance_mm=plan.tolerance, mode=plan.nsd),
        "hd95": distances.hausdorff95(),
        "assd": distances.assd(),
        "leak": leak,
        "area": area,
    }


def _leak(prediction: Slices, reference: Slices) -> float:
    """The leak ratio over all slices, each with its own two pixels of tolerance: slices are thick, pixels are not."""
    leaked = found = 0.0
    for z in np.flatnonzero(prediction.any(axis=(1, 2))).tolist():
        size = float(prediction[z].sum())
        found += size
        leaked += size * leak_ratio(prediction[z], reference[z])
    return leaked / found if found else float("nan")


def _box_share(reference: Slices) -> float:
    """The tight box of the object's largest slice, as a share of the image."""
    sizes = reference.sum(axis=(1, 2))
    if not sizes.any():
        return float("nan")  # something was found on a slice where nothing is
    largest = reference[int(sizes.argmax())]
    box = Box.around(largest)
    return (box.x_max - box.x_min + 1) * (box.y_max - box.y_min + 1) / largest.size


def _cropped(prediction: Slices, reference: Slices) -> tuple[_Window, _Window]:
    """Both masks without the empty surroundings, which cost time and change nothing."""
    either = prediction | reference
    if not either.any() or len(either) == 0:
        return prediction, reference
    window = [slice(None)] * 3
    for axis in (1, 2):
        others = tuple({0, 1, 2} - {axis})
        inside = np.flatnonzero(either.any(axis=others))
        window[axis] = slice(max(0, int(inside[0]) - 2), int(inside[-1]) + 3)
    return prediction[tuple(window)], reference[tuple(window)]


def _shown(scene: _Scene, region: Region, attempt: _Attempt, z: int) -> Shown:
    prompts = [prompt for target in attempt.targets if (target.z or 0) == z for prompt in target.prompts]
    drawn = [prompt for prompt in prompts if isinstance(prompt, Box | Points | Scribble)]
    return Shown(
        pixels=scene.pixels[z],
        reference=region.mask(scene.labels)[z],
        prediction=attempt.prediction[z],
        prompts=tuple(drawn or prompts),
        pixel_size=(scene.spacing[1], scene.spacing[2]),
        title=f"slice {z}" if scene.is_volume else "",
    )
