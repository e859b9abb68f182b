from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import trees
from palpate.datasets import Case, LabelledImage, Region, open_dataset, split, write_manifest
from palpate.datasets.pair import FILES
from palpate.errors import DatasetError, OutputError, SettingError

FRACTIONS = {"train": 0.7, "val": 0.1, "test": 0.2}


def unread(case: Case) -> LabelledImage:
    raise AssertionError(f"{case.name} was opened")


def cases(sizes: dict[str, int], dataset: str = "d") -> list[Case]:
    """So many cases a subject."""
    return [
        Case(dataset, subject, f"{subject}-{number}", Path(), Path(), unread)
        for subject, size in sizes.items()
        for number in range(size)
    ]


def drawn(of: list[Case], seed: int = 0, **options: bool) -> dict[tuple[str, str], str]:
    done = split(of, fractions=FRACTIONS, rng=np.random.default_rng(seed), **options)
    return {(case.dataset, case.name): case.split for case in done}


SIZES = st.dictionaries(st.text("abcdefgh", min_size=1, max_size=3), st.integers(1, 9), min_size=1, max_size=30)


@given(SIZES, st.integers(0, 99), st.randoms())
def test_subjects_stay_together_in_any_order_and_fractions_are_met_within_the_largest(sizes, seed, random) -> None:
    ordered = cases(sizes)
    shuffled = list(ordered)
    random.shuffle(shuffled)
    done = split(ordered, fractions=FRACTIONS, rng=np.random.default_rng(seed))
    assert [case.name for case in done] == [case.name for case in ordered]
    assert drawn(shuffled, seed) == drawn(ordered, seed)
    assert len({(case.subject, case.split) for case in done}) == len(sizes)
    counts = Counter(case.split for case in done)
    for name, share in FRACTIONS.items():
        assert abs(counts[name] - share * len(done)) <= max(sizes.values()) + 1e-9


def test_fractions_are_exact_where_they_can_be() -> None:
    counts = Counter(drawn(cases({f"s{n}": 1 for n in range(100)})).values())
    assert counts == {"train": 70, "val": 10, "test": 20}


def test_another_seed_draws_another_split() -> None:
    ours = cases({f"s{n}": 1 for n in range(20)})
    assert drawn(ours, 0) != drawn(ours, 1)


def test_a_dataset_s_split_does_not_depend_on_the_others() -> None:
    ours = cases({f"s{n}": 1 for n in range(20)})
    more = cases({f"t{n}": 2 for n in range(20)}, "another")
    together = drawn(ours + more)
    assert drawn(ours).items() <= together.items()
    assert Counter(name for (dataset, _), name in together.items() if dataset == "another")["test"] == 8


def test_datasets_that_share_subjects_are_split_together() -> None:
    ct, mr = (cases({f"s{n}": 1 for n in range(first, first + 20)}, name) for name, first in (("ct", 0), ("mr", 10)))
    done = split(ct + mr, fractions=FRACTIONS, rng=np.random.default_rng(0))
    assert len({(case.subject, case.split) for case in done}) == 30
    for dataset in ("ct", "mr"):
        counts = Counter(case.split for case in done if case.dataset == dataset)
        assert all(abs(counts[name] - 20 * share) <= 2 for name, share in FRACTIONS.items())


def test_kept_subjects_stay_and_the_others_fill_up(tmp_path: Path) -> None:
    trees.pictures(tmp_path, {f"s{n}": 1 for n in range(10)})
    before = open_dataset(tmp_path)
    fixed = [*split(before[:2], fractions={"test": 1.0}, rng=np.random.default_rng(0)), *before[2:]]
    done = split(fixed, fractions=FRACTIONS, rng=np.random.default_rng(0), keep=True)
    assert [case.split for case in done[:2]] == ["test", "test"]
    assert Counter(case.split for case in done) == {"train": 7, "val": 1, "test": 2}


