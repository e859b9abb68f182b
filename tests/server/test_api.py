"""/api/v1 as a page uses it: everything by voxels of the RAS grid, and what is shown is what is kept."""

import threading
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image as Picture

from desks import OBLIQUE, Office, Window, box_around, brick, unpacked
from fake_runtime import FakeRuntime
from palpate.images import read
from palpate.metrics import dice


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    brick(folder / "brick.nii.gz")
    canvas = np.zeros((40, 60, 3), dtype=np.uint8)
    canvas[8:20, 30:50] = 250
    Picture.fromarray(canvas).save(folder / "spot.png")
    return folder


@pytest.fixture
def office(folder: Path):
    office = Office(folder)
    yield office
    office.closed()


def in_ras(office: Office, case: str) -> np.ndarray:
    """The bright part of a case's image, of the file that the page gets."""
    answer = office.client.get(f"/api/v1/cases/{case}/image.nii")
    image = nibabel.Nifti1Image.from_bytes(answer.content)  # type: ignore[attr-defined]
    assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")  # type: ignore[attr-defined]
    values = np.asarray(image.dataobj)
    return (values["R"] if values.dtype.names else values) > 100


def drawn(office: Office) -> tuple[Window, np.ndarray]:
    """The brick, drawn by its box on the middle slice and carried through."""
    bright = in_ras(office, "brick.nii.gz")
    window = office.open("brick.nii.gz")
    window.do("prompts", prompt=box_around(bright, window.plane))
    axis = {"sagittal": 0, "coronal": 1, "axial": 2}[window.plane]
    ends = np.flatnonzero(bright.any(axis=tuple(a for a in range(3) if a != axis)))
    window.carry(int(ends[0]), int(ends[-1]))
    return window, bright


class TestList:
    def test_files_of_the_folder_are_cases(self, office: Office) -> None:
        cases = office.client.get("/api/v1/cases").json()["cases"]
        assert [(case["id"], case["kind"], case["status"]) for case in cases] == [
            ("brick.nii.gz", "volume", "untouched"),
            ("spot.png", "picture", "untouched"),
        ]

    def test_a_damaged_file_is_told_and_does_not_stop_the_others(self, office: Office, folder: Path) -> None:
        (folder / "cut.nii.gz").write_bytes((folder / "brick.nii.gz").read_bytes()[:200])
        cases = office.client.get("/api/v1/cases?rescan=true").json()["cases"]
        assert len(cases) == 3
        answer = office.client.post("/api/v1/cases/cut.nii.gz/open", json={})
        assert answer.status_code == 422
        damaged = next(c for c in office.client.get("/api/v1/cases").json()["cases"] if c["id"] == "cut.nii.gz")
        assert damaged["status"] == "damaged"
        assert damaged["note"] == answer.json()["detail"]
        assert not office.desk.leases.held()

    def test_names_that_no_address_could_hold_get_ids_that_differ(self, folder: Path) -> None:
        (folder / "spot.png").rename(folder / "a b.png")
        brick(folder / "a_b.png.nii.gz")
        Picture.fromarray(np.zeros((5, 5), np.uint8)).save(folder / "a?b.png")
        office = Office(folder)
        cases = office.client.get("/api/v1/cases").json()["cases"]
        assert len({case["id"] for case in cases}) == 4
        assert {case["name"] for case in cases} == {"a b.png", "a?b.png", "a_b.png.nii.gz", "brick.nii.gz"}
        for case in cases:
            assert office.client.post(f"/api/v1/cases/{case['id']}/open", json={}).status_code == 200
        office.closed()

    def test_the_least_certain_come_first(self, office: Office) -> None:
        labels = np.ones(office.desk.image("spot.png").shape, dtype=np.uint8)
        office.desk.put_labels("spot.png", labels, {1: "object"}, "guess", score=0.9)
        cases = office.client.get("/api/v1/cases?order=agreement").json()["cases"]
        assert [(case["id"], case["agreement"]) for case in cases] == [("spot.png", 0.9), ("brick.nii.gz", None)]


