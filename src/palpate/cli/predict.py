"""`palpate predict IMAGE`: prompts in, a mask on the image's grid out; with learned prompts, none in.

A folder of images is in `predict_folder.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from palpate.cli import predict_folder
from palpate.cli.terminal import counting, reporting_errors, say, say_json
from palpate.errors import OutputError, PromptError, SettingError
from palpate.models import DEFAULT

if TYPE_CHECKING:
    from palpate.images import Image
    from palpate.inference.segmentation import Segmentation
    from palpate.inference.session import Session
    from palpate.prompts import Prompt, Target

_BY_CARD = "as in training"
_PREVIEW_KINDS = {".png": "raster", ".jpg": "raster", ".jpeg": "raster"}


def predict(
    image: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGE", help="An image file, a DICOM file or a folder of DICOM files; with --auto, of images."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help=(
                "The mask: .nii.gz, .nrrd, .seg.nrrd, .png, .npz, .mha, .dcm (DICOM SEG) or .rtstruct.dcm. "
                "With --auto, or a folder."
            ),
        ),
    ] = None,
    auto: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What `palpate learn` made: it finds its classes without a prompt."),
    ] = None,
    box: Annotated[
        tuple[float, float, float, float] | None,
        typer.Option(metavar="X0 Y0 X1 Y1", help="First and last column and row inside the object's box."),
    ] = None,
    point: Annotated[
        list[str] | None,
        typer.Option(metavar="X Y[:-]", help="A click on the object; with :- after it, beside it. Repeatable."),
    ] = None,
    scribble: Annotated[
        Path | None, typer.Option(help="A picture of strokes: 2 beside the object, any other value on it.")
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="A first guess at the object, not zero inside.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A JSON file with several objects; see docs/reference/prompts.md.")
    ] = None,
    slice_number: Annotated[
        int | None,
        typer.Option(
            "--slice",
            metavar="K",
            help="The slice that the prompt was drawn on, from 0; with --z, by default its middle.",
        ),
    ] = None,
    z: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="Z0 Z1", help="Carry the object from slice Z0 to Z1, both included."),
    ] = None,
    until_end: Annotated[
        bool, typer.Option("--until-end", help="Stop where the object ends; without --z, look in the whole volume.")
    ] = False,
    axis: Annotated[
        str | None,
        typer.Option(help="Slice along z, y, x, axial, coronal or sagittal (default: the axis of acquisition)."),
    ] = None,
    name: Annotated[str, typer.Option(help="The object's name, written where the format can hold it.")] = "",
    overlap: Annotated[str, typer.Option(help="Who gets a voxel claimed twice: last, first or score.")] = "last",
    model: Annotated[
        str | None, typer.Option(help=f"A name from `palpate models`, or an adapter file (default: {DEFAULT}).")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="A checkpoint file to use instead of the known one.")] = None,
    adapter: Annotated[Path | None, typer.Option(help="What `palpate finetune` made, to put on the model.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    runtime: Annotated[
        str, typer.Option(help="What computes: auto (the quickest that there is), openvino, onnxruntime or torch.")
    ] = "auto",
    precision: Annotated[
        str,
        typer.Option(
            help="float32; bfloat16 is quicker where the processor has it, and less exact; float16 is for GPUs."
        ),
    ] = "float32",
    modality: Annotated[str | None, typer.Option(help="Say what it is: CT, MR, US, PET, XR, photo.")] = None,
    window: Annotated[
        str | None,
        typer.Option(help="A CT window's name, LEVEL/WIDTH, LOW..HIGH, percentiles, min-max or as-is."),
    ] = None,
    series: Annotated[str | None, typer.Option(help="Which DICOM series: its UID, number or description.")] = None,
    carry: Annotated[
        bool, typer.Option("--carry", help="With --auto: follow each class of a volume from its most certain slice.")
    ] = False,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="With --auto: a mask a class, MASK_CLASS.nii.gz; they may overlap.")
    ] = False,
    mask_format: Annotated[
        str | None,
        typer.Option("--format", help="With --auto and a folder: what volumes become, nii.gz (default), dcm, nrrd..."),
    ] = None,
    preview: Annotated[
        Path | None,
        typer.Option(help="A picture of image, prompt and outline (.png, .jpg); of a folder, a folder for them."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="With --auto and a folder: processes at work, one thread each (default: this one)."),
    ] = None,
    dask: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="With --auto and a folder: let a dask cluster work, tcp://host:8786."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: what was made, from what, by what.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
) -> None:
    """Segment what you point at. Coordinates are pixels: X counts columns, Y counts rows, from 0.

    A picture:     palpate predict polyp.png --box 90 60 210 170 -o mask.png --preview look.png

    One slice:     palpate predict ct.nii.gz --slice 41 --box 92 110 301 330 -o liver.nii.gz

    A volume:      palpate predict ct.nii.gz --slice 41 --box 92 110 301 330 --z 20 63 -o liver.nii.gz

    Many objects:  palpate predict series/ --prompts organs.json -o organs.seg.nrrd

    A folder:      palpate predict images/ --auto liver.safetensors -o masks/

    With --auto, a box takes the place of the guessed one; other marks go in beside what was learned.
    """
    is_drawn = any(mark is not None for mark in (box, point, scribble, mask, prompts))
    is_folder = auto is not None and predict_folder.is_folder(image, output)
    kept = partial(predict_folder.kept, overwrite=overwrite) if is_folder else lambda: "nothing was written"
    with reporting_errors(as_json=as_json, kept=kept):
        if auto is None and (carry or per_class):
            raise SettingError("--carry and --per-class are for what is found without a prompt; give --auto FILE")
        if mask_format is not None and not is_folder:
            raise SettingError("--format is for a folder of images with --auto; here the end of -o says the format")
        if not is_folder and (workers is not None or dask is not None):
            raise SettingError("--workers and --dask share out a folder of images; give a folder, --auto FILE and -o")
        if auto is not None and (until_end or overlap != "last"):
            raise SettingError("--until-end and --overlap are for drawn prompts alone; with --auto, see --carry")
        if auto is not None and is_folder:
            if is_drawn or slice_number is not None or z is not None or name:
                raise PromptError("a prompt is for one image; give that image, and -o with the name of its mask")
            predict_folder.predict_folder(
                image,
                output,
                series=series,
                load={
                    "model": model,
                    "auto": auto,
                    "adapter": adapter,
                    "weights": weights,
                    "device": device,
                    "runtime": runtime,
                    "precision": precision,
                },
                look={"modality": modality, "intensity": window, "axis": axis, "carry": carry, "per_class": per_class},
                mask_format=mask_format or "nii.gz",
                previews=preview,
                workers=workers,
                dask=dask,
                overwrite=overwrite,
                as_json=as_json,
            )
            return
        if output is None and preview is None and not as_json:
            raise PromptError("say where the result goes: -o mask.nii.gz, --preview look.png or --json")
        _check_paths(output, preview, overwrite=overwrite)
        # Everything wrong with the words is said before torch is loaded, which takes seconds.
        from palpate.images import read

        picture = read(image, series=series)
        by_itself = auto is not None and not is_drawn
        if by_itself and (slice_number is not None or z is not None or name):
            raise PromptError("--slice, --z and --name belong to a prompt; draw one, or leave them out")
        targets = (
            []
            if by_itself
            else _targets(image, picture, prompts, box, point, scribble, mask, slice_number, z, axis, name)
        )
        _check_outputs(picture, targets, output, preview, every_slice=until_end or auto is not None)

        from palpate.inference.loading import load

        session = load(
            model,
            device=device,
            weights=weights,
            adapter=adapter,
            auto=auto,
            runtime=runtime,
            precision=precision,
            tell=partial(typer.echo, err=True),
        )
        mode = "manual" if auto is None else "autonomous" if by_itself else "semi-autonomous"
        masks = predict_folder.masks_of(session, output, overwrite=overwrite) if per_class and output else {}
        for path in masks.values():
            _check_not_the_image(picture, path)
            if preview is not None and path.resolve() == preview.resolve():
                raise OutputError(f"a mask and the preview would both be {path}; give them different names")
        session.set_image(picture, modality=modality, intensity=window, axis=axis)
        each: tuple[Segmentation, ...] = ()
        with counting("segmenting", "slices", enabled=not as_json) as advance:
            if auto is None:
                result = session.predict_all(targets, overlap=overlap, until_end=until_end, progress=advance)
            elif masks:
                result, each = session.find_both(targets, mode=mode, carry=carry, progress=advance)
            else:
                result = session.find(targets, mode=mode, carry=carry, progress=advance)
        results = {masks[one.objects[0].label]: one for one in each} if masks else {output: result} if output else {}
        if per_class:  # DICOM cannot hold an empty mask; the class is told to be absent all the same
            results = {path: one for path, one in results.items() if path.suffix != ".dcm" or one.mask.any()}
        written = list(results)
        _write(session, result, results, preview, overwrite=overwrite)
        if as_json:
            outputs = [str(path) for path in written] if per_class else _text(output)
            say_json({**result.record(), "output": outputs, "preview": _text(preview)})
        else:
            say(_lines(result, [*written, *([preview] if preview else [])]))


def parse_point(text: str) -> tuple[float, float, int]:
    """`X Y` or `X Y:-` as x, y and the mark: 1 on the object, 0 beside it.

    >>> parse_point("120 80.5:-")
    (120.0, 80.5, 0)

    Raises:
        PromptError: anything else.
    """
    match = re.fullmatch(r"\s*(\S+)[\s,]+(\S+?)(:[+-])?\s*", text)
    try:
        if match is None:
            raise ValueError
        return float(match[1]), float(match[2]), 0 if match[3] == ":-" else 1
    except ValueError:
        raise PromptError(
            f"cannot read the point {text!r}; write --point X Y, or --point X Y:- beside the object"
        ) from None


def _targets(
    path: Path,
    picture: Image,
    prompts: Path | None,
    box: tuple[float, float, float, float] | None,
    point: list[str] | None,
    scribble: Path | None,
    mask: Path | None,
    slice_number: int | None,
    z: tuple[int, int] | None,
    axis: str | None,
    name: str,
) -> list[Target]:
    from palpate.prompts import Box, MaskPrompt, Points, Target
    from palpate.prompts.types import middle_of

    given: list[Prompt] = []
    drawn_on = middle_of(z) if slice_number is None and z is not None else slice_number
    if box is not None:
        given.append(Box(*box, z=slice_number))
    if point:
        parsed = [parse_point(text) for text in point]
        given.append(Points([p[:2] for p in parsed], [p[2] for p in parsed], z=slice_number))
    if scribble is not None or mask is not None:
        from palpate.prompts.file import read_mark, scribble_from  # slow to import: it needs pydantic

        if scribble is not None:
            strokes = read_mark(scribble, z=drawn_on, axis=axis, image=picture)
            given.append(scribble_from(strokes, z=slice_number))
        if mask is not None:
            given.append(MaskPrompt(read_mark(mask, z=drawn_on, axis=axis, image=picture) != 0, z=slice_number))
    if prompts is not None:
        if given or slice_number is not None or z is not None or name:
            raise PromptError(
                "--prompts says everything about the objects; leave --box, --point, --scribble, --mask, --slice, --z "
                "and --name out"
            )
        from palpate.prompts.file import read_prompts

        return read_prompts(prompts, axis=axis, image=picture)
    if given:
        return [Target(tuple(given), name=name, z_range=z)]
    if targets := _boxes_in_file(path, picture):
        if slice_number is not None or z is not None or name:
            raise PromptError(
                f"the boxes in {path} say which slices they are for; leave --slice, --z and --name out, or give a --box"
            )
        return targets
    raise PromptError("nothing to segment: give --box, --point, --scribble, --mask or --prompts")


def _boxes_in_file(path: Path, picture: Image) -> list[Target]:
    """The boxes that a challenge npz file brings along: four numbers, or six with z."""
    if picture.source is None or picture.source.format != "npz":
        return []
    from palpate.images.formats.npz import read_boxes
    from palpate.prompts import Box, Target

    targets: list[Target] = []
    boxes = read_boxes(path)
    for label, numbers in enumerate([] if boxes is None else boxes.tolist(), start=1):
        if len(numbers) == 4:
            targets.append(Target((Box(*numbers),), label=label))
        else:
            x_min, y_min, z_min, x_max, y_max, z_max = numbers
            # As in the challenge's own script, a range may end one slice beyond the volume.
            z_range = (max(int(z_min), 0), min(int(z_max), picture.shape[0] - 1))
            middle = int((z_max - z_min) / 2 + z_min)
            targets.append(Target((Box(x_min, y_min, x_max, y_max, z=middle),), label=label, z_range=z_range))
    return targets


def _check_paths(output: Path | None, preview: Path | None, *, overwrite: bool) -> None:
    from palpate.images.formats import check_writable

    if output is not None:
        check_writable(output, overwrite=overwrite)
    if preview is not None:
        check_writable(preview, overwrite=overwrite, kinds=_PREVIEW_KINDS)
    if output is not None and preview is not None and output.resolve() == preview.resolve():
        raise OutputError(f"the mask and the preview would both be {output}; give them different names")


def _check_outputs(
    picture: Image, targets: list[Target], output: Path | None, preview: Path | None, *, every_slice: bool
) -> None:
    """Refuse, before any work, what would lose the image or could not hold the result."""
    for path in (output, preview):
        if path is not None:
            _check_not_the_image(picture, path)
    if output is None:
        return
    from palpate.images.formats import mask_suffix_of

    source = picture.source
    suffix = output.suffix.lower()
    if suffix == ".dcm" and (source is None or source.format != "dicom"):
        kind = "an RTSTRUCT" if mask_suffix_of(output) == ".rtstruct.dcm" else "a DICOM SEG"
        raise OutputError(
            f"{kind} refers to the DICOM images it was drawn on, and this image is not DICOM; "
            "write the mask as .nii.gz or .nrrd"
        )
    if suffix == ".png" and picture.is_volume:
        touched = {number for target in targets for number in (target.z, *(target.z_range or ()))}
        whole = every_slice and min(picture.shape) > 1 and not (targets and all(target.z_range for target in targets))
        if whole or len(touched - {None}) > 1:
            raise OutputError(
                "a PNG holds one slice, and several slices are asked for; write .nii.gz, .nrrd or .npz instead"
            )


def _check_not_the_image(picture: Image, path: Path) -> None:
    source = picture.source
    if source is not None and path.resolve() in {own.resolve() for own in (source.path, *source.files)}:
        raise OutputError(f"{path} is the image itself, which --overwrite would destroy; give another name")


def _write(
    session: Session,
    result: Segmentation,
    masks: Mapping[Path, Segmentation],
    preview: Path | None,
    *,
    overwrite: bool,
) -> None:
    """All masks or, if one of them cannot be written, none; then the preview."""
    from palpate.images.formats import replacing

    # Drawn before anything is written: an interrupt while drawing then leaves nothing behind.
    picture = session.preview(result) if preview is not None else None
    if len(masks) == 1:
        ((path, one),) = masks.items()
        one.save(path, overwrite=overwrite)
    else:
        with ExitStack() as waiting:  # each takes its place when the last one is written
            for path, one in masks.items():
                one.save(waiting.enter_context(replacing(path, overwrite=overwrite)), overwrite=True)
    if preview is not None and picture is not None:
        with replacing(preview, overwrite=overwrite) as temporary:
            picture.save(temporary, format="PNG" if preview.suffix.lower() == ".png" else "JPEG")


def _lines(result: Segmentation, written: list[Path]) -> list[tuple[str, str]]:
    made = result.provenance
    lines = [
        ("image", f"{_modality(made.modality, made.modality_origin)}, {_rule(made.intensity, made.intensity_origin)}"),
        ("model", f"{made.model} (weights {made.weights_hash[:12]}), {made.runtime}"),
    ]
    for item in result.objects:
        size = f"{item.voxels} pixels" if item.volume_ml is None else f"{item.voxels} voxels ({item.volume_ml:.2f} ml)"
        where = "" if item.slices is None else f", slices {item.slices[0]}..{item.slices[1]}"
        name = " ".join(item.name.split()) or f"label {item.label}"
        sure = "" if item.object_probability is None else f", object probability {item.object_probability:.2f}"
        lines.append((name, f"{size}{where}, predicted IoU {item.predicted_iou:.2f}{sure}"))
    lines += [("note", note) for note in result.notes]
    lines += [("wrote", str(path)) for path in written]
    return lines


def _modality(modality: str, origin: str) -> str:
    return "modality unknown" if modality == "unknown" else f"{modality} ({_BY_CARD if origin == 'card' else origin})"


def _rule(intensity: str, origin: str) -> str:
    return f"{intensity}, {_BY_CARD}" if origin == "card" else intensity


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
