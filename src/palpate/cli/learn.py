"""`palpate learn DATA --target liver`: from a few labelled images, a file that finds the liver in all others."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from palpate.cli.finetune import Teller, several, slices_of, text_of
from palpate.cli.terminal import bytes_of, command_line, cores, reporting_errors, say, say_json, size_text
from palpate.errors import SettingError
from palpate.inference.processes import leads
from palpate.models import DEFAULT

if TYPE_CHECKING:
    from palpate.training.learn_prompts import LearnedFrom
    from palpate.training.learn_recipe import LearnRecipe


def learn(
    data: Annotated[
        Path | None,
        typer.Argument(metavar="DATA", help="A manifest.csv or its folder, an nnU-Net, npy or npz folder, or images."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="What was learned: liver.safetensors.")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="What to find: names, or NAME=LABEL. Repeatable, or commas (default: every label)."),
    ] = None,
    shots: Annotated[
        int | None, typer.Option(metavar="N", help="Learn from N images, drawn by the seed (default: all).")
    ] = None,
    model: Annotated[str | None, typer.Option(help=f"A name from `palpate models` (default: {DEFAULT}).")] = None,
    weights: Annotated[Path | None, typer.Option(help="A checkpoint file to use instead of the known one.")] = None,
    peft: Annotated[
        str | None, typer.Option(help="What moves of the decoder: none, lora, adapter or decoder (default: decoder).")
    ] = None,
    variant: Annotated[str | None, typer.Option(help="Predictor: localiser (the default), linear or high-res.")] = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="RECIPE.toml", help="All settings in a file; see docs/reference/recipes.md.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="The folder of labels, where DATA is a folder of images.")] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="Only these datasets of DATA. Repeatable, or commas.")
    ] = None,
    train: Annotated[str | None, typer.Option(help="The split to learn from (default: train).")] = None,
    val: Annotated[str | None, typer.Option(help="A split to choose the best weights with (default: none).")] = None,
    held_out: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Choose with this share of the images instead, by subject.")
    ] = None,
    window: Annotated[
        str | None, typer.Option(help="How values become grey: a CT window's name, LEVEL/WIDTH, min-max or as-is.")
    ] = None,
    slices_per_volume: Annotated[
        str | None, typer.Option(metavar="N|all", help="Slices of each volume, spread evenly (default: 6).")
    ] = None,
    moves: Annotated[
        int | None, typer.Option(help="Show each picture turned, shifted and scaled so often more (default: 8).")
    ] = None,
    loss: Annotated[str | None, typer.Option(help="dice+bce, paper or code.")] = None,
    rate: Annotated[float | None, typer.Option(help="The learning rate.")] = None,
    steps: Annotated[int | None, typer.Option(help="How many steps (default: 25 an image, 250 to 2000).")] = None,
    batch: Annotated[int | None, typer.Option(help="Items of a step: a class on an image.")] = None,
    precision: Annotated[str | None, typer.Option(help="32-true, bf16-mixed or 16-mixed.")] = None,
    seed: Annotated[int | None, typer.Option(help="The number that all that is drawn follows from.")] = None,
    name: Annotated[str | None, typer.Option(help="Its name (default: that of FILE).")] = None,
    licence: Annotated[str | None, typer.Option(help="Its licence, for its card.")] = None,
    summary: Annotated[str | None, typer.Option(help="What it is good for, for its card.")] = None,
    run: Annotated[
        Path | None, typer.Option(metavar="RUN", help="The folder of the log (default: FILE with .run at the end).")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where embeddings are kept (default: beside the weights).")
    ] = None,
    max_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="What the cache may take (default: as before, at first 20GB).")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    devices: Annotated[int, typer.Option(help="How many GPUs, or processes on the CPU, of each machine.")] = 1,
    nodes: Annotated[int, typer.Option(help="How many machines.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of each process.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON at the end, and no progress.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE, and a run of other settings.")] = False,
) -> None:
    """Label ten images, get the rest: learn where a thing is, so that nobody has to point at it any more.

    One thing:      palpate learn mine/ --labels mine/labels --target nodule=1 -o nodule.safetensors

    Ten of many:    palpate learn manifest.csv --shots 10 -o found.safetensors

    Then:           palpate predict scans/ --auto nodule.safetensors -o out/

    Stopped by Ctrl-C or a power cut, the same command goes on where it was.
    """
    with reporting_errors(as_json=as_json, kept=lambda: "the same command goes on where it was"):
        if output is None:
            raise SettingError("say where the result goes: -o FILE.safetensors")
        if output.suffix != ".safetensors":
            raise SettingError(f"what is learned is a safetensors file: -o {output.with_suffix('.safetensors')}")
        changes = {
            "data.path": text_of(data),
            "data.labels": text_of(labels),
            "data.dataset": several(dataset),
            "data.targets": several(target),
            "data.shots": shots,
            "data.train": train,
            "data.val": val,
            "data.held_out": held_out,
            "data.intensity": window,
            "data.slices_per_volume": None if slices_per_volume is None else slices_of(slices_per_volume),
            "data.moves": moves,
            "model": model,
            "weights": text_of(weights),
            "trained": peft,
            "variant": variant,
            "loss": loss,
            "optimiser.rate": rate,
            "steps": steps,
            "batch": batch,
            "precision": precision,
            "seed": seed,
            "name": name,
            "licence": licence,
            "summary": summary,
        }
        chosen = _recipe(recipe, {key: value for key, value in changes.items() if value is not None})
        size = None if max_size is None else bytes_of(max_size, "--max-size")
        from palpate.training.learn_prompts import learn

        teller = Teller()
        try:
            made = learn(
                chosen,
                output,
                folder=run,
                cache=cache,
                cache_bytes=size,
                device=device,
                devices=devices,
                nodes=nodes,
                threads=threads or (max(1, cores() // devices) if devices > 1 else None),
                command=shlex.join(["palpate", *command_line.get()]),
                overwrite=overwrite,
                listener=None if as_json else teller,
            )
        finally:
            teller.close()
        if not leads():
            return
        if as_json:
            say_json({"learned": str(made.path), "steps": made.steps, "card": asdict(made.card)})
        else:
            say(_lines(made))


def _recipe(path: Path | None, changes: dict[str, Any]) -> LearnRecipe:
    from palpate.training.learn_recipe import learn_recipe_from, read_learn_recipe
    from palpate.training.recipe import with_changes

    if path is not None:
        return read_learn_recipe(path, changes=changes)
    if "data.path" not in changes:
        raise SettingError("say what to learn from: palpate learn DATA --target NAME -o FILE.safetensors")
    return learn_recipe_from(with_changes({}, changes))


def _lines(made: LearnedFrom) -> list[tuple[str, str]]:
    card = made.card
    classes = ", ".join(one.name for one in card.classes)
    images = f"{card.images} image{'' if card.images == 1 else 's'}"
    lines = [
        ("learned", f"{classes}, from {images}"),
        ("file", f"{made.path} ({size_text(made.path.stat().st_size)})"),
    ]
    after = card.metrics.get("val_dice", {})
    if "mean" in after:
        by_class = ", ".join(f"{name} {value:.2f}" for name, value in after.items() if name != "mean")
        lines.append(("Dice on val", f"{after['mean']:.4f}" + (f" ({by_class})" if len(after) > 2 else "")))
    else:
        lines.append(("note", "no image was held out, so nothing was measured; see `palpate evaluate --auto`"))
    lines.append(("use it", f"palpate predict FOLDER --auto {shlex.quote(str(made.path))} -o OUT"))
    return lines
