"""nnInteractive's remote protocol, so that its clients (3D Slicer, napari, MITK, Python) can use palpate's models.

A client claims a lease, sends an image and then prompts; each answer is the part of the mask that changed. Arrays
travel as `palpate.server.packed` says, with JSON beside them in the header `X-Meta`. What prompts mean to models that
see a slice at a time is written in `palpate.server.nninteractive_work`, and who may be connected for how long in
`palpate.server.nninteractive_leases`.

Two locks, always taken in this order: a client's work, then its image's session. The table of leases has a third, which
is never held while anything is computed, so heartbeats are answered meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from time import monotonic
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Request, Response
from pydantic import BaseModel, Field, ValidationError

from palpate.errors import InputError
from palpate.images.image import Image
from palpate.models.promptable import PromptSupport
from palpate.server.leases import IDLE_SECONDS, LIVENESS_SECONDS, Gone
from palpate.server.nninteractive_leases import Clients
from palpate.server.nninteractive_work import SECONDS, Change, Work
from palpate.server.opened import OpenImage
from palpate.server.packed import pack, read_header, unpack

LARGE_PATHS = ("/set_image", "/add_scribble_interaction", "/add_lasso_interaction", "/add_initial_seg_interaction")
"""Where arrays are sent."""

_SWEEP_SECONDS = 15.0

_MOST_NOTES = 1500
"""Characters of notes in a header; clients' HTTP libraries refuse long ones."""

_PACKED = "application/octet-stream"


def _quarter_of_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    except (AttributeError, OSError, ValueError):  # not on Windows
        return 2**31


@dataclass(frozen=True)
class Limits:
    """What clients may take of the machine."""

    most_bytes: int = field(default_factory=_quarter_of_memory)
    """Of all images together, unpacked, and of a target buffer."""
    seconds: float | int = SECONDS
    """How long one prompt may be carried through the volume."""
    idle: float | int = IDLE_SECONDS
    liveness: float | int = LIVENESS_SECONDS


class _Claimed(BaseModel):
    lease_token: str
    idle_timeout_seconds: float
    liveness_timeout_seconds: float
    max_sessions: int


class _Capabilities(BaseModel):
    """`palpate` is what other servers do not say."""

    supported_interactions: dict[str, bool]
    channel_mapping: dict[str, list[int]]
    num_interaction_channels: int
    supports_initial_label: bool
    supports_zero_shot_label_refinement: bool
    preferred_scribble_thickness: list[int]
    interaction_decay: float | None
    patch_size: list[int] | None
    do_autozoom: bool
    inference_session_version: str
    license: str
    supports_undo: bool
    palpate: dict[str, str]


class _Problem(BaseModel):
    detail: str


_Index = Annotated[float, Field(allow_inf_nan=False)]
_Box = Annotated[list[Annotated[list[_Index], Field(min_length=2, max_length=2)]], Field(min_length=3, max_length=3)]


class _Target(BaseModel):
    shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=3, max_length=3)]
    dtype: Literal["bool", "uint8", "uint16", "uint32", "int8", "int16", "int32", "int64", "float32"]


class _Autozoom(BaseModel):
    do_autozoom: bool


class _Predicting(BaseModel):
    force_full_refine: bool = False


class _Prompting(BaseModel):
    include_interaction: bool
    run_prediction: bool = True
    override_capability_checks: bool = False


class _Point(_Prompting):
    coordinates: Annotated[list[_Index], Field(min_length=3, max_length=3)]


class _BoxDrawn(_Prompting):
    bbox_coords: _Box


class _MaskDrawn(_Prompting):
    interaction_bbox: _Box | None = None


class _Initial(BaseModel):
    run_prediction: bool = False


class _Properties(BaseModel):
    image_properties: dict[str, Any] = {}


_Meta = TypeVar("_Meta", bound=BaseModel)


