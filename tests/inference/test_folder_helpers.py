"""A folder of images that other processes segment: what they write is what one process would have written."""

import json
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Picture

import trees
from clusters import local_cluster
from fake_runtime import FakeFindingRuntime, FakeLoading
from palpate.errors import PalpateError
from palpate.inference.folder import Choices, Result, find_in
from palpate.inference.folder_helpers import Helpers
from palpate.inference.folder_images import images_in
from palpate.inference.session import Session
from phantoms import column, picture, rectangle

SHAPE = (64, 64)
BODY = rectangle(SHAPE, 40, 30, 51, 39)


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five pictures, one of them broken, and a volume, in a folder with a relative path."""
    monkeypatch.chdir(tmp_path)
    where = Path("images")
    where.mkdir()
    for number in range(4):
        Picture.fromarray(picture((BODY, 250 - 40 * number))).save(where / f"p{number}.png")
    (where / "broken.png").write_bytes(b"no picture")
    trees.nifti(where / "ct.nii.gz", picture((column((5, *SHAPE), BODY, 1, 3), 255)))
    return where


@pytest.fixture(scope="module")
def two() -> Generator[str]:
    """The address of a cluster of two workers."""
    with local_cluster(2) as address:
        yield address


def run(images: Path, out: str, helpers: Helpers | None = None, **settings: Any) -> Result:
    entries, _ = images_in(images)
    return find_in(Session(FakeFindingRuntime()), entries, Path(out), helpers=helpers, **settings)


def files(folder: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.fixture(params=["processes", "cluster"])
def helpers(request: pytest.FixtureRequest) -> Iterator[Helpers]:
    if request.param == "processes":
        yield Helpers(FakeLoading({}), workers=2)
    else:
        yield Helpers(FakeLoading({}), dask=request.getfixturevalue("two"))


def test_every_file_is_as_one_process_writes_it(images: Path, helpers: Helpers) -> None:
    choices = Choices(per_class=True)
    seen: list[tuple[int, int]] = []
    alone = run(images, "one", choices=choices, previews=Path("looks"))
    helped = run(images, "two", helpers, choices=choices, previews=Path("too"), progress=lambda *at: seen.append(at))
    there, here = files("two"), files("one")
    # Previews are remembered by where they lie.
    books = [content.pop("done.jsonl").decode().splitlines()[1:] for content in (there, here)]
    assert there == here
    assert books[0] == books[1]
    assert files("too") == files("looks")
    assert helped == alone
    assert (helped.now, [row.image for row in helped.failed]) == (5, ["broken.png"])
    assert seen == [(done, 6) for done in range(7)]


def test_what_is_done_is_not_done_again_whoever_did_it(images: Path, two: str) -> None:
    helpers = Helpers(FakeLoading({}), dask=two)
    (images / "p3.png").rename("kept.png")
    assert run(images, "out").now == 4
    Path("kept.png").rename(images / "p3.png")
    result = run(images, "out", helpers)
    assert (result.now, result.before, len(result.failed)) == (1, 4, 1)
    again = run(images, "out")
    assert (again.now, again.before) == (0, 5)
    run(images, "one")
    assert files("out")["scores.csv"] == files("one")["scores.csv"]


def test_an_interrupt_keeps_what_is_finished(images: Path, helpers: Helpers) -> None:
    (images / "broken.png").unlink()

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    slow = FakeLoading({"slow": 0.3})
    with pytest.raises(KeyboardInterrupt):
        run(images, "out", Helpers(slow, helpers.workers, helpers.dask), progress=stop)
    assert len(Path("out/done.jsonl").read_text(encoding="utf-8").splitlines()) == 2
    assert (
        len({line.split(",")[0] for line in Path("out/scores.csv").read_text(encoding="utf-8").splitlines()[1:]}) == 2
    )
    result = run(images, "out", helpers)
    assert (result.now, result.before) == (3, 2)
    run(images, "one")
    there, here = files("out"), files("one")
    assert {name: there[name] for name in here if name != "done.jsonl"} == {
        name: content for name, content in here.items() if name != "done.jsonl"
    }


def test_older_masks_of_an_image_that_fails_are_moved_aside(images: Path, two: str) -> None:
    helpers = Helpers(FakeLoading({}), dask=two)
    run(images, "out")
    (images / "p1.png").write_bytes(b"no picture")
    result = run(images, "out", helpers)
    assert result.moved == (Path("out/earlier/p1.png"),)
    (row,) = [row for row in result.failed if row.image == "p1.png"]
    assert row.error.endswith("; older, moved aside: out/earlier/p1.png")
    assert str(images.absolute()) not in row.error


def test_a_worker_that_ends_costs_one_image_at_most(images: Path) -> None:
    grey = picture((BODY, 250))
    grey[-1] = 255
    Picture.fromarray(grey).save(images / "p1.png")
    told: list[str] = []
    with local_cluster(1, allowed_failures=0) as address:
        result = run(images, "out", Helpers(FakeLoading({"ends": True}), dask=address, tell=told.append))
    assert [row.image for row in result.failed] == ["broken.png", "p1.png"]
    assert "every worker that tried it ended" in result.failed[1].error
    assert result.now == 4
    assert any(words.startswith("p1.png: its workers ended") for words in told)


def test_a_process_that_ends_is_told(images: Path) -> None:
    grey = picture((BODY, 250))
    grey[-1] = 255
    Picture.fromarray(grey).save(images / "p1.png")
    with pytest.raises(PalpateError, match=r"one of 2 processes ended.*masks that are done are kept: run it again"):
        run(images, "out", Helpers(FakeLoading({"ends": True}), workers=2))
    assert Path("out/scores.csv").is_file()


def test_a_worker_with_other_weights_is_named(images: Path, two: str) -> None:
    with pytest.raises(
        PalpateError, match=r"the worker tcp://\S+ has other weights \(111111111111, here 000000000000\)"
    ):
        run(images, "out", Helpers(FakeLoading({"weights_hash": "1" * 64}), dask=two))


def test_a_worker_that_comes_too_late_writes_no_mask_into_another_run(images: Path, two: str) -> None:
    """Nothing can stop a worker in the middle of an image; it may end when the folder is of other masks."""

    (images / "broken.png").unlink()

    def stop(done: int, total: int) -> None:
        if done == 1:
            settings = json.loads(Path("out/run.json").read_text(encoding="utf-8"))
            settings["settings"]["weights_hash"] = "another"
            Path("out/run.json").write_text(json.dumps(settings), encoding="utf-8")

    result = run(images, "out", Helpers(FakeLoading({"slow": 0.3}), dask=two), progress=stop)
    late = [row.image for row in result.failed if row.error == "out is of another run by now"]
    assert len(late) >= 3  # the other worker may end its first image in the same moment as the first one
    assert len(late) + result.now == 5
    masks = {name for name in files("out") if name.endswith((".png", ".nii.gz"))}
    assert masks == {row.image for row in result.rows} - set(late)
