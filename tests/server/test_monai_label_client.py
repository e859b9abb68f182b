"""The real client of MONAI Label, over a real socket: what 3D Slicer's extension does, in its order."""

import hashlib
import re
import urllib.request
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import nibabel as nib
import numpy as np
import pytest
import requests
from monai_label_server import (
    CENTRE,
    ORIENTATIONS,
    SHAPE,
    TOKEN,
    affine_of,
    app_on,
    ball,
    desk_on,
    save_phantom,
    served,
)

from dicom_phantoms import series as dicom_series
from dicom_phantoms import write as write_dicom
from palpate.images import read
from palpate.images.formats.nifti import Nifti1Image
from palpate.server.desk import Desk

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # it takes answers apart with `cgi`
    monailabel = pytest.importorskip("monailabel.client")
sitk = pytest.importorskip("SimpleITK")

# The client opens what it uploads and leaves closing it to the collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("sockets_let_go"),
]

POINTS = {"foreground": [list(CENTRE)], "background": []}


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ORIENTATIONS:
        save_phantom(folder / f"{name}.nii.gz", affine_of(name))
    desk = desk_on(folder)
    yield desk
    desk.close()


@pytest.fixture
def address(desk: Desk) -> Iterator[str]:
    with served(app_on(desk)) as address:
        yield address


@pytest.fixture
def client(address: str, tmp_path: Path) -> Any:
    """Logged in as 3D Slicer does."""
    downloads = tmp_path / "client"
    downloads.mkdir()
    client = monailabel.MONAILabelClient(address, tmpdir=str(downloads), client_id="somebody")
    assert client.auth_enabled()
    assert not client.auth_valid_token()
    client.update_auth(client.auth_token("anybody", TOKEN))
    assert client.auth_valid_token()
    return client


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def test_nobody_asks_without_the_token(address: str) -> None:
    stranger = monailabel.MONAILabelClient(address)
    with pytest.raises(monailabel.client.MONAILabelClientException) as refused:
        stranger.info()
    assert refused.value.status_code == 401
    with pytest.raises(monailabel.client.MONAILabelClientException) as refused:
        stranger.auth_token("anybody", "guessed")
    assert refused.value.status_code == 401


def test_an_address_with_the_key_needs_no_login(address: str) -> None:
    """3D Slicer downloads images without its login; its older extension has none."""
    with_key = f"{address}/key/{TOKEN}"
    client = monailabel.MONAILabelClient(with_key)
    assert not client.auth_enabled()
    assert client.info()["name"] == "palpate"
    sample = client.next_sample("first", {})
    data = urllib.request.urlopen(f"{with_key}/datastore/image?image={quote_plus(sample['id'])}").read()
    assert f"SHA256:{hashlib.sha256(data).hexdigest()}" == sample["checksum"]
    assert monailabel.MONAILabelClient(f"{address}/key/another").auth_enabled() is False  # no such page
    with pytest.raises(monailabel.client.MONAILabelClientException) as refused:
        monailabel.MONAILabelClient(f"{address}/key/another").info()
    assert refused.value.status_code == 401


def test_info_offers_points_and_runs_nothing_unasked(client: Any) -> None:
    info = client.info()
    assert {name: (model["type"], model["dimension"]) for name, model in info["models"].items()} == {
        "palpate-2d": ("deepgrow", 2),
        "palpate-3d": ("deepgrow", 3),
    }
    assert info["labels"] == ["object"]
    assert not any(model["labels"] for model in info["models"].values())
    assert set(info["strategies"]) == {"first", "random", "least-certain"}
    assert info["datastore"] == {"total": len(ORIENTATIONS), "completed": 0, "label_tags": {}}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("extension", [".nrrd", ".nii.gz"])
def test_a_point_on_the_ball_gives_the_ball_where_it_lies(
    client: Any, desk: Desk, orientation: str, extension: str
) -> None:
    params = {**POINTS, "label": "liver", "result_extension": extension, "result_dtype": "uint8"}
    path, told = client.infer("palpate-3d", f"{orientation}.nii.gz", params)
    assert told["label_names"] == {"liver": 1}
    affine = affine_of(orientation)
    found = sitk.ReadImage(path)
    voxels = sitk.GetArrayFromImage(found).T > 0
    assert voxels.shape == SHAPE
    assert dice(voxels, ball(affine)) > 0.85, "the model sees 64 pixels a side, so its borders are coarse"
    # ITK, which 3D Slicer reads with, places every voxel where the image's file does.
    image = sitk.ReadImage(str(desk.folder / f"{orientation}.nii.gz"))
    for ijk in [(0, 0, 0), CENTRE, tuple(extent - 1 for extent in SHAPE)]:
        lps = np.array(found.TransformIndexToPhysicalPoint(ijk))
        assert lps == pytest.approx(np.array(image.TransformIndexToPhysicalPoint(ijk)), abs=1e-3)
        assert lps * (-1, -1, 1) == pytest.approx((affine @ [*ijk, 1])[:3], abs=1e-3)
    if extension == ".nii.gz":
        assert Nifti1Image.from_filename(path).affine == pytest.approx(affine, abs=1e-4)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_slice_model_answers_on_the_plane_that_slicer_shows(client: Any, orientation: str) -> None:
    path, told = client.infer("palpate-2d", orientation, {**POINTS, "label": "liver"})
    voxels = sitk.GetArrayFromImage(sitk.ReadImage(path)).T > 0
    assert told["slice"] == CENTRE[2]
    assert np.flatnonzero(voxels.any(axis=(0, 1))).tolist() == [CENTRE[2]]
    assert dice(voxels[..., CENTRE[2]], ball(affine_of(orientation))[..., CENTRE[2]]) > 0.85


