"""nnInteractive's protocol, rule by rule: who may be connected, what is refused, and what a prompt does."""

import gc
import json
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_runtime import FakeRuntime
from nninteractive_server import Clock, Opener, app_on, block, grey, served
from palpate.inference.session import Session
from palpate.models.promptable import ImageEmbedding, MaskPrediction, PromptBatch, PromptSupport
from palpate.server.leases import Full, Gone
from palpate.server.nninteractive import Limits
from palpate.server.nninteractive_leases import Clients
from palpate.server.nninteractive_work import Work
from palpate.server.packed import pack, unpack

SHAPE = (12, 64, 64)
BODY = block(SHAPE, (2, 11), (25, 36), (29, 40))
OTHER = block(SHAPE, (3, 10), (26, 35), (6, 15))
IMAGE = grey(BODY | OTHER)


@dataclass(eq=False)
class WatchedRuntime(FakeRuntime):
    """A fake model that does something else at each look and at each answer."""

    meanwhile: Callable[[], None] = field(default=lambda: None)
    looking: Callable[[], None] = field(default=lambda: None)

    def encode(self, canvas: np.ndarray) -> ImageEmbedding:
        self.looking()
        return super().encode(canvas)

    def decode(
        self, embedding: ImageEmbedding, prompts: PromptBatch, *, multimask_output: bool = False
    ) -> MaskPrediction:
        self.meanwhile()
        return super().decode(embedding, prompts, multimask_output=multimask_output)


def _opener(runtime: FakeRuntime) -> Opener:
    return Opener(lambda: Session(runtime))


class Speaker:
    """Somebody who speaks the protocol by hand, with a lease."""

    def __init__(self, http: TestClient) -> None:
        self.http = http
        self.headers = {"X-Lease-Token": http.post("/claim").json()["lease_token"]}

    def json(self, path: str, **body: Any) -> Any:
        # Not `json=`: NaN must travel, too.
        return self.http.post(
            path, content=json.dumps(body), headers={**self.headers, "content-type": "application/json"}
        )

    def packed(self, path: str, array: np.ndarray | bytes, **meta: Any) -> Any:
        body = array if isinstance(array, bytes) else pack(array)
        return self.http.post(path, content=body, headers={**self.headers, "X-Meta": json.dumps(meta)})

    def begin(self, image: np.ndarray = IMAGE) -> None:
        assert self.packed("/set_image", image).status_code == 200

    def point(self, *at: float, include: bool = True) -> Any:
        return self.json("/add_point_interaction", coordinates=at, include_interaction=include)

    def box(self, *bounds: tuple[float, float]) -> Any:
        return self.json("/add_bbox_interaction", bbox_coords=bounds, include_interaction=True)


def _meta(answer: Any) -> dict[str, Any]:
    return json.loads(answer.headers["X-Meta"])


def _speaker(opener: Opener | None = None, **settings: Any) -> Speaker:
    return Speaker(TestClient(app_on(opener or Opener(), **settings), raise_server_exceptions=False))


def _refused(answer: Any, status: int, said: str) -> None:
    assert answer.status_code == status, answer.text
    assert said in str(answer.json()["detail"])


# Leases.


def test_a_lease_says_how_long_it_lasts() -> None:
    http = TestClient(app_on(Opener(), max_sessions=3))
    claimed = http.post("/claim").json()
    assert len(claimed.pop("lease_token")) >= 32
    assert claimed == {"idle_timeout_seconds": 600, "liveness_timeout_seconds": 60, "max_sessions": 3}
    assert http.get("/healthz").json() == {"ok": True}


@pytest.mark.parametrize("token", [None, "", "nobody's"])
def test_without_a_lease_nothing_is_done(token: str | None) -> None:
    http = TestClient(app_on(Opener()))
    headers = {} if token is None else {"X-Lease-Token": token}
    assert http.get("/lease_status", headers=headers).status_code == 410
    for path in ("/heartbeat", "/undo", "/reset_interactions"):
        _refused(http.post(path, headers=headers), 410, "claim" if not token else "connect again")
    for path in ("/set_image", "/add_scribble_interaction", "/add_lasso_interaction"):
        meta = {"X-Meta": json.dumps({"include_interaction": True})}
        assert http.post(path, content=pack(IMAGE), headers={**headers, **meta}).status_code == 410
    assert http.post("/release", headers=headers).json() == {"released": False}


