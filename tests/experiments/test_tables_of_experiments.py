"""Tables of experiments say what the rows say: the right arm, the right box, the mean of data sets' means."""

import sys
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from palpate.evaluation.table import Presence, Row, presence_csv, results_csv

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def loaded(path: Path) -> ModuleType:
    spec = spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[module.__name__] = module
    sys.path.insert(0, str(path.parent))  # as for a script, which may import those beside it
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def written(folder: Path, rows: list[Row]) -> None:
    folder.mkdir(parents=True)
    (folder / "results.csv").write_text(results_csv(rows))
    (folder / "run.json").write_text('{"settings": {}}')


def row(**known: object) -> Row:
    """A row of which only the interesting columns are said."""
    usual: dict[str, object] = {
        **{
            "dataset": "ct",
            "subject": "s",
            "case": "c",
            "object": "1",
            "protocol": "standard",
            "severity": 0.0,
            "seed": 0,
        },
        **{
            "dice": 0.9,
            "iou": 0.8,
            "nsd": 0.9,
            "hd95": 2.0,
            "assd": 0.5,
            "leak": 0.0,
            "area": 0.05,
            "predicted_iou": 0.8,
        },
    }
    return Row(**{**usual, **known})  # pyright: ignore[reportArgumentType]


def people(condition: tuple[str, float], dice: float, *, area: float = 0.05) -> list[Row]:
    """Nine people of two data sets, alike."""
    shared = {"protocol": condition[0], "severity": condition[1], "dice": dice, "area": area}
    return [row(dataset=name, subject=f"{name}{i}", case=f"c{i}", **shared) for name in ("ct", "mr") for i in range(9)]


