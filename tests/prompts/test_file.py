import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image as Picture

from palpate.errors import PromptError
from palpate.images import Image, read
from palpate.prompts import Box, MaskPrompt, Points, Prompt, Scribble, Target
from palpate.prompts.file import (
    RunLengths,
    from_run_lengths,
    read_mark,
    read_prompts,
    run_lengths,
    scribble_from,
    target_to_json,
)

coordinates = st.floats(-1e6, 1e6) | st.integers(-1000, 1000)
masks = arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))).filter(lambda mask: bool(mask.any()))
pairs = st.tuples(coordinates, coordinates).map(sorted)
objects = st.fixed_dictionaries(
    {
        "z": st.none() | st.integers(0, 500),
        "z_range": st.none() | st.tuples(st.integers(0, 100), st.integers(100, 500)),
        "label": st.integers(1, 65535),
        "name": st.text(max_size=9),
        "box": st.none() | st.tuples(pairs, pairs),
        "points": st.lists(st.tuples(coordinates, coordinates, st.integers(0, 1)), max_size=5),
        "mask": st.none() | masks,
    }
).filter(lambda drawn: drawn["box"] or drawn["points"] or drawn["mask"] is not None)


def target(drawn: dict[str, Any]) -> Target:
    # Made here and not by the strategy: the runtime type checks roll dice, which strategies must not.
    prompts: list[Prompt] = []
    if drawn["box"]:
        (x_min, x_max), (y_min, y_max) = drawn["box"]
        prompts.append(Box(x_min, y_min, x_max, y_max, z=drawn["z"]))
    if drawn["points"]:
        prompts.append(Points([p[:2] for p in drawn["points"]], [p[2] for p in drawn["points"]], z=drawn["z"]))
    if drawn["mask"] is not None:
        prompts.append(MaskPrompt(drawn["mask"], z=drawn["z"]))
    return Target(tuple(prompts), drawn["label"], drawn["name"], drawn["z_range"])


def comparable(target: Target) -> tuple[Any, ...]:
    prompts = [
        (prompt.mask.tolist(), prompt.z) if isinstance(prompt, MaskPrompt) else prompt for prompt in target.prompts
    ]
    return prompts, target.label, target.name, target.z_range


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prompts")


def written(folder: Path, *objects: Any, text: str | None = None) -> Path:
    path = folder / "prompts.json"
    path.write_text(json.dumps({"version": 1, "objects": objects}) if text is None else text, encoding="utf-8")
    return path


class TestRoundTrip:
    @given(st.lists(objects, min_size=1, max_size=3))
    def test_what_is_written_is_read_again(self, folder: Path, drawn: list[dict[str, Any]]) -> None:
        given = list(map(target, drawn))
        path = written(folder, *map(target_to_json, given))
        assert list(map(comparable, read_prompts(path))) == list(map(comparable, given))

    def test_a_scribble_is_written_as_the_points_that_the_model_saw(self, folder: Path) -> None:
        positive, negative = np.zeros((2, 20, 20), dtype=bool)
        positive[4, 2:18] = True
        negative[9, 3] = True
        scribble = Scribble(positive, negative, z=3)
        (target,) = read_prompts(written(folder, target_to_json(Target((scribble,)))))
        assert target.prompts == (scribble.points(),)

    @given(masks)
    def test_run_lengths_keep_every_pixel(self, mask: np.ndarray) -> None:
        code = run_lengths(mask)
        assert np.array_equal(from_run_lengths(code), mask)
        assert sum(code.counts) == mask.size

    def test_run_lengths_are_cocos(self) -> None:
        # Down the columns, starting with zeros: 0 1 | 0 1 | 1 0 -> one 0, one 1, one 0, two 1, one 0.
        mask = np.array([[0, 0, 1], [1, 1, 0]], dtype=bool)
        assert run_lengths(mask).model_dump() == {"size": (2, 3), "counts": [1, 1, 1, 2, 1]}

    def test_run_lengths_of_a_mask_that_starts_inside_begin_with_no_zeros(self) -> None:
        assert run_lengths(np.array([[1, 0]], dtype=bool)).counts == [0, 1, 1]
        assert run_lengths(np.ones((2, 2), dtype=bool)).counts == [0, 4]

    def test_runs_without_length_are_read(self) -> None:
        code = RunLengths(size=(1, 3), counts=[1, 0, 1, 1])
        assert from_run_lengths(code).tolist() == [[False, False, True]]


