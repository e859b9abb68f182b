"""/api/v1: what the page asks. The geometry is the server's alone: every index is one of the RAS grid (`grid`)."""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path as FilePath
from time import perf_counter
from typing import Annotated, Any, Literal, overload

import numpy as np
from fastapi import APIRouter, Depends, Header, Path, Response
from pydantic import BaseModel, ConfigDict, Field

from palpate.errors import PromptError
from palpate.images.formats import suffix_of
from palpate.images.intensity import Intensity
from palpate.images.slices import slice_first
from palpate.inference.agreement import DRAWS, agreement
from palpate.inference.session import Session
from palpate.prompts.types import Box, Target
from palpate.server.annotation import DRAFT, Annotation, Taken
from palpate.server.asked import ClassName, PromptAsked, Seen, StrokeAsked, prompts_told, stroke_of, target_of
from palpate.server.desk import CaseStatus, Desk, Label
from palpate.server.draft import Beside, Draft, Step
from palpate.server.exporting import KINDS, Finished
from palpate.server.grid import Plane
from palpate.server.jobs import Busy, Job, Jobs, Report
from palpate.server.journal import bounds
from palpate.server.leases import Gone
from palpate.server.opened import OpenImage
from palpate.server.record import record_of
from palpate.server.sending import download
from palpate.server.shown import nifti_of, packed, patch_of, window_of
from palpate.server.teaching import Teaching

_Value = Annotated[int, Path(ge=1, le=254)]
_Case = Annotated[str, Path(pattern=r"^[A-Za-z0-9._-]{1,120}$")]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Opening(_Asked):
    take_over: bool = False


class _Prompting(_Asked):
    revision: int
    prompt: PromptAsked


class _Previewing(_Asked):
    prompt: PromptAsked


class _Encoding(_Asked):
    plane: Plane
    slice: Annotated[int, Field(ge=0, lt=2**20)]
    window: Seen = None
    learned: ClassName = None


class _Carrying(_Asked):
    revision: int
    plane: Plane
    first: Annotated[int, Field(ge=0, lt=2**20)] | None = None
    last: Annotated[int, Field(ge=0, lt=2**20)] | None = None
    until_end: bool = False


class _Accepting(_Asked):
    revision: int
    label: Annotated[int, Field(ge=1, le=254)]


class _Revised(_Asked):
    revision: int


class _Finishing(_Revised):
    done: bool


class _NewLabel(_Asked):
    name: Annotated[str, Field(max_length=200)]
    colour: Annotated[str, Field(max_length=20)] | None = None


class _ChangedLabel(_Asked):
    name: Annotated[str, Field(max_length=200)] | None = None
    colour: Annotated[str, Field(max_length=20)] | None = None
    locked: bool | None = None


class _PolicyAsked(_Asked):
    policy: Literal["keep", "overwrite"]


@dataclass(frozen=True)
class About:
    """What the page says of the server: versions, the model, which prompts it takes, and by which rule it sees images.

    Without `intensity` that is each image's own.
    """

    palpate: str
    model: str
    runtime: str
    prompts: tuple[str, ...]
    made_by: Mapping[str, Any]
    intensity: Intensity | None = None


