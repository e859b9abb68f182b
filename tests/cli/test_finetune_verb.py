"""`palpate finetune`: flags and files give one recipe, a run says how it goes, and mistakes are one sentence."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from command_line import Run
from palpate.cli import training as common
from palpate.cli.finetune import parse_prompt
from palpate.cli.training import Teller, slices_of
from palpate.errors import SettingError
from palpate.models import weights
from palpate.models.cards import adapter_card
from palpate.training.finetune import Event

QUICK = ("--model", "tiny", "--epochs", 1, "--steps", 2, "--batch", 2, "--device", "cpu", "--threads", 1)


@pytest.mark.parametrize(
    ("text", "recipe"),
    [
        ("standard", {"strategy": "standard"}),
        ("jitter@0.1", {"strategy": "jitter", "severity": 0.1}),
        ("jitter@0-0.25:2", {"strategy": "jitter", "severity": (0.0, 0.25), "share": 2.0}),
        ("scale@-0.2--.1", {"strategy": "scale", "severity": (-0.2, -0.1)}),
        ("box+points-3:0.5", {"strategy": "box+points-3", "share": 0.5}),
    ],
)
def test_an_ingredient_of_the_mix_is_read(text: str, recipe: dict[str, Any]) -> None:
    assert parse_prompt(text) == recipe


@pytest.mark.parametrize(
    "text", ["", "jitter@", "jitter@much", "jitter@0.1:", "jitter:a", "@0.1", "jitter@0.1-0.2-0.3"]
)
def test_what_is_no_ingredient_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match=r"write STRATEGY, STRATEGY@0\.1"):
        parse_prompt(text)


@given(
    low=st.integers(-100, 100).map(lambda n: n / 100),
    high=st.integers(-100, 100).map(lambda n: n / 100),
    share=st.integers(0, 50).map(lambda n: n / 10),
)
def test_every_range_and_share_can_be_written(low: float, high: float, share: float) -> None:
    found = parse_prompt(f"jitter@{low}-{high}:{share}")
    assert found == {"strategy": "jitter", "severity": (low, high), "share": share}


def test_slices_are_a_number_or_all() -> None:
    assert slices_of("all") == "all"
    assert slices_of("5") == 5
    for text in ("0", "-1", "some", "2.5"):
        with pytest.raises(SettingError, match="or all"):
            slices_of(text)


def test_flags_change_the_file_and_the_file_what_is_usual(
    palpate: Run, tiny: object, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "recipe.toml").write_text(
        'model = "tiny"\nepochs = 7\nsteps = 1\nbatch = 2\ntrained = "lora"\nloss = { bce = 2, iou = 1 }\n'
        "[data]\npath = 'pictures'\nslices_per_volume = 'all'\n"
        "[[prompts]]\nstrategy = 'standard'\n[optimiser]\nrate = 0.5\nclip = 1.0\n"
    )
    flags = ("--epochs", 1, "--rank", 2, "--rate", 0.001, "--prompts", "jitter@0-0.2:2,standard", "--half")
    more = (
        "--flips",
        "x,y",
        "--crops",
        1,
        "--variants",
        1,
        "--device",
        "cpu",
    )
    answer = palpate("finetune", "recipe.toml", *flags, *more, "-o", "run", "--json")
    assert answer.status == 0, answer.err
    recipe = answer.json["card"]["recipe"]
    assert (recipe["epochs"], recipe["steps"], recipe["batch"]) == (1, 1, 2)
    assert (recipe["trained"]["parts"], recipe["trained"]["rank"]) == (["lora"], 2)
    assert (recipe["loss"]["bce"], recipe["loss"]["dice"], recipe["loss"]["iou"]) == (2, 0, 1)
    assert (recipe["optimiser"]["rate"], recipe["optimiser"]["clip"]) == (0.001, 1.0)
    assert [one["strategy"] for one in recipe["prompts"]] == ["jitter", "standard"]
    assert recipe["prompts"][0] == {"strategy": "jitter", "severity": [0.0, 0.2], "share": 2.0}
    data = recipe["data"]
    assert (data["flips"], data["crops"], data["variants"]) == (["x", "y"], 1, 1)
    assert data["slices_per_volume"] is None
    assert recipe["half"]


def test_whoever_leaves_out_what_is_not_there_is_told(palpate: Run, tiny: object, pictures: Path) -> None:
    asked = ("finetune", "--data", pictures, *QUICK, "-o", "run")
    for flags in (("--leave-out", "pictures,retina"), ("--leave-out", "pictures", "--leave-out", "retina")):
        answer = palpate(*asked, *flags)
        assert answer.status == 2
        assert "there is no data set 'retina'; there are: pictures" in answer.err
    other = palpate(*asked, "--val", "vla")
    assert other.status == 2
    assert "val: there is no split 'vla'; there are: none" in other.err
    nothing = palpate(*asked, "--leave-out", "pictures")
    assert (nothing.status, "is left to train on" in nothing.err) == (2, True)


def test_a_run_that_differs_says_in_what(palpate: Run, tiny: object, pictures: Path) -> None:
    asked = ("finetune", "--data", pictures, *QUICK, "-o", "run", "--json")
    assert palpate(*asked).status == 0
    answer = palpate(*asked, "--rate", 0.5)
    assert answer.status == 2
    assert "differs in its recipe (optimiser.rate is 0.0001 there and 0.5 here)" in answer.err


def test_images_without_an_object_are_counted(palpate: Run, tiny: object, pictures: Path) -> None:
    import numpy as np
    from PIL import Image

    for path in sorted((pictures / "labels").iterdir())[:2]:
        Image.fromarray(np.zeros_like(np.asarray(Image.open(path)))).save(path)
    answer = palpate("finetune", "--data", pictures, *QUICK, "-o", "run", "--seed", 2)
    assert answer.status == 0, answer.err
    assert "images show no object that is large enough)" in answer.err.splitlines()[0]


def test_a_run_from_flags_says_how_it_goes_and_what_to_do_with_it(palpate: Run, tiny: object, pictures: Path) -> None:
    answer = palpate("finetune", "--data", pictures, *QUICK, "-o", "run", "--summary", "disks", "--licence", "CC0-1.0")
    assert answer.status == 0, answer.err
    lines = answer.err.splitlines()
    assert "5 scenes, 2 steps of 2 objects: about" in lines[0]
    assert lines[1].startswith("epoch 0: Dice ")
    assert lines[2].startswith("epoch 1: Dice ")
    assert "--adapter run/adapter.safetensors" in answer.out
    assert Path("run/adapter.safetensors").is_file()
    record = json.loads(Path("run/run.json").read_text(encoding="utf-8"))
    assert record["command"].startswith("palpate finetune --data")

    told = palpate("models", "show", "run/adapter.safetensors")
    for words in ("disks", "CC0-1.0", "tiny (weights", "decoder", "5 images to train on", "palpate finetune --data"):
        assert words in told.out
    again = palpate("finetune", "--data", pictures, *QUICK, "-o", "run", "--summary", "disks", "--licence", "CC0-1.0")
    assert again.status == 0
    assert "finished" in again.err
    other = palpate("finetune", "--data", pictures, *QUICK, "-o", "run", "--seed", 1)
    assert other.status == 2
    assert "--overwrite" in other.err


def test_an_adapter_is_taken_by_predict_and_evaluate_whatever_the_option(
    palpate: Run, tiny: object, pictures: Path
) -> None:
    # One picture leaves none to validate with, so that the last weights are kept, be they better or not.
    alone = pictures.with_name("alone")
    for kind in ("images", "labels"):
        (alone / kind).mkdir(parents=True)
        shutil.copy(pictures / kind / "p0.png", alone / kind)
    assert palpate("finetune", "--data", alone, *QUICK, "-o", "run").status == 0
    box = ("predict", pictures / "images/p0.png", "--box", 7, 9, 25, 27, "--json")
    answers = [
        palpate(*box, "--model", "tiny", "--adapter", "run/adapter.safetensors").json,
        palpate(*box, "--model", "run/adapter.safetensors").json,
    ]
    assert answers[0]["model"] == "tiny + run"
    assert answers[0] == answers[1]
    assert answers[0]["weights_hash"] != palpate(*box, "--model", "tiny").json["weights_hash"]

    asked = ("evaluate", pictures, "--protocol", "standard", "--worst", 0, "--workers", 1, "--json", "--cases", 2)
    cached = (*asked, "--cache", "embeddings")
    first = palpate(*cached, "--model", "run/adapter.safetensors", "-o", "first")
    assert first.status == 0, first.err
    assert first.json["record"]["weights_hash"] == answers[0]["weights_hash"]
    kept = {path: path.read_bytes() for path in Path("embeddings").rglob("*.safetensors")}
    assert len(kept) == 2
    # The decoder alone was trained, so the released model finds the same embeddings.
    assert palpate(*cached, "--model", "tiny", "-o", "released").status == 0
    assert {path: path.read_bytes() for path in Path("embeddings").rglob("*.safetensors")} == kept


def test_a_run_may_start_from_a_checkpoint_of_ones_own(palpate: Run, trained: Path, pictures: Path) -> None:
    own = ("--model", "tiny", "--weights", "other.safetensors")
    answer = palpate("finetune", "--data", pictures, *QUICK[2:], *own, "-o", "mine")
    assert answer.status == 0, answer.err
    assert "--weights other.safetensors --adapter mine/adapter.safetensors" in " ".join(answer.out.split())
    other = weights.load("tiny", weights=trained / "other.safetensors")
    made = adapter_card(Path("mine/adapter.safetensors"))
    assert (made.base, made.base_sha256) == ("tiny", other.weights_hash)
    box = ("predict", pictures / "images/p0.png", "--box", 7, 9, 25, 27, "--json")
    there = palpate(*box, "--weights", "other.safetensors", "--adapter", "mine/adapter.safetensors")
    assert there.status == 0, there.err
    assert there.json["model"] == "tiny + mine"
    released = palpate(*box, "--adapter", "mine/adapter.safetensors")
    assert (released.status, "made from other weights of tiny" in released.err) == (1, True)
    # The encoder is the released one, so what was encoded for either is good for both.
    assert palpate("embed", pictures, *own, "--workers", 1, "--cache", "kept", "--json").json["encoded"] > 0
    assert (
        palpate("embed", pictures, "--model", "tiny", "--workers", 1, "--cache", "kept", "--json").json["encoded"] == 0
    )

    adapter = palpate("finetune", "--data", pictures, *QUICK[2:], "--model", "mine/adapter.safetensors", "-o", "more")
    assert adapter.status == 2
    assert "palpate models merge mine/adapter.safetensors" in adapter.err


@pytest.mark.parametrize("verb", ["predict", "evaluate"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ("--model", "lite-medsam", "--adapter", "run/adapter.safetensors"),
            "is an adapter of tiny, not of lite-medsam",
        ),
        (("--adapter", "none.safetensors", "--model", "tiny"), "there is no file none.safetensors"),
        (("--model", "none.safetensors"), "there is no file none.safetensors"),
        (
            ("--model", "whole.safetensors"),
            "whole.safetensors is no adapter of palpate; give whole checkpoints with --w",
        ),
        (("--model", "text.safetensors"), "cut short, damaged or no safetensors file"),
        (("--model", "tiny", "--weights", "run/adapter.safetensors"), "is an adapter and no whole checkpoint"),
        (
            ("--model", "tiny", "--weights", "other.safetensors", "--adapter", "run/adapter.safetensors"),
            "other weights",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_is_one_sentence(
    palpate: Run, trained: Path, pictures: Path, verb: str, options: tuple[str, ...], words: str
) -> None:
    asked = ("--box", 7, 9, 25, 27) if verb == "predict" else ("--workers", 1)
    source = pictures / "images/p0.png" if verb == "predict" else pictures
    answer = palpate(verb, source, *asked, *options, "-o", "out.png" if verb == "predict" else "out")
    assert answer.status == 1
    assert answer.err.startswith("error: ")
    assert answer.err.count("\n") == 1
    assert words in answer.err
    assert not list(Path.cwd().glob("out*"))


@pytest.mark.parametrize(
    ("content", "flags", "words"),
    [
        ("modle = 'tiny'\n[data]\npath = 'p'", (), "modle is not known"),
        ("[data]\npath = 'p'\nflip = ['x']", (), "data.flip is not known"),
        ("epochs = 3", (), "data is missing"),
        ("epochs = ", (), "is no TOML file"),
        ("[data]\npath = 'p'", ("--epochs", "0"), "epochs"),
        ("[data]\npath = 'p'", ("--prompts", "jiter"), "jiter"),
        ("[data]\npath = 'p'", ("--prompts", "jitter@0.1@0.2"), "--prompts"),
        ("[data]\npath = 'p'", ("--prompts", "jitter@3"), "severity"),
        ("[data]\npath = 'p'", ("--loss", "dise"), "there is no loss 'dise'"),
        ("[data]\npath = 'p'", ("--trained", "decoder,encoder"), "trained.parts.1: Input should be 'decoder'"),
        ("trained = {parts = 'lora', rank = 'high'}\n[data]\npath = 'p'", (), "trained.rank"),
        ("trained = {part = 'lora'}\n[data]\npath = 'p'", (), "[trained] of the recipe has no 'part'"),
        ("loss = {bce = 'much'}\n[data]\npath = 'p'", (), "loss.bce"),
        ("loss = {bec = 1}\n[data]\npath = 'p'", (), "[loss] of the recipe has no 'bec'"),
        ("[data]\npath = 'p'", ("--slices-per-volume", "few"), "or all"),
        ("[data]\npath = 'p'", ("--max-size", "much"), "20GB"),
        ("[data]\npath = 'p'", (), "p"),
    ],
)
def test_a_wrong_recipe_is_one_sentence(
    palpate: Run, tmp_path: Path, content: str, flags: tuple[str, ...], words: str
) -> None:
    (tmp_path / "recipe.toml").write_text(content + "\n")
    answer = palpate("finetune", "recipe.toml", *flags, "-o", "run")
    assert answer.status == 2
    assert answer.err.startswith("error: ")
    assert answer.err.count("\n") == 1
    assert words in answer.err
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-o", "run"), "--data DATA"),
        (("none.toml", "-o", "run"), "cannot read the recipe none.toml"),
        ((".", "-o", "run"), "write --data ."),
        (("manifest.csv", "-o", "run"), "write --data manifest.csv"),
        (("recipe.toml",), "-o RUN"),
    ],
)
def test_what_is_missing_is_said(palpate: Run, arguments: tuple[str, ...], words: str) -> None:
    answer = palpate("finetune", *arguments)
    assert answer.status == 2
    assert words in answer.err


def test_an_interrupt_says_that_nothing_is_lost(
    palpate: Run, tiny: object, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("finetune", "--data", pictures, *QUICK, "-o", "run")

    def tell(self: Teller, event: Event) -> None:
        if event.kind == "step":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Teller, "__call__", tell)
        stopped = palpate(*asked)
    assert stopped.status == 130
    assert stopped.err == "interrupted; the same command goes on where it was\n"
    on = palpate(*asked)
    assert on.status == 0, on.err
    assert "going on after step 1 of 2" in on.err


def test_a_log_file_gets_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([0.0, 10.0, 40.0, 50.0, 60.0, 200.0])
    monkeypatch.setattr(common.time, "monotonic", lambda: next(seconds))
    teller = pickle.loads(pickle.dumps(Teller()))
    for done in range(3):  # at 0, 10 and 40 seconds
        teller(Event("embedding", "encoding", done, 4))
    teller(Event("estimate", "about 3 minutes"))
    for done in (1, 2, 3):  # at 50, 60 and 200 seconds
        teller(Event("step", "loss 0.5", done, 100, {"seconds_left": 3661.0}))
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "encoded 2 of 4 images, 0:40 to go",
        "about 3 minutes",
        "step 3 of 100, loss 0.5, 1:01:01 to go",
    ]


def test_a_terminal_gets_a_bar_and_lines_above_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    teller = Teller()
    try:
        teller(Event("embedding", "encoding", 1, 4))
        teller(Event("estimate", "about [3] minutes"))
        teller(Event("step", "loss 0.5000", 7, 100, {"seconds_left": 125.0}))
        teller(Event("finished", "100 steps"))
    finally:
        teller.close()
    said = capsys.readouterr().err
    for words in (
        "encoding",
        "1/4",
        "about [3] minutes\n",
        "training",
        "7/100",
        "loss 0.5000",
        "2:05 to go",
        "100 steps",
    ):
        assert words in said
