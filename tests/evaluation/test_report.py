import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from made_up_runs import row, rows_of, run_of
from PIL import Image as Picture

from palpate.errors import OutputError
from palpate.evaluation.overlays import PREDICTION, REFERENCE, draw_overlay
from palpate.evaluation.report import WorstCase, report_html, write_report
from palpate.evaluation.summary import summarise
from palpate.evaluation.table import Row
from palpate.prompts import Box, MaskPrompt, Points, Prompt, Scribble
from phantoms import disk, rectangle

INF, NAN = math.inf, math.nan


class Page(HTMLParser):
    """What a browser would see: elements that were closed wrongly, headings, and words outside of elements' names."""

    VOID = ("meta", "img", "br", "path", "use", "rect")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data if self.open and self.open[-1] != "style" else ""


def page(*rows: Row, worst: tuple[WorstCase, ...] = (), **record: object) -> Page:
    return Page(report_html(run_of(rows, **record), worst=worst))


def small_picture() -> Picture.Image:
    return Picture.new("RGB", (4, 4))


class TestThePage:
    def test_holds_every_section_and_nothing_from_elsewhere(self, rng: np.random.Generator) -> None:
        rows = rows_of(rng, datasets={"liver": 5, "polyps": 3})
        found = page(
            *rows,
            worst=(WorstCase(rows[0], small_picture(), "Found the neighbour."),),
            **{"model": "lite-medsam", "command": "palpate evaluate DATA", "seed": 3, "weights_hash": "55b0"},
        )
        ids = {attributes.get("id") for tag, attributes in found.elements if tag == "h2"}
        assert ids == {
            *("robustness", "sizes", "tiny", "spread", "table", "worst", "calibration", "clicks", "human", "made"),
            "method",
        }
        links = {attributes["href"] for tag, attributes in found.elements if tag == "a"}
        assert links == {f"#{name}" for name in ids}
        for words in ("palpate evaluate DATA", "55b0", "Found the neighbour.", "With a tight box, the mean Dice is"):
            assert words in found.words
        for _, attributes in found.elements:
            for name in ("src", "href", "xlink:href"):
                assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,"))
        policy = next(a["content"] for tag, a in found.elements if tag == "meta" and a.get("http-equiv"))
        assert policy is not None
        assert "default-src 'none'" in policy

    def test_is_the_same_for_the_same_run(self, rng: np.random.Generator) -> None:
        run = run_of(rows_of(rng, datasets={"liver": 3}, conditions=(("standard", 0.0), ("shrink", 0.1))), seed=4)
        assert report_html(run) == report_html(run)

    @pytest.mark.parametrize("with_tight_box", [True, False])
    def test_a_dotted_line_is_told_of_where_there_is_one(self, *, with_tight_box: bool) -> None:
        rows = [
            row(subject=f"s{i}", protocol=protocol, severity=severity)
            for i in range(3)
            for protocol, severity in (
                ("jitter", 0.05),
                ("jitter", 0.1),
                *([("standard", 0.0)] if with_tight_box else []),
            )
        ]
        words = page(*rows).words
        assert "Each against its own severity." in words
        assert ("Dotted: the Dice of the tight box" in words) is with_tight_box

    def test_the_answer_is_made_of_numbers(self) -> None:
        rows = [
            row(subject=f"s{i}", protocol=protocol, severity=severity, dice=0.9 - 0.01 * i - cost)
            for i in range(10)
            for protocol, severity, cost in (("standard", 0.0, 0.0), ("shrink", 0.1, 0.2), ("expansion", 0.1, 0.05))
        ]
        words = page(*rows).words.replace("\u00a0", " ")
        # The mean of 0.90, 0.89, ... 0.81
        assert "With a tight box, the mean Dice is 85.5 % (95 % interval" in words
        assert "every side of the box 10 % too far in it falls by 20.0 points" in words
        assert "every side of the box 10 % too far out it falls by 5.0 points" in words

    @pytest.mark.parametrize(
        "rows",
        [
            (),
            (row(),),
            (row(protocol="points-3"),),
            (row(protocol="shrink", severity=0.1),),
            (row(dice=0.0, iou=0.0, nsd=0.0, hd95=INF, assd=INF, leak=NAN, predicted_iou=NAN, area=NAN),),
            (row(dice=NAN, iou=NAN, nsd=NAN, hd95=NAN, assd=NAN, leak=NAN, predicted_iou=NAN, area=NAN),),
            tuple(row(subject=f"s{i}", hd95=INF, assd=INF, leak=NAN, dice=0.0) for i in range(3)),
            (row(protocol="clicks", severity=1.0), row(protocol="clicks", severity=2.0)),
            (row(protocol="scribble-human", seed=1), row(protocol="scribble-human", seed=2, subject="s2")),
        ],
        ids=["no rows", "one", "points", "severity", "lost", "undefined", "all lost", "clicks", "scribbles"],
    )
    def test_poor_runs_have_a_page_too(self, rows: tuple[Row, ...]) -> None:
        assert "Method and limits" in page(*rows).words

    def test_hostile_names_are_only_words(self) -> None:
        name = "<script>alert(1)</script> \"'& $x^$ {{ 7*7 }}\n_x"
        rows = [
            row(dataset=name, subject=f"{name}{i}", case=name, object=name, protocol=protocol, severity=severity)
            for i in range(3)
            for protocol, severity in (("standard", 0.0), (name, 0.1), (name, 0.2), (name + "2", 0.0))
        ]
        rows.append(row(dataset="_hidden"))
        found = page(
            *rows,
            worst=(WorstCase(rows[0], small_picture(), name),),
            **{"model": name, "command": name, "notes": [name], "versions": {name: name}},
            protocols=[{"name": name, "says": name, "severities": [0.1]}],
        )
        assert "script" not in {tag for tag, _ in found.elements}
        assert "<script>alert(1)</script>" in found.words
        assert "{{ 7*7 }}" in found.words
        assert not [name for _, attributes in found.elements for name in attributes if name.startswith("on")]

    def test_a_record_of_the_wrong_shape_breaks_nothing(self) -> None:
        found = page(row(), seed="three", protocols=["standard"], notes="a note", versions=[1, {"a": None}], model=7)
        assert "a note" in found.words

    @pytest.mark.parametrize(
        ("units", "unit", "note"),
        [
            ({"liver": "mm", "polyps": "mm"}, "mm", ""),
            ({"liver": "pixels", "polyps": "pixels"}, "pixels", ""),
            ({"liver": "mm", "polyps": "pixels"}, "mm or pixels", "(in mm: liver; in pixels: polyps)"),
            ({"liver": "mixed", "polyps": "mixed"}, "mm or pixels", "pixels for others"),
        ],
    )
    def test_distances_carry_their_unit(self, units: dict[str, str], unit: str, note: str) -> None:
        words = page(row(), row(dataset="polyps"), units=units, notes=["a note"]).words
        for text in (f"HD95, {unit}ASSD, {unit}leak", f"HD95 and ASSD in {unit} as medians", "a note", note):
            assert text in words
        assert ("Distances are" in words or "Distances may" in words) is bool(note)

    def test_says_which_data_it_was(self) -> None:
        words = page(row(), data="/data/livers", units={"liver": "mm"}).words
        assert "/data/livers" in words
        assert "Distances inmillimetres" in words.replace("\n", "")

    def test_slices_are_counted_with_their_object(self) -> None:
        rows = [
            row(object=f"{name}@{z}", protocol=protocol, severity=severity)
            for name in "12"
            for z in (3, 4, 5)
            for protocol, severity in (("standard", 0.0), ("shrink", 0.1))
        ]
        text = " ".join(re.sub(r"<[^>]+>", " ", report_html(run_of(tuple(rows)))).split())
        # In all, by size, and against the tight box (one subject, two objects).
        for words in ("2 objects", "medium (up to 10 %) 2 90.0", "shrink 10 % 0.0 1 2 0/0/1"):
            assert words in text

    def test_takes_the_summary_that_was_made_already(self) -> None:
        run = run_of(tuple(row(subject=f"s{i}", dice=0.5 + 0.01 * i) for i in range(9)), seed=4)
        made = summarise(run, np.random.default_rng(4))
        assert report_html(run, summary=made) == report_html(run)
        other = [replace(item, estimate=0.123) if item.measure == "dice" else item for item in made]
        assert "the mean Dice is 12.3" in Page(report_html(run, summary=other)).words

    def test_few_subjects_are_a_warning_at_the_top(self) -> None:
        assert "Fewer than 8 subjects" in page(*(row(subject=f"s{i}") for i in range(7))).words
        assert "Fewer than 8 subjects" not in page(*(row(subject=f"s{i}") for i in range(8))).words

    def test_too_few_subjects_are_not_tested(self) -> None:
        words = self.words_of_a_change([0.3, 0.1, 0.1, 0.01])
        assert "too few subjects to test)" in words
        assert "after Holm" not in words

    def test_an_interval_and_a_test_that_disagree_settle_nothing(self) -> None:
        # Six of six better: p = 2 / 64 and twice that for two comparisons, while the interval excludes zero.
        words = self.words_of_a_change([0.05, 0.04, 0.06, 0.05, 0.04, 0.05])
        assert "p = 0.062 after Holm: interval and test disagree, so nothing is settled" in words
        # Of ten, p = 2 / 1024: they agree.
        assert "disagree" not in self.words_of_a_change([0.05] * 9 + [0.04])

    @staticmethod
    def words_of_a_change(gains: list[float]) -> str:
        rows = [
            row(subject=f"s{i}", protocol=protocol, severity=severity, dice=0.5 + (gain if severity else 0.0))
            for i, gain in enumerate(gains)
            for protocol, severity in (("standard", 0.0), ("shrink", 0.1), ("expansion", 0.1))
        ]
        words = page(*rows).words.replace("\u00a0", " ")
        return words[words.index("every side of the box 10 %") : words.index("Robustness to the prompt")]

    def test_says_which_cases_are_the_worst(self) -> None:
        rows = [
            row(subject=f"s{i}", case=f"c{i}", object="2@7", protocol=protocol, severity=0.05, predicted_iou=0.91)
            for i in range(9)
            for protocol in ("shrink", "shift")
        ]
        worst = tuple(WorstCase(rows[i], small_picture(), note) for i, note in ((0, "the prompted slice"), (2, "")))
        recorded = [{"name": "shrink", "random": False, "severities": [0.05]}, {"name": "shift", "random": True}]
        words = page(*rows, worst=worst, protocols=recorded).words.replace("\u00a0", " ")
        assert "The 2 worst of 9 cases, one prompt a case, all of shrink 5 %: the run's first protocol" in words
        assert "liver, c0, label 2, slice 7 (medium); shrink 5 %. Dice" in words
        assert "predicted 91 %; the prompted slice." in words
        assert "dashed in black and white" in words
        drawn_by_dice = page(*rows, worst=(WorstCase(rows[1], small_picture()),), protocols=recorded).words
        assert "shift 5\u00a0%, seed 0. Dice" in drawn_by_dice

    def test_the_title_names_model_and_datasets(self) -> None:
        def title(*names: str) -> str:
            words = page(*(row(dataset=name) for name in names), model="sam").words
            return words[: words.index("How good are its masks")]

        assert "sam on b" in title("b")
        assert "sam on a, b and c" in title("a", "b", "c")
        assert "sam on 4 datasets" in title("a", "b", "c", "d")

    def test_one_subject_is_not_drowned_in_warnings(self) -> None:
        rows = [row(protocol=protocol, severity=s) for protocol, s in (("standard", 0.0), ("points-3", 0.0))]
        words = page(*rows).words
        assert words.lower().count("too few subjects for intervals") == 1
        for absent in ("marked *", "* fewer", "Prompts of one strength", "In the means", "By dataset", "confounded"):
            assert absent not in words
        assert "1 objects" not in words

    def test_only_tight_boxes_need_no_chart_of_prompts(self) -> None:
        assert "one strength" not in page(*(row(subject=f"s{i}") for i in range(9))).words
        both = [row(subject=f"s{i}", protocol=name) for i in range(9) for name in ("standard", "points-3")]
        assert "one strength" in page(*both).words

    def test_few_values_are_points_and_many_a_box(self) -> None:
        seven, eight = ([row(subject=f"s{i}", dice=0.5 + 0.01 * i) for i in range(n)] for n in (7, 8))
        filled = "#56b4e9"  # only boxes are
        assert filled not in report_html(run_of(tuple(seven))).split('id="spread"')[1].split("<h2")[0]
        assert filled in report_html(run_of(tuple(eight))).split('id="spread"')[1].split("<h2")[0]

    def test_the_method_says_the_tolerance(self) -> None:
        recorded = {"plan": {"tolerance": 2.0}}
        assert "lies within 2 mm of the other" in page(row(), units={"liver": "mm"}, settings=recorded).words
        assert "tolerance is not in this run's record" in page(row()).words

    def test_ids_are_unique(self, rng: np.random.Generator) -> None:
        found = page(*rows_of(rng, datasets={"liver": 3, "polyps": 2}))
        ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
        assert len(ids) == len(set(ids))

    def test_is_written_once(self, tmp_path: Path) -> None:
        run = run_of((row(),))
        write_report(run, tmp_path / "report.html")
        with pytest.raises(OutputError, match="exists; pass --overwrite"):
            write_report(run, tmp_path / "report.html")
        write_report(run, tmp_path / "report.html", overwrite=True)
        assert [file.name for file in tmp_path.iterdir()] == ["report.html"]

    def test_thousands_of_rows_make_a_page_of_moderate_size(self, rng: np.random.Generator) -> None:
        rows = rows_of(rng, datasets={"liver": 60}, conditions=(("standard", 0.0), ("shift", 0.1)), seeds=20)
        assert len(rows) > 1500
        assert len(report_html(run_of(rows))) < 400_000


