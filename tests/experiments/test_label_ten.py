"""The tutorial "Label ten, get the rest" runs as it is written."""

import csv
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from command_line import Run

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "label-ten.md"


def draw_kvasir(folder: Path, *, images: int) -> None:
    """Bright discs in colour, with masks in JPEG, as the data set comes."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    y, x = np.indices((48, 64))
    for number in range(images):
        rng = np.random.default_rng(number)
        disc = np.hypot(x - rng.uniform(20, 44), y - rng.uniform(16, 32)) < 9
        picture = rng.normal(90, 12, (48, 64, 3)) + 90 * disc[..., None]
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"c{number}.jpg")
        Image.fromarray((255 * disc).astype(np.uint8)).save(folder / "masks" / f"c{number}.jpg")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.usefixtures("small_model")
def test_every_step_runs(palpate: Run) -> None:
    draw_kvasir(Path("Kvasir-SEG"), images=10)
    quick = {
        "--shots 10": "--shots 3 --moves 1 --steps 2",
        "--train labelled": "--train labelled --moves 1 --steps 2",
        "), 10, seed=0)": "), 3, seed=0)",
        "--workers 1": "--workers 1 --worst 0",
        "X0 Y0 X1 Y1": "20 16 40 32",
    }
    name = ""
    for language, text in re.findall(r"```(python|bash)\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL):
        for words, others in (quick | {"NAME": name}).items():
            text = text.replace(words, others)
        if language == "python":
            exec(compile(text, PAGE.name, "exec"), {"__name__": "__main__"})
            continue
        for line in text.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "palpate"
            answer = palpate(*arguments)
            assert answer.status == 0, answer.err
            if arguments[:2] == ["data", "split"]:
                train = [
                    Path(row["image"]).stem for row in rows(Path("kvasir/manifest.csv")) if row["split"] == "train"
                ]
                name = train[0]
    labelled = [row for row in rows(Path("kvasir/again.csv")) if row["split"] == "labelled"]
    assert len(labelled) in (3, 4)  # one more, unless what was corrected is one of those that were drawn
    assert f"../corrected/{name}.png" in [row["label"] for row in labelled]
    assert len(rows(Path("found/scores.csv"))) == 10
    assert Path("again/report.html").is_file()
