"""MONAI Label's REST, so that 3D Slicer's extension and OHIF's speak to this server as it is.

The models are of type `deepgrow`, for which these programs offer points. A mask that they get is nowhere kept; the
labels that they submit become those of the case (see `monai_label_datastore`).
"""

import hmac
import json
import random
import secrets
import shutil
import time
from importlib.metadata import version
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Body, File, Form, HTTPException, Query, Request
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response

from palpate.errors import InputError, PalpateError
from palpate.images.formats import Mask, write_mask
from palpate.server.desk import CaseStatus, Desk
from palpate.server.jobs import RETRY_SECONDS, Job, Jobs
from palpate.server.monai_label_datastore import datastore_routes, stats
from palpate.server.monai_label_files import RESULT_SUFFIXES, RESULT_TYPES, write_result
from palpate.server.monai_label_infer import MODELS, Asked, asked, segment
from palpate.server.monai_label_service import IMAGE_BYTES, UPLOAD_BYTES, Service, Teacher, Upload
from palpate.server.monai_label_sessions import Session, open_upload
from palpate.server.opened import OpenImage
from palpate.server.uploads import IMAGE_SUFFIXES, MOST_FILES

OPEN_PATHS = ("/auth/", "/auth/token")
"""Where nobody has a token yet. `/auth/token/valid` looks for itself."""

LARGE_PATHS = ("/session/", "/datastore/", "/infer/")
"""Where images are sent."""

STRATEGIES = {
    "first": "The first image by name that is not done",
    "random": "Any image that is not done",
    "least-certain": "The image whose guess changes most when its prompts do",
}

TRAINER = "teach"

_DESCRIPTIONS = {
    "palpate-2d": "Points on one slice give the mask of that slice",
    "palpate-3d": "Points on a slice, or a region, give a mask that is carried through the volume",
}


def router(
    desk: Desk,
    *,
    token: str | None = None,
    teaching: Teacher | None = None,
    jobs: Jobs | None = None,
    upload_bytes: int = UPLOAD_BYTES,
    image_bytes: int = IMAGE_BYTES,
) -> APIRouter:
    """All of MONAI Label's paths that make sense here; the others answer 404 and say why.

    `token` is what a login gives for itself, whatever the user's name; that other requests carry it is the guard's to
    see to. A request may send `upload_bytes`, and an image may hold `image_bytes`.
    """
    service = Service(
        desk, token=token, teaching=teaching, jobs=jobs, upload_bytes=upload_bytes, image_bytes=image_bytes
    )
    routes = APIRouter(route_class=service.route_class(), tags=["MONAI Label"])
    _login(routes, service)
    _inference(routes, service)
    _sessions(routes, service)
    _choosing(routes, service)
    _training(routes, service)
    _elsewhere(routes, service)
    routes.include_router(datastore_routes(service))
    return routes


def _login(routes: APIRouter, service: Service) -> None:
    def carries_it(request: Request) -> bool:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        wanted = service.token or ""
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), wanted.encode())

    @routes.get("/auth/", summary="Whether a login is needed")
    def auth(request: Request) -> dict[str, Any]:
        return {"enabled": service.token is not None and not carries_it(request), "client_id": "", "realm": ""}

    @routes.post("/auth/token", summary="Log in with the server's token as password, under any name")
    def auth_token(
        password: Annotated[str, Form(max_length=1000)],
        username: Annotated[str, Form(max_length=1000)] = "",
        grant_type: Annotated[str, Form(max_length=100)] = "password",
    ) -> dict[str, str]:
        if service.token is None:
            raise HTTPException(404, "there is no login; everybody on this machine may ask")
        if not hmac.compare_digest(password.encode("utf-8", "replace"), service.token.encode()):
            raise HTTPException(401, "the password is the token in the address that `palpate serve` printed")
        return {"access_token": service.token, "token_type": "bearer"}

    @routes.get("/auth/token/valid", summary="Whether the login holds")
    def auth_valid(request: Request) -> dict[str, Any]:
        if service.token is not None and not carries_it(request):
            raise HTTPException(401, "not logged in")
        return {}

    @routes.get("/info/", summary="Models, labels, strategies, and how much is done")
    def info() -> dict[str, Any]:
        running = service.jobs.running(TRAINER) if service.jobs else []
        return {
            "name": "palpate",
            "description": "Promptable segmentation of medical images",
            "version": version("palpate"),
            "labels": [label.name for label in service.desk.labels()],
            # Models without labels of their own: with some, 3D Slicer runs one unasked on every new image.
            "models": {
                name: {
                    "type": "deepgrow",
                    "labels": [],
                    "dimension": dimension,
                    "description": _DESCRIPTIONS[name],
                    "config": {},
                }
                for name, dimension in MODELS.items()
            },
            "trainers": {TRAINER: {"description": "Learns from the cases that are done", "config": {}}}
            if service.teaching
            else {},
            "strategies": {name: {"description": told} for name, told in STRATEGIES.items()},
            "scoring": {},
            "train_stats": {TRAINER: _epochs(running[0])} if running else {},
            "datastore": stats(service),
        }


