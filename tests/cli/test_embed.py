"""`palpate embed`: what is encoded once is there for every later run."""

from pathlib import Path

import numpy as np
import pytest

import trees
from clusters import local_cluster
from command_line import Run
from palpate.inference.embedding_cache import EmbeddingCache


def _kept() -> dict[Path, int]:
    return {path: path.stat().st_ino for path in Path("cache").rglob("*.safetensors")}


@pytest.mark.usefixtures("tiny")
def test_what_is_there_is_not_encoded_again(palpate: Run, pictures: Path) -> None:
    asked = ("embed", pictures, "--model", "tiny", "--cache", "cache", "--workers", 1)
    first = palpate(*asked)
    assert first.status == 0, first.err
    assert first.out.startswith("6 encoded, 0 were there; cache holds 6 embeddings, ")
    # Interrupted work looks like this: some are there, some are not.
    before = _kept()
    lost = sorted(before)[:2]
    for path in lost:
        path.unlink()
    assert palpate(*asked).out.startswith("2 encoded, 4 were there; cache holds 6 embeddings")
    after = _kept()
    assert after.keys() == before.keys()
    assert all(after[path] == before[path] for path in before if path not in lost)


@pytest.mark.usefixtures("tiny")
def test_finetuning_and_evaluating_find_what_was_embedded(palpate: Run, pictures: Path) -> None:
    views = ("--flips", "x,xy", "--crops", 2, "--variants", 1, "--seed", 5)
    answer = palpate("embed", pictures, "--model", "tiny", "--cache", "cache", "--workers", 1, *views, "--json")
    assert answer.status == 0, answer.err
    facts = answer.json
    # A crop or variant without any object is no view.
    assert 6 * 3 < facts["views"] <= 6 * 6
    assert facts["encoded"] == facts["embeddings"] == facts["views"]
    before = _kept()
    quick = ("--epochs", 1, "--steps", 1, "--batch", 2, "--device", "cpu", "--threads", 1, "--json")
    taught = palpate("finetune", "--data", pictures, "--model", "tiny", "--cache", "cache", *views, *quick, "-o", "run")
    assert taught.status == 0, taught.err
    asked = ("--protocol", "standard", "--cache", "cache", "--workers", 1, "--worst", 0, "-o", "out", "--json")
    assert palpate("evaluate", pictures, "--model", "tiny", *asked).status == 0
    assert _kept() == before


@pytest.mark.usefixtures("tiny")
def test_volumes_give_some_of_their_slices_or_all(palpate: Run, tmp_path: Path) -> None:
    volume = np.random.default_rng(0).integers(-100, 200, (7, 24, 24)).astype(np.int16)
    labels = np.zeros((7, 24, 24), np.uint8)
    labels[1:6, 5:15, 5:15] = 1
    trees.nifti(tmp_path / "ct/images/a.nii.gz", volume)
    trees.nifti(tmp_path / "ct/labels/a.nii.gz", labels)
    asked = ("embed", "ct", "--model", "tiny", "--cache", "cache", "--workers", 1, "--slices-per-volume")
    assert palpate(*asked, 2).out.startswith("2 encoded, 0 were there")
    # Five slices have something on them, and two of those are known.
    assert palpate(*asked, "all").out.startswith("3 encoded, 2 were there")


@pytest.mark.usefixtures("tiny")
def test_a_cache_that_is_too_small_is_bounded_and_says_so(palpate: Run, pictures: Path) -> None:
    one = palpate("embed", pictures, "--model", "tiny", "--cache", "cache", "--workers", 1, "--json").json["bytes"] // 6
    small = ("--max-size", f"{3 * one / 1000:.3f}kB")
    answer = palpate("embed", pictures, "--model", "tiny", "--cache", "cache", "--workers", 1, *small)
    assert answer.status == 0
    assert 1 <= len(_kept()) <= 3
    assert "larger --max-size" in answer.err


@pytest.mark.usefixtures("tiny")
def test_only_who_asks_for_a_size_changes_that_of_the_cache(palpate: Run, pictures: Path) -> None:
    embed = ("embed", pictures, "--model", "tiny", "--cache", "cache", "--workers", 1, "--json")
    assert palpate(*embed).json["max_bytes"] == 20 * 10**9
    assert palpate(*embed, "--max-size", "200GB").json["max_bytes"] == 200 * 10**9
    assert palpate(*embed).json["max_bytes"] == 200 * 10**9
    quick = ("--epochs", 1, "--steps", 1, "--batch", 2, "--device", "cpu", "--threads", 1, "--json")
    finetune = ("finetune", "--data", pictures, "--model", "tiny", "--cache", "cache", *quick, "--overwrite")
    asked = ("--protocol", "standard", "--cache", "cache", "--workers", 1, "--worst", 0, "--json", "--overwrite")
    evaluate = ("evaluate", pictures, "--model", "tiny", *asked)
    for number, command in enumerate((finetune, evaluate)):
        first = palpate(*command, "-o", f"run-{number}")
        assert first.status == 0, first.err
        assert EmbeddingCache(Path("cache")).max_bytes == (200 + number) * 10**9
        again = palpate(*command, "-o", f"run-{number}", "--max-size", f"{201 + number}GB")
        assert again.status == 0, again.err
        assert EmbeddingCache(Path("cache")).max_bytes == (201 + number) * 10**9