def router(desk: Desk, jobs: Jobs, teaching: Teaching, about: About) -> APIRouter:
    """The routes of /api/v1.

    Signs of life and jobs are looked after where requests are received, for they are answered at once: all else takes
    one of the few threads, and may wait for one.
    """
    api = APIRouter(prefix="/api/v1")
    turn = threading.Lock()
    quickness: dict[str, float] = {}

    def held(case: _Case, x_palpate_lease: Annotated[str, Header()] = "") -> Annotation:
        desk.entry(case)
        desk.leases.check(case, x_palpate_lease)
        return desk.annotation(case)

    def changing(annotation: Annotated[Annotation, Depends(held)]) -> Annotation:
        if jobs.running("propagate", case=annotation.case):
            raise Busy("the object is being carried through the volume; wait, or cancel that")
        return annotation

    def beside(name: str | None) -> Beside | None:
        """What a prompt goes in beside. It is read here, which may take seconds: nobody has to wait behind a lock."""
        if name is None:
            return None
        learned = teaching.beside(name)
        teaching.ready(learned.sha256)
        return learned

    def state(annotation: Annotation) -> dict[str, Any]:
        carried = jobs.running("propagate", case=annotation.case)
        return {**_state(annotation, desk), "job": carried[0] if carried else None}

    def changed(annotation: Annotation, revision: int, notes: tuple[str, ...] = ()) -> dict[str, Any]:
        told = state(annotation)
        told["notes"] += notes
        return {"state": told, "patch": patch_of(annotation, annotation.changed_since(revision))}

    @api.get("/about")
    def _about() -> dict[str, Any]:
        told = asdict(about)
        del told["made_by"], told["intensity"]
        return {**told, "preview_ms": quickness.get("preview")}

    @api.get("/cases")
    def _cases(order: Literal["name", "agreement"] = "name", rescan: bool = False) -> dict[str, list[CaseStatus]]:
        if rescan:
            desk.rescan()
        return {"cases": desk.cases(order)}

    @api.get("/labels")
    def _labels() -> dict[str, Any]:
        return {"labels": desk.labels(), "policy": desk.policy}

    @api.post("/labels")
    def _new_label(asked: _NewLabel) -> Label:
        return desk.add_label(asked.name, asked.colour)

    @api.put("/labels/{value}")
    def _change_label(value: _Value, asked: _ChangedLabel) -> Label:
        return desk.change_label(value, name=asked.name, colour=asked.colour, locked=asked.locked)

    @api.delete("/labels/{value}", status_code=204)
    def _drop_label(value: _Value) -> None:
        desk.drop_label(value)

    @api.put("/policy")
    def _policy(asked: _PolicyAsked) -> dict[str, str]:
        desk.policy = asked.policy
        return {"policy": asked.policy}

    @api.post("/cases/{case}/open")
    def _open(case: _Case, asked: _Opening) -> dict[str, Any]:
        desk.entry(case)
        lease = desk.leases.take(case, take_over=asked.take_over)
        try:
            annotation = desk.annotation(case)
        except BaseException:
            with suppress(Gone):  # reading took so long that it has ended
                desk.leases.give_back(case, lease)
            raise
        with annotation.lock:
            whole = tuple(slice(0, extent) for extent in annotation.labels.shape)
            told, patch = state(annotation), patch_of(annotation, whole)
        return {
            "lease": lease,
            "idle_seconds": desk.leases.idle,
            "liveness_seconds": desk.leases.liveness,
            "image": _image(annotation, case, about.intensity),
            "state": told,
            "patch": patch,
        }

    @api.get("/cases/{case}/image.nii", response_class=Response)
    def _nifti(case: _Case) -> Response:
        opened = desk.opened(case)
        return Response(nifti_of(opened.image, opened.grid), media_type="application/octet-stream")

    @api.post("/cases/{case}/heartbeat")
    async def _heartbeat(case: _Case, x_palpate_lease: Annotated[str, Header()] = "") -> dict[str, float]:
        desk.entry(case)
        return {"remaining_seconds": desk.leases.check(case, x_palpate_lease, used=False)}

    @api.post("/cases/{case}/close", status_code=204)
    def _close(case: _Case, x_palpate_lease: Annotated[str, Header()] = "") -> None:
        desk.entry(case)
        desk.leases.give_back(case, x_palpate_lease)

    @api.get("/cases/{case}/state")
    def _get_state(annotation: Annotated[Annotation, Depends(held)]) -> dict[str, Any]:
        with annotation.lock:
            return state(annotation)

    @api.get("/cases/{case}/map")
    def _map(annotation: Annotated[Annotation, Depends(held)], since: int = -1) -> dict[str, Any]:
        with annotation.lock:
            return changed(annotation, since)

    @api.post("/cases/{case}/prompts")
    def _prompt(annotation: Annotated[Annotation, Depends(changing)], asked: _Prompting) -> dict[str, Any]:
        axis, target = target_of(asked.prompt, annotation.opened.grid)
        learned = beside(asked.prompt.learned)
        with annotation.lock:
            annotation.prompt(axis, target, window=asked.prompt.window, learned=learned)
            notes = annotation.draft.notes if annotation.draft is not None else ()
            return changed(annotation, asked.revision, notes)

    @api.post("/cases/{case}/preview")
    def _preview(annotation: Annotated[Annotation, Depends(changing)], asked: _Previewing) -> dict[str, Any]:
        begun = perf_counter()
        axis, target = target_of(asked.prompt, annotation.opened.grid)
        learned = beside(asked.prompt.learned)
        draft = annotation.previewed(axis, target, window=asked.prompt.window, learned=learned)
        patch = _preview_patch(annotation, draft)
        quickness["preview"] = round(1000 * (perf_counter() - begun), 1)
        return {"patch": patch}

    @api.post("/cases/{case}/encode", status_code=204)
    def _encode(annotation: Annotated[Annotation, Depends(held)], asked: _Encoding) -> None:
        """Look at a slice ahead, so that the first prompt on it is answered at once."""
        grid = annotation.opened.grid
        axis = grid.plane_axis(asked.plane)
        ras_axis = grid.ras_axis(axis)
        if asked.slice >= grid.shape[ras_axis]:
            raise PromptError(
                f"slice {asked.slice} does not exist; this plane has slices 0..{grid.shape[ras_axis] - 1}"
            )
        number = grid.shape[ras_axis] - 1 - asked.slice if grid.flipped[ras_axis] else asked.slice
        if jobs.running("propagate", case=annotation.case):
            return  # which would be waited for
        learned = beside(asked.learned)
        with annotation.opened.lock:
            session = annotation.opened.session(
                None if grid.picture else axis, asked.window, None if learned is None else learned.sha256
            )
            session.encode([number])

    @api.post("/cases/{case}/propagate", status_code=202)
    def _propagate(annotation: Annotated[Annotation, Depends(changing)], asked: _Carrying) -> dict[str, Any]:
        grid = annotation.opened.grid
        axis = grid.plane_axis(asked.plane)
        extent = grid.shape[grid.ras_axis(axis)]
        if grid.picture:
            raise PromptError("a picture has one slice, so there is nothing to carry through")
        if (asked.first is None or asked.last is None) and not asked.until_end:
            raise PromptError("say the first and the last slice, or until_end")
        ends = (0 if asked.first is None else asked.first, extent - 1 if asked.last is None else asked.last)
        if not max(ends) < extent:
            raise PromptError(f"slice {max(ends)} does not exist; this plane has slices 0..{extent - 1}")
        if grid.flipped[grid.ras_axis(axis)]:
            ends = (extent - 1 - ends[1], extent - 1 - ends[0])
        with annotation.lock:
            begun = annotation.revision
            if annotation.draft is None:
                raise PromptError("there is nothing to carry through the volume; draw a box or a point first")

        def work(report: Report) -> None:
            draft = annotation.propagated(
                axis, min(ends), max(ends), until_end=asked.until_end, progress=report.progress
            )
            with annotation.lock:
                if annotation.revision != begun:
                    raise Gone("the case was changed from elsewhere meanwhile; carry the object once more")
                annotation.carry(draft)

        with turn:
            changing(annotation)  # two who ask at once
            return {"job": jobs.start("propagate", work, case=annotation.case)}

    @api.post("/cases/{case}/accept")
    def _accept(annotation: Annotated[Annotation, Depends(changing)], asked: _Accepting) -> dict[str, Any]:
        desk.label(asked.label)
        with annotation.lock:
            taken = annotation.accept(asked.label, rules=desk.rules())
            return changed(annotation, asked.revision, _left(taken))

    @api.post("/cases/{case}/discard")
    def _discard(annotation: Annotated[Annotation, Depends(changing)], asked: _Revised) -> dict[str, Any]:
        with annotation.lock:
            annotation.discard()
            return changed(annotation, asked.revision)

    @api.post("/cases/{case}/stroke")
    def _stroke(annotation: Annotated[Annotation, Depends(changing)], asked: StrokeAsked) -> dict[str, Any]:
        if asked.label is not None:
            desk.label(asked.label)
        stroke = stroke_of(asked, annotation.opened.grid)
        with annotation.lock:
            taken = annotation.stroke(stroke, label=asked.label, rules=desk.rules())
            return changed(annotation, asked.revision, _left(taken))

    @api.post("/cases/{case}/undo")
    def _undo(annotation: Annotated[Annotation, Depends(changing)], asked: _Revised) -> dict[str, Any]:
        with annotation.lock:
            annotation.undo()
            return changed(annotation, asked.revision)

    @api.post("/cases/{case}/redo")
    def _redo(annotation: Annotated[Annotation, Depends(changing)], asked: _Revised) -> dict[str, Any]:
        with annotation.lock:
            annotation.redo()
            return changed(annotation, asked.revision)

    @api.post("/cases/{case}/done")
    def _done(annotation: Annotated[Annotation, Depends(held)], asked: _Finishing) -> dict[str, Any]:
        desk.set_done(annotation.case, asked.done)
        with annotation.lock:
            return changed(annotation, asked.revision)

    @api.get("/cases/{case}/agreement")
    def _agreement(annotation: Annotated[Annotation, Depends(held)]) -> dict[str, Any]:
        with annotation.lock:
            draft, revision = annotation.draft, annotation.revision
            known = annotation.judged
        # Whoever is carried through the volume has the session for minutes, and nobody waits behind that.
        busy = jobs.running("propagate", case=annotation.case)
        if busy or draft is None or (step := draft.last_prompted) is None:
            return {"agreement": None, "draws": DRAWS, "revision": revision}
        if known is None or known[0] is not draft:
            with annotation.opened.lock:
                found = _agreement_of(step, draft, annotation.opened)
            known = (draft, found)
            with annotation.lock:
                annotation.judged = known
        return {"agreement": known[1], "draws": DRAWS, "revision": revision}

    @api.get("/jobs/{number}")
    async def _job(number: Annotated[str, Path(max_length=40)]) -> Job:
        return jobs.get(number)

    @api.post("/jobs/{number}/cancel")
    async def _cancel(number: Annotated[str, Path(max_length=40)]) -> Job:
        return jobs.cancel(number)

    @api.get("/teaching")
    def _teaching() -> dict[str, Any]:
        told = asdict(teaching.status())
        if told["learned"] is not None:
            for kept in ("path", "sha256"):  # where files lie is nobody's business
                del told["learned"][kept]
        return told

    @api.post("/teach", status_code=202)
    def _teach() -> dict[str, Job]:
        return {"job": teaching.teach()}

    @api.post("/guess", status_code=202)
    def _guess() -> dict[str, Job]:
        untouched = [one.id for one in desk.cases() if one.status == "untouched"]
        return {"job": teaching.guess(untouched, guessed)}

    def guessed(case: str, labels: np.ndarray, names: Mapping[int, str], score: float) -> None:
        # Whoever has begun meanwhile is not disturbed.
        if desk.status(case).status == "untouched" and case not in desk.leases.held():
            desk.put_labels(case, labels, names, "guess", score=score)

    @api.get("/cases/{case}/export/{kind}", response_class=Response)
    def _export_one(case: _Case, kind: Literal[KINDS]) -> Response:  # pyright: ignore[reportInvalidTypeForm]
        return download(kind, _Cases([case], finished))

    @api.get("/export/{kind}", response_class=Response)
    def _export(kind: Literal[KINDS]) -> Response:  # pyright: ignore[reportInvalidTypeForm]
        return download(kind, _Cases(desk.finished(), finished))

    def finished(case: str, name: str) -> Finished:
        annotation = desk.annotation(case)
        labels = desk.labels()
        names = {label.value: label.name for label in labels}
        with annotation.lock:
            values = annotation.labels.copy()
            record = record_of(annotation, image_name=desk.entry(case).name, names=names, made_by=about.made_by)
        colours = {label.value: label.rgb for label in labels}
        return Finished(name, annotation.opened.image, values, names, colours, record)

    return api


