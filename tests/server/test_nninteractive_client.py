"""The real nninteractive-client drives palpate over a real connection."""

import gc
import threading
from collections.abc import Generator

import numpy as np
import pytest
from nnInteractive.inference.remote import (
    ServerAtCapacityError,
    SessionExpiredError,
    nnInteractiveRemoteInferenceSession,
)

from nninteractive_server import Clock, Opener, app_on, ball, block, grey, served

Client = nnInteractiveRemoteInferenceSession

SHAPE = (12, 64, 64)
BODY = block(SHAPE, (2, 11), (25, 36), (29, 40))
TWO = BODY | block(SHAPE, (3, 10), (26, 35), (6, 15))


@pytest.fixture(scope="module")
def address() -> Generator[str]:
    with served(app_on(Opener(), model="fake", licence="MIT")) as address:
        yield address


@pytest.fixture
def client(address: str) -> Generator[Client]:
    with Client(address) as client:
        yield client


def _began(client: Client, body: np.ndarray, dtype: str = "uint8", spacing: tuple[float, ...] | None = None) -> None:
    client.set_image(grey(body), None if spacing is None else {"spacing": np.array(spacing)})
    client.set_target_buffer(np.zeros(body.shape, dtype=dtype))


def _drawn(client: Client) -> np.ndarray:
    assert isinstance(client.target_buffer, np.ndarray)
    return client.target_buffer != 0


def _predicted(client: Client) -> list[list[int]] | None:
    return client._predict()  # pyright: ignore[reportPrivateUsage] - what its users call it by


def _mask(shape: tuple[int, ...], *voxels: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, dtype=np.uint8)
    for voxel in voxels:
        mask[voxel] = 1
    return mask


def test_the_client_learns_what_the_server_can(client: Client) -> None:
    assert client.ping()
    assert client.supported_interactions == {
        "points": True,
        "bbox2d": True,
        "bbox3d": True,
        "scribble": True,
        "lasso": True,
    }
    assert (client.supports_undo, client.supports_initial_label, client.do_autozoom) == (True, True, False)
    assert client.license == "MIT"
    assert len(client.preferred_scribble_thickness) == 3
    assert 599 < client.heartbeat() <= 600
    assert client.lease_status()["idle_timeout_seconds"] == 600


@pytest.mark.parametrize("dtype", ["uint8", "bool", "int16", "float32"])
def test_a_box_on_one_slice_gives_the_whole_body(client: Client, dtype: str) -> None:
    _began(client, TWO, dtype)
    changed = client.add_bbox_interaction([[6, 7], [24, 37], [28, 41]], include_interaction=True)
    np.testing.assert_array_equal(_drawn(client), BODY)
    # Only what changed came: the body's own bounds.
    assert changed == [[2, 11], [25, 36], [29, 40]]
    assert client.original_image_shape == (1, *SHAPE)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_box_lies_on_the_plane_it_was_drawn_on(client: Client, axis: int) -> None:
    body = block((40, 42, 44), (15, 27), (16, 28), (17, 29))
    _began(client, body)
    box = [[12, 29], [13, 30], [14, 31]]
    box[axis] = [20 + axis, 21 + axis]
    client.add_bbox_interaction(box, include_interaction=True)
    np.testing.assert_array_equal(_drawn(client), body)


def test_a_body_is_carried_along_the_axis_of_the_thick_slices(client: Client) -> None:
    """Two rods, one along x and one along z: a point tells which slices a prompt is carried through."""
    shape = (20, 24, 28)
    rods = np.zeros(shape, dtype=bool)
    rods[10, 8:12, 2:26] = True
    _began(client, rods, spacing=(1.0, 1.0, 3.0))
    client.add_point_interaction([10, 9, 14], include_interaction=True)
    # Along the last axis: each slice shows a short piece, and all of them together the rod.
    np.testing.assert_array_equal(_drawn(client), rods)


def test_a_box_of_some_thickness_is_not_left(client: Client) -> None:
    _began(client, BODY)
    client.add_bbox_interaction([[4, 8], [24, 37], [28, 41]], include_interaction=True)
    wanted = BODY.copy()
    wanted[:4] = wanted[8:] = False
    np.testing.assert_array_equal(_drawn(client), wanted)


