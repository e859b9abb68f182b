"""What MONAI Label's REST refuses, and how: nothing is written outside, nothing overwritten, nothing ends in a 500."""

import gzip
import io
import json
import stat
import struct
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from fastapi.testclient import TestClient
from monai_label_server import CENTRE, SHAPE, affine_of, ball, client_on, desk_on, save_phantom

from dicom_phantoms import save, series
from palpate.errors import InputError
from palpate.images.formats.nifti import Nifti1Image
from palpate.images.image import Image
from palpate.server.desk import Desk
from palpate.server.jobs import Job, Jobs, Report
from palpate.server.leases import Full
from palpate.server.monai_label_files import on_grid
from palpate.server.monai_label_infer import Asked, segment
from palpate.server.monai_label_sessions import Sessions, UnknownSession
from palpate.server.uploads import MOST_FILES

TRAVERSALS = [
    "../outside",
    "..",
    ".",
    "/etc/passwd",
    "a/b",
    "..%2foutside",
    "%2e%2e%2foutside",
    "%2e%2e",
    "....//outside",
    "..\\outside",
    "a\\b",
    "\\\\host\\share",
    "a\0b",
    "a\nb",
    "C:/windows",
    "~root/x",
    "",
    "x" * 121,
    "ü",
    "a..b",
]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    folder = tmp_path / "images"
    folder.mkdir()
    save_phantom(folder / "ball.nii.gz", affine_of("las"))
    save_phantom(folder / "other.nii.gz", affine_of("ras"))
    desk = desk_on(folder)
    yield desk
    desk.close()


@pytest.fixture
def client(desk: Desk) -> TestClient:
    return client_on(desk)


@pytest.fixture
def volume(tmp_path: Path) -> bytes:
    path = tmp_path / "sent.nii.gz"
    save_phantom(path, affine_of("lps"))
    return path.read_bytes()