def _agreement_of(step: Step, draft: Draft, opened: OpenImage) -> float:
    """The agreement of a draft where it was prompted last; 0 where there is no mask."""
    rng = np.random.default_rng(0)
    if step.learned is not None:
        session = opened.session(step.axis, step.window, step.learned.sha256)
        target = replace(step.target, name=step.learned.name)
        return agreement(session, target, mode="semi-autonomous", rng=rng).mean
    session = opened.session(step.axis, step.window)
    judged = _judged_by(step, draft, session)
    return 0.0 if judged is None else agreement(session, judged, rng=rng).mean


def _judged_by(step: Step, draft: Draft, session: Session) -> Target | None:
    """The prompts that are moved about to judge a mask: those of the slice that was prompted last.

    Models that answer clicks through a search for the box that fits them would search once for every draw, for seconds;
    there it is the box around the mask that moves. None where there is no mask.
    """
    kinds = {type(prompt) for prompt in step.target.prompts}
    searched = session.runtime.prompts.way("points", beside_box=Box in kinds) == "through-boxes"
    if kinds == {Box} or not searched:
        return step.target
    on_slice = draft.mask if step.axis is None else slice_first(draft.mask, step.axis)[step.target.z or 0]
    return Target((Box.around(on_slice, z=step.target.z),)) if on_slice.any() else None