def test_points_scribbles_and_lassos_find_the_body(client: Client) -> None:
    _began(client, TWO)
    client.add_point_interaction((6, 30, 34), include_interaction=True)
    np.testing.assert_array_equal(_drawn(client), BODY)

    client.reset_interactions()
    assert not _drawn(client).any()
    stroke = _mask(SHAPE, *((6, 30, x) for x in range(31, 38)))
    client.add_scribble_interaction(stroke, include_interaction=True)
    np.testing.assert_array_equal(_drawn(client), BODY)

    client.reset_interactions()
    ring = np.zeros(SHAPE, dtype=np.uint8)
    ring[6, 24:37, 28:41] = 1
    ring[6, 25:36, 29:40] = 0
    client.add_lasso_interaction(ring, include_interaction=True)
    np.testing.assert_array_equal(_drawn(client), BODY)


def test_a_cropped_stroke_is_the_same_as_a_whole_one(client: Client) -> None:
    _began(client, TWO)
    crop = np.ones((1, 1, 7), dtype=np.float16)
    client.add_scribble_interaction(crop, include_interaction=True, interaction_bbox=[[6, 7], [30, 31], [31, 38]])
    np.testing.assert_array_equal(_drawn(client), BODY)


def test_what_is_beside_is_cut_away_and_undo_brings_it_back_exactly(client: Client) -> None:
    _began(client, TWO)
    seen = [_drawn(client).copy()]
    for act in (
        lambda: client.add_bbox_interaction([[6, 7], [20, 41], [2, 41]], include_interaction=True),
        lambda: client.add_bbox_interaction([[0, 12], [0, 64], [0, 20]], include_interaction=False),
        lambda: client.add_scribble_interaction(_mask(SHAPE, (6, 30, 34), (6, 30, 35)), include_interaction=False),
        lambda: client.add_lasso_interaction(_mask(SHAPE, (3, 30, 34)), include_interaction=False),
        lambda: client.add_point_interaction((3, 30, 34), include_interaction=True),
    ):
        act()
        seen.append(_drawn(client).copy())
    np.testing.assert_array_equal(seen[1], TWO)
    np.testing.assert_array_equal(seen[2], BODY)
    assert not seen[3][6, 30, 34]
    assert not seen[4][3, 30, 34]
    assert seen[5][3, 30, 34]  # the last word counts
    for mask in reversed(seen[:-1]):
        assert client.undo()
        np.testing.assert_array_equal(_drawn(client), mask)
    assert not client.undo()
    np.testing.assert_array_equal(_drawn(client), seen[0])


def test_prompts_wait_until_they_are_asked_for(client: Client) -> None:
    _began(client, TWO)
    client.add_point_interaction((6, 30, 10), include_interaction=True, run_prediction=False)
    client.add_point_interaction((6, 30, 34), include_interaction=True, run_prediction=False)
    assert not _drawn(client).any()
    assert _predicted(client) is not None
    np.testing.assert_array_equal(_drawn(client), TWO)
    assert _predicted(client) is None  # nothing is left to do
    assert client.undo()
    assert not _drawn(client).any()
    assert client.undo()  # the second point
    _predicted(client)
    np.testing.assert_array_equal(_drawn(client), TWO & ~BODY)


def test_an_object_that_is_there_already_is_corrected(client: Client) -> None:
    _began(client, BODY)
    seed = BODY.copy()
    seed[:, :, 34:] = False
    client.add_initial_seg_interaction(seed.astype(np.uint8))
    np.testing.assert_array_equal(_drawn(client), seed)
    client.add_bbox_interaction([[6, 7], [24, 37], [28, 41]], include_interaction=True)
    np.testing.assert_array_equal(_drawn(client), BODY)
    client.undo()
    np.testing.assert_array_equal(_drawn(client), seed)


def test_an_object_that_is_there_already_is_looked_at(client: Client) -> None:
    _began(client, BODY)
    rough = block(SHAPE, (2, 11), (23, 37), (28, 41))
    client.add_initial_seg_interaction(rough.astype(np.uint8), run_prediction=True)
    np.testing.assert_array_equal(_drawn(client), BODY)


def test_a_new_buffer_gets_all_that_is_drawn(client: Client) -> None:
    _began(client, TWO)
    client.add_point_interaction((6, 30, 10), include_interaction=True)
    client.set_target_buffer(np.zeros(SHAPE, dtype=np.uint16))
    client.add_point_interaction((6, 30, 34), include_interaction=True)
    np.testing.assert_array_equal(_drawn(client), TWO)


