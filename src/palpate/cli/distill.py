"""`palpate distill RECIPE.toml -o FILE`: an image encoder learns to give the embeddings of another one."""

from __future__ import annotations

import shlex
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
    Nodes,
    Precision,
    RunFolder,
    Seed,
    Threads,
    Work,
    done,
    several,
    slices_of,
    text_of,
)
from palpate.errors import SettingError
from palpate.models import DEFAULT

if TYPE_CHECKING:
    from palpate.training.distill import Distilled
    from palpate.training.distill_recipe import DistillRecipe


def distill(
    recipe: Annotated[
        Path | None,
        typer.Argument(metavar="RECIPE.toml", help="All settings in a file; see docs/reference/recipes.md."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="The checkpoint: student.safetensors.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DATA", help="A manifest.csv or its folder, an nnU-Net, npy or npz folder, or images."),
    ] = None,
    student: Annotated[
        str | None, typer.Option(help="The model whose encoder learns (default: swin-lite-medsam).")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(help="What it starts from: random, released, teacher, or a checkpoint (default: random)."),
    ] = None,
    teacher: Annotated[str | None, typer.Option(help=f"The model it learns from (default: {DEFAULT}).")] = None,
    teacher_weights: Annotated[
        Path | None, typer.Option(help="A checkpoint of the teacher instead of the known one.")
    ] = None,
    labels: Labels = None,
    dataset: Datasets = None,
    flips: Annotated[
        list[str] | None, typer.Option(help="Flipped views as well: x, y, xy. Repeatable, or commas.")
    ] = None,
    crops: Annotated[int | None, typer.Option(help="So many crops of each image as well (default: 0).")] = None,
    slices_per_volume: Annotated[
        str | None, typer.Option(metavar="N|all", help="Slices of each volume, spread evenly (default: 3).")
    ] = None,
    two_stages: Annotated[
        bool, typer.Option("--two-stages", help="Then train the whole model with prompts, as [then] of a recipe does.")
    ] = False,
    error: Annotated[str | None, typer.Option(help="l1 or mse (default: l1).")] = None,
    batch_norm: Annotated[
        str | None, typer.Option(help="Statistics of batch normalisation: batch or kept (default: by the start).")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="The learning rate of the first stage (default: 2e-4).")] = None,
    epochs: Annotated[int | None, typer.Option(help="How many epochs, of the first stage (default: 10).")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps of an epoch, of the first stage (default: every view once).")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Views of a step, of the first stage (default: 8).")] = None,
    precision: Precision = None,
    seed: Seed = None,
    name: Annotated[str | None, typer.Option(help="Its name (default: that of FILE).")] = None,
    licence: Annotated[str | None, typer.Option(help="Its licence.")] = None,
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
    """Teach one model's image encoder the embeddings of another: a small one, or one with skip connections.

    palpate distill --data manifest.csv --student swin-lite-medsam -o swin.safetensors

    With --two-stages, or [then] in the recipe, the whole model then learns to answer prompts.

    Stopped by Ctrl-C or a power cut, the same command goes on where it was.
    """
    with reporting_errors(as_json=as_json, kept=lambda: "the same command goes on where it was"):
        if output is None:
            raise SettingError("say where the result goes: -o FILE.safetensors")
        if output.suffix != ".safetensors":
            raise SettingError(f"the result is a safetensors file: -o {output.with_suffix('.safetensors')}")
        changes = {
            "data.path": text_of(data),
            "data.labels": text_of(labels),
            "data.dataset": several(dataset),
            "data.flips": several(flips),
            "data.crops": crops,
            "data.slices_per_volume": None if slices_per_volume is None else slices_of(slices_per_volume),
            "student": student,
            "start": start,
            "teacher": teacher,
            "teacher_weights": text_of(teacher_weights),
            "error": error,
            "batch_norm": batch_norm,
            "optimiser.rate": rate,
            "epochs": epochs,
            "steps": steps,
            "batch": batch,
            "precision": precision,
            "seed": seed,
            "name": name,
            "licence": licence,
        }
        chosen = _recipe(recipe, {key: value for key, value in changes.items() if value is not None})
        if two_stages and chosen.then is None:
            chosen = chosen.model_copy(update={"then": {}})
        if chosen.then is None:
            from palpate.training.distill import distill as teach
        else:
            from palpate.training.two_stages import train_in_two_stages as teach

        work = Work(cache, max_size, device, devices, nodes, threads)
        made = done(partial(teach, folder=run), chosen, output, work=work, told=not as_json, overwrite=overwrite)
        if made is None:
            return
        if as_json:
            say_json({"file": str(made.path), "steps": made.steps, "ready": made.ready, "about": made.about})
        else:
            say(_lines(made))


def _recipe(path: Path | None, changes: dict[str, Any]) -> DistillRecipe:
    from palpate.training.distill_recipe import distill_recipe_from, read_distill_recipe
    from palpate.training.recipe import with_changes

    if path is not None:
        if path.suffix != ".toml":
            raise SettingError(f"{path} is no recipe (.toml); images and labels are given with --data {path}")
        return read_distill_recipe(path, changes=changes)
    if "data.path" not in changes:
        raise SettingError("say which images to learn from: palpate distill RECIPE.toml, or --data DATA")
    return distill_recipe_from(with_changes({}, changes))


def _lines(made: Distilled) -> list[tuple[str, str]]:
    path = shlex.quote(str(made.path))
    lines = [
        ("student", f"{made.student}, taught by {made.about['teacher']}"),
        ("file", f"{made.path} ({size_text(made.path.stat().st_size)})"),
    ]
    after, before = (made.about["metrics"].get(name, {}) for name in ("val_dice", "val_dice_before"))
    if "metrics_of_stage_1" in made.about:
        lines += [
            (f"Dice on val, {name}", f"{value:.4f}, {before[name]:.4f} after stage 1") for name, value in after.items()
        ]
    elif "mean" in after:
        lines.append(("Dice on val", f"{after['mean']:.4f} with the teacher's decoder, {before['mean']:.4f} before"))
    metrics = made.about.get("metrics_of_stage_1", made.about["metrics"])
    if "val_error" in metrics:
        nearer = f"{metrics['val_error']:.4f}, {metrics['val_error_before']:.4f} before"
        lines.append(("embeddings", f"{nearer}: their distance from the teacher's on val"))
    if metrics.get("best_step") == 0:
        lines.append(("note", "no step of stage 1 made it better, so its encoder is as at the start; train it longer"))
    if made.ready:
        lines.append(("use it", f"palpate predict IMAGE --model {made.student} --weights {path} --box ... -o OUT"))
    else:
        lines.append(
            ("note", f"the decoder of {made.student} has parts that the teacher's lacks; they are random still")
        )
        lines.append(
            ("train it", f"palpate finetune --data DATA --model {made.student} --weights {path} --trained full -o RUN")
        )
    return lines