SHAPE, SCALE, TOP = (40, 40), 14, 8  # 560 pixels for 40; no title, so only the margin above


def drawn(
    *prompts: Prompt, reference: np.ndarray, prediction: np.ndarray, shape: tuple[int, int] = SHAPE
) -> np.ndarray:
    pixels = np.zeros(shape, dtype=np.uint8)
    return np.asarray(draw_overlay(pixels, reference, prediction, prompts, title=""))


def extent(drawing: np.ndarray, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    ys, xs = np.nonzero((drawing[TOP:-34] == colour).all(axis=2))
    return int(xs.min()) - 8, int(ys.min()), int(xs.max()) - 8, int(ys.max())


class TestOverlays:
    # Large enough that the whole slice is shown: 14 picture elements a pixel.
    BODY = rectangle(SHAPE, 10, 12, 25, 30)

    def test_lines_lie_on_the_edges_of_pixels(self) -> None:
        drawing = drawn(reference=self.BODY, prediction=self.BODY)
        left, top, right, bottom = 10 * SCALE, 12 * SCALE, 26 * SCALE - 1, 31 * SCALE - 1
        assert extent(drawing, REFERENCE) == (left, top, right, bottom)
        # The prediction's line is around its own edge, so both are seen where they agree.
        assert extent(drawing, PREDICTION) == (left - 2, top - 2, right + 2, bottom + 2)

    def test_a_shift_by_one_pixel_is_seen(self) -> None:
        drawing = drawn(reference=self.BODY, prediction=np.roll(self.BODY, 1, axis=1))
        assert extent(drawing, PREDICTION)[0] - extent(drawing, REFERENCE)[0] == SCALE - 2

    def test_a_box_ends_after_its_last_pixel(self) -> None:
        nothing = np.zeros(SHAPE, dtype=bool)
        drawing = drawn(Box(10, 12, 25, 30), reference=self.BODY, prediction=nothing)
        left, top, right, bottom = extent(drawing, (255, 255, 255))
        assert (left, top) == (10 * SCALE, 12 * SCALE)
        assert right == pytest.approx(26 * SCALE - 1, abs=5)
        assert bottom == pytest.approx(31 * SCALE - 1, abs=5)

    def test_clicks_lie_in_the_middle_of_their_pixel(self) -> None:
        nothing = np.zeros(SHAPE, dtype=bool)
        drawing = drawn(Points([(15, 20), (5, 5)], [1, 0]), reference=self.BODY, prediction=nothing)
        for colour, (x, y) in (((90, 230, 120), (15, 20)), ((255, 95, 95), (5, 5))):
            left, top, right, bottom = extent(drawing, colour)
            assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx(
                ((x + 0.5) * SCALE, (y + 0.5) * SCALE), abs=1
            )

    def test_a_small_target_is_enlarged_with_the_whole_slice_in_a_corner(self) -> None:
        shape = (400, 400)
        body = disk(shape, centre=(200, 100), radius=4)
        drawing = drawn(Box.around(body), reference=body, prediction=body, shape=shape)
        assert max(drawing.shape) < 620
        # What is bright beside the target is the inset's frame: the pixels are all black.
        corner = drawing[TOP : TOP + 150, -158:-8]
        assert corner.any(axis=2).mean() > 0.01
        target = (drawing[:-34] == REFERENCE).all(axis=2)
        target[: TOP + 150, -158:] = False
        ys, xs = np.nonzero(target)
        assert xs.max() - xs.min() == ys.max() - ys.min() > 150

    def test_an_inset_without_a_free_corner_goes_beneath(self) -> None:
        shape = (400, 400)
        body, everything = disk(shape, centre=(200, 200), radius=4), np.ones(shape, dtype=bool)
        free = drawn(reference=body, prediction=body, shape=shape)
        full = drawn(reference=body, prediction=everything, shape=shape)
        assert full.shape[1] == free.shape[1]
        assert full.shape[0] - free.shape[0] == pytest.approx(150 - 26, abs=20)

    def test_without_a_title_there_is_no_line_for_it(self) -> None:
        pixels, nothing = np.full(SHAPE, 200, dtype=np.uint8), np.zeros(SHAPE, dtype=bool)
        shown = np.asarray(draw_overlay(pixels, self.BODY, nothing, (), title=""))
        assert (shown[TOP, 20] == 200).all()

    def test_millimetres_are_shown_and_not_pixels(self) -> None:
        body = rectangle((20, 80), 10, 4, 70, 16)
        picture = draw_overlay(np.zeros((20, 80), dtype=np.uint8), body, body, (), title="", pixel_size=(4.0, 1.0))
        assert picture.height - 50 == pytest.approx(picture.width - 16, abs=8)

    @pytest.mark.parametrize("shape", [(1, 1), (1, 700), (3, 4), (2500, 1200)])
    def test_any_shape_can_be_drawn(self, shape: tuple[int, int]) -> None:
        everything, nothing = np.ones(shape, dtype=bool), np.zeros(shape, dtype=bool)
        stroke = nothing.copy()
        stroke[shape[0] // 2] = True
        prompts = (Box(0, 0, shape[1] - 1, shape[0] - 1), MaskPrompt(everything), Scribble(stroke, nothing))
        for reference, prediction in ((everything, nothing), (nothing, everything), (nothing, nothing)):
            assert max(drawn(*prompts, reference=reference, prediction=prediction, shape=shape).shape) < 800
            drawn(reference=reference, prediction=prediction, shape=shape)

    def test_colour_pictures_keep_their_colours(self) -> None:
        pixels = np.full((*SHAPE, 3), (200, 30, 60), dtype=np.uint8)
        nothing = np.zeros(SHAPE, dtype=bool)
        shown = np.asarray(draw_overlay(pixels, self.BODY, nothing, (), title="a\nb " * 60))
        assert (shown[TOP + 26 + 5, 20] == (200, 30, 60)).all()

    def test_the_template_is_in_the_package(self) -> None:
        import palpate.evaluation

        template = Path(palpate.evaluation.__file__).with_name("report.html.j2").read_text(encoding="utf-8")
        # Only what our own charts made may go in unescaped.
        assert set(re.findall(r"{{ (\S+) \| safe }}", template)) == {
            *("curves.overall", "curves.datasets", "curves.others", "curves.single", "curves.sizes"),
            *("boxes", "calibration.plot", "calibration.kept_plot"),
        }