def everything(folder: Path) -> set[str]:
    """All files, but for those in which annotations are kept."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if ".palpate" not in path.parts}


def infer(client: TestClient, params: dict[str, Any] | str, model: str = "palpate-3d", **query: str) -> Any:
    text = params if isinstance(params, str) else json.dumps(params)
    return client.post(f"/infer/{model}", params={"image": "ball", **query}, data={"params": text})


@pytest.mark.parametrize("name", TRAVERSALS)
def test_names_that_could_be_paths_are_refused_and_write_nothing(
    client: TestClient, tmp_path: Path, volume: bytes, name: str
) -> None:
    before = everything(tmp_path)
    file = {"file": ("image.nii.gz", volume)}
    answers = [
        client.get("/datastore/image", params={"image": name}),
        client.head("/datastore/image", params={"image": name}),
        client.get("/datastore/label", params={"label": name}),
        client.get("/datastore/image/info", params={"image": name}),
        client.put("/datastore/label", params={"image": name}, files={"label": ("label.nii.gz", volume)}),
        client.delete("/datastore/label", params={"id": name}),
        client.post("/infer/palpate-3d", params={"image": name}, data={"params": "{}"}),
    ]
    if name:  # without one, the file's own name is taken
        answers += [
            client.put(path, params={"image": name}, files=file) for path in ("/datastore/", "/datastore/image")
        ]
    assert [answer.status_code for answer in answers if not 400 <= answer.status_code < 500] == []
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    "name", ["../../out.nii.gz", "/elsewhere/out.nii.gz", "..\\out.nii.gz", "%2e%2e%2fout.nii.gz", ".nii.gz"]
)
def test_the_name_of_an_uploaded_file_reaches_no_folder(
    client: TestClient, desk: Desk, tmp_path: Path, volume: bytes, name: str
) -> None:
    before = everything(tmp_path)
    answer = client.put("/datastore/", files={"file": (name, volume)})
    new = everything(tmp_path) - before
    assert answer.status_code < 500
    assert all(Path(path).parent == Path("images") and ".." not in path for path in new)
    made = client.put("/session/", files={"files": (name, volume)})
    assert made.status_code == 200
    assert everything(tmp_path) - before == new


@pytest.mark.parametrize(
    "path", ["/session/../info/", "/session/%2e%2e%2finfo", "/session/..%5c", "/infer/%2e%2e", "/model/../x"]
)
def test_paths_that_climb_find_nothing(client: TestClient, path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        assert client.request(method, path).status_code in (200, 400, 404, 405, 422)


def archive_of(members: dict[str, bytes], *, mode: int = 0) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo("placeholder")
            info.filename = info.orig_filename = name
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = mode << 16
            archive.writestr(info, data)
    return out.getvalue()


@pytest.mark.parametrize(
    "archive",
    [
        archive_of({"../slip.nii.gz": b"x"}),
        archive_of({"a/../../slip.nii.gz": b"x"}),
        archive_of({"/slip.nii.gz": b"x"}),
        archive_of({"..\\slip.nii.gz": b"x"}),
        archive_of({"C:/slip.nii.gz": b"x"}),
        archive_of({"link.nii.gz": b"/etc/passwd"}, mode=stat.S_IFLNK | 0o777),
        archive_of({"pipe.nii.gz": b""}, mode=stat.S_IFIFO | 0o666),
        archive_of({"bomb.nii": bytes(2**25)}),
        archive_of({f"{n}.dcm": bytes(2**23) for n in range(6)}),
        archive_of({}),
        archive_of({"readme.txt": b"hello"}),
        b"PK\x03\x04 but no more",
        b"",
    ],
    ids=[
        "up",
        "inside-up",
        "absolute",
        "backslash",
        "drive",
        "symlink",
        "pipe",
        "bomb",
        "many",
        "empty",
        "text",
        "cut",
        "nothing",
    ],
)
def test_archives_that_are_not_what_they_seem_are_refused(desk: Desk, tmp_path: Path, archive: bytes) -> None:
    client = client_on(desk, image_bytes=2**24)
    before = everything(tmp_path)
    answer = client.put("/session/?uncompress=true", files={"files": ("series.zip", archive)})
    assert 400 <= answer.status_code < 500, answer.text
    assert everything(tmp_path) == before
    assert not Path("/slip.nii.gz").exists()


def test_other_archives_are_not_unpacked(client: TestClient, volume: bytes) -> None:
    assert client.put("/session/?uncompress=true", files={"files": ("series.tar.gz", volume)}).status_code == 400


def test_an_archive_of_one_volume_is_one(client: TestClient, volume: bytes) -> None:
    made = client.put(
        "/session/?uncompress=true", files={"files": ("one.zip", archive_of({"study/ct.nii.gz": volume}))}
    )
    assert made.status_code == 200, made.text
    answer = infer(client, {"foreground": [list(CENTRE)]}, session_id=made.json()["session_id"], output="json")
    assert answer.json()["params"]["label_names"] == {"object": 1}


def bomb() -> bytes:
    """A header that claims 2 GiB, and as many zeros, in two megabytes."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, 1024, 1024, 1024, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 4, 16)
    struct.pack_into("<8f", header, 76, 1, 1, 1, 1, 1, 1, 1, 1)
    struct.pack_into("<f", header, 108, 352)
    header[344:348] = b"n+1\0"
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1) as packed:
        packed.write(bytes(header))
        packed.write(bytes(2**22))  # the rest need not be there for the claim to be refused
    return out.getvalue()


def test_a_bomb_is_refused_by_what_it_claims(client: TestClient, tmp_path: Path) -> None:
    before = everything(tmp_path)
    data = bomb()
    assert client.put("/session/", files={"files": ("a.nii.gz", data)}).status_code == 413
    assert client.put("/datastore/?image=new", files={"file": ("a.nii.gz", data)}).status_code == 413
    assert client.put("/datastore/label?image=ball", files={"label": ("a.nii.gz", data)}).status_code == 413
    sent = client.post("/infer/palpate-3d", data={"params": "{}"}, files={"file": ("a.nii.gz", data)})
    assert sent.status_code == 413
    assert everything(tmp_path) == before


def swollen(grey: np.ndarray, claimed: np.ndarray) -> bytes:
    """What a gzipped file holds of one volume, under the header of another."""
    header = Nifti1Image(claimed, np.eye(4)).to_bytes()[:352]
    return gzip.compress(header + grey.tobytes(), 1)


