"""`palpate finetune RECIPE.toml`: a model learns from labelled images and from prompts as people draw them."""

from __future__ import annotations

import re
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from palpate.cli.terminal import (
    reporting_errors,
    say,
    say_json,
    separated,
    size_text,
)
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
    from palpate.training.finetune import Finetuned
    from palpate.training.recipe import Recipe


def finetune(
    recipe: Annotated[
        Path | None,
        typer.Argument(metavar="RECIPE.toml", help="All settings in a file; see docs/reference/recipes.md."),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="RUN", help="The run's folder.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DATA", help="A manifest.csv or its folder, an nnU-Net, npy or npz folder, or images."),
    ] = None,
    labels: Labels = None,
    dataset: Datasets = None,
    leave_out: Annotated[list[str] | None, typer.Option(help="Not these datasets. Repeatable, or commas.")] = None,
    train: Annotated[str | None, typer.Option(help="The split to learn from (default: train).")] = None,
    val: Annotated[
        str | None, typer.Option(help="The split that chooses the best weights (default: val, or a tenth of train).")
    ] = None,
    window: Window = None,
    slices_per_volume: Annotated[
        str | None, typer.Option(metavar="N|all", help="Slices of each volume, spread evenly (default: 3).")
    ] = None,
    flips: Annotated[list[str] | None, typer.Option(help="Add flipped views: x, y, xy. Repeatable, or commas.")] = None,
    crops: Annotated[
        int | None, typer.Option(help="Add so many crops of each slice, the same ones each epoch.")
    ] = None,
    variants: Annotated[
        int | None, typer.Option(help="Add so many variants of each slice: crop, flip and grey values at once.")
    ] = None,
    balance: Annotated[
        str | None,
        typer.Option(help="Draw slices alike (images), data sets alike (datasets), or a slice a case (cases)."),
    ] = None,
    model: Model = None,
    weights: Weights = None,
    trained: Annotated[
        list[str] | None,
        typer.Option(
            help="What moves: decoder, mask-head, prompt-encoder, bias-norm, lora, adapter, last-blocks, full (commas)."
        ),
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="Where bias-norm, lora and adapter go: decoder, encoder. Commas between.")
    ] = None,
    rank: Annotated[int | None, typer.Option(help="The rank of LoRA.")] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MIX",
            help="Strategies with severity and share: arm-adaptive-bidirectional, or jitter@0-0.25:2,standard:1.",
        ),
    ] = None,
    loss: Annotated[str | None, typer.Option(help="bce+dice, dice+focal or lite-medsam.")] = None,
    rate: Annotated[float | None, typer.Option(help="The learning rate.")] = None,
    epochs: Annotated[int | None, typer.Option(help="How many epochs; each ends with a validation.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of an epoch (default: every image once).")] = None,
    batch: Annotated[int | None, typer.Option(help="Objects of a batch.")] = None,
    accumulate: Annotated[int | None, typer.Option(help="Batches of a step.")] = None,
    precision: Precision = None,
    patience: Annotated[int | None, typer.Option(help="Stop after so many validations without a better one.")] = None,
    seed: Seed = None,
    name: Annotated[str | None, typer.Option(help="The adapter's name (default: that of RUN).")] = None,
    licence: Annotated[str | None, typer.Option(help="The adapter's licence, for its card.")] = None,
    summary: Annotated[str | None, typer.Option(help="What the adapter is good for, for its card.")] = None,
    half: Annotated[bool, typer.Option("--half", help="Write the adapter in float16, half as large.")] = False,
    cache: Cache = None,
    max_size: MaxSize = None,
    device: Device = "auto",
    devices: Devices = 1,
    nodes: Nodes = 1,
    threads: Threads = None,
    as_json: AsJson = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run of other settings.")] = False,
) -> None:
    """Teach a model: from a recipe in a file, from flags, or from a file with some values changed by flags.

    Own images:     palpate finetune --data mine/ -o run/

    A recipe:       palpate finetune recipe.toml --seed 1 -o run/

    Another mix:    palpate finetune --data mine/ --prompts jitter@0-0.25:2,standard:1 --trained lora --rank 4 -o run/

    RUN gets adapter.safetensors, which `palpate predict --adapter` takes, and log.csv, tensorboard/ and overlays/.
    Stopped by Ctrl-C or a power cut, the same command goes on where it was.
    """
    with reporting_errors(as_json=as_json, kept=lambda: "the same command goes on where it was"):
        if output is None:
            raise SettingError("say where the run goes: -o RUN")
        changes = {
            "data.path": text_of(data),
            "data.labels": text_of(labels),
            "data.dataset": several(dataset),
            "data.leave_out": several(leave_out),
            "data.train": train,
            "data.val": val,
            "data.intensity": window,
            "data.flips": several(flips),
            "data.crops": crops,
            "data.variants": variants,
            "data.balance": balance,
            "data.slices_per_volume": None if slices_per_volume is None else slices_of(slices_per_volume),
            "model": model,
            "weights": text_of(weights),
            "trained.parts": several(trained),
            "trained.where": several(where),
            "trained.rank": rank,
            "prompts": None if prompts is None else [parse_prompt(text) for text in separated(prompts)],
            "loss": loss,
            "optimiser.rate": rate,
            "epochs": epochs,
            "steps": steps,
            "batch": batch,
            "accumulate": accumulate,
            "precision": precision,
            "patience": patience,
            "seed": seed,
            "name": name,
            "licence": licence,
            "summary": summary,
            "half": half or None,
        }
        chosen = _recipe(recipe, {key: value for key, value in changes.items() if value is not None})
        from palpate.training.finetune import finetune

        work = Work(cache, max_size, device, devices, nodes, threads)
        made = done(finetune, chosen, output, work=work, told=not as_json, overwrite=overwrite)
        if made is None:
            return
        if as_json:
            facts = {"run": str(made.folder), "adapter": str(made.adapter), "steps": made.steps}
            say_json({**facts, "card": asdict(made.card)})
        else:
            say(_lines(made, weights=chosen.weights))