class TestDrawing:
    def test_a_box_fills_its_slice_and_carrying_the_others(self, office: Office) -> None:
        window, bright = drawn(office)
        np.testing.assert_array_equal(window.shown == 255, bright)
        assert window.state["draft"]["voxels"] == bright.sum()
        voxel_ml = abs(np.linalg.det(OBLIQUE[:3, :3])) / 1000
        assert window.state["draft"]["volume_ml"] == pytest.approx(bright.sum() * voxel_ml, abs=1e-3)

    @pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
    def test_every_plane_can_be_drawn_on(self, office: Office, plane: str) -> None:
        bright = in_ras(office, "brick.nii.gz")
        window = office.open("brick.nii.gz")
        box = box_around(bright, plane)
        window.do("prompts", prompt=box)
        slab = tuple(slice(low, high + 1) for low, high in zip(box["from"], box["to"], strict=True))
        expected = np.zeros_like(bright)
        expected[slab] = bright[slab]
        assert not (window.shown == 255)[~expected].any()
        assert dice(window.shown == 255, expected) > 0.9  # a slice that is no square is resampled for the model
        assert window.state["draft"]["prompts"] == [box]

    def test_clicks_and_scribbles_refine(self, office: Office) -> None:
        bright = in_ras(office, "spot.png")
        window = office.open("spot.png")
        assert window.plane == "axial"
        i, j, k = np.argwhere(bright)[0].tolist()
        window.do("prompts", prompt={"kind": "point", "plane": "axial", "at": [i, j, k]})
        assert (window.shown == 255).any()
        window.do("prompts", prompt={"kind": "point", "plane": "axial", "at": [i + 3, j + 3, k], "positive": False})
        assert not (window.shown == 255).any()  # the piece with both is dropped
        assert window.state["draft"]["prompts"][1]["positive"] is False
        window.do("undo")
        assert (window.shown == 255).any()

    def test_a_scribble_is_answered(self, office: Office) -> None:
        bright = in_ras(office, "spot.png")
        window = office.open("spot.png")
        places = np.argwhere(bright)
        path = places[:: len(places) // 7][:6].tolist()
        window.do("prompts", prompt={"kind": "scribble", "plane": "axial", "path": path})
        assert window.state["draft"]["prompts"][0]["kind"] == "scribble"

    def test_a_preview_shows_and_keeps_nothing(self, office: Office) -> None:
        bright = in_ras(office, "brick.nii.gz")
        window = office.open("brick.nii.gz")
        answer = window.post("preview", prompt=box_around(bright, window.plane))
        _, values = unpacked(answer.json()["patch"])
        assert (values == 255).sum() == bright.sum() / 10
        assert window.catch_up()["draft"] is None
        assert office.client.get("/api/v1/about").json()["preview_ms"] > 0

    def test_a_slice_that_was_looked_at_ahead_is_not_encoded_again(self, office: Office) -> None:
        bright = in_ras(office, "brick.nii.gz")
        window = office.open("brick.nii.gz")
        box = box_around(bright, window.plane)
        axis = {"sagittal": 0, "coronal": 1, "axial": 2}[window.plane]
        assert window.post("encode", plane=window.plane, slice=box["from"][axis]).status_code == 204
        encoded = office.session.runtime.encodes
        assert encoded == 1
        window.do("prompts", prompt=box)
        assert office.session.runtime.encodes == encoded
        assert window.post("encode", plane=window.plane, slice=500).status_code == 422

    def test_brush_and_eraser_change_the_object(self, office: Office) -> None:
        window = office.open("brick.nii.gz")
        stroke = {"plane": "axial", "path": [[10, 10, 10], [14, 10, 10]], "radius_mm": 2.0}
        window.do("stroke", tool="brush", **stroke)
        painted = (window.shown == 255).sum()
        assert painted > 5
        window.do("stroke", tool="eraser", **stroke)
        assert not (window.shown == 255).any()
        assert office.client.get("/api/v1/cases").json()["cases"][0]["status"] == "started"

    def test_what_lies_elsewhere_is_refused_and_changes_nothing(self, office: Office) -> None:
        window = office.open("brick.nii.gz")
        for prompt in (
            {"kind": "box", "plane": "axial", "from": [0, 0, 0], "to": [5, 5, 1]},  # two slices
            {"kind": "point", "plane": "axial", "at": [10_000, 0, 0]},
            {"kind": "point", "plane": "oblique", "at": [0, 0, 0]},
            {"kind": "point", "plane": "axial", "at": [-1, 0, 0]},
            {"kind": "lasso"},
            {},
        ):
            answer = window.post("prompts", revision=0, prompt=prompt)
            assert answer.status_code == 422
            assert answer.json()["detail"]
        assert window.catch_up()["revision"] == 0
        picture = office.open("spot.png")
        answer = picture.post("prompts", revision=0, prompt={"kind": "point", "plane": "coronal", "at": [0, 0, 0]})
        assert answer.status_code == 422
        assert "picture" in answer.json()["detail"]


class TestLabels:
    def test_accepted_objects_get_a_label_and_others_keep_theirs(self, office: Office) -> None:
        window, bright = drawn(office)
        window.do("accept", label=1)
        np.testing.assert_array_equal(window.shown == 1, bright)
        second = office.client.post("/api/v1/labels", json={"name": "vessel"}).json()
        assert second["value"] == 2
        window.do("prompts", prompt=box_around(bright, window.plane))
        state = window.do("accept", label=2)
        assert state["notes"] == [f"{bright.sum() // 10} voxels stayed with other labels"]
        assert [one["value"] for one in state["labels"]] == [1]
        assert office.client.put("/api/v1/policy", json={"policy": "overwrite"}).status_code == 200
        window.do("prompts", prompt=box_around(bright, window.plane))
        state = window.do("accept", label=2)
        assert [one["value"] for one in state["labels"]] == [1, 2]
        office.client.put("/api/v1/labels/1", json={"locked": True})
        before = window.shown.copy()
        window.do("prompts", prompt=box_around(bright, window.plane, int(np.argwhere(before == 1)[0][0])))
        window.do("accept", label=2)
        np.testing.assert_array_equal(window.shown == 1, before == 1)
        answer = window.post("accept", revision=0, label=1)
        assert answer.status_code in (409, 422)

    def test_a_label_in_use_cannot_be_deleted_and_names_are_checked(self, office: Office) -> None:
        window, _ = drawn(office)
        window.do("accept", label=1)
        assert office.client.delete("/api/v1/labels/1").status_code == 409
        assert office.client.post("/api/v1/labels", json={"name": "object"}).status_code == 422
        assert office.client.post("/api/v1/labels", json={"name": " "}).status_code == 422
        assert office.client.post("/api/v1/labels", json={"name": "x", "colour": "red"}).status_code == 422
        made = office.client.post("/api/v1/labels", json={"name": "tumour", "colour": "#FF0000"}).json()
        assert made == {"value": 2, "name": "tumour", "colour": "#ff0000", "locked": False}
        assert office.client.delete("/api/v1/labels/2").status_code == 204
        assert office.client.put("/api/v1/labels/2", json={"name": "y"}).status_code == 422
        answer = window.post("accept", revision=0, label=2)
        assert answer.status_code == 422

    def test_undo_and_redo_go_all_the_way(self, office: Office) -> None:
        window, bright = drawn(office)
        window.do("accept", label=1)
        window.do("stroke", tool="eraser", plane=window.plane, path=[box_around(bright, window.plane)["from"]],
                  radius_mm=3.0, label=1)  # fmt: skip
        final = window.shown.copy()
        for _ in range(4):
            window.do("undo")
        assert not window.shown.any()
        assert window.post("undo", revision=0).status_code == 409
        for _ in range(4):
            window.do("redo")
        np.testing.assert_array_equal(window.shown, final)
        assert window.post("redo", revision=0).status_code == 409


class TestLost:
    def test_a_window_that_comes_back_finds_everything(self, office: Office, folder: Path) -> None:
        window, bright = drawn(office)
        office.jobs.close()
        office.desk.journal.close()
        again = Office(folder).open("brick.nii.gz")  # another process would see the same file
        np.testing.assert_array_equal(again.shown == 255, bright)
        assert again.state["draft"] == window.state["draft"]
        again.do("undo")
        again.do("redo")
        again.do("accept", label=1)
        np.testing.assert_array_equal(again.shown == 1, bright)

    def test_another_image_of_the_same_name_does_not_get_the_labels(self, office: Office, folder: Path) -> None:
        drawn(office)[0].do("accept", label=1)
        office.closed()
        brick(folder / "brick.nii.gz", low=(30, 12, 6))
        again = Office(folder)
        answer = again.client.post("/api/v1/cases/brick.nii.gz/open", json={})
        assert answer.status_code == 422
        assert "annotated on another image of this name" in answer.json()["detail"]
        brick(folder / "brick.nii.gz")
        again.closed()
        back = Office(folder)
        assert back.open("brick.nii.gz").state["labels"][0]["voxels"] == 4000
        back.closed()

    def test_a_window_far_behind_gets_the_whole_map(self, office: Office) -> None:
        window, _ = drawn(office)
        other = Window(office.client, "brick.nii.gz", {**window.opened, "patch": None})
        other.state["revision"] = -5
        other.catch_up()
        np.testing.assert_array_equal(other.shown, window.shown)


class TestLeases:
    def test_one_window_at_a_time_unless_it_is_taken_over(self, office: Office) -> None:
        first = office.open("brick.nii.gz")
        assert office.client.post("/api/v1/cases/brick.nii.gz/open", json={}).status_code == 409
        second = office.open("brick.nii.gz", take_over=True)
        assert first.post("undo", revision=0).status_code == 410
        assert second.post("heartbeat").status_code == 200
        assert second.post("close").status_code == 204
        assert second.post("heartbeat").status_code == 410
        office.open("brick.nii.gz")

    def test_a_window_that_is_gone_is_forgotten_and_one_that_lives_is_not(self, office: Office) -> None:
        office.open("brick.nii.gz")
        living = office.open("spot.png")
        for _ in range(4):
            office.clock.now += 40
            assert living.post("heartbeat").json()["remaining_seconds"] < 600
        assert office.desk.leases.held() == {"spot.png"}
        office.open("brick.nii.gz")

    def test_too_many_at_once_are_told_to_wait(self, folder: Path) -> None:
        office = Office(folder, max_open=1)
        idle = office.open("brick.nii.gz")
        answer = office.client.post("/api/v1/cases/spot.png/open", json={})
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        for _ in range(16):  # it lives, and does nothing
            office.clock.now += 40
            idle.post("heartbeat")
        office.open("spot.png")
        assert idle.post("heartbeat").status_code == 410
        office.closed()


class Slow(FakeRuntime):
    """Each look waits for its turn."""

    turn = threading.Event()

    def decode(self, *args: Any, **more: Any) -> Any:
        self.turn.wait(5)
        return super().decode(*args, **more)


class TestCarrying:
    def test_it_can_be_cancelled_and_leaves_the_object_as_it_was(self, folder: Path) -> None:
        Slow.turn.set()
        office = Office(folder, make_runtime=Slow)
        window = office.open("brick.nii.gz")
        bright = in_ras(office, "brick.nii.gz")
        window.do("prompts", prompt=box_around(bright, window.plane))
        before = window.shown.copy()
        Slow.turn.clear()
        job = window.post("propagate", revision=1, plane=window.plane, first=0, last=19).json()["job"]
        answer = window.post("undo", revision=1)
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) > 0
        assert window.catch_up()["job"]["id"] == job["id"]  # the page can still look
        office.client.post(f"/api/v1/jobs/{job['id']}/cancel")
        Slow.turn.set()
        assert window.wait(job)["status"] == "cancelled"
        window.catch_up()
        np.testing.assert_array_equal(window.shown, before)
        window.do("undo")
        office.closed()

    def test_what_cannot_be_carried_is_said(self, office: Office) -> None:
        window = office.open("brick.nii.gz")
        asked = {"revision": 0, "plane": window.plane}
        assert window.post("propagate", **asked, first=0, last=3).status_code == 422
        assert window.post("propagate", **asked).status_code == 422
        window.do("prompts", prompt=box_around(in_ras(office, "brick.nii.gz"), window.plane))
        assert window.post("propagate", **asked, first=0, last=99).status_code == 422
        assert office.client.get("/api/v1/jobs/none").status_code == 404