def test_a_program_that_falls_silent_loses_its_lease() -> None:
    clock = Clock()
    speaker = _speaker(clock=clock)
    clock.now = 60
    assert speaker.json("/heartbeat").json() == {"remaining_seconds": 540}
    clock.now = 120
    assert speaker.json("/heartbeat").status_code == 200
    clock.now = 181
    _refused(speaker.json("/heartbeat"), 410, "connect again")


def test_a_person_who_does_nothing_loses_the_lease_though_the_heart_beats() -> None:
    clock = Clock()
    speaker = _speaker(clock=clock)
    speaker.begin()
    for second in range(30, 601, 30):
        clock.now = second
        assert speaker.json("/heartbeat").json()["remaining_seconds"] == 600 - second
    clock.now = 601
    _refused(speaker.point(6, 30, 34), 410, "connect again")


def test_an_action_starts_both_clocks_anew_and_asking_for_the_time_none() -> None:
    clock = Clock()
    speaker = _speaker(clock=clock)
    speaker.begin()
    clock.now = 50
    assert speaker.json("/undo").status_code == 200
    clock.now = 100
    left = speaker.http.get("/lease_status", headers=speaker.headers)
    assert left.json() == {"remaining_seconds": 550, "idle_timeout_seconds": 600}
    clock.now = 111  # 61 after the last sign of life
    assert speaker.json("/undo").status_code == 410


def test_a_full_server_says_when_to_try_again() -> None:
    clock = Clock()
    speaker = _speaker(max_sessions=1, clock=clock)
    full = speaker.http.post("/claim")
    _refused(full, 503, "connected already")
    assert int(full.headers["retry-after"]) > 0
    assert speaker.json("/release").json() == {"released": True}
    assert speaker.json("/release").json() == {"released": False}
    assert speaker.http.post("/claim").status_code == 200
    clock.now = 61
    assert speaker.http.post("/claim").status_code == 200  # the silent one's place


def test_an_answer_that_takes_long_does_not_cost_the_lease() -> None:
    clock = Clock()

    def minutes_pass() -> None:
        clock.now += 120

    speaker = _speaker(_opener(WatchedRuntime(meanwhile=minutes_pass)), clock=clock)
    speaker.begin()
    assert speaker.point(6, 30, 34).status_code == 200
    assert speaker.point(6, 30, 10).status_code == 200


def test_images_of_those_who_are_gone_are_let_go() -> None:
    clock, opener = Clock(), Opener()
    clients = Clients(lambda: Work(opener), most=2, most_bytes=2**20, clock=clock)
    for token in (clients.claim(), clients.claim()):
        with clients.at_work(token) as work, work.lock:
            work.set_image(IMAGE, {})
            work.point((6, 30, 34), include=True, run=True)
        del work
    images = [weakref.ref(opened) for opened in opener.opened]
    opener.opened.clear()
    clock.now = 61
    assert clients.sweep() == 0
    gc.collect()
    assert [image() for image in images] == [None, None]


