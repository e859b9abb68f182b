"""`palpate embed DATA`: encode images ahead, once and for all runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from palpate.cli.terminal import (
    bytes_of,
    check_who_works,
    cores,
    counting,
    note,
    reporting_errors,
    say_json,
    separated,
    size_text,
)
from palpate.cli.training import slices_of
from palpate.models import DEFAULT


def embed(
    data: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="A manifest.csv or its folder, an nnU-Net, npy or npz folder, or images."),
    ],
    model: Annotated[
        str | None, typer.Option(help=f"A name from `palpate models`, or an adapter file (default: {DEFAULT}).")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="A checkpoint file to use instead of the known one.")] = None,
    cache: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where embeddings are kept (default: beside the weights).")
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="What the cache may take (default: as before, at first 20GB); beyond it, those unused for longest go.",
        ),
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="The folder of labels, where DATA is a folder of images.")] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="Only these datasets of DATA. Repeatable, or commas.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Only this split: train, val or test.")] = None,
    channel: Annotated[int, typer.Option(min=0, help="Which channel of nnU-Net images.")] = 0,
    window: Annotated[
        str | None, typer.Option(help="How values become grey: a CT window's name, LEVEL/WIDTH, min-max or as-is.")
    ] = None,
    slices_per_volume: Annotated[
        str, typer.Option(metavar="N|all", help="Labelled slices of each volume, spread evenly.")
    ] = "3",
    flips: Annotated[
        list[str] | None, typer.Option(help="Flipped views, too: x, y, xy. Repeatable, or commas.")
    ] = None,
    crops: Annotated[int, typer.Option(min=0, help="So many crops of each slice, too.")] = 0,
    variants: Annotated[int, typer.Option(min=0, help="So many variants of each slice, too.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Where crops lie follows from it; give the recipe's.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes at work, one thread each (default: one a core; one on a GPU).")
    ] = None,
    dask: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Let a dask cluster work: tcp://host:8786.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Put the embeddings of labelled images into a cache that every later run reads.

    All of them:       palpate embed mine/

    As a recipe asks:  palpate embed mine/ --split train --flips x,y --crops 2 --seed 0

    What is there is not encoded again, so an interrupted command goes on where it was. `palpate finetune` and
    `palpate evaluate --cache` find what they need by content: the same pixels and the same encoder, whatever the file.
    """
    with reporting_errors(as_json=as_json, kept=lambda: "what was encoded is kept, and the same command goes on"):
        check_who_works(workers, dask)
        asked = None if max_size is None else bytes_of(max_size, "--max-size")
        slices = slices_of(slices_per_volume)
        from palpate.datasets import open_dataset
        from palpate.inference.embedding_cache import EmbeddingCache, bound_of, default_folder
        from palpate.inference.runtimes.torch import choose_device
        from palpate.training.embedding import Order, embed_many
        from palpate.training.scenes import Views

        views = Views(flips=tuple(separated(flips)), crops=crops, variants=variants, seed=seed)
        chosen = choose_device(device)
        cases = open_dataset(data, labels=labels, dataset=separated(dataset) or None, split=split, channel=channel)
        folder = cache or default_folder()
        size = asked or bound_of(folder)
        order = Order(
            folder=folder,
            max_bytes=size,
            model=model,
            weights=weights,
            device=str(chosen),
            views=views,
            slices_per_volume=None if isinstance(slices, str) else slices,
            intensity=window,
        )
        several = workers or (cores() if chosen.type == "cpu" else 1)
        with counting("encoding", "cases", enabled=not as_json) as advance:
            scenes, encoded = embed_many(
                cases, order, workers=min(several, len(cases)), dask=dask, progress=advance, tell=note
            )
        use = EmbeddingCache(order.folder, max_bytes=size).use()
        # An embedding is as large as any other of its model.
        needed = scenes * use.bytes // max(1, use.embeddings)
        if as_json:
            facts = {"cache": str(order.folder), "views": scenes, "encoded": encoded, "there_before": scenes - encoded}
            say_json({**facts, "embeddings": use.embeddings, "bytes": use.bytes, "max_bytes": size})
        else:
            typer.echo(
                f"{encoded} encoded, {scenes - encoded} were there; {order.folder} holds {use.embeddings} embeddings, "
                f"{size_text(use.bytes)} of {size_text(size)}"
            )
        if needed > size or use.embeddings < encoded:
            note(
                f"{size_text(size)} cannot hold these {scenes} embeddings, so some of them are gone again; give a "
                "larger --max-size"
            )