class TestSixteen:
    def test_windows_at_once_do_not_mix_their_objects(self, tmp_path: Path) -> None:
        for number in range(16):
            brick(tmp_path / f"case{number:02}.nii.gz", low=(number * 2, 4 + number * 2, number % 8))
        office = Office(tmp_path)
        wrong: list[str] = []

        def work(number: int) -> None:
            case = f"case{number:02}.nii.gz"
            window = Window(office.another(), case, office.another().post(f"/api/v1/cases/{case}/open", json={}).json())
            bright = in_ras(office, case)
            for _ in range(3):
                window.do("prompts", prompt=box_around(bright, window.plane))
                window.do("accept", label=1)
                window.do("undo")
            axis = {"sagittal": 0, "coronal": 1, "axial": 2}[window.plane]
            middle = box_around(bright, window.plane)["from"][axis]
            expected = np.zeros_like(bright)
            cut = tuple(middle if a == axis else slice(None) for a in range(3))
            expected[cut] = bright[cut]
            if not np.array_equal(window.shown == 255, expected):
                wrong.append(case)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert len(office.desk.leases.held()) == 16
        office.closed()


def test_the_image_of_a_case_comes_with_its_window(office: Office) -> None:
    opened = office.open("brick.nii.gz").opened["image"]
    assert opened["orientation"] == "PIR"
    assert opened["window"]["low"] < opened["window"]["high"]
    picture = office.open("spot.png").opened["image"]
    assert picture["colour"]
    assert picture["shape"] == [60, 40, 1]


def test_a_picture_is_shown_as_it_lies(office: Office, folder: Path) -> None:
    """Row 0 is on top, which is the back of the RAS grid's j; column 0 on the left, which is the patient's right."""
    bright = in_ras(office, "spot.png")
    as_read = read(folder / "spot.png").array[..., 0] > 100
    np.testing.assert_array_equal(bright[::-1, ::-1, 0].T, as_read)
