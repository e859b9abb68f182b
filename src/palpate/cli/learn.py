"""`palpate learn DATA --target liver`: from a few labelled images, a file that finds the liver in all others."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from palpate.cli.terminal import reporting_errors, say, say_json, size_text
from palpate.cli.training import (
    AsJson,
    Cache,
    Datasets,
    Device,
    Devices,
    Labels,
    MaxSize,
    Model,
    Nodes,
    Precision,
    RunFolder,
    Seed,
    Threads,
    Weights,
    Window,
    Work,
    done,
    several,
    slices_of,
    text_of,
)
from palpate.errors import SettingError

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
    model: Model = None,
    weights: Weights = None,
    peft: Annotated[
        str | None, typer.Option(help="What moves of the decoder: none, lora, adapter or decoder (default: decoder).")
    ] = None,
    variant: Annotated[str | None, typer.Option(help="Predictor: localiser (the default), linear or high-res.")] = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="RECIPE.toml", help="All settings in a file; see docs/reference/recipes.md.")
    ] = None,
    labels: Labels = None,
    dataset: Datasets = None,
    train: Annotated[str | None, typer.Option(help="The split to learn from (default: train).")] = None,
    val: Annotated[str | None, typer.Option(help="A split to choose the best weights with (default: none).")] = None,
    held_out: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Choose with this share of the images instead, by subject.")
    ] = None,
    window: Window = None,
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
    precision: Precision = None,
    seed: Seed = None,
    name: Annotated[str | None, typer.Option(help="Its name (default: that of FILE).")] = None,
    licence: Annotated[str | None, typer.Option(help="Its licence, for its card.")] = None,
    summary: Annotated[str | None, typer.Option(help="What it is good for, for its card.")] = None,
    run: RunFolder = None,
    cache: Cache = None,
    max_size: MaxSize = None,
    device: Device = "auto",
    devices: Devices = 1,
    nodes: Nodes = 1,
    threads: Threads = None,
    as_json: AsJson = False,
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
        from palpate.training.learn_prompts import learn

        work = Work(cache, max_size, device, devices, nodes, threads)
        made = done(partial(learn, folder=run), chosen, output, work=work, told=not as_json, overwrite=overwrite)
        if made is None:
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