def _inference(routes: APIRouter, service: Service) -> None:
    @routes.post("/infer/wsi/{model}", summary="Not here")
    @routes.post("/batch/infer/{model}", summary="Not here")
    def infer_elsewhere(model: str) -> Response:
        raise HTTPException(
            404, "slides and batches are not segmented from here; `palpate predict FOLDER` does folders"
        )

    @routes.post("/infer/{model}", summary="A mask from points, or from a region")
    def infer(
        model: str,
        image: Annotated[str, Query(max_length=400)] = "",
        session_id: Annotated[str, Query(max_length=100)] = "",
        output: Literal["", "all", "image", "json", "dicom_seg"] = "",
        params: Annotated[str, Form(max_length=200_000)] = "{}",
        file: Annotated[Upload | None, File()] = None,
        label: Annotated[Upload | None, File()] = None,
    ) -> Response:
        if model not in MODELS:
            raise HTTPException(404, f"there is no model {model[:60]!r}; there are {', '.join(MODELS)}")
        if label is not None:
            raise HTTPException(400, "no model here takes a label map or scribbles; give points or a region")
        wanted = asked(params)
        if output in ("", "all", "image"):
            _check_result(wanted)
        if session_id:
            opened = service.sessions.get(session_id).opened
            return _answer(service, opened, wanted, model, output)
        if file is None:
            return _answer(service, service.desk.opened(service.case(image)), wanted, model, output)
        folder = service.temporary()
        try:
            name = file.filename or ""
            stored = folder / f"00000{_suffix(name)}"
            service.store(file, stored)
            with service.sessions.passing(stored):
                _, sent = open_upload([(name, stored)], folder, uncompress=False, image_bytes=service.image_bytes)
                return _answer(service, service.desk.session_for(sent), wanted, model, output)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _sessions(routes: APIRouter, service: Service) -> None:
    @routes.put("/session/", summary="Send an image for a while, without putting it into the folder")
    def create(
        files: Annotated[list[Upload], File(max_length=MOST_FILES)],
        uncompress: bool = False,
        expiry: Annotated[float, Query(ge=0, allow_inf_nan=False)] = 0.0,
    ) -> dict[str, Any]:
        service.sessions.check_room()
        folder = service.temporary()
        try:
            stored = [
                (upload.filename or "", folder / f"{number:05d}{_suffix(upload.filename or '')}")
                for number, upload in enumerate(files)
            ]
            for upload, (_, path) in zip(files, stored, strict=True):
                service.store(upload, path)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        session = service.sessions.create(stored, folder, uncompress=uncompress, expiry=expiry or None)
        return {"session_id": session.id, "session_info": _session_told(session)}

    @routes.get("/session/{session_id}", summary="Whether a session is still there")
    def get(session_id: str, update_ts: bool = False, image: bool = False) -> Any:
        session = service.sessions.get(session_id, used=update_ts)
        if not image:
            return _session_told(session)
        if not session.file.is_file():
            raise HTTPException(404, "a DICOM series is not one file that could be sent back")
        return FileResponse(session.file, media_type="application/octet-stream", filename=session.name)

    @routes.delete("/session/{session_id}", summary="End a session")
    def delete(session_id: str) -> dict[str, Any]:
        service.sessions.remove(session_id)
        return {}