def test_images_together_take_no_more_than_there_is() -> None:
    speaker = _speaker(limits=Limits(most_bytes=IMAGE.nbytes * 3 // 2))
    other = Speaker(speaker.http)
    speaker.begin()
    answer = other.packed("/set_image", IMAGE)
    _refused(answer, 503, "memory")
    assert int(answer.headers["retry-after"]) > 0
    speaker.begin()  # in place of its own
    speaker.json("/release")
    other.begin()


def test_a_lease_counts_no_image_that_was_refused() -> None:
    clients = Clients(lambda: Work(Opener()), most=2, most_bytes=10)
    first, second = clients.claim(), clients.claim()
    clients.reserve(first, 6)
    with pytest.raises(Full):
        clients.reserve(second, 5)
    clients.reserve(first, 0)
    clients.reserve(second, 5)


def test_work_stops_when_nobody_waits_for_it() -> None:
    runtime = WatchedRuntime()
    work = Work(_opener(runtime))
    work.set_image(IMAGE, {})
    runtime.meanwhile = lambda: work.stop() if runtime.decodes == 2 else None
    with work.lock, pytest.raises(Gone):
        work.point((6, 30, 34), include=True, run=True)
    assert runtime.decodes == 3  # of nine slices


def test_heartbeats_are_answered_while_the_model_works() -> None:
    working, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        working.set()
        assert go_on.wait(20)

    with served(app_on(_opener(WatchedRuntime(meanwhile=wait)))) as address, httpx.Client(base_url=address) as http:
        headers = {"X-Lease-Token": http.post("/claim").json()["lease_token"]}
        http.post("/set_image", content=pack(IMAGE), headers=headers).raise_for_status()
        body = {"coordinates": [6, 30, 34], "include_interaction": True}
        answers: list[int] = []
        thread = threading.Thread(
            target=lambda: answers.append(
                httpx.post(f"{address}/add_point_interaction", json=body, headers=headers, timeout=30).status_code
            )
        )
        thread.start()
        assert working.wait(20)
        assert http.post("/heartbeat", headers=headers).status_code == 200
        assert http.post("/claim").status_code == 200
        go_on.set()
        thread.join()
        assert answers == [200]


# What is refused.


def test_nothing_is_prompted_without_an_image() -> None:
    speaker = _speaker()
    for answer in (
        speaker.point(1, 1, 1),
        speaker.box((0, 1), (0, 2), (0, 2)),
        speaker.json("/undo"),
        speaker.json("/predict", force_full_refine=True),
        speaker.json("/set_target_buffer", shape=[1, 2, 3], dtype="uint8"),
        speaker.packed("/add_scribble_interaction", BODY, include_interaction=True),
        speaker.packed("/add_initial_seg_interaction", BODY),
    ):
        _refused(answer, 409, "no image yet")
    assert speaker.json("/reset_interactions").status_code == 200


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (IMAGE[0], "shape"),
        (np.repeat(IMAGE, 2, axis=0), "three for colours"),
        (np.zeros((1, 4, 4, 4), np.float32), "constant"),
        (np.full((1, 4, 4, 4), np.nan, np.float32), "NaN"),
        (np.zeros((1, 0, 4, 4), np.uint8), "no pixels"),
        (b"", "NNIA"),
        (pack(IMAGE)[:-1], "are left"),
    ],
)
def test_images_that_show_nothing_are_refused(image: np.ndarray | bytes, said: str) -> None:
    speaker = _speaker()
    speaker.begin()
    _refused(speaker.packed("/set_image", image), 422, said)
    _refused(speaker.point(6, 30, 34), 409, "no image yet")  # nor does the one before answer for it
    speaker.begin()


@pytest.mark.parametrize("spacing", [[0, 1, 1], [1, 1, -1], "three", [1, float("inf"), 1], [[1], 2, 3], 7])
def test_lengths_that_are_none_are_refused(spacing: object) -> None:
    answer = _speaker().packed("/set_image", IMAGE, image_properties={"spacing": spacing})
    _refused(answer, 422, "spacing")


def test_large_things_are_refused_before_they_are_made() -> None:
    speaker = _speaker(limits=Limits(most_bytes=10 * IMAGE.nbytes))
    zeros = pack(np.zeros((1, 12, 64, 64 * 11), np.uint8))
    assert len(zeros) < 200
    _refused(speaker.packed("/set_image", zeros), 413, "are the most")
    speaker.begin()
    _refused(speaker.json("/set_target_buffer", shape=[2**40, 2**40, 2], dtype="uint8"), 413, "are the most")
    _refused(speaker.packed("/add_lasso_interaction", zeros, include_interaction=True), 422, "shape")


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ([12, 64], "uint8"),
        ([64, 64, 12], "uint8"),
        ([0, 64, 64], "uint8"),
        ([12, 64, 64], "object"),
        ([12, 64, 64], "complex64"),
        ("no", "uint8"),
    ],
)
def test_a_target_that_does_not_fit_is_refused(shape: object, dtype: str) -> None:
    speaker = _speaker()
    speaker.begin()
    assert speaker.json("/set_target_buffer", shape=shape, dtype=dtype).status_code == 422


@pytest.mark.parametrize(
    "at", [(12, 0, 0), (0, -1, 0), (0, 0, 64), (float("nan"), 0, 0), (1, 1), (1e300, 1, 1), (0, 0, 0, 0)]
)
def test_points_outside_are_refused(at: tuple[float, ...]) -> None:
    speaker = _speaker()
    speaker.begin()
    assert speaker.point(*at).status_code == 422