class TestWhatAFileMaySay:
    def test_the_example_in_the_manual(self, folder: Path) -> None:
        stroke = np.zeros((300, 300), dtype=np.uint8)
        stroke[10, 10:20], stroke[50, 50] = 255, 2
        Picture.fromarray(stroke).save(folder / "stroke.png")
        guess = np.zeros((300, 300), dtype=np.uint8)
        guess[100:110, 100:110] = 7
        Picture.fromarray(guess).save(folder / "first-guess.png")
        path = written(
            folder,
            {"label": 1, "name": "liver", "box": [92, 110, 301, 330], "slice": 41, "z": [20, 63]},
            {"label": 2, "name": "kidneys", "boxes": [[60, 200, 110, 260], [300, 205, 352, 262]], "slice": 41},
            {"label": 3, "points": [[210, 180], [230, 190, 0]], "slice": 41},
            {"label": 4, "scribble": "stroke.png"},
            {"label": 5, "mask": "first-guess.png"},
        )
        liver, left, right, clicked, drawn, guessed = read_prompts(path)
        assert comparable(liver) == ([Box(92, 110, 301, 330, z=41)], 1, "liver", (20, 63))
        assert (left.label, right.label) == (2, 2)
        assert right.prompts == (Box(300, 205, 352, 262, z=41),)
        assert clicked.prompts == (Points([(210, 180), (230, 190)], [1, 0], z=41),)
        (scribble,) = drawn.prompts
        assert isinstance(scribble, Scribble)
        assert scribble.negative is not None
        assert (scribble.positive.sum(), scribble.negative.sum()) == (10, 1)
        (mask,) = guessed.prompts
        assert isinstance(mask, MaskPrompt)
        assert mask.mask.sum() == 100

    def test_six_numbers_are_a_box_and_its_slices(self, folder: Path) -> None:
        (target,) = read_prompts(written(folder, {"box": [1, 2, 3, 4, 5, 9]}))
        assert target.prompts == (Box(1, 2, 4, 5),)
        assert target.z_range == (3, 9)
        assert target.z == 6

    def test_objects_without_a_label_are_numbered(self, folder: Path) -> None:
        path = written(folder, {"box": [1, 2, 3, 4]}, {"box": [1, 2, 3, 4]})
        assert [target.label for target in read_prompts(path)] == [1, 2]

    def test_one_object_may_have_a_box_and_clicks(self, folder: Path) -> None:
        (target,) = read_prompts(written(folder, {"box": [1, 2, 3, 4], "points": [[2, 3]]}))
        assert target.prompts == (Box(1, 2, 3, 4), Points([(2, 3)]))

    def test_other_things_beside_the_objects_are_passed_over(self, folder: Path) -> None:
        text = '{"image": "ct.nii.gz", "objects": [{"box": [1, 2, 3, 4]}]}'
        assert len(read_prompts(written(folder, text=text))) == 1

    def test_windows_mark_at_the_beginning_is_passed_over(self, folder: Path) -> None:
        text = '\ufeff{"objects": [{"box": [1, 2, 3, 4], "name": "Drüse"}]}'
        assert read_prompts(written(folder, text=text))[0].name == "Drüse"

    def test_one_slice_of_a_volume_is_the_mark(self, folder: Path) -> None:
        nibabel = pytest.importorskip("nibabel")
        voxels = np.zeros((5, 4, 3), dtype=np.uint8)  # x, y, z
        voxels[1:3, 1, 2] = 1
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), folder / "guess.nii.gz")
        (target,) = read_prompts(written(folder, {"mask": "guess.nii.gz", "slice": 2}))
        (prompt,) = target.prompts
        assert isinstance(prompt, MaskPrompt)
        assert np.argwhere(prompt.mask).tolist() == [[1, 1], [1, 2]]
        with pytest.raises(PromptError, match=r"objects\[0\].*volume of 3 slices; say which one"):
            read_prompts(written(folder, {"mask": "guess.nii.gz"}))
        (middle,) = read_prompts(written(folder, {"mask": "guess.nii.gz", "z": [1, 4]}))
        assert middle.z == 2
        with pytest.raises(PromptError, match=r"has slices 0..2; slice 3 does not exist"):
            read_mark(folder / "guess.nii.gz", z=3)

    def test_a_mark_on_another_grid_than_the_image_is_refused(self, folder: Path) -> None:
        nibabel = pytest.importorskip("nibabel")
        affine = np.diag([-1.0, -1.0, 3.0, 1.0])
        voxels = np.zeros((5, 4, 3), dtype=np.uint8)  # x, y, z
        voxels[1:3, 1, 2] = 1
        mirror = np.diag([-1.0, 1.0, 1.0, 1.0])
        mirror[0, 3] = 4
        grids = {
            "image": (voxels, affine),
            "mark": (voxels, affine + 1e-3 * np.eye(4)),  # a header rounds
            "flipped": (voxels[::-1], affine @ mirror),  # the same place, stored the other way round
            "cropped": (voxels[..., 1:], affine),
            "shifted": (voxels, affine + np.eye(4, k=3)),
        }
        for name, (array, place) in grids.items():
            nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(array), place), folder / f"{name}.nii")
        image = read(folder / "image.nii")
        assert read_mark(folder / "mark.nii", z=2, image=image).sum() == 2
        for name in ("flipped", "cropped", "shifted"):
            with pytest.raises(PromptError, match="another grid"):
                read_mark(folder / f"{name}.nii", z=1, image=image)
            with pytest.raises(PromptError, match=r"objects\[0\]: .*another grid"):
                read_prompts(written(folder, {"mask": f"{name}.nii", "slice": 1}), image=image)

    def test_a_mark_is_cut_as_its_image_is(self, folder: Path) -> None:
        # The image's voxels are longest along y, so that is its slicing axis; the mark says nothing of lengths.
        image = Image(np.zeros((3, 4, 5)), np.diag([-1.0, -3.0, 1.0, 1.0]))
        drawn = np.zeros((3, 4, 5), dtype=np.uint8)
        drawn[1, 2, 3] = 1
        np.savez(folder / "3D_mark.npz", imgs=drawn)
        assert np.argwhere(read_mark(folder / "3D_mark.npz", z=2, image=image)).tolist() == [[1, 3]]

    def test_a_colour_picture_is_no_mark(self, folder: Path) -> None:
        Picture.new("RGB", (4, 4), (255, 0, 0)).save(folder / "red.png")
        with pytest.raises(PromptError, match="drawn in one channel"):
            read_mark(folder / "red.png")

    def test_two_in_a_drawing_is_beside_the_object(self) -> None:
        scribble = scribble_from(np.array([[0, 1, 2], [255, 0, 2]]), z=1)
        assert scribble.positive.tolist() == [[False, True, False], [True, False, False]]
        assert scribble.negative is not None
        assert scribble.negative.tolist() == [[False, False, True], [False, False, True]]
        assert scribble_from(np.array([[0, 1]])).negative is None