def router(
    make_opened: Callable[[Image], OpenImage],
    *,
    support: PromptSupport | None = None,
    licence: str = "!!MISSING!!",
    model: str = "",
    max_sessions: int = 4,
    limits: Limits | None = None,
    clock: Callable[[], float | int] = monotonic,
) -> APIRouter:
    """The protocol's paths, from the root.

    `make_opened` opens an image that a client sent. `support` says which prompts the model takes (None: all kinds),
    `licence` and `model` what clients tell their users of it. Errors are palpate's own; whoever puts the application
    together gives them their status.
    """
    limits = limits or Limits()
    clients = Clients(
        partial(Work, make_opened, seconds=limits.seconds, clock=clock),
        most=max_sessions,
        most_bytes=limits.most_bytes,
        idle=limits.idle,
        liveness=limits.liveness,
        clock=clock,
    )
    problems: dict[int | str, dict[str, Any]] = {
        status: {"model": _Problem, "description": why}
        for status, why in (
            (409, "no image was sent yet"),
            (410, "the lease has ended, or never was"),
            (413, "larger than this server takes"),
            (422, "what was sent makes no sense"),
            (503, "no place or memory is left; try again later"),
        )
    }
    routes = APIRouter(tags=["nnInteractive"], lifespan=partial(_sweeping, clients), responses=problems)
    _leasing(routes, clients, capabilities=_capabilities(support, licence, model))
    _images(routes, clients)
    _drawing(routes, clients)
    return routes


def _leasing(routes: APIRouter, clients: Clients, *, capabilities: _Capabilities) -> None:
    """Who is connected, and to what.

    Signs of life are answered where requests are received: all else takes one of the few threads, and may wait for one.
    """

    @routes.get("/healthz")
    async def _healthz() -> dict[str, bool]:  # pyright: ignore[reportUnusedFunction]
        return {"ok": True}

    @routes.get("/capabilities")
    def _capable() -> _Capabilities:  # pyright: ignore[reportUnusedFunction]
        return capabilities

    @routes.post("/claim")
    def _claim() -> _Claimed:  # pyright: ignore[reportUnusedFunction]
        return _Claimed(
            lease_token=clients.claim(),
            idle_timeout_seconds=clients.idle,
            liveness_timeout_seconds=clients.liveness,
            max_sessions=clients.most,
        )

    @routes.post("/release")
    def _release(  # pyright: ignore[reportUnusedFunction]
        x_lease_token: Annotated[str | None, Header()] = None,
    ) -> dict[str, bool]:
        # Whoever leaves twice, or after having been forgotten, has left.
        return {"released": x_lease_token is not None and clients.release(x_lease_token)}

    @routes.post("/heartbeat")
    async def _heartbeat(token: _Token) -> dict[str, float | int]:  # pyright: ignore[reportUnusedFunction]
        return {"remaining_seconds": clients.left(token, heard=True)}

    @routes.get("/lease_status")
    async def _lease_status(token: _Token) -> dict[str, float | int]:  # pyright: ignore[reportUnusedFunction]
        left = clients.left(token, heard=False)
        return {"remaining_seconds": left, "idle_timeout_seconds": clients.idle}


def _images(routes: APIRouter, clients: Clients) -> None:
    """The image, and the buffer that the client keeps for its mask."""

    @routes.post(
        "/set_image", openapi_extra=_packed_body("[channel, x, y, z]"), dependencies=[Depends(_connected(clients))]
    )
    def _set_image(  # pyright: ignore[reportUnusedFunction]
        token: _Token, body: _Body, x_meta: _MetaHeader = None
    ) -> dict[str, list[int]]:
        properties = _read_meta(x_meta, _Properties).image_properties
        with clients.at_work(token) as work, work.lock:
            work.forget()  # if this image is refused, the one before must not answer for it
            clients.reserve(token, 0)
            size = read_header(body).nbytes
            _check_size(size, clients, "image")
            clients.reserve(token, size)
            try:
                work.set_image(unpack(body, most_bytes=size), properties)
            except BaseException:
                with suppress(Gone):
                    clients.reserve(token, 0)
                raise
            shape = work.shape
            channels = read_header(body).shape[0]
        return {"original_image_shape": [channels, *shape]}

    @routes.post("/set_target_buffer")
    def _set_target(token: _Token, asked: _Target) -> dict[str, bool]:  # pyright: ignore[reportUnusedFunction]
        dtype = np.dtype(asked.dtype)
        size = dtype.itemsize
        for extent in asked.shape:
            size *= extent
        _check_size(size, clients, "target buffer")
        with clients.at_work(token) as work, work.lock:
            if tuple(asked.shape) != work.shape:
                raise InputError(f"the target buffer has the shape {tuple(asked.shape)}, but the image {work.shape}")
            work.set_target(dtype)
        return {"ok": True}

    @routes.post("/set_do_autozoom")
    def _set_autozoom(token: _Token, _: _Autozoom) -> dict[str, bool]:  # pyright: ignore[reportUnusedFunction]
        # Accepted, so that no client stumbles; a slice is always seen as a whole. The capabilities say so.
        with clients.at_work(token):
            return {"do_autozoom": False}