@pytest.mark.parametrize(
    "bounds",
    [
        ((6, 6), (0, 9), (0, 9)),
        ((6, 5), (0, 9), (0, 9)),
        ((12, 13), (0, 9), (0, 9)),
        ((6, 7), (-5, 0), (0, 9)),
        ((6, 7), (0, 9)),
        ((6, 7, 8), (0, 9), (0, 9)),
        ((6, 7), (0, float("inf")), (0, 9)),
    ],
)
def test_boxes_that_hold_nothing_are_refused(bounds: tuple[Any, ...]) -> None:
    speaker = _speaker()
    speaker.begin()
    assert speaker.box(*bounds).status_code == 422


@pytest.mark.parametrize("path", ["/add_scribble_interaction", "/add_lasso_interaction"])
def test_drawings_that_make_no_sense_are_refused(path: str) -> None:
    speaker = _speaker()
    speaker.begin()
    drawn = BODY[:1, :2, :3]
    for array, meta, said in (
        (np.zeros(SHAPE, np.uint8), {"include_interaction": True}, "nothing is drawn"),
        (np.full(SHAPE, -1, np.int8), {"include_interaction": True}, "nothing is drawn"),
        (drawn, {"include_interaction": True}, "shape"),
        (drawn, {"include_interaction": True, "interaction_bbox": [[0, 1], [0, 2], [0, 2]]}, "shape"),
        (drawn, {"include_interaction": True, "interaction_bbox": [[12, 13], [0, 2], [0, 3]]}, "leaves the image"),
        (drawn, {"include_interaction": True, "interaction_bbox": [[0, 1], [-1, 1], [0, 3]]}, "leaves the image"),
        (drawn, {"include_interaction": True, "interaction_bbox": [0, 1]}, "X-Meta"),
        (BODY, {}, "include_interaction"),
        (b"NNIA", {"include_interaction": True}, "NNIA"),
    ):
        _refused(speaker.packed(path, array, **meta), 422, said)
    for text in ("{", "[]", '"x"', "null"):
        answer = speaker.http.post(path, content=pack(BODY), headers={**speaker.headers, "X-Meta": text})
        _refused(answer, 422, "X-Meta")
    assert _meta(speaker.json("/undo")) == {"ran_prediction": False, "bbox": None}


def test_what_was_refused_changes_nothing() -> None:
    only_boxes = FakeRuntime(prompts=PromptSupport(trained=("box",)))
    speaker = _speaker(_opener(only_boxes))
    speaker.begin()
    speaker.box((6, 7), (24, 38), (28, 42))
    _refused(speaker.point(6, 30, 10), 422, "does not take a points prompt")
    undone = speaker.json("/undo")
    assert _meta(undone)["bbox"] == [[2, 11], [25, 36], [29, 40]]


def test_the_server_says_what_its_model_takes() -> None:
    http = TestClient(app_on(Opener(), support=PromptSupport(trained=("box",))))
    told = http.get("/capabilities").json()
    assert told["supported_interactions"] == {
        "points": False,
        "bbox2d": True,
        "bbox3d": True,
        "scribble": False,
        "lasso": True,
    }
    assert told["license"] == "!!MISSING!!"
    assert told["do_autozoom"] is False
    assert "without effect" in told["palpate"]["set_do_autozoom"]


def test_an_answer_holds_only_what_changed() -> None:
    speaker = _speaker()
    speaker.begin()
    assert speaker.json("/set_target_buffer", shape=SHAPE, dtype="int16").status_code == 200
    answer = speaker.box((6, 7), (24, 38), (28, 42))
    meta = _meta(answer)
    assert meta == {
        "ran_prediction": True,
        "bbox": [[2, 11], [25, 36], [29, 40]],
        "dtype": "int16",
        "shape": [9, 11, 11],
    }
    assert answer.headers["content-type"] == "application/octet-stream"
    assert (unpack(answer.content, most_bytes=10**6) == 1).all()
    # This model was not trained with points, and says so.
    assert "points" in _meta(speaker.point(6, 30, 34))["notes"][0]
    again = speaker.box((6, 7), (24, 38), (28, 42))
    assert _meta(again)["bbox"] is None
    assert again.content == b""


# What a prompt does. These ask the work itself.


def _work(image: np.ndarray = IMAGE, runtime: FakeRuntime | None = None, **properties: Any) -> Work:
    work = Work(_opener(runtime or FakeRuntime()))
    work.set_image(image, properties)
    return work