def test_what_unpacks_to_more_than_its_header_claims_is_refused(
    client: TestClient, desk: Desk, tmp_path: Path, volume: bytes
) -> None:
    before = everything(tmp_path)
    data = swollen(np.zeros((160, 160, 160), np.int16), np.zeros(SHAPE, np.int16))
    assert client.put("/session/", files={"files": ("a.nii.gz", data)}).status_code == 413
    assert client.put("/datastore/?image=new", files={"file": ("a.nii.gz", data)}).status_code == 413
    assert client.put("/datastore/label?image=ball", files={"label": ("a.nii.gz", data)}).status_code == 413
    assert everything(tmp_path) == before
    cut = client.put("/session/", files={"files": ("a.nii.gz", volume[:-200])})  # damaged, and not too large
    assert cut.status_code == 400


def test_a_series_of_more_than_a_thousand_files_is_taken(client: TestClient, tmp_path: Path) -> None:
    pixels = np.zeros((1, 8, 8), dtype=np.int16)
    pixels[:, 2:6, 2:6] = 200
    (first,) = series(pixels=pixels, origin=(0, 0, 5000), SOPInstanceUID="1.2.3.5000")
    one = save(first, tmp_path / "one.dcm").read_bytes()
    slices = [one.replace(b"5000", str(5000 + number).encode()) for number in range(1200)]
    files = [("files", (f"{number}.dcm", data)) for number, data in enumerate(slices)]
    made = client.put("/session/", files=files)
    assert made.status_code == 200, made.text
    answer = infer(client, {"foreground": [[4, 4, 600]]}, "palpate-2d", session_id=made.json()["session_id"])
    assert answer.status_code == 200, answer.text


def test_files_without_end_are_not(client: TestClient) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.dcm"\r\n\r\n\r\n'
    headers = {"content-type": "multipart/form-data; boundary=b"}
    answer = client.put("/session/", content=part * (MOST_FILES + 1) + b"--b--\r\n", headers=headers)
    assert answer.status_code == 400
    assert str(MOST_FILES) in answer.json()["detail"]


def test_more_than_a_request_may_send_is_refused(desk: Desk) -> None:
    client = client_on(desk, upload_bytes=10_000)
    assert client.put("/session/", files={"files": ("a.nii", bytes(20_000))}).status_code == 413

    def pieces() -> Iterator[bytes]:  # its length is not said beforehand
        yield b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.nii"\r\n\r\n'
        for _ in range(50):
            yield bytes(1000)
        yield b"\r\n--b--\r\n"

    answer = client.put("/session/", content=pieces(), headers={"content-type": "multipart/form-data; boundary=b"})
    assert answer.status_code == 413


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.nrrd", "a.mha", "a.png", "a.dcm", "a", "a.nhdr", "a.exe"])
def test_what_is_no_image_is_refused(client: TestClient, tmp_path: Path, name: str) -> None:
    before = everything(tmp_path)
    for data in (b"", b"hello", bytes(400)):
        made = client.put("/session/", files={"files": (name, data)})
        put = client.put("/datastore/?image=new", files={"file": (name, data)})
        assert (made.status_code, put.status_code) == (400, 400), (made.text, put.text)
        assert "/tmp" not in made.json()["detail"], "where files lie here is nobody's business"
    assert everything(tmp_path) == before


def test_an_image_never_takes_the_place_of_another(client: TestClient, desk: Desk, volume: bytes) -> None:
    there = (desk.folder / "ball.nii.gz").read_bytes()
    for name in ("ball", "ball.nii.gz"):
        answer = client.put("/datastore/", params={"image": name}, files={"file": ("x.nii.gz", volume)})
        assert answer.status_code == 409
    link = desk.folder / "new.nii.gz"
    link.symlink_to("/nowhere/at/all")
    answer = client.put("/datastore/?image=new", files={"file": ("x.nii.gz", volume)})
    assert answer.status_code == 409
    assert link.is_symlink()
    assert (desk.folder / "ball.nii.gz").read_bytes() == there


def test_files_of_the_folder_are_not_deleted(client: TestClient, desk: Desk) -> None:
    assert client.delete("/datastore/image?id=ball").status_code == 403
    assert client.delete("/datastore/?id=ball&type=image").status_code == 403
    assert (desk.folder / "ball.nii.gz").exists()