def _drawing(routes: APIRouter, clients: Clients) -> None:
    """Prompts, and the way back."""

    @routes.post("/reset_interactions")
    def _reset(token: _Token) -> dict[str, bool]:  # pyright: ignore[reportUnusedFunction]
        with clients.at_work(token) as work, work.lock:
            work.reset()
        return {"ok": True}

    post = partial(routes.post, response_class=Response)

    @post("/undo", responses=_ANSWER)
    def _undo(token: _Token) -> Response:  # pyright: ignore[reportUnusedFunction]
        with clients.at_work(token) as work, work.lock:
            return _told(work.undo())

    @post("/predict", responses=_ANSWER)
    def _predict(token: _Token, _: _Predicting) -> Response:  # pyright: ignore[reportUnusedFunction]
        with clients.at_work(token) as work, work.lock:
            return _told(work.predict())

    @post("/add_point_interaction", responses=_ANSWER)
    def _add_point(token: _Token, asked: _Point) -> Response:  # pyright: ignore[reportUnusedFunction]
        with clients.at_work(token) as work, work.lock:
            return _told(work.point(asked.coordinates, include=asked.include_interaction, run=asked.run_prediction))

    @post("/add_bbox_interaction", responses=_ANSWER)
    def _add_box(token: _Token, asked: _BoxDrawn) -> Response:  # pyright: ignore[reportUnusedFunction]
        with clients.at_work(token) as work, work.lock:
            return _told(work.box(asked.bbox_coords, include=asked.include_interaction, run=asked.run_prediction))

    @post(
        "/add_scribble_interaction",
        responses=_ANSWER,
        openapi_extra=_packed_body("[x, y, z]"),
        dependencies=[Depends(_connected(clients))],
    )
    def _add_scribble(  # pyright: ignore[reportUnusedFunction]
        token: _Token, body: _Body, x_meta: _MetaHeader = None
    ) -> Response:
        asked = _read_meta(x_meta, _MaskDrawn)
        with clients.at_work(token) as work, work.lock:
            drawn, where = _drawn(body, work, asked)
            return _told(work.scribble(drawn, where, include=asked.include_interaction, run=asked.run_prediction))

    @post(
        "/add_lasso_interaction",
        responses=_ANSWER,
        openapi_extra=_packed_body("[x, y, z]"),
        dependencies=[Depends(_connected(clients))],
    )
    def _add_lasso(  # pyright: ignore[reportUnusedFunction]
        token: _Token, body: _Body, x_meta: _MetaHeader = None
    ) -> Response:
        asked = _read_meta(x_meta, _MaskDrawn)
        with clients.at_work(token) as work, work.lock:
            drawn, where = _drawn(body, work, asked)
            return _told(work.lasso(drawn, where, include=asked.include_interaction, run=asked.run_prediction))

    @post(
        "/add_initial_seg_interaction",
        responses=_ANSWER,
        openapi_extra=_packed_body("[x, y, z]"),
        dependencies=[Depends(_connected(clients))],
    )
    def _add_initial(  # pyright: ignore[reportUnusedFunction]
        token: _Token, body: _Body, x_meta: _MetaHeader = None
    ) -> Response:
        asked = _read_meta(x_meta, _Initial)
        with clients.at_work(token) as work, work.lock:
            drawn, _ = _drawn(body, work, None)
            return _told(work.initial(drawn, run=asked.run_prediction))


# What comes in.


async def _token(x_lease_token: Annotated[str | None, Header()] = None) -> str:
    if not x_lease_token:
        raise Gone("the lease token is missing; claim a session first (POST /claim)")
    return x_lease_token


