"""`palpate export MODEL -o DIR`: a model as ONNX and OpenVINO files, for programs that know no PyTorch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, cast

import typer

from palpate.cli.terminal import reporting_errors, say, say_json, separated, size_text
from palpate.errors import SettingError

_FORMATS = ("onnx", "openvino")


def export(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A name from `palpate models`, or a file that `palpate finetune` or `palpate learn` made.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="DIR", help="The folder to write.")] = None,
    formats: Annotated[
        list[str] | None, typer.Option("--format", help="onnx, openvino, or both (default). Repeatable, or commas.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="A checkpoint file to use instead of the known one.")] = None,
    adapter: Annotated[Path | None, typer.Option(help="An adapter that `palpate finetune` made, folded in.")] = None,
    auto: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What `palpate learn` made: a finder is written as well."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
) -> None:
    """Write a model's encoder and decoder as ONNX and OpenVINO files, with model.json, which says what goes in and out.

    palpate export lite-medsam -o lite-medsam-onnx/
    palpate export --auto liver.safetensors -o liver-onnx/

    Each file is run beside PyTorch first, and how far they are apart is printed and kept.
    """
    with reporting_errors(as_json=as_json):
        if output is None:
            raise SettingError("say where the files go: -o DIR")
        chosen = list(dict.fromkeys(separated(formats))) or list(_FORMATS)
        if unknown := [name for name in chosen if name not in _FORMATS]:
            raise SettingError(f"there is no format {unknown[0]!r}; choose {' or '.join(_FORMATS)}")
        from palpate.inference.export import Format
        from palpate.inference.export import export as write
        from palpate.models import catalogue
        from palpate.models import weights as checkpoints
        from palpate.models.cards import adapter_card, is_learned, learned_card

        if model is not None and model.endswith(".safetensors"):
            if (other := adapter or auto) is not None:
                raise SettingError(f"{model} is what goes on a model, and so is {other}; give one of them")
            if is_learned(Path(model)):
                auto, model = Path(model), None
            else:
                adapter, model = Path(model), adapter_card(Path(model)).base
        about = None if auto is None else learned_card(auto)
        if auto is not None and about is not None:
            if adapter is not None:
                raise SettingError(
                    f"{auto} brings along what it changed in its base model, so no adapter goes on top; leave "
                    f"{adapter} out"
                )
            if model not in (None, about.base):
                raise SettingError(f"{auto} was learned on {about.base}, not on {model}; leave {model} out")
            card = catalogue.card(about.base)
            loaded = checkpoints.load_learned(auto, weights=weights)
        elif model is None:
            raise SettingError("say what is written: a model of `palpate models`, or --auto FILE")
        else:
            card = catalogue.card(model)
            loaded = checkpoints.load(card, weights=weights, adapter=adapter)
        made = write(loaded, card, output, formats=cast("list[Format]", chosen), overwrite=overwrite, learned=about)
        if as_json:
            say_json(
                {
                    "folder": str(made.folder),
                    "files": list(made.files),
                    "weights_hash": loaded.weights_hash,
                    "parity": [asdict(one) for one in made.parity],
                }
            )
            return
        say(
            [
                ("wrote", f"{made.folder / name} ({size_text((made.folder / name).stat().st_size)})")
                for name in made.files
            ]
        )
        for one in made.parity:
            typer.echo(
                f"{one.runtime} beside PyTorch: features differ by {one.features:.1g} of the largest value, logits by "
                f"{one.logits:.1g}, and of a million mask pixels {one.differing:.3g}"
            )
