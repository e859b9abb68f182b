"""What a case depends on, and what it is."""

import functools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nrrd
import numpy as np
import pytest

import trees
from palpate.datasets import Case, LabelledImage, Region, open_dataset
from palpate.datasets.pair import FILES
from palpate.errors import DatasetError

META = """ObjectType = Image
NDims = 3
DimSize = 6 5 3
ElementType = MET_UCHAR
ElementSpacing = 1 1 1
ElementDataFile = {}
"""


def load_with(case: Case, *, channel: int = 0, spacing: Path | None = None) -> LabelledImage:
    raise AssertionError(f"{case.name} was opened with {channel} and {spacing}")


def pair(image: Path, label: Path, **more: object) -> Case:
    return replace(Case("d", "s", "n", image, label, FILES), **more)


def test_one_file_of_image_and_label_is_listed_once(tmp_path: Path) -> None:
    file = trees.npz_case(tmp_path / "CT_one.npz")
    assert open_dataset(tmp_path)[0].files() == (file,)


def test_scribbles_and_missing_files_are_listed(tmp_path: Path) -> None:
    names = [tmp_path / f"{name}.png" for name in "abcd"]
    assert pair(names[0], names[1], scribbles=(names[2], names[3])).files() == tuple(names)
    gone = [tmp_path / name for name in ("a.mhd", "b.nhdr")]
    assert pair(*gone).files() == tuple(gone)


def test_the_data_of_a_detached_header_is_listed(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    image, label = tmp_path / "image.mhd", tmp_path / "label.nhdr"
    image.write_text(META.format("raw/image.raw"))
    (tmp_path / "raw" / "image.raw").write_bytes(bytes(90))
    nrrd.write(str(label), trees.ORGANS.T, detached_header=True)
    (data,) = set(tmp_path.glob("label.*")) - {label}
    case = pair(image, label)
    FILES.labels(label)  # what is listed is what a reader finds; MetaImage would need an extra
    assert case.files() == (image, tmp_path / "raw" / "image.raw", label, data)
    # One that is missing is what the case depends on all the same.
    data.unlink()
    assert data in case.files()


@pytest.mark.parametrize("name", ["LOCAL", "../secret.raw", "/etc/passwd", "a" * 5000, "a\0b", ""])
def test_what_a_header_names_elsewhere_is_not_listed(tmp_path: Path, name: str) -> None:
    (tmp_path / "d").mkdir()
    image = tmp_path / "d" / "image.mhd"
    image.write_text(META.format(name))
    assert pair(image, image).files() == (image,)


def test_the_spacing_beside_a_tiff_is_listed_while_it_is_there(tmp_path: Path) -> None:
    image, label = tmp_path / "i" / "a_0000.tif", tmp_path / "l" / "a.tif"
    case = pair(image, label)
    assert case.files() == (image, label)
    for folder in ("i", "l"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.json").write_text("{}")
    assert case.files() == (image, image.with_name("a.json"), label, label.with_name("a.json"))


def test_every_file_of_a_dicom_folder_is_listed(tmp_path: Path) -> None:
    slices = [tmp_path / "p3" / name for name in ("a/2.dcm", "a/IM1", "b.dcm", "LICENSE")]
    for file in (*slices, tmp_path / "p3" / ".DS_Store"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    label = tmp_path / "p3.nii.gz"
    assert pair(tmp_path / "p3", label).files() == (*sorted(slices), label)


def test_paths_among_the_options_of_load_are_files_too(tmp_path: Path) -> None:
    image, label, spacing = (tmp_path / name for name in ("i.png", "l.png", "mm.json"))
    load = functools.partial(load_with, spacing=spacing)
    assert pair(image, label, load=load).files() == (image, label, spacing)


def test_a_case_is_the_same_wherever_it_lies(tmp_path: Path) -> None:
    here, there = (open_dataset(trees.nnunet(tmp_path / name))[0] for name in ("here", "there"))
    assert here.identity() == there.identity()
    assert str(tmp_path) not in here.identity()


def test_everything_that_decides_is_in_the_identity() -> None:
    case = pair(Path("i.png"), Path("l.png"), load=load_with)
    others = [
        replace(case, dataset="other"),
        replace(case, subject="other"),
        replace(case, name="other"),
        replace(case, modality="CT"),
        replace(case, image=Path("i.tif")),
        replace(case, regions=(Region("a", (1,)),)),
        replace(case, regions=(Region("a", (1, 2)),)),
        replace(case, ignore=3),
        replace(case, scribbles=(Path("s.png"),)),
        replace(case, scribble_convention="classes"),
        replace(case, load=FILES),
        replace(case, load=replace(FILES, labels=FILES.image)),
        replace(case, load=functools.partial(load_with, channel=1)),
        replace(case, load=functools.partial(load_with, channel=2)),
    ]
    assert len({case.identity(), *(other.identity() for other in others)}) == 1 + len(others)
    assert replace(case, split="test", extra=(("site", "b"),)).identity() == case.identity()


def test_another_run_of_python_says_the_same() -> None:
    # Two words in a set come in another order in nearly every run, unless somebody sorts them.
    program = (
        "import functools; from pathlib import Path; from palpate.datasets import Case; "
        "from palpate.datasets.pair import FILES, settled; words = {'a', 'b', 'c', 'd'}; "
        "load = functools.partial(settled, FILES, words=words, one={w: 1 for w in words}); "
        "print(Case('d', 's', 'n', Path('i'), Path('l'), load).identity())"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1
    assert json.loads(said.pop())["load"]["partial"] == {"function": "palpate.datasets.pair.settled"}


def test_options_without_a_stable_text_are_refused() -> None:
    case = pair(Path("i"), Path("l"), load=functools.partial(load_with, channel=object()))
    with pytest.raises(DatasetError, match="nothing stable"):
        case.identity()


def test_arrays_among_options_count_by_their_values() -> None:
    one, same, other = (
        pair(Path("i"), Path("l"), load=functools.partial(load_with, channel=np.array(values)))
        for values in ([1, 2], [1, 2], [1, 3])
    )
    assert one.identity() == same.identity() != other.identity()


def test_a_function_made_by_another_counts_with_what_it_keeps() -> None:
    def made(channel: int):
        return lambda case: load_with(case, channel=channel)

    one, same, other = (pair(Path("i"), Path("l"), load=made(channel)) for channel in (1, 1, 2))
    assert one.identity() == same.identity() != other.identity()


def test_a_resolved_case_can_be_read_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trees.two_folders(tmp_path / "here", ("a",))
    monkeypatch.chdir(tmp_path / "here")
    (case,) = open_dataset(Path())
    case = replace(case, scribbles=(Path("s.png"),))
    resolved = case.resolved()
    monkeypatch.chdir(tmp_path)
    resolved.read()
    assert resolved.image == tmp_path / "here" / "images" / "a.png"
    assert resolved.scribbles == (tmp_path / "here" / "s.png",)
    assert resolved.load == case.load
    assert resolved.identity() == case.identity()


def test_paths_among_the_options_of_load_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    inside = replace(FILES, image=functools.partial(load_with, Path("a")))
    load = functools.partial(load_with, inside, [Path("b"), 1], spacing={"mm": (Path("c"), "d")})
    got = pair(Path("i"), Path("l"), load=load).resolved().load
    assert isinstance(got, functools.partial)
    assert got.args[0].image.args == (tmp_path / "a",)
    assert got.args[1] == [tmp_path / "b", 1]
    assert got.keywords == {"spacing": {"mm": (tmp_path / "c", "d")}}