def test_a_subject_that_crosses_splits_cannot_be_kept() -> None:
    crossing = [Case("d", "s", name, Path(), Path(), unread, split=name) for name in ("train", "test")]
    with pytest.raises(DatasetError, match="s is in train and in test"):
        drawn(crossing, keep=True)
    assert len(set(drawn(crossing).values())) == 1


@pytest.mark.parametrize(
    "fractions", [{"train": 0.7, "test": 0.2}, {"train": 1.5, "test": -0.5}, {"train": np.nan}, {}]
)
def test_fractions_must_make_a_whole(fractions: dict[str, float]) -> None:
    with pytest.raises(SettingError, match="fractions"):
        split(cases({"a": 1}), fractions=fractions, rng=np.random.default_rng(0))


def test_a_manifest_written_elsewhere_finds_the_same_files(tmp_path: Path) -> None:
    trees.pictures(tmp_path / "data", {"p": 1, "q": 1}, licence="CC0", modality="endoscopy", dataset="x")
    before = open_dataset(tmp_path / "data")
    (tmp_path / "lists").mkdir()
    path = tmp_path / "lists" / "mine.csv"
    write_manifest(path, before)
    after = open_dataset(path)
    assert [(case.name, case.subject, case.extra) for case in after] == [
        (case.name, case.subject, case.extra) for case in before
    ]
    assert [case.image.resolve() for case in after] == [case.image for case in before]
    assert "../data/i/p_0.png" in path.read_text()
    with pytest.raises(OutputError, match="--overwrite"):
        write_manifest(path, before)


def test_every_layout_can_be_written_as_a_manifest(tmp_path: Path) -> None:
    for number, folder in enumerate(
        [
            trees.nnunet(tmp_path / "n"),
            trees.npy_slices(tmp_path / "npy"),
            trees.two_folders(tmp_path / "f"),
            trees.npz_case(tmp_path / "z" / "CT_one.npz").parent,
        ]
    ):
        path = tmp_path / f"{number}.csv"
        write_manifest(path, open_dataset(folder))
        for before, after in zip(open_dataset(folder), open_dataset(path), strict=True):
            assert (before.dataset, before.subject, before.modality) == (after.dataset, after.subject, after.modality)
            np.testing.assert_array_equal(before.read().image.array, after.read().image.array)
            np.testing.assert_array_equal(before.read().labels, after.read().labels)


def test_names_with_every_sign_come_back_from_a_manifest(tmp_path: Path) -> None:
    trees.two_folders(tmp_path / "f", ("a",))
    names = ["liver", "a|b", "c=d", "e+f", "50%", "%7C", " g ", "", "\n", "h\r\ni", "\xa0j", 'k,"l;', "niere ä"]
    regions = tuple(Region(name, (value, value + 20)) for value, name in enumerate(names, start=1))
    (case,) = open_dataset(tmp_path / "f")
    write_manifest(tmp_path / "m.csv", [replace(case, regions=regions, ignore=0)])
    (after,) = open_dataset(tmp_path / "m.csv")
    assert (after.regions, after.ignore) == (regions, 0)


def test_columns_that_nobody_states_are_not_written(tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.csv", open_dataset(trees.two_folders(tmp_path / "f", ("a",))))
    header = (tmp_path / "m.csv").read_text().splitlines()[0]
    assert header == "dataset,modality,subject,split,image,label,scribbles"


@pytest.mark.parametrize(
    "change",
    [
        {"load": unread},
        {"regions": (Region("a", (-1,)),)},
        {"regions": (Region("a", (0, 1)),)},
        {"regions": (Region("a", ()),)},
        {"regions": (Region("a", (1,)), Region("a", (2,)))},
        {"ignore": -1},
    ],
)
def test_what_a_manifest_cannot_hold_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    case = Case("d", "s", "n", tmp_path / "i.png", tmp_path / "l.png", FILES)
    with pytest.raises(DatasetError):
        write_manifest(tmp_path / "m.csv", [replace(case, **change)])
    assert not (tmp_path / "m.csv").exists()