def test_a_region_bounds_the_object_even_if_its_ends_are_swapped(client: Any) -> None:
    i, j, k = CENTRE
    roi = [i + 9, i - 9, j - 9, j + 9, k + 2, k - 1]
    path, told = client.infer("palpate-3d", "lps.nii.gz", {"roi": roi, "result_dtype": "uint16"})
    labels = sitk.ReadImage(path)
    voxels = sitk.GetArrayFromImage(labels).T > 0
    assert labels.GetPixelIDTypeAsString() == "16-bit unsigned integer"
    assert np.flatnonzero(voxels.any(axis=(0, 1))).tolist() == [k - 1, k, k + 1, k + 2]
    assert told["label_names"] == {"object": 1}


def test_next_sample_is_downloaded_segmented_and_submitted(client: Any, desk: Desk, address: str) -> None:
    """Next Sample, a click, Submit Label, and the next image is another."""
    sample = client.next_sample("first", {"some": "thing"})
    case = sample["id"]
    assert case == "coronal.nii.gz"
    assert sample["name"] == case
    path, _ = client.infer("palpate-3d", case, {**POINTS, "label": "liver", "result_extension": ".nii.gz"})
    # The client writes what it gets under our name beside its own files.
    assert Path(path).name != sample["name"]
    params = {"label_info": [{"name": "liver", "idx": 1}]}
    saved = client.save_label(case, path, params=params)
    assert saved["label_names"] == {"liver": 1}
    assert client.next_sample("first", {})["id"] != case
    assert client.info()["datastore"] == {"total": len(ORIENTATIONS), "completed": 1, "label_tags": {"final": 1}}
    assert client.info()["labels"] == ["object", "liver"]
    value = next(label.value for label in desk.labels() if label.name == "liver")
    assert dice(np.equal(desk.labels_of(case).T, value), ball(affine_of("coronal"))) > 0.85
    assert desk.finished() == [case]
    assert desk.annotation(case).undoable == "import"
    # And what was submitted comes back.
    listed = client.datastore()["objects"][case]["labels"]["final"]
    assert listed["info"]["params"]["label_names"] == {"liver": value}
    again = client.download_label(case, "final")
    assert again.endswith(".nrrd")
    assert (sitk.GetArrayFromImage(sitk.ReadImage(again)) == desk.labels_of(case)).all()


def test_a_label_map_in_another_order_lands_on_the_same_voxels(client: Any, desk: Desk, tmp_path: Path) -> None:
    """Another program may have turned the axes, or cropped what is empty."""
    affine = affine_of("oblique")
    mask = ball(affine)
    turned = mask[::-1].transpose(1, 2, 0)[:, :, 2:]
    back = np.eye(4)
    back[:3, :3] = np.array([[0, 0, -1], [1, 0, 0], [0, 1, 0]])
    back[:3, 3] = SHAPE[0] - 1 - 2, 0, 0
    path = tmp_path / "turned.nii.gz"
    nib.save(Nifti1Image(turned.astype(np.uint8), affine @ back), path)
    client.save_label("oblique", str(path), params={"label_info": [{"name": "ball", "idx": 1}]})
    assert (mask == (desk.labels_of("oblique.nii.gz") > 0).T).all()


def test_an_image_of_ones_own_goes_through_a_session(client: Any, desk: Desk, tmp_path: Path) -> None:
    """A volume that Slicer has loaded itself: sent for a while, and only put into the folder when it is submitted."""
    affine = affine_of("sagittal")
    path = tmp_path / "own.nii.gz"
    mask = save_phantom(path, affine)
    session = client.create_session(str(path))["session_id"]
    assert client.get_session(session)["image"] == "image.nii.gz"
    found, _ = client.infer("palpate-3d", "4: CT (1.0)", {**POINTS, "label": "liver"}, session_id=session)
    assert dice(sitk.GetArrayFromImage(sitk.ReadImage(found)).T > 0, mask) > 0.85
    assert len(desk.cases()) == len(ORIENTATIONS)
    client.remove_session(session)
    with pytest.raises(monailabel.client.MONAILabelClientException) as gone:
        client.get_session(session)
    assert gone.value.status_code == 404
    sent = client.upload_image(str(path), "4: CT (1.0)")
    assert (desk.folder / sent["image"]).read_bytes() == path.read_bytes()
    client.save_label("4: CT (1.0)", found, params={"label_info": [{"name": "liver", "idx": 1}]})
    assert desk.finished() == [sent["image"]]