class TestFourArms:
    @pytest.fixture
    def tables(self) -> ModuleType:
        return loaded(EXPERIMENTS / "adaptive_perturbation" / "tables.py")

    def test_each_arm_stands_under_its_name_and_seeds_are_averaged(
        self, tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        written(tmp_path / "test" / "released", [r for one in tables.CONDITIONS for r in people(one, 0.5)])
        for arm, values in (("medsam", (0.6, 0.62)), ("adaptive-bidirectional", (0.8, 0.84))):
            for seed, dice in zip((0, 10), values, strict=True):  # a seed of two digits is a seed, too
                rows = [r for one in tables.CONDITIONS for r in people(one, dice)]
                written(tmp_path / "test" / f"{arm}-{seed}", rows)
        monkeypatch.setattr(sys, "argv", ["tables.py", str(tmp_path)])
        tables.main()
        lines = (tmp_path / "tables.md").read_text().splitlines()
        head = next(line for line in lines if line.startswith("| box |"))
        assert head == "| box | released LiteMedSAM, not trained further | MedSAM's jitter | + both |"
        tight = next(line for line in lines if line.startswith("| Standard |"))
        assert [cell.split()[0] for cell in tight.strip("| ").split(" | ")] == ["Standard", "50.0", "61.0", "82.0"]
        seeds = next(line for line in lines if line.startswith("| MedSAM's jitter |"))
        assert "60.0, 62.0" in seeds
        difference = next(line for line in lines if line.startswith("| + both against MedSAM's jitter |"))
        assert difference.split(" | ")[1].startswith("21.0 [21.0, 21.0]")

    def test_a_person_who_was_trained_on_is_left_out(self, tables: ModuleType, tmp_path: Path) -> None:
        rows = [
            *people(("standard", 0.0), 0.5),
            row(dataset="medscribble", subject="medscribble/ACDC__patient056", dice=1.0),
        ]
        written(tmp_path / "test" / "released", rows)
        (arm,) = tables.read_arms(tmp_path)
        assert {one.dataset for one in arm.rows} == {"ct", "mr"}

    def test_whoever_is_left_out_is_in_the_test_split(self, tables: ModuleType, data_root: Path) -> None:
        from palpate.datasets import open_dataset

        assert {case.subject for case in open_dataset(data_root, split="test")} >= tables.LEFT_OUT

    def test_tiny_targets_are_the_tiny_ones(self, tables: ModuleType) -> None:
        tight = ("standard", 0.0)
        rows = (*people(tight, 0.9), *(replace(one, object="2") for one in people(tight, 0.2, area=0.004)))
        arm = tables.Arm("medsam", rows, (0,))
        assert len(arm.at(tight)) == 36
        assert {one.dice for one in arm.at(tight, tiny=True)} == {0.2}


class TestRoads:
    @pytest.fixture
    def roads(self) -> ModuleType:
        return loaded(EXPERIMENTS / "lite_medsam_robust" / "run.py")

    def test_the_curve_goes_from_the_tightest_box_to_the_loosest(self, roads: ModuleType) -> None:
        conditions = [
            ("shrink" if box < 0 else "expansion" if box > 0 else "standard", abs(box)) for box in roads.BOXES
        ]
        rows = [r for place, one in enumerate(conditions) for r in people(one, 0.1 * (place + 1))]
        assert roads.curve(rows) == pytest.approx([10, 20, 30, 40, 50, 60, 70])
        assert conditions == [(p.name, s) for p in roads.PLAN.protocols for s in p.severities if p.name == "shrink"][
            ::-1
        ] + [("standard", 0.0)] + [
            (p.name, s) for p in roads.PLAN.protocols for s in p.severities if p.name == "expansion"
        ]

    def test_every_road_is_a_recipe(self, roads: ModuleType) -> None:
        from palpate.training.recipe import read_recipe

        for changes in roads.ROADS.values():
            recipe = read_recipe(EXPERIMENTS / "lite_medsam_robust" / "recipe.toml", changes=changes)
            assert recipe.data.only == {"redistributable_weights": "yes"}

    def test_the_final_recipe_is_the_chosen_road_with_nothing_left_out(self, roads: ModuleType) -> None:
        from palpate.training.recipe import read_recipe

        folder = EXPERIMENTS / "lite_medsam_robust"
        names = {"name": "", "summary": "", "licence": "", "data.path": "regions"}
        chosen = read_recipe(folder / "recipe.toml", changes=roads.ROADS["balanced-regions-variants"])
        assert read_recipe(folder / "final.toml", changes=names) == chosen

    def test_rounds_leave_out_three_data_sets_each_and_never_the_same(self, roads: ModuleType) -> None:
        assert [len(names) for names in roads.ROUNDS.values()] == [3, 3]
        assert not set(roads.ROUNDS["a"]) & set(roads.ROUNDS["b"])


class TestLearnedPrompts:
    @pytest.fixture
    def lines(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Two draws of the spine with two classes: slice 3 is without class 2, which one draw believes to be there."""
        tables = loaded(EXPERIMENTS / "sam2rad" / "tables.py")
        nan = float("nan")
        tight = {"1": 0.8, "2": 0.6}
        for draw, found in ((0, {"1": 0.7, "2": 0.3}), (1, {"1": 0.5, "2": 0.5})):
            rows = [
                row(subject="s", object=f"{name}@{z}", protocol=protocol, dice=dice + more)
                for name, dice in found.items()
                for z in (1, 2)
                for protocol, more in (("learned", 0.0), ("box+learned", 0.2))
            ]
            believed = [row(subject="s", object="2@3", protocol="learned", dice=0.0, area=nan)] if draw else []
            written(tmp_path / "test" / f"spine-10-{draw}-decoder-localiser", [*rows, *believed])
            seen = [
                Presence("ct", "s", "c", z, name, present=z != 3, object_probability=0.5, object_logit=x, pixels=n)
                for z, name, x, n in ((1, "1", 1.0, 9), (1, "2", 1.0, 9), (3, "2", -1.0 + 2 * draw, 9 * draw))
            ]
            (tmp_path / "test" / f"spine-10-{draw}-decoder-localiser" / "presence.csv").write_text(presence_csv(seen))
        rows = [row(subject="s", object=f"{name}@{z}", dice=dice) for name, dice in tight.items() for z in (1, 2)]
        written(tmp_path / "test" / "spine-released", rows)
        monkeypatch.setattr(sys, "argv", ["tables.py", str(tmp_path)])
        tables.main()
        return (tmp_path / "tables.md").read_text().splitlines()

    def test_slices_without_the_class_count_in_one_column_alone(self, lines: list[str]) -> None:
        cells = next(line for line in lines if line.startswith("| spine | 2 |")).strip("| ").split(" | ")
        # Both draws have a mean of 0.5, the tight box 0.7; counted by all, the second has a zero among five.
        assert cells[2:7] == ["0.500 (0.500 to 0.500)", "0.700", "0.700", "0.71", "0.64"]
        assert cells[8] == "50 %"

    def test_each_class_has_its_line(self, lines: list[str]) -> None:
        assert "| spine | 1 | 0.60 | 0.80 | 0.80 |" in lines
        assert "| spine | 2 | 0.40 | 0.60 | 0.60 |" in lines

    def test_every_run_says_what_made_it(self, lines: list[str]) -> None:
        told = [line for line in lines if "code" in line and line.startswith("| spine")]
        assert [line.split(" | ")[0] for line in told] == [
            "| spine decoder-localiser 10 0",
            "| spine decoder-localiser 10 1",
            "| spine released",
        ]