@pytest.mark.parametrize(
    "params",
    [
        "",
        "{",
        "[]",
        "null",
        '"text"',
        "{}",
        {"foreground": []},
        {"foreground": [[1, 2]] * 2000},
        {"foreground": [[1, 2, "x"]]},
        {"foreground": [[1e300, 0, 0]]},
        '{"foreground": [[NaN, 0, 0]]}',
        '{"foreground": [[Infinity, 0, 0]]}',
        {"foreground": [[-1, 0, 0]]},
        {"foreground": [list(SHAPE)]},
        {"foreground": {"liver": [1, 2, 3]}},
        {"background": [[1, 1, 1]]},
        {"roi": [1, 2, 3]},
        {"roi": [100, 200, 100, 200, 100, 200]},
        {"roi": [0, 5, 0, 5, -9, -3]},
        {"foreground": [list(CENTRE)], "result_extension": "../../x"},
        {"foreground": [list(CENTRE)], "result_extension": ".exe"},
        {"foreground": [list(CENTRE)], "result_dtype": "object"},
        {"foreground": [list(CENTRE)], "slice": "middle"},
    ],
)
@pytest.mark.parametrize("model", ["palpate-2d", "palpate-3d"])
def test_questions_that_make_no_sense_are_told_why(client: TestClient, model: str, params: Any) -> None:
    answer = infer(client, params, model)
    assert answer.status_code == 400, answer.text
    assert answer.json()["detail"]


def test_a_question_to_nobody_is_not_found(client: TestClient) -> None:
    good = {"foreground": [list(CENTRE)]}
    assert infer(client, good, "sam").status_code == 404
    assert infer(client, good, image="another").status_code == 404
    assert infer(client, good, session_id="guessed").status_code == 404
    assert infer(client, good, output="dicom_seg").status_code == 400, "the source is no DICOM"
    assert infer(client, good, output="dsa").status_code == 422
    for path in ("/infer/wsi/palpate-2d", "/batch/infer/palpate-2d", "/scoring/", "/train/"):
        assert client.post(path).status_code == 404
    for path in ("/model/x", "/batch/infer/", "/scoring/", "/train/", "/train/?check_if_running=true"):
        assert client.get(path).status_code == 404
    assert client.post("/activelearning/cleverest").status_code == 404


def test_the_answer_comes_in_the_form_that_is_asked_for(client: TestClient) -> None:
    good = {"foreground": [list(CENTRE)], "result_extension": ".nii.gz"}
    image = infer(client, good, output="image")
    assert image.headers["content-type"] == "application/octet-stream"
    assert gzip.decompress(image.content)[344:347] == b"n+1"
    raw = infer(client, {**good, "result_extension": ".nrrd", "result_compress": False}, output="image").content
    assert b"encoding: raw" in raw
    assert raw.endswith(bytes(10))
    both = infer(client, good)
    assert both.headers["content-type"].startswith("multipart/form-data; boundary=")
    assert b'name="params"' in both.content
    assert b'name="image"; filename="palpate-' in both.content
    assert infer(client, good, output="json").json()["params"]["slice"] == CENTRE[2]


def label_file(labels: np.ndarray, affine: np.ndarray, path: Path) -> bytes:
    nib.save(Nifti1Image(labels, affine), path)
    return path.read_bytes()


def test_labels_of_another_grid_or_kind_are_refused(client: TestClient, desk: Desk, tmp_path: Path) -> None:
    affine = affine_of("las")
    whole = ball(affine).astype(np.uint8)
    path = tmp_path / "label.nii.gz"
    moved, scaled = affine.copy(), affine @ np.diag([0.5, 0.5, 0.5, 1])
    moved[0, 3] += 0.4
    beside = affine.copy()
    beside[0, 3] += 30
    refused = [
        label_file(whole, moved, path),
        label_file(whole, scaled, path),
        label_file(whole, beside, path),
        label_file(whole * np.float32(0.5), affine, path),
        label_file(whole.astype(np.int16) * 255, affine, path),
        label_file(whole.astype(np.int16) * -1, affine, path),
        label_file(np.concatenate([whole, whole]), affine, path),
        b"no label map",
    ]
    for data in refused:
        answer = client.put("/datastore/label?image=ball", files={"label": ("l.nii.gz", data)})
        assert answer.status_code in (400, 413), answer.text
    good = label_file(whole, affine, path)
    for params in (
        "[",
        "[]",
        '{"label_info": 3}',
        '{"label_info": [{"idx": 1}]}',
        '{"label_info": [{"name": "a\\u0000", "idx": 1}]}',
    ):
        answer = client.put("/datastore/label?image=ball", files={"label": ("l.nii.gz", good)}, data={"params": params})
        assert answer.status_code == 400, answer.text
    assert not desk.labels_of("ball.nii.gz").any()
    assert desk.finished() == []