def test_colours_and_pictures_are_taken(client: Client) -> None:
    picture = grey(BODY[6:7])  # as napari sends a picture
    client.set_image(picture)
    client.set_target_buffer(np.zeros((1, 64, 64), dtype=np.uint8))
    client.add_bbox_interaction([[0, 1], [20, 40], [20, 50]], include_interaction=True)
    np.testing.assert_array_equal(_drawn(client), BODY[6:7])

    client.set_image(np.repeat(grey(BODY), 3, axis=0))
    client.set_target_buffer(np.zeros(SHAPE, dtype=np.uint8))
    client.add_point_interaction((6, 30, 34), include_interaction=True)
    np.testing.assert_array_equal(_drawn(client), BODY)


@pytest.mark.parametrize("dtype", ["bool", "int16", "uint16", "float16", "float32", "float64", "int64"])
def test_images_of_any_type_are_taken(client: Client, dtype: str) -> None:
    client.set_image(BODY[None].astype(dtype) if dtype == "bool" else (BODY[None] * 100).astype(dtype))
    client.set_target_buffer(np.zeros(SHAPE, dtype=np.uint8))
    client.add_point_interaction((6, 30, 34), include_interaction=True)
    np.testing.assert_array_equal(_drawn(client), BODY)


def test_autozoom_is_taken_without_effect(client: Client) -> None:
    client.set_do_autozoom(True)


def test_sixteen_clients_do_not_hear_each_other() -> None:
    with served(app_on(Opener(), max_sessions=16)) as address:
        problems: list[str] = []

        def work(number: int) -> None:
            y, x = 8 + 2 * number, 48 - 2 * number
            place, body = (6, y, x), block(SHAPE, (2, 11), (y - 4, y + 5), (x - 4, x + 5))
            try:
                with Client(address) as client:
                    for turn in range(3):
                        _began(client, body)
                        client.add_point_interaction(place, include_interaction=True)
                        if not np.array_equal(_drawn(client), body):
                            problems.append(f"client {number} got another's mask in turn {turn}")
                        client.undo()
                        if _drawn(client).any():
                            problems.append(f"client {number} could not undo in turn {turn}")
            except Exception as error:  # noqa: BLE001 - a thread's error would be lost
                problems.append(f"client {number}: {error!r}")

        threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert problems == []


def _refused(address: str) -> None:
    with pytest.raises(ServerAtCapacityError, match="connected already"):
        Client(address)


@pytest.mark.usefixtures("sockets_let_go")
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # the client leaves its socket open when it is refused
def test_a_full_server_and_a_lost_lease_are_told_as_the_client_knows_them() -> None:
    clock = Clock()
    with served(app_on(Opener(), max_sessions=1, clock=clock)) as address:
        first = Client(address)
        _refused(address)
        first.close()
        second = Client(address)
        clock.now += 61
        with pytest.raises(SessionExpiredError, match="Initialize"):
            second.set_image(grey(BODY))
        Client(address).close()  # its place is free
        second.close()
        gc.collect()


@pytest.mark.weights
@pytest.mark.usefixtures("weights")
def test_lite_medsam_finds_a_bright_ball_from_one_box() -> None:
    import palpate
    from palpate.server.nninteractive import Limits

    rng = np.random.default_rng(0)
    # A ball of 20 mm on slices of 2 mm.
    shape = (15, 96, 96)
    body = ball((29, 96, 96), (14, 50, 44), 10)[::2]
    image = rng.normal(60, 12, shape) + 110 * body
    session = palpate.load("lite-medsam", threads=1)
    with (
        served(
            app_on(Opener(session.sibling), support=session.runtime.prompts, limits=Limits(seconds=120.0))
        ) as address,
        Client(address, read_timeout=300) as client,
    ):
        client.set_image(image.astype(np.float32)[None], {"spacing": [2.0, 1.0, 1.0]})
        client.set_target_buffer(np.zeros(shape, dtype=np.uint8))
        client.add_bbox_interaction([[6, 9], [39, 62], [33, 56]], include_interaction=True)
        found = _drawn(client)
    assert np.flatnonzero(found.any(axis=(1, 2))).tolist() == [6, 7, 8]
    body = body & found.any(axis=(1, 2), keepdims=True)
    dice = 2 * (found & body).sum() / (found.sum() + body.sum())
    assert dice > 0.8
