"""MONAI Label's `/datastore/`: the folder's images and labels.

An image that is sent becomes a file of the folder under a checked name, and never takes the place of another. Files
of the folder are not deleted here, whoever put them there. A label map that is sent becomes the case's labels: one
action in its journal, which can be undone.
"""

import json
import os
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, File, Form, HTTPException, Query
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.background import BackgroundTask

from palpate.errors import FormatError, InputError, OutputError
from palpate.images import read
from palpate.images.formats import replacing
from palpate.server.desk import CaseStatus
from palpate.server.leases import Taken
from palpate.server.monai_label_files import from_raw, on_grid, write_result
from palpate.server.monai_label_service import Service, Upload
from palpate.server.monai_label_sessions import open_upload
from palpate.server.uploads import (
    IMAGE_SUFFIXES,
    LABEL_SUFFIXES,
    TooMuch,
    check_end,
    checked_id,
    checked_suffix,
    claimed_voxels,
)

FINAL = "final"
"""The tag of labels that are done."""

ORIGINAL = "original"
"""The tag of labels that are not: begun, or guessed. 3D Slicer loads these with the image."""

LABEL_SUFFIX = ".nrrd"

_BINARY = "application/octet-stream"


def datastore_routes(service: Service) -> APIRouter:
    """The router of `/datastore/`."""
    routes = APIRouter(prefix="/datastore", tags=["MONAI Label"], route_class=service.route_class())

    @routes.get("/", summary="How many images there are, or what they and their labels are")
    def listed(output: Literal["stats", "all", "train"] = "stats") -> Any:
        if output == "stats":
            return stats(service)
        if output == "train":
            finished = service.desk.finished()
            return [{"image": case, "label": case} for case in finished]
        names = {label.value: label.name for label in service.desk.labels()}
        return {"objects": {one.id: _object(one, names) for one in service.desk.cases()}}

    @routes.put("/", summary="Put an image into the folder")
    @routes.put("/image", summary="Put an image into the folder")
    def put_image(
        file: Annotated[Upload, File()],
        image: Annotated[str, Query(max_length=400)] = "",
        params: Annotated[str, Form(max_length=100_000)] = "{}",
    ) -> dict[str, str]:
        return {"image": _add_image(service, image, file)}

    @routes.delete("/", summary="Refused")
    @routes.delete("/image", summary="Refused")
    def delete_image() -> Response:
        raise HTTPException(403, "images of the folder are not deleted from here; delete the file yourself")

    @routes.head("/image", summary="Whether there is such an image")
    @routes.get("/image", summary="An image as a file that every viewer reads alike")
    def get_image(image: Annotated[str, Query(max_length=400)], check_sum: str = "") -> FileResponse:
        served = service.served.of(service.case(image))
        if check_sum and check_sum.lower().removeprefix("sha256:") != served.sha256:
            raise HTTPException(404, "the image is there, but it has another checksum")
        return FileResponse(served.path, media_type=_BINARY, filename=served.name)

    @routes.get("/image/info", summary="What is known of an image")
    def get_image_info(image: Annotated[str, Query(max_length=400)]) -> dict[str, Any]:
        one = service.status(service.case(image))
        return {"name": one.name, "kind": one.kind, "status": one.status, "labels": list(one.labels)}

    @routes.put("/image/info", summary="Refused")
    @routes.put("/label/info", summary="Refused")
    def put_info() -> Response:
        raise HTTPException(405, "notes on images and labels are not kept here")

    @routes.put("/label", summary="Put a label map in place of a case's; it can be undone")
    def put_label(
        image: Annotated[str, Query(max_length=400)],
        label: Annotated[Upload, File()],
        tag: Annotated[str, Query(max_length=60)] = FINAL,
        params: Annotated[str, Form(max_length=100_000)] = "{}",
    ) -> dict[str, Any]:
        case = service.case(image)
        _check_free(service, case)
        named = _names(params)
        labels = _label_map(service, case, label)
        present = [int(value) for value in np.unique(labels) if value]
        ours = {one.value: one.name for one in service.desk.labels()}
        names = {value: named.get(value) or ours.get(value, f"label {value}") for value in present}
        service.desk.put_labels(case, labels, names, "import")
        if tag in ("", FINAL):
            service.desk.journal.set_case(case, done=True)
        return {"image": case, "label": case, "tag": tag or FINAL, "label_names": {names[v]: v for v in present}}

    @routes.head("/label", summary="Whether a case has labels")
    @routes.get("/label", summary="The label map of a case, on the grid of its image")
    def get_label(label: Annotated[str, Query(max_length=400)], tag: str = "") -> FileResponse:
        case = service.case(label)
        _labelled(service, case, tag)
        folder = service.temporary()
        path = folder / f"label{LABEL_SUFFIX}"
        write_result(path, service.desk.labels_of(case), service.desk.image(case).geometry, names={})
        gone = BackgroundTask(shutil.rmtree, folder, ignore_errors=True)
        return FileResponse(path, media_type=_BINARY, filename=f"{case}{LABEL_SUFFIX}", background=gone)

    @routes.get("/label/info", summary="What is known of the labels of a case")
    def get_label_info(label: Annotated[str, Query(max_length=400)], tag: str = "") -> dict[str, Any]:
        one = _labelled(service, service.case(label), tag)
        names = {entry.value: entry.name for entry in service.desk.labels()}
        return _info(one, names)

    @routes.delete("/label", summary="Clear the labels of a case; it can be undone")
    def delete_label(
        id: Annotated[str, Query(max_length=400)],  # noqa: A002 - the protocol's name
    ) -> dict[str, Any]:
        case = service.case(id)
        _check_free(service, case)
        image = service.desk.image(case)
        service.desk.put_labels(case, np.zeros(image.shape, dtype=np.uint8), {}, "import")
        service.desk.journal.set_case(case, done=False)
        return {}

    @routes.get("/dataset", summary="The cases that are done, images and labels, as a zip archive")
    def dataset(limit_cases: Annotated[int, Query(ge=1, le=10_000)] = 100) -> FileResponse:
        folder = service.temporary()
        try:
            path = _dataset(service, service.desk.finished()[:limit_cases], folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        gone = BackgroundTask(shutil.rmtree, folder, ignore_errors=True)
        return FileResponse(path, media_type="application/zip", filename="dataset.zip", background=gone)

    @routes.get("/updatelabelinfo", include_in_schema=False)
    def update_label_info() -> JSONResponse:
        return JSONResponse({"detail": "notes on labels are not kept here"}, status_code=404)

    return routes


def stats(service: Service) -> dict[str, Any]:
    """How many images there are and how many are done."""
    cases = service.desk.cases()
    tags = [_tag(one) for one in cases if one.labels]
    return {
        "total": len(cases),
        "completed": sum(one.status == "done" for one in cases),
        "label_tags": {tag: tags.count(tag) for tag in sorted(set(tags))},
    }


def _object(one: CaseStatus, names: dict[int, str]) -> dict[str, Any]:
    labels = {_tag(one): {"ext": LABEL_SUFFIX, "info": _info(one, names)}} if one.labels else {}
    return {"image": {"ext": "", "info": {"name": one.name, "status": one.status}}, "labels": labels}


def _info(one: CaseStatus, names: dict[int, str]) -> dict[str, Any]:
    label_names = {names.get(value, f"label {value}"): value for value in one.labels}
    return {"name": one.id, "tag": _tag(one), "params": {"label_names": label_names}}


def _tag(one: CaseStatus) -> str:
    return FINAL if one.status == "done" else ORIGINAL


def _labelled(service: Service, case: str, tag: str) -> CaseStatus:
    one = service.status(case)
    if not one.labels or (tag and tag != _tag(one)):
        raise HTTPException(404, f"{case} has no labels{f' tagged {tag[:40]!r}' if tag else ''}")
    return one


def _check_free(service: Service, case: str) -> None:
    if case in service.desk.leases.held():
        raise Taken(f"{case} is open in the browser; close it there first, or its drawing would be lost")


def _names(params: str) -> dict[int, str]:
    """The names of segments, from `label_info` of what 3D Slicer and OHIF send along."""
    try:
        given = json.loads(params or "{}")
        listed = (given.get("label_info") or []) if isinstance(given, dict) else None
        if not isinstance(listed, list):
            raise TypeError
        return {int(entry.get("idx", entry.get("id"))): str(entry["name"]) for entry in listed}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        raise InputError('params is JSON with "label_info", a list of {"name": "liver", "idx": 1}') from None


def _label_map(service: Service, case: str, upload: Upload) -> np.ndarray:
    """The label map that was sent, on the grid of the case's image."""
    image = service.desk.image(case)
    if (upload.filename or "").lower().endswith(".bin"):
        data = upload.file.read(2 * image.array.size + 1)
        return from_raw(data, image)
    suffix = checked_suffix(upload.filename, LABEL_SUFFIXES)
    folder = service.temporary()
    try:
        path = folder / f"label{suffix}"
        service.store(upload, path)
        claimed = claimed_voxels(path, suffix)
        # What has more voxels than the image cannot lie on its grid; a bomb need not be set off to know that.
        if claimed is not None and claimed[0] > int(np.prod(image.shape)):
            raise TooMuch(f"the label map claims {claimed[0]} voxels, more than its image has")
        try:
            labels = read(path)
        except InputError as error:
            check_end(path, suffix)
            raise FormatError(str(error).replace(str(path), "the label map")) from None
        return on_grid(labels, image)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _add_image(service: Service, name: str, upload: Upload) -> str:
    suffix = checked_suffix(upload.filename, IMAGE_SUFFIXES)
    case = checked_id(name or Path((upload.filename or "").replace("\\", "/")).name)
    file_name = case if case.lower().endswith(suffix) else case + suffix
    if file_name.startswith("."):
        raise InputError("names that begin with a dot are hidden files; choose another name")
    target = service.desk.folder / file_name
    if service.find(case) is not None or os.path.lexists(target):
        raise HTTPException(409, f"there is an image {case} already, and nothing is overwritten; choose another name")
    folder = service.temporary()
    try:
        path = folder / f"image{suffix}"
        service.store(upload, path)
        with service.sessions.passing(path):
            open_upload([(file_name, path)], folder, uncompress=False, image_bytes=service.image_bytes)
        try:
            with replacing(target, overwrite=False) as written:
                shutil.copyfile(path, written)
        except OutputError as error:
            raise HTTPException(409 if os.path.lexists(target) else 507, str(error)) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    service.desk.rescan()
    return service.case(file_name)


def _dataset(service: Service, cases: list[str], folder: Path) -> Path:
    path = folder / "dataset.zip"
    total = 0
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:  # what goes in is packed already
        for case in cases:
            served = service.served.of(case)
            total += served.path.stat().st_size
            if total > service.upload_bytes:
                raise TooMuch(f"more than {service.upload_bytes / 2**20:g} MiB; ask for fewer with limit_cases")
            archive.write(served.path, f"images/{served.name}")
            with tempfile.TemporaryDirectory(dir=folder) as here:
                label = Path(here) / f"label{LABEL_SUFFIX}"
                write_result(label, service.desk.labels_of(case), service.desk.image(case).geometry, names={})
                archive.write(label, f"labels/{case}{LABEL_SUFFIX}")
    return path