def test_a_file_can_be_sent_with_the_question(client: Any, tmp_path: Path) -> None:
    path = tmp_path / "own.nii.gz"
    mask = save_phantom(path, affine_of("las"))
    found, _ = client.infer("palpate-3d", "", POINTS, file=str(path))
    assert dice(sitk.GetArrayFromImage(sitk.ReadImage(found)).T > 0, mask) > 0.85


def test_a_dicom_series_comes_as_a_volume_and_its_points_are_of_that(tmp_path: Path) -> None:
    """No viewer is asked to order slices: it gets what the server has."""
    folder = tmp_path / "images"
    series = folder / "patient"
    series.mkdir(parents=True)
    mask = np.zeros((12, 40, 48), dtype=bool)
    mask[3:8, 10:22, 25:37] = True
    pixels = np.random.default_rng(0).integers(0, 12, mask.shape).astype(np.int16)
    pixels[mask] += 400
    write_dicom(dicom_series(pixels=pixels), series)
    desk = desk_on(folder)
    with served(app_on(desk)) as address:
        client = monailabel.MONAILabelClient(f"{address}/key/{TOKEN}", tmpdir=str(tmp_path))
        sample = client.next_sample("random", {})
        assert re.fullmatch(r"patient-[0-9a-f]{8}\.nii\.gz", sample["name"])
        uri = f"{address}/key/{TOKEN}/datastore/image?image={quote_plus(sample['id'])}"
        own = tmp_path / sample["name"]
        own.write_bytes(urllib.request.urlopen(uri).read())
        image = sitk.ReadImage(str(own))
        bright = np.argwhere(sitk.GetArrayFromImage(image) > 300)
        k, j, i = (int(value) for value in np.rint(bright.mean(axis=0)))
        path, _ = client.infer("palpate-3d", sample["id"], {"foreground": [[i, j, k]]})
        found = sitk.ReadImage(path)
        assert found.GetOrigin() == pytest.approx(image.GetOrigin(), abs=1e-3)
        assert found.GetDirection() == pytest.approx(image.GetDirection(), abs=1e-5)
        assert dice(sitk.GetArrayFromImage(found) > 0, sitk.GetArrayFromImage(image) > 300) > 0.85
        # By the number of its series, as OHIF asks, and as a zip archive.
        number = read(series).source
        assert number is not None
        assert number.series
        assert client.infer("palpate-3d", number.series, {"foreground": [[i, j, k]]})[1]["label_names"]
        archive = tmp_path / "series.zip"
        with zipfile.ZipFile(archive, "w") as packed:
            for file in series.iterdir():
                packed.write(file, f"study/{file.name}")
        request = urllib.request.Request(
            f"{address}/key/{TOKEN}/infer/palpate-3d?image={sample['id']}&output=dicom_seg",
            data=f"params=%7B%22foreground%22%3A%5B%5B{i}%2C{j}%2C{k}%5D%5D%7D".encode(),
            headers={"content-type": "application/x-www-form-urlencoded"},
        )
        answer = urllib.request.urlopen(request)
        assert answer.headers["content-type"] == "application/dicom"
        assert answer.read()[128:132] == b"DICM"
        with archive.open("rb") as file:
            made = requests.put(
                f"{address}/key/{TOKEN}/session/?uncompress=true", files={"files": ("series.zip", file)}, timeout=60
            )
        assert made.status_code == 200, made.text
        path, _ = client.infer("palpate-3d", "any", {"foreground": [[i, j, k]]}, session_id=made.json()["session_id"])
        assert dice(sitk.GetArrayFromImage(sitk.ReadImage(path)) > 0, sitk.GetArrayFromImage(image) > 300) > 0.85
    desk.close()


def test_nothing_is_taught_where_nobody_teaches(client: Any) -> None:
    assert client.train_status(check_if_running=True) is False
    with pytest.raises(monailabel.client.MONAILabelClientException):
        client.train_start("teach", {})


@pytest.mark.weights
def test_the_released_weights_find_a_ball(tmp_path: Path, weights: None) -> None:
    import palpate

    folder = tmp_path / "images"
    folder.mkdir()
    mask = save_phantom(folder / "ball.nii.gz", affine_of("oblique"))
    desk = desk_on(folder, lambda: palpate.load("lite-medsam", runtime="torch"))
    i, j, k = CENTRE
    with served(app_on(desk)) as address:
        client = monailabel.MONAILabelClient(f"{address}/key/{TOKEN}", tmpdir=str(tmp_path))
        roi = [i - 8, i + 8, j - 8, j + 8, k - 4, k + 4]
        path, _ = client.infer("palpate-3d", "ball", {"roi": roi})
        assert dice(sitk.GetArrayFromImage(sitk.ReadImage(path)).T > 0, mask) > 0.8
    desk.close()