@pytest.mark.usefixtures("tiny")
def test_a_size_of_no_cache_is_told(palpate: Run, pictures: Path) -> None:
    answer = palpate("evaluate", pictures, "--model", "tiny", "--max-size", "5GB", "-o", "out")
    assert answer.status == 2
    assert "--cache FOLDER" in answer.err


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("--max-size", "big"), 2, "20GB"),
        (("--flips", "z"), 2, "choose x"),
        (("--slices-per-volume", "none"), 2, "or all"),
        (("--split", "test"), 2, "split"),
        (("--device", "gpu"), 2, "auto, cpu, cuda"),
        (("--model", "tiniest"), 1, "did you mean 'tiny'"),
        (("--cache", "file"), 2, "--cache"),
    ],
)
@pytest.mark.usefixtures("tiny")
def test_what_cannot_be_done_is_said(
    palpate: Run, pictures: Path, arguments: tuple[str, ...], status: int, words: str
) -> None:
    Path("file").touch()
    answer = palpate("embed", pictures, "--model", "tiny", "--cache", "cache", "--workers", 1, *arguments)
    assert answer.status == status
    assert words in answer.err


@pytest.mark.usefixtures("tiny")
def test_an_image_that_cannot_be_read_is_named_and_the_others_are_kept(palpate: Run, pictures: Path) -> None:
    (pictures / "images/p5.png").write_bytes(b"no picture")
    answer = palpate("embed", pictures, "--model", "tiny", "--cache", "cache", "--workers", 1)
    assert answer.status == 2
    assert "p5" in answer.err
    assert len(_kept()) == 5


@pytest.mark.weights
@pytest.mark.slow
def test_two_processes_encode_what_one_does(palpate: Run, weights: None, pictures: Path) -> None:
    for number in range(2, 6):
        (pictures / f"images/p{number}.png").unlink()
        (pictures / f"labels/p{number}.png").unlink()
    assert palpate("embed", pictures, "--cache", "one", "--workers", 1, "--device", "cpu").out.startswith("2 encoded")
    answer = palpate("embed", pictures, "--cache", "two", "--workers", 2, "--device", "cpu")
    assert answer.out.startswith("2 encoded, 0 were there"), answer.err
    one, two = ({path.name: path.read_bytes() for path in Path(name).rglob("*.safetensors")} for name in ("one", "two"))
    assert one == two


@pytest.mark.weights
@pytest.mark.slow
def test_a_cluster_encodes_what_one_process_does(palpate: Run, weights: None, pictures: Path) -> None:
    for number in range(2, 6):
        (pictures / f"images/p{number}.png").unlink()
        (pictures / f"labels/p{number}.png").unlink()
    asked = ("embed", pictures, "--device", "cpu", "--cache")
    assert palpate(*asked, "one", "--workers", 1).out.startswith("2 encoded")
    with local_cluster(2) as address:
        answer = palpate(*asked, "dask", "--dask", address)
        assert answer.out.startswith("2 encoded, 0 were there"), answer.err
        assert palpate(*asked, "dask", "--dask", address).out.startswith("0 encoded, 2 were there")
        (pictures / "images/p1.png").write_bytes(b"no picture")
        answer = palpate(*asked, "dask", "--dask", address)
        assert answer.status == 2
        assert "p1" in answer.err
    one, two = (
        {path.name: path.read_bytes() for path in Path(name).rglob("*.safetensors")} for name in ("one", "dask")
    )
    assert one == two


@pytest.mark.usefixtures("tiny")
def test_who_encodes_is_said_once(palpate: Run, pictures: Path) -> None:
    pytest.importorskip("distributed")
    asked = ("embed", pictures, "--model", "tiny", "--cache", "cache", "--dask", "tcp://127.0.0.1:9")
    answer = palpate(*asked)
    assert answer.status == 2
    assert "no dask scheduler answers" in answer.err
    answer = palpate(*asked, "--workers", 2)
    assert answer.status == 2
    assert "give one of them" in answer.err