def _choosing(routes: APIRouter, service: Service) -> None:
    @routes.post("/activelearning/{strategy}", summary="The image to annotate next, or {} when all are done")
    def next_sample(strategy: str, params: Annotated[dict[str, Any] | None, Body()] = None) -> dict[str, Any]:
        if strategy not in STRATEGIES:
            raise HTTPException(404, f"there is no strategy {strategy[:60]!r}; there are {', '.join(STRATEGIES)}")
        order = "agreement" if strategy == "least-certain" else "name"
        held = service.desk.leases.held()
        cases = [one for one in service.desk.cases(order) if one.status not in ("done", "damaged")]
        cases.sort(key=lambda one: one.id in held)  # somebody else has these open
        if strategy == "random":
            random.shuffle(cases)
        for one in cases:
            try:
                return _sample(service, one, strategy)
            except PalpateError:  # the desk keeps it as damaged, and its page says why
                continue
        return {}


def _training(routes: APIRouter, service: Service) -> None:
    def taught() -> tuple[Teacher, Jobs]:
        if service.teaching is None or service.jobs is None:
            raise HTTPException(404, "this server does not teach")
        return service.teaching, service.jobs

    @routes.get("/train/", summary="How the teaching goes; 404 when nothing goes on")
    def train_status(check_if_running: bool = False) -> dict[str, Any]:
        _, jobs = taught()
        job = jobs.last(TRAINER)
        if job is None or (check_if_running and job.status != "running"):
            raise HTTPException(404, "nothing is being taught")
        return _job_told(job)

    @routes.post("/train/", summary="Teach from the cases that are done")
    @routes.post("/train/{model}", summary="Teach from the cases that are done")
    def train_start(model: str = TRAINER, params: Annotated[dict[str, Any] | None, Body()] = None) -> dict[str, Any]:
        teaching, jobs = taught()
        if model != TRAINER:
            raise HTTPException(404, f"there is no trainer {model[:60]!r}; there is {TRAINER}")
        if jobs.running(TRAINER):
            raise HTTPException(429, "it is being taught already", headers={"Retry-After": str(RETRY_SECONDS)})
        return _job_told(teaching.teach())

    @routes.delete("/train/", summary="End the teaching")
    def train_stop() -> dict[str, Any]:
        _, jobs = taught()
        running = jobs.running(TRAINER)
        if not running:
            raise HTTPException(404, "nothing is being taught")
        return _job_told(jobs.cancel(running[0].id))


def _elsewhere(routes: APIRouter, service: Service) -> None:
    @routes.get("/logs/", summary="The last requests")
    def logs(lines: Annotated[int, Query(ge=1, le=1000)] = 300) -> PlainTextResponse:
        return PlainTextResponse("\n".join([*service.lines][-lines:]) + "\n")

    @routes.api_route("/scoring/", methods=["GET", "POST", "DELETE"], include_in_schema=False)
    @routes.api_route("/scoring/{method}", methods=["GET", "POST", "DELETE"], include_in_schema=False)
    @routes.get("/batch/infer/", include_in_schema=False)
    @routes.delete("/batch/infer/", include_in_schema=False)
    @routes.api_route("/model/{model:path}", methods=["GET", "HEAD", "PUT", "DELETE"], include_in_schema=False)
    def nothing() -> Response:
        raise HTTPException(404, "this server has nothing of the kind")


def _check_result(wanted: Asked) -> None:
    """Before the model is asked: in a form that is not written here, there would be no answer."""
    extension = wanted.result_extension
    if extension not in RESULT_SUFFIXES or wanted.result_dtype not in RESULT_TYPES:
        raise InputError(
            f"masks are sent as {', '.join(RESULT_SUFFIXES)} of type {', '.join(RESULT_TYPES)}; "
            f"{extension[:20]!r} of {wanted.result_dtype[:20]!r} was asked for"
        )