def test_a_label_map_of_bytes_alone_is_in_the_order_of_the_image(client: TestClient, desk: Desk) -> None:
    """As OHIF sends it."""
    mask = ball(affine_of("las")).T
    data = (mask.astype("<u2") * 3).tobytes()
    params = json.dumps({"label_info": [{"name": "liver", "idx": 3}]})
    answer = client.put("/datastore/label?image=ball", files={"label": ("label.bin", data)}, data={"params": params})
    assert answer.status_code == 200, answer.text
    assert ((desk.labels_of("ball.nii.gz") > 0) == mask).all()
    short = client.put("/datastore/label?image=ball", files={"label": ("label.bin", data[:-1])})
    assert short.status_code == 400


def test_a_case_that_is_open_in_the_browser_is_left_alone(client: TestClient, desk: Desk, tmp_path: Path) -> None:
    good = label_file(ball(affine_of("las")).astype(np.uint8), affine_of("las"), tmp_path / "label.nii.gz")
    desk.leases.take("ball.nii.gz")
    assert client.put("/datastore/label?image=ball", files={"label": ("l.nii.gz", good)}).status_code == 409
    assert not desk.labels_of("ball.nii.gz").any()
    assert client.post("/activelearning/first").json()["id"] == "other.nii.gz"


def test_what_was_begun_comes_with_the_next_sample_as_original(client: TestClient, desk: Desk, tmp_path: Path) -> None:
    """3D Slicer loads the labels of this tag with the image, so that guesses are there to be corrected."""
    mask = ball(affine_of("las"))
    good = label_file(mask.astype(np.uint8), affine_of("las"), tmp_path / "label.nii.gz")
    client.put("/datastore/label?image=ball&tag=original", files={"label": ("l.nii.gz", good)})
    assert desk.finished() == []
    assert client.post("/activelearning/first", json={}).json()["id"] == "ball.nii.gz"
    labels = client.get("/datastore/?output=all").json()["objects"]["ball.nii.gz"]["labels"]
    assert list(labels) == ["original"]
    assert client.get("/datastore/label?label=ball.nii.gz&tag=original").status_code == 200
    assert client.get("/datastore/label?label=ball.nii.gz&tag=final").status_code == 404
    assert client.delete("/datastore/label?id=ball").status_code == 200
    assert desk.annotation("ball.nii.gz").undo() == "import"
    assert ((desk.labels_of("ball.nii.gz") > 0) == mask.T).all()


def test_the_dataset_is_the_cases_that_are_done(client: TestClient, tmp_path: Path, desk: Desk) -> None:
    good = label_file(ball(affine_of("las")).astype(np.uint8), affine_of("las"), tmp_path / "label.nii.gz")
    client.put("/datastore/label?image=ball", files={"label": ("l.nii.gz", good)})
    with zipfile.ZipFile(io.BytesIO(client.get("/datastore/dataset").content)) as archive:
        assert sorted(archive.namelist()) == ["images/ball.nii.gz", "labels/ball.nii.gz.nrrd"]
    assert client_on(desk, upload_bytes=100).get("/datastore/dataset").status_code == 413


def test_a_checksum_that_differs_says_so(client: TestClient) -> None:
    sample = client.post("/activelearning/random", json={"client_id": None}).json()
    query = {"image": sample["id"], "check_sum": sample["checksum"]}
    assert client.head("/datastore/image", params=query).status_code == 200
    assert client.head("/datastore/image", params={**query, "check_sum": "SHA256:00"}).status_code == 404


def test_a_file_that_readers_understand_differently_is_written_anew(desk: Desk) -> None:
    """ITK takes the one header field where nibabel takes the other; the client must see what the server does."""
    affine, another = affine_of("las"), affine_of("oblique")
    path = desk.folder / "torn.nii.gz"
    torn = Nifti1Image(np.random.default_rng(0).integers(0, 9, SHAPE).astype(np.int16), affine)
    torn.set_sform(affine, 1)
    torn.set_qform(another, 1)
    nib.save(torn, path)
    desk.rescan()
    data = client_on(desk).get("/datastore/image?image=torn").content
    assert data != path.read_bytes()
    sent = Nifti1Image.from_bytes(gzip.decompress(data))
    assert sent.get_qform() == pytest.approx(affine, abs=1e-4)
    assert sent.get_sform() == pytest.approx(affine, abs=1e-4)
    assert (np.asarray(sent.dataobj) == np.asarray(torn.dataobj)).all()