def parse_prompt(text: str) -> dict[str, Any]:
    """One ingredient of `--prompts`: STRATEGY, STRATEGY@SEVERITY or STRATEGY@LOW-HIGH, with :SHARE after it.

    >>> parse_prompt("jitter@0-0.25:2")
    {'strategy': 'jitter', 'severity': (0.0, 0.25), 'share': 2.0}

    Raises:
        SettingError: anything else.
    """
    from palpate.prompts.strategies import strategy as strategy_named  # numpy is not needed for --help

    number = r"-?(?:\d+\.?\d*|\.\d+)"
    match = re.fullmatch(rf"([^@:]+)(?:@({number})(?:-({number}))?)?(?::({number}))?", text)
    if match is None:
        raise SettingError(
            f"cannot read {text!r} of --prompts; write STRATEGY, STRATEGY@0.1 or STRATEGY@0-0.25, and :SHARE after it "
            "where there are several"
        )
    strategy, low, high, share = match.groups()
    found: dict[str, Any] = {"strategy": strategy}
    if low is not None:
        found["severity"] = float(low) if high is None else (float(low), float(high))
    elif strategy_named(strategy).uses_severity:
        raise SettingError(
            f"how wrong shall {strategy} be? write {strategy}@0.1 for a tenth of the box's side, or "
            f"{strategy}@0-0.25 to draw it anew each time"
        )
    if share is not None:
        found["share"] = float(share)
    return found


def _recipe(path: Path | None, changes: dict[str, Any]) -> Recipe:
    from palpate.training.recipe import read_recipe, recipe_from, with_changes

    if path is None:
        if "data.path" not in changes:
            raise SettingError(
                "say what to learn from: palpate finetune --data DATA -o RUN, or palpate finetune RECIPE.toml -o RUN"
            )
        return recipe_from(with_changes({}, changes))
    if path.is_dir() or path.suffix == ".csv":
        raise SettingError(f"{path} is no recipe; if it is the data, write --data {path}")
    return read_recipe(path, changes=changes)


def _lines(made: Finetuned, *, weights: str | None) -> list[tuple[str, str]]:
    after, before = (made.card.metrics.get(name, {}) for name in ("val_dice", "val_dice_before"))
    lines = [("adapter", f"{made.adapter} ({size_text(made.adapter.stat().st_size)})")]
    if "mean" in after and "mean" in before:
        best = made.card.metrics.get("best_step", 0)
        lines.append(("Dice on val", f"{after['mean']:.4f} at step {best}, {before['mean']:.4f} before training"))
        if best == 0:
            lines.append(
                ("note", "no step made it better, so the adapter changes nothing; see docs/how-to/finetune.md")
            )
    else:
        lines.append(("note", "no image was left to validate with, so the last weights are the result, good or bad"))
    lines.append(("log", str(made.folder / "log.csv")))
    if (made.folder / "overlays").is_dir():
        lines.append(("samples", str(made.folder / "overlays")))
    adapter = shlex.quote(str(made.adapter))
    own = f"--weights {shlex.quote(str(weights))} " if weights else ""
    lines.append(("use it", f"palpate predict IMAGE --box X0 Y0 X1 Y1 {own}--adapter {adapter} -o MASK"))
    return lines