def _connected(clients: Clients) -> Callable[[str], None]:
    """That there is such a lease, before a large body is read for it."""

    def check(token: _Token) -> None:
        clients.left(token, heard=True)

    return check


async def _read_body(request: Request) -> bytes:
    return await request.body()


def _packed_body(axes: str) -> dict[str, Any]:
    schema = {"type": "string", "format": "binary", "description": f"a packed array {axes}"}
    return {"requestBody": {"required": True, "content": {_PACKED: {"schema": schema}}}}


_Token = Annotated[str, Depends(_token)]
_Body = Annotated[bytes, Depends(_read_body)]
_MetaHeader = Annotated[str | None, Header(description="JSON beside a packed array")]


def _read_meta(text: str | None, kind: type[_Meta]) -> _Meta:
    try:
        return kind.model_validate_json(text or "{}")
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "it"
        raise InputError(f"the header X-Meta is not what was expected: {place}: {first['msg']}") from None


def _check_size(size: int, clients: Clients, what: str) -> None:
    if size > clients.most_bytes:
        raise HTTPException(413, f"this {what} takes {size} bytes; {clients.most_bytes} are the most here: crop it")


def _drawn(body: bytes, work: Work, asked: _MaskDrawn | None) -> tuple[np.ndarray, Any]:
    """What was drawn and on which part of the image; its shape is looked at before it is unpacked."""
    where = work.part(None if asked is None else asked.interaction_bbox)
    wanted = work.shape if where is None else tuple(end - first for first, end in where)
    header = read_header(body)
    if header.shape != wanted:
        raise InputError(f"a drawing of shape {header.shape} came; {wanted} is the shape of what it was drawn on")
    return unpack(body, most_bytes=header.nbytes), where


# What goes out.

_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "What changed, packed; X-Meta says where: {ran_prediction, bbox, dtype, shape, notes}",
        "content": {_PACKED: {"schema": {"type": "string", "format": "binary"}}},
    }
}


def _told(change: Change) -> Response:
    meta: dict[str, Any] = {"ran_prediction": change.ran, "bbox": None}
    body = b""
    if change.bounds is not None and change.values is not None:
        meta |= {"bbox": [list(pair) for pair in change.bounds], "dtype": str(change.values.dtype)}
        meta["shape"] = list(change.values.shape)
        body = pack(change.values)
    notes: list[str] = []
    for note in change.notes:
        if sum(map(len, notes)) + len(note) <= _MOST_NOTES:
            notes.append(note)
    if notes:
        meta["notes"] = notes
    # JSON in ASCII: a header holds nothing else.
    return Response(body, media_type=_PACKED, headers={"X-Meta": json.dumps(meta, separators=(",", ":"))})


def _capabilities(support: PromptSupport | None, licence: str, model: str) -> _Capabilities:
    def taken(kind: Literal["points", "scribble", "mask"]) -> bool:
        return support is None or support.way(kind, beside_box=False) is not None

    return _Capabilities(
        supported_interactions={
            "points": taken("points"),
            "bbox2d": True,
            "bbox3d": True,
            "scribble": taken("scribble"),
            "lasso": True,
        },
        channel_mapping={},  # there is no network whose channels the prompts would be
        num_interaction_channels=0,
        supports_initial_label=True,
        supports_zero_shot_label_refinement=taken("mask"),
        preferred_scribble_thickness=[2, 2, 2],
        interaction_decay=None,
        patch_size=None,
        do_autozoom=False,
        inference_session_version=f"palpate {version('palpate')}",
        license=licence,
        supports_undo=True,
        palpate={
            "model": model,
            "bbox3d": "drawn on its middle slice and carried through its range, no further",
            "lasso": "the box around what it encloses",
            "beside the object": "boxes and lassos cut away what they enclose, scribbles what they cover",
            "carried": "slice by slice until the object seems to end",
            "set_do_autozoom": "accepted, without effect: a slice is always seen as a whole",
        },
    )


@asynccontextmanager
async def _sweeping(clients: Clients, _: FastAPI) -> AsyncGenerator[None]:
    """While the server runs, the memory of those who left without a word is given back."""

    async def sweep() -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            clients.sweep()

    task = asyncio.create_task(sweep())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