class _Cases(Sequence[Finished]):
    """Cases for an export, each made when it is asked for, so that one at a time is in memory.

    They are called by their ids without the file's suffix, where that leaves names that differ.
    """

    def __init__(self, cases: Sequence[str], make: Callable[[str, str], Finished]) -> None:
        self._cases, self._make = list(cases), make
        plain = [case[: -len(suffix)] if (suffix := suffix_of(FilePath(case))) else case for case in self._cases]
        self._names = plain if len(set(plain)) == len(plain) and all(plain) else self._cases
        self._last: tuple[int, Finished] | None = None

    def __len__(self) -> int:
        return len(self._cases)

    @overload
    def __getitem__(self, index: int) -> Finished: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Finished]: ...
    def __getitem__(self, index: int | slice) -> Finished | Sequence[Finished]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        if self._last is None or self._last[0] != index:
            self._last = index, self._make(self._cases[index], self._names[index])
        return self._last[1]


def _left(taken: Taken) -> tuple[str, ...]:
    """What a person must know of voxels that were wanted and stayed where they were."""
    return (f"{taken.kept_by_others} voxels stayed with other labels",) if taken.kept_by_others else ()


def _state(annotation: Annotation, desk: Desk) -> dict[str, Any]:
    undo, redo = annotation.deeds
    status = desk.status(annotation.case)
    each = _voxel_ml(annotation)
    draft = annotation.draft
    drawn: dict[str, Any] | None = None
    if draft is not None:
        voxels, last = int(draft.mask.sum()), draft.last_prompted
        drawn = {
            "prompts": prompts_told(draft, annotation.opened.grid),
            "predicted_iou": round(draft.predicted_iou, 4),
            "voxels": voxels,
            "volume_ml": None if each is None else round(voxels * each, 4),
            "agreement": _judged(annotation),
            "learned": None if last is None or last.learned is None else last.learned.name,
        }
    return {
        "revision": annotation.revision,
        "draft": drawn,
        "labels": [
            {
                "value": value,
                "voxels": int(annotation.voxels[value]),
                "volume_ml": None if each is None else round(int(annotation.voxels[value]) * each, 4),
            }
            for value in np.flatnonzero(annotation.voxels).tolist()
        ],
        "can_undo": undo is not None,
        "can_redo": redo is not None,
        "undo": None if undo is None else asdict(undo),
        "redo": None if redo is None else asdict(redo),
        "done": status.status == "done",
        "status": status.status,
        "notes": [],
    }