def test_sessions_end_by_themselves_and_there_are_only_so_many(tmp_path: Path, desk: Desk) -> None:
    now = [0.0]
    sessions = Sessions(tmp_path, desk.session_for, most=2, image_bytes=2**26, clock=lambda: now[0])

    def begin(name: str, expiry: float) -> str:
        folder = tmp_path / name
        folder.mkdir()
        save_phantom(folder / "0.nii.gz", affine_of("ras"))
        return sessions.create([("0.nii.gz", folder / "0.nii.gz")], folder, uncompress=False, expiry=expiry).id

    first, second = begin("a", 10.0), begin("b", 100.0)
    with pytest.raises(Full):
        begin("c", 10.0)
    assert not (tmp_path / "c").exists()
    now[0] = 50.0
    with pytest.raises(UnknownSession):
        sessions.get(first)
    assert not (tmp_path / "a").exists()
    assert sessions.get(second).id == second
    begin("d", 10.0)


def test_teaching_is_started_once_and_can_be_stopped(desk: Desk) -> None:
    jobs = Jobs()
    begun = threading.Event()

    def work(report: Report) -> str:
        begun.set()
        while True:
            report.progress(3, 10, "round 3")
            report.wait(0.01)

    class Teacher:
        enough = False

        def teach(self) -> Job:
            if not self.enough:
                raise InputError("1 case is done; 2 are needed")
            return jobs.start("teach", work, alone=True)

    teacher = Teacher()
    client = client_on(desk, teaching=teacher, jobs=jobs)
    assert client.post("/train/teach", json={}).status_code == 400
    teacher.enough = True
    assert client.get("/train/?check_if_running=true").status_code == 404
    assert client.post("/train/", json={}).json()["status"] == "RUNNING"
    assert begun.wait(10)
    again = client.post("/train/teach", json={})
    assert (again.status_code, "retry-after" in again.headers) == (429, True)
    assert client.get("/train/?check_if_running=true").status_code == 200
    assert client.get("/info/").json()["train_stats"]["teach"]["total_epochs"] in (1, 10)
    stopped = client.delete("/train/").json()
    assert stopped["details"]
    assert jobs.wait(stopped["id"], 10).status == "cancelled"
    assert client.delete("/train/").status_code == 404
    assert client.get("/train/").json()["status"] == "STOPPED"
    jobs.close()


def test_the_log_is_of_requests_without_secrets(client: TestClient) -> None:
    client.get("/info/")
    assert "GET /info/ 200" in client.get("/logs/?lines=5").text
    assert client.get("/logs/?lines=0").status_code == 422


def test_a_picture_has_one_slice(desk: Desk) -> None:
    pixels = np.zeros((48, 64), dtype=np.uint8)
    pixels[10:20, 30:50] = 255
    opened = desk.session_for(Image(pixels))
    for dimension in (2, 3):
        found = segment(opened, Asked(foreground=[[40, 15, 0]]), dimension=dimension)
        assert (found.mask == (pixels > 0)).mean() > 0.98
    with pytest.raises(InputError):
        segment(opened, Asked(foreground=[[40, 15, 1]]), dimension=2)


def test_clicks_on_other_slices_count_there(desk: Desk) -> None:
    """The slice with most clicks is carried on; one with a click of its own is segmented from it."""
    opened = desk.opened("ball.nii.gz")
    i, j, k = CENTRE
    asked = Asked(foreground=[[i, j, k], [i + 1, j, k], [i, j, k + 2]], background=[[1, 1, k - 3]])
    found = segment(opened, asked, dimension=3)
    assert found.slice == k
    assert found.mask[k + 2].any()
    assert any("background" in note for note in found.notes)


def test_a_picture_of_labels_fits_its_picture() -> None:
    labels = np.zeros((48, 64), dtype=np.uint8)
    labels[3, 5] = 7
    assert (on_grid(Image(labels), Image(labels)) == labels).all()