def _answer(service: Service, opened: OpenImage, wanted: Asked, model: str, output: str) -> Response:
    source = opened.image.source
    if output == "dicom_seg" and (source is None or source.format != "dicom"):
        raise InputError("a DICOM SEG is written beside DICOM images only; ask for output=image")
    start = time.perf_counter()
    found = segment(opened, wanted, dimension=MODELS[model])
    seconds = time.perf_counter() - start
    told = {
        "label_names": {wanted.label: 1},
        "latencies": {"pre": 0, "infer": round(seconds, 3), "invert": 0, "post": 0, "write": 0, "total": seconds},
        "slice": found.slice,
        "predicted_iou": round(found.predicted_iou, 4),
        "notes": list(found.notes),
    }
    if output == "json":
        return JSONResponse({"file": None, "params": told})
    geometry = opened.image.geometry
    folder = service.temporary()
    try:
        suffix = ".dcm" if output == "dicom_seg" else wanted.result_extension
        # Clients write the file under this name beside others of theirs, so it is never the image's.
        path = folder / f"palpate-{secrets.token_hex(6)}{suffix}"
        labels = found.mask.astype(np.uint8)
        names = {1: wanted.label}
        if output == "dicom_seg":
            write_mask(path, Mask(labels, geometry, names))
        else:
            write_result(
                path, labels, geometry, names=names, dtype=wanted.result_dtype, compress=wanted.result_compress
            )
        data = path.read_bytes()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if output == "dicom_seg":
        return Response(data, media_type="application/dicom")
    if output == "image":
        disposition = {"content-disposition": f'attachment; filename="{path.name}"'}
        return Response(data, media_type="application/octet-stream", headers=disposition)
    return _both(told, path.name, data)


def _both(told: dict[str, Any], name: str, data: bytes) -> Response:
    """Parameters and file as a form, which MONAI Label's client takes apart with Python's old `cgi`."""
    boundary = secrets.token_hex(16)
    body = b"".join(
        [
            f'--{boundary}\r\nContent-Disposition: form-data; name="params"\r\n'.encode(),
            b"Content-Type: application/json\r\n\r\n",
            json.dumps(told).encode(),
            f'\r\n--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'.encode(),
            b"Content-Type: application/octet-stream\r\n\r\n",
            data,
            f"\r\n--{boundary}--\r\n".encode(),
        ]
    )
    return Response(body, media_type=f"multipart/form-data; boundary={boundary}")


def _suffix(filename: str) -> str:
    """The suffix to keep a file under; none, if it says nothing to us."""
    name = filename.lower()
    known = (*IMAGE_SUFFIXES, ".dcm", ".ima", ".dicom", ".zip")
    return max((suffix for suffix in known if name.endswith(suffix)), key=len, default="")


def _sample(service: Service, one: CaseStatus, strategy: str) -> dict[str, Any]:
    served = service.served.of(one.id)
    # With the checksum, 3D Slicer does not take an older file of that name out of its cache.
    return {
        "id": one.id,
        "name": served.name,
        "checksum": f"SHA256:{served.sha256}",
        "strategy": strategy,
        "status": one.status,
        "weight": None if one.agreement is None else 1 - one.agreement,
    }


def _session_told(session: Session) -> dict[str, Any]:
    return {
        "name": session.id,
        "image": session.name,
        "meta": {},
        "create_ts": int(session.created),
        "last_access_ts": int(time.time()),
        "expiry": int(session.expiry),
    }


def _job_told(job: Job) -> dict[str, Any]:
    statuses = {"running": "RUNNING", "finished": "DONE", "failed": "ERROR", "cancelled": "STOPPED"}
    detail = job.detail or f"{job.done} of {job.total}"
    return {
        "id": job.id,
        "status": statuses[job.status],
        "start_ts": None,
        "end_ts": None,
        "details": [detail],  # 3D Slicer takes the last one, so there must be one
        "result": detail,
    }


def _epochs(job: Job) -> dict[str, Any]:
    return {"epoch": job.done, "total_epochs": max(job.total, 1)}