def _judged(annotation: Annotation) -> float | None:
    """The agreement of the object being drawn, if it was asked for since it changed."""
    known = annotation.judged
    return known[1] if known is not None and known[0] is annotation.draft else None


def _voxel_ml(annotation: Annotation) -> float | None:
    image = annotation.opened.image
    if not image.is_volume or not image.knows_place:
        return None
    return float(abs(np.linalg.det(image.affine[:3, :3]))) / 1000


def _image(annotation: Annotation, case: str, rule: Intensity | None) -> Mapping[str, Any]:
    image, grid = annotation.opened.image, annotation.opened.grid
    spacing = np.linalg.norm(grid.affine[:3, :3], axis=0)
    return {
        "shape": list(grid.shape),
        "affine": grid.affine.tolist(),
        "spacing": spacing.tolist(),
        "orientation": image.geometry.orientation,
        "modality": image.modality,
        "colour": image.colour,
        "is_volume": image.is_volume,
        "knows_place": image.knows_place,
        "plane": grid.plane(annotation.opened.axis or 0),
        "window": window_of(image, rule),
        "url": f"cases/{case}/image.nii",
    }


def _preview_patch(annotation: Annotation, draft: Draft) -> dict[str, Any] | None:
    """Where the map would differ from what is shown, as it would then be."""
    with annotation.lock:
        before = annotation.draft
        differs = draft.mask if before is None else draft.mask | before.mask
        window = bounds(differs)
        if window is None:
            return None
        values = annotation.labels[window].copy()
    values[draft.mask[window]] = DRAFT
    return packed(values, window, annotation.opened.grid)
