"""Tables of experiments say what the rows say: the right arm, the right box, the mean of data sets' means."""

import json
import sys
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from palpate.evaluation.modalities import CaseTime, cases_csv
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

    def test_the_papers_tables_have_its_shape(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tables = loaded(EXPERIMENTS / "sam2rad" / "tables.py")
        written(tmp_path / "test" / "polyp-released", [row(dice=0.9, iou=0.8)])
        written(tmp_path / "test" / "heart-released", [row(dice=0.6, iou=0.5)])  # nothing was learned for it yet
        for way, more in (("none", 0.0), ("lora", 0.1)):
            for draw, dice in ((0, 0.5), (1, 0.7)):
                rows = [
                    row(protocol="learned", dice=dice + more, iou=dice),
                    row(protocol="box+learned", dice=dice + more + 0.05, iou=dice),
                ]
                written(tmp_path / "test" / f"polyp-10-{draw}-{way}-localiser", rows)
        monkeypatch.setattr(sys, "argv", ["tables.py", str(tmp_path)])
        tables.main()
        parts = [part.splitlines() for part in (tmp_path / "tables.md").read_text().split("\n\n")]
        papers = {part[0].strip("| ").split(" | ")[0]: part for part in parts if part[0].startswith("| Table")}
        assert list(papers) == [
            "Table 2: tight box, nothing trained",
            "Table 3: 10 images, decoder frozen",
            "Table 4: 10 images, LoRA on the decoder",
        ]
        first, third, fourth = (part[-1] for part in papers.values())
        assert first == "| LiteMedSAM | 60.0 / 50.0 | 90.0 / 80.0 |"
        assert third == "| LiteMedSAM | 90.0 / 80.0 | 60.0 / 60.0 |"
        assert fourth == "| LiteMedSAM | 70.0 / 60.0 | 75.0 / 60.0 |"
        assert papers["Table 4: 10 images, LoRA on the decoder"][0].endswith(
            "| polyp, learned | polyp, box + learned |"
        )

    def test_a_figure_of_few_shots_shows_means_and_draws(self) -> None:
        tables = loaded(EXPERIMENTS / "sam2rad" / "tables.py")

        def run(task: str, way: str, shots: str, draw: int, dice: float) -> object:
            scores = dict.fromkeys(("learned", "box+learned", "standard"), dice)
            counts = {"auroc": 0.0, "present": 0, "absent": 0, "denied": 0.0}
            return tables.Measured(task, way, shots, draw, scores, scores, {}, 0.0, {}, **counts)

        runs = [
            run("polyp", "decoder-localiser", shots, draw, 0.5 + 0.1 * draw)
            for shots in ("all", "5", "20")
            for draw in (0, 1, 2)
        ]
        figure = tables.few_shot([*runs, run("polyp", "released", "", 0, 0.9)], "decoder-localiser")
        (axes,) = (each for each in figure.axes if each.get_title() == "polyp")
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["5", "20", "all"]
        assert axes.containers[0][0].get_ydata() == pytest.approx([0.6] * 3)
        assert len(axes.containers) == 2


class TestSwinLiteMedSAM:
    @pytest.fixture
    def tables(self) -> ModuleType:
        return loaded(EXPERIMENTS / "swin_litemedsam" / "tables.py")

    @staticmethod
    def shown(tables: ModuleType, out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[list[str]]]:
        """The cells of each table's lines, by its title."""
        monkeypatch.setattr(sys, "argv", ["tables.py", str(out)])
        tables.main()
        found: dict[str, list[list[str]]] = {}
        for part in (out / "tables.md").read_text().split("### ")[1:]:
            title, *lines = part.splitlines()
            found[title] = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines if line.startswith("| ")]
        return found

    @staticmethod
    def measured(tables: ModuleType, folder: Path, dice: float, *, boxes: int = 7) -> None:
        """All people, with the tight box and so many others; the tighter the box, the worse the mask."""
        asked = sorted(tables.SEVEN, key=lambda one: one != tables.TIGHT)[:boxes]
        written(folder, [r for n, one in enumerate(asked) for r in people(one, dice - 0.1 * n / 6)])

    def test_seeds_are_averaged_and_missing_rows_left_out(
        self, tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for job, dice in (("encoder-0", 0.6), ("encoder-1", 0.7), ("skip-0", 0.72), ("half-0", 0.1)):
            self.measured(tables, tmp_path / "test" / "stage2" / job, dice)
        (tmp_path / "test" / "stage2" / "skip-1").mkdir()  # not finished
        head, *lines = next(iter(self.shown(tables, tmp_path, monkeypatch).values()))
        assert head[1:3] == ["paper, Dice / NSD", "Dice"]
        assert [(line[1], line[2].split()[0], line[4]) for line in lines] == [
            ("85.79 / 86.75", "65.0", "60.0, 70.0"),
            ("86.48 / 87.74", "72.0", "–"),
        ]
        assert [line[0] for line in lines] == [tables.NAMES["encoder"], tables.NAMES["skip"]]

    def test_differences_are_the_later_row_minus_the_earlier(
        self, tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for job, dice in (("encoder-0", 0.6), ("skip-0", 0.65), ("scribble-0", 0.63), ("adaptive-0", 0.7)):
            self.measured(tables, tmp_path / "test" / "stage2" / job, dice)
        shown = self.shown(tables, tmp_path, monkeypatch)
        lines = next(lines for title, lines in shown.items() if title.startswith("Differences"))
        assert lines[0][1:] == ["-25 %", "-15 %", "-8 %", "tight", "+8 %", "+15 %", "+25 %"]
        found = {tuple(line[0].split(" – ")): float(line[4].split(" [")[0]) for line in lines[1:]}
        assert all(line[4].endswith("18 / 0") for line in lines[1:])
        names = tables.NAMES
        assert found == {
            (names["skip"], names["encoder"]): 5.0,
            (names["scribble"], names["encoder"]): 3.0,
            (names["adaptive"], names["scribble"]): 7.0,
        }

    @pytest.mark.parametrize(("boxes", "mean"), [(7, "75.0"), (6, "–")])
    def test_the_mean_of_seven_boxes_is_of_seven(
        self, tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boxes: int, mean: str
    ) -> None:
        self.measured(tables, tmp_path / "test" / "stage2" / "scribble-2", 0.8, boxes=boxes)
        shown = self.shown(tables, tmp_path, monkeypatch)
        head, line = next(lines for title, lines in shown.items() if title.startswith("Boxes"))
        assert len(head) == 3 + boxes
        assert line[-2].split()[0] == mean

    def test_a_box_counts_if_every_seed_has_it(
        self, tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for job, boxes in (("scribble-0", 7), ("scribble-1", 3), ("skip-0", 7)):
            self.measured(tables, tmp_path / "test" / "stage2" / job, 0.8, boxes=boxes)
        shown = self.shown(tables, tmp_path, monkeypatch)
        head, skip, scribble = next(lines for title, lines in shown.items() if title.startswith("Boxes"))
        assert len(head) == len(skip) == len(scribble) == 3 + 7
        assert "not asked" not in skip
        assert scribble[1:].count("not asked") == 4
        assert scribble[-2:] == ["–", "75.0, –"]
        assert skip[-2].startswith("75.0 [")

    def test_encoders_stand_beside_the_released_one(
        self, tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        written(tmp_path / "test" / "released", people(("standard", 0.0), 0.5))
        rows = [
            replace(one, dice=0.4 if one.subject == "ct3" else 0.5 if one.subject == "mr4" else 0.6)
            for one in people(("standard", 0.0), 0.6)
        ]
        written(tmp_path / "test" / "stage1" / "half", rows)
        record = {"settings": {}, "model": "lite-medsam-quarter"}
        (tmp_path / "test" / "stage1" / "half" / "run.json").write_text(json.dumps(record))
        shown = self.shown(tables, tmp_path, monkeypatch)
        (_, released, half), (_, difference) = (lines for title, lines in shown.items() if title.startswith("Stage 1"))
        assert (released[0], released[1].split()[0], half[0]) == (tables.NAMES["released"], "50.0", "half")
        assert (released[-1], half[-1]) == ("–", "11.2")
        assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
        assert difference[1].startswith("8.3 [")  # (16 x 10 - 10) / 18
        assert difference[1].endswith("16 / 1")
        assert "18 objects of 18 subjects" in (tmp_path / "tables.md").read_text()

    def test_what_one_encoder_never_saw_is_counted_by_itself(
        self, tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        unseen = [row(dataset=tables.UNSEEN[0], subject=f"u{i}", case=f"u{i}", dice=0.3) for i in range(9)]
        for name in ("released", "stage1/half", "stage1/half-unseen"):
            dice = 0.5 if name == "released" else 0.9
            written(tmp_path / "test" / name, [*people(("standard", 0.0), dice), *unseen])
        shown = self.shown(tables, tmp_path, monkeypatch)
        found = {title: {line[0]: line[1].split()[0] for line in lines[1:]} for title, lines in shown.items()}
        (everywhere, differences), (there, differences_there) = (
            [found[title] for title in found if title.startswith("Stage 1") and ("never saw" in title) == never]
            for never in (False, True)
        )
        assert set(there.values()) == {"30.0"}
        assert set(differences_there.values()) == {"0.0"}
        assert everywhere["half"] == "70.0"
        assert set(differences.values()) == {"26.7"}

    def test_a_person_who_was_trained_on_is_left_out(self, tables: ModuleType, tmp_path: Path) -> None:
        stranger = row(dataset="medscribble", subject="medscribble/ACDC__patient056", dice=1.0)
        written(tmp_path / "test" / "released", [*people(("standard", 0.0), 0.5), stranger])
        (released,), _ = tables.read_models(tmp_path)
        assert {one.dataset for one in released.rows} == {"ct", "mr"}

    def test_modalities_are_those_of_the_cases(
        self, tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "test" / "stage2" / "scribble-0"
        rows = [replace(one, dice=0.9 if one.dataset == "ct" else 0.7) for one in people(("standard", 0.0), 0.5)]
        written(folder, rows)
        times = [CaseTime(one.dataset, one.subject, one.case, one.dataset.upper(), 1.0, 2.0) for one in rows]
        (folder / "cases.csv").write_text(cases_csv(times))
        shown = self.shown(tables, tmp_path, monkeypatch)
        _, *lines = next(lines for title, lines in shown.items() if title.startswith("By modality"))
        assert [(line[0], line[1], line[2].split()[0]) for line in lines] == [
            ("CT", "9", "90.0"),
            ("MR", "9", "70.0"),
            ("mean of these", "18", "80.0"),
        ]
        beside = tmp_path / "test" / "released"
        written(beside, rows)
        (beside / "cases.csv").write_text(cases_csv([replace(one, modality="") for one in times]))
        with pytest.raises(SystemExit, match=r"released calls .* nothing, .* test it again"):
            tables.main()

    def test_nothing_measured_is_told_with_the_command(
        self, tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "argv", ["tables.py", str(tmp_path)])
        with pytest.raises(SystemExit, match=r"run: run\.py DATA .* test"):
            tables.main()