BOX = {"box": [1, 2, 3, 4]}


class TestMistakes:
    @pytest.mark.parametrize(
        ("objects", "told"),
        [
            ([BOX, BOX, {"box": [1, 2, 3, "x"]}], r"objects\[2\]\.box\[3\]: .*it is \"x\""),
            ([{"boxes": [[1, 2, 3, 4], [1, None, 3, 4]]}], r"objects\[0\]\.boxes\[1\]\[1\]: "),
            ([{"box": [1, 2, 3]}], r"objects\[0\]\.box: list should have at least 4"),
            ([{"box": [1, 2, 3, 4, 5, 6, 7]}], r"objects\[0\]\.box: list should have at most 6"),
            ([{"box": [1, 2, 3, 4, 5]}], r"objects\[0\]: .*four numbers, or six with z; this one has five"),
            ([BOX, {"bx": [1, 2, 3, 4]}], r"objects\[1\]\.bx: "),
            ([BOX, {"box": [3, 2, 1, 4]}], r"objects\[1\]: the box .* is inverted"),
            ([{"box": [1, 2, 0.5, 4, 5, 6]}], r"objects\[0\]: slices are whole numbers"),
            ([{"box": [1, 2, -1, 4, 5, 6]}], r"objects\[0\]: slice -1 does not exist"),
            ([{"box": [1, 2, 0, 4, 5, 6], "z": [0, 6]}], r"objects\[0\]: the slice range is said twice"),
            ([BOX | {"z": [6, 2]}], r"objects\[0\]: the slice range \(6, 2\) is inverted"),
            ([BOX | {"z": [6]}], r"objects\[0\]\.z"),
            ([BOX | {"slice": -1}], r"objects\[0\]\.slice: "),
            ([BOX | {"slice": 1.5}], r"objects\[0\]\.slice: "),
            ([BOX | {"label": 0}], r"objects\[0\]\.label: "),
            ([BOX | {"label": 65536}], r"objects\[0\]\.label: "),
            ([{"boxes": [[1, 2, 3, 4]] * 2, "points": [[1, 2]]}], r"objects\[0\]: several boxes and other prompts"),
            ([{"points": [[1, 2, 0.5]]}], r"objects\[0\]: point labels are 1"),
            ([{"points": [[1, 2], [1]]}], r"objects\[0\]\.points\[1\]: "),
            ([{"points": []}], r"objects\[0\]: an object needs at least one prompt"),
            ([{"label": 3}], r"objects\[0\]: an object needs at least one prompt"),
            (
                [{"mask": {"size": [2, 2], "counts": [3]}}],
                r"objects\[0\]: the run lengths add up to 3 pixels",
            ),
            ([{"mask": {"size": [2, 2], "counts": [5, -1]}}], r"objects\[0\]\.mask\.counts\[1\]: "),
            ([{"mask": {"size": [2, 2]}}], r"objects\[0\]\.mask\.counts: field required"),
            (
                [{"scribble": {"size": [2, 2], "counts": [4]}}],
                r"objects\[0\]: a scribble needs at least",
            ),
            ([{"mask": 3}], r"objects\[0\]\.mask: .*it is 3"),
            ([{"mask": "nowhere.png"}], r"objects\[0\]: there is no file or folder .*nowhere.png"),
            ([], "objects: list should have at least 1 item"),
            ([3], r"objects\[0\]: an object in braces is needed; it is 3"),
        ],
    )
    def test_each_is_told_with_its_place(self, folder: Path, objects: list[Any], told: str) -> None:
        path = written(folder, *objects)
        with pytest.raises(PromptError, match=told) as caught:
            read_prompts(path)
        assert str(caught.value).startswith(f"{path}: ")

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
    def test_what_is_no_finite_number_is_refused(self, folder: Path, number: str) -> None:
        path = written(folder, text='{"objects": [{"box": [1, 2, 3, N]}]}'.replace("N", number))
        with pytest.raises(PromptError, match=r"objects\[0\]\.box\[3\]: input should be a finite number"):
            read_prompts(path)

    @pytest.mark.parametrize("text", ["", "{", "box: 1 2 3 4", "[" * 100_000])
    def test_what_is_not_json_is_refused(self, folder: Path, text: str) -> None:
        with pytest.raises(PromptError, match="is not JSON"):
            read_prompts(written(folder, text=text))

    def test_what_is_not_text_is_refused(self, folder: Path) -> None:
        path = folder / "picture.json"
        path.write_bytes(b"\x89PNG\r\n\xff\xfe")
        with pytest.raises(PromptError, match="is not JSON"):
            read_prompts(path)

    @pytest.mark.parametrize(
        ("text", "told"),
        [("[]", "the file: an object in braces is needed"), ("{}", "objects: field required")],
    )
    def test_json_of_another_kind_is_refused(self, folder: Path, text: str, told: str) -> None:
        with pytest.raises(PromptError, match=told):
            read_prompts(written(folder, text=text))

    def test_a_file_of_the_future_is_refused(self, folder: Path) -> None:
        with pytest.raises(PromptError, match="version: input should be 1; it is 2"):
            read_prompts(written(folder, text='{"version": 2, "objects": [{"box": [1, 2, 3, 4]}]}'))

    def test_a_missing_file_is_told(self, folder: Path) -> None:
        with pytest.raises(PromptError, match=r"cannot read the prompts file .*none.json: No such file"):
            read_prompts(folder / "none.json")

    def test_a_folder_is_no_file(self, folder: Path) -> None:
        with pytest.raises(PromptError, match="cannot read the prompts file"):
            read_prompts(folder)

    def test_several_mistakes_are_counted(self, folder: Path) -> None:
        with pytest.raises(PromptError, match=r"\(and 1 more\)"):
            read_prompts(written(folder, {"box": [1, "a", 3, "b"]}))