class Buffer:
    """What a client has in its buffer: it knows the changes only."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.mask = np.zeros(work.shape, dtype=bool)

    def take(self, change: Any) -> bool:
        if change.bounds is not None:
            self.mask[tuple(slice(*pair) for pair in change.bounds)] = change.values
        return change.ran


def _drawn(*voxels: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros(SHAPE, dtype=bool)
    for voxel in voxels:
        mask[voxel] = True
    return mask


def test_slices_between_two_prompts_follow_the_nearest() -> None:
    """A box around one body on slice 4, and around another on slice 8: 5 and 6 show the one, 7 the other."""
    work = _work()
    buffer = Buffer(work)
    buffer.take(work.box([[4, 5], [24, 38], [28, 42]], include=True, run=True))
    buffer.take(work.box([[8, 9], [24, 38], [2, 20]], include=True, run=True))
    wanted = BODY.copy()
    wanted[7:] = OTHER[7:]
    np.testing.assert_array_equal(buffer.mask, wanted)


def test_a_slice_that_was_reached_is_corrected_with_its_box() -> None:
    runtime = FakeRuntime()
    work = _work(grey(BODY), runtime)
    work.box([[3, 4], [24, 38], [28, 42]], include=True, run=True)
    runtime.batches.clear()
    work.point((8, 30, 34), include=True, run=True)
    asked = runtime.batches[0]
    assert asked.boxes is not None
    assert asked.points is not None
    np.testing.assert_array_equal(asked.boxes[0], [29, 25, 39, 35])
    np.testing.assert_array_equal(asked.points[0], [[34, 30]])


def test_a_point_beside_waits_for_something_to_take_away() -> None:
    runtime = FakeRuntime()
    work = _work(runtime=runtime)
    change = work.point((6, 30, 10), include=False, run=True)
    assert (change.ran, change.bounds, runtime.decodes) == (True, None, 0)
    buffer = Buffer(work)
    buffer.take(work.box([[6, 7], [20, 41], [2, 50]], include=True, run=True))
    assert not buffer.mask[6].any()  # this model keeps nothing if no point is on it ...
    buffer.take(work.point((6, 30, 34), include=True, run=True))
    np.testing.assert_array_equal(buffer.mask, BODY)  # ... and without the other body, once there is one


def test_points_of_any_view_count_on_the_object_s_own_slices() -> None:
    runtime = FakeRuntime()
    work = _work(runtime=runtime)
    work.box([[6, 7], [24, 38], [28, 42]], include=True, run=True)
    before = Buffer(work)
    # A stroke on a sagittal slice, over both ends of the body: no session along that axis is needed.
    encodes = runtime.encodes
    work.scribble(_drawn(*((z, 30, 34) for z in range(2, 11))), None, include=True, run=True)
    assert runtime.encodes == encodes
    assert not before.mask.any()
    buffer = Buffer(work)
    work.set_target(np.dtype(np.uint8))
    buffer.take(work.point((6, 30, 34), include=True, run=True))
    np.testing.assert_array_equal(buffer.mask, BODY)


def test_a_box_of_another_plane_changes_its_own_slice_only() -> None:
    work = _work()
    buffer = Buffer(work)
    buffer.take(work.box([[6, 7], [24, 38], [28, 42]], include=True, run=True))
    change = work.box([[0, 12], [0, 64], [10, 11]], include=True, run=True)
    assert change.bounds == ((3, 10), (26, 35), (10, 11))


@pytest.mark.parametrize(
    ("shape", "spacing", "axis"),
    [
        ((12, 64, 64), None, 0),
        ((64, 12, 64), None, 1),
        ((64, 64, 12), None, 2),
        ((64, 64, 64), None, 0),
        ((20, 30, 40), None, 0),
        ((20, 30, 40), (1, 1, 3), 2),
        ((20, 30, 40), (1, 5, 1), 1),
        ((64, 64, 12), (3, 1, 1), 0),
        ((64, 64, 12), (1, 1, 1), 2),
        ((30, 1, 40), (3, 1, 1), 1),
        ((1, 30, 40), (2, 3), 0),
    ],
)
def test_slices_lie_along_the_axis_of_acquisition(
    shape: tuple[int, int, int], spacing: tuple[float, ...] | None, axis: int
) -> None:
    image = np.zeros((1, *shape), dtype=np.int16)
    image[(0, *(extent // 2 for extent in shape))] = 9
    opener = Opener()
    work = Work(opener)
    work.set_image(image, {} if spacing is None else {"spacing": spacing})
    work.point(tuple(extent // 2 for extent in shape), include=True, run=True)
    assert [along for along, *_ in opener.opened[0]._sessions] == [axis]  # pyright: ignore[reportPrivateUsage]


def test_values_of_ct_are_shown_in_its_window() -> None:
    hounsfield = np.where(BODY, np.int16(60), np.int16(-1000))[None]
    hounsfield[0, 0, 0, 0] = 3000  # metal: stretched from end to end, the body would be as dark as the air
    work = _work(hounsfield)
    buffer = Buffer(work)
    buffer.take(work.box([[6, 7], [24, 38], [28, 42]], include=True, run=True))
    np.testing.assert_array_equal(buffer.mask, BODY)


def test_a_prompt_is_carried_as_far_as_its_time_allows_and_the_next_goes_on() -> None:
    clock = Clock()
    runtime = WatchedRuntime(looking=lambda: setattr(clock, "now", clock.now + 1))
    work = Work(_opener(runtime), seconds=8.5, clock=clock)
    tall = block((40, 64, 64), (1, 39), (25, 36), (29, 40))
    image = grey(tall).clip(1)
    image[0, range(40), 0, range(40)] = 99  # or all slices would be one, and be looked at once
    work.set_image(image, {})
    buffer = Buffer(work)
    change = work.box([[20, 21], [24, 38], [28, 42]], include=True, run=True)
    buffer.take(change)
    reached = np.flatnonzero(buffer.mask.any(axis=(1, 2)))
    assert reached[0] < 20 < reached[-1]  # to both sides
    assert len(reached) < 14
    assert any("prompt again" in note for note in change.notes)
    for _ in range(40):
        if buffer.mask[38].any():
            break
        last = int(np.flatnonzero(buffer.mask.any(axis=(1, 2)))[-1])
        buffer.take(work.point((last, 30, 34), include=True, run=True))
    np.testing.assert_array_equal(buffer.mask[20:], tall[20:])


any_action = st.one_of(
    st.tuples(st.just("point"), st.tuples(st.integers(0, 7), st.integers(0, 15), st.integers(0, 15)), st.booleans()),
    st.tuples(
        st.just("box"),
        st.tuples(*(st.tuples(st.integers(0, last), st.integers(1, 16)) for last in (7, 15, 15))),
        st.booleans(),
    ),
    st.tuples(
        st.sampled_from(["scribble", "lasso", "initial"]),
        st.lists(st.tuples(st.integers(0, 7), st.integers(0, 15), st.integers(0, 15)), min_size=1, max_size=4),
        st.booleans(),
    ),
)


def _act(work: Work, action: tuple[Any, ...], *, run: bool) -> Any:
    kind, where, include = action
    if kind == "point":
        return work.point(where, include=include, run=run)
    if kind == "box":
        bounds = [(first, min(first + extent, end)) for (first, extent), end in zip(where, work.shape, strict=True)]
        return work.box(bounds, include=include, run=run)
    drawn = np.zeros(work.shape, dtype=bool)
    for voxel in where:
        drawn[voxel] = True
    if kind == "initial":
        return work.initial(drawn, run=run)
    return getattr(work, kind)(drawn, None, include=include, run=run)


@settings(max_examples=25)
@given(st.lists(st.tuples(any_action, st.booleans()), min_size=1, max_size=6))
def test_undo_is_exact_whatever_was_done(actions: list[tuple[tuple[Any, ...], bool]]) -> None:
    image = np.zeros((1, 8, 16, 16), dtype=np.uint8)
    image[0, 2:6, 3:9, 4:12] = image[0, 1:7, 11:14, 2:6] = 255
    work = _work(image)
    buffer, seen = Buffer(work), []
    for action, run in actions:
        seen.append((buffer.mask.copy(), work._sketch))  # pyright: ignore[reportPrivateUsage]
        if action[0] == "initial":  # clients put it into their buffer themselves
            buffer.mask[...] = False
            for voxel in action[1]:
                buffer.mask[voxel] = True
        buffer.take(_act(work, action, run=run))
        np.testing.assert_array_equal(buffer.mask, work._mask)  # pyright: ignore[reportPrivateUsage]
    for mask, sketch in reversed(seen):
        assert buffer.take(work.undo())
        np.testing.assert_array_equal(buffer.mask, mask)
        assert work._sketch is sketch  # pyright: ignore[reportPrivateUsage]
    assert not buffer.take(work.undo())
