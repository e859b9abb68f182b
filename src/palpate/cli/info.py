"""`palpate info IMAGE`: what a file holds, and what would be done with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from palpate.cli.terminal import reporting_errors, say, say_json

if TYPE_CHECKING:
    from palpate.images import Image


def info(
    image: Annotated[
        Path, typer.Argument(metavar="IMAGE", help="An image file, a DICOM file or a folder of DICOM files.")
    ],
    series: Annotated[str | None, typer.Option(help="Which DICOM series: its UID, number or description.")] = None,
    modality: Annotated[str | None, typer.Option(help="Say what it is: CT, MR, US, PET, XR, photo.")] = None,
    axis: Annotated[str | None, typer.Option(help="Slice along z, y, x, axial, coronal or sagittal.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show shape, spacing, orientation, modality, intensities, and the preprocessing that would be applied."""
    with reporting_errors(as_json=as_json):
        from palpate.images import read

        facts = describe(read(image, series=series), modality=modality, axis=axis)
        if as_json:
            say_json(facts)
        else:
            say(_lines(facts))


def describe(image: Image, *, modality: str | None = None, axis: str | None = None) -> dict[str, Any]:
    """The facts that `palpate info` prints, ready for JSON."""
    from palpate.images.intensity import intensity_for
    from palpate.images.modality import with_modality
    from palpate.images.slices import slice_name, slicing_axis

    image = with_modality(image, modality)
    facts: dict[str, Any] = {
        "image": str(image.source.path) if image.source else None,
        "format": image.source.format if image.source else None,
        "series": image.source.series if image.source else None,
        "shape": list(image.shape),
        "colour": image.colour,
        "dtype": str(image.array.dtype),
        "range": [image.array.min().item(), image.array.max().item()],
        "spacing_mm": [round(value, 6) for value in image.geometry.spacing],
        "orientation": image.geometry.orientation,
        "modality": image.modality,
        "modality_origin": image.modality_origin,
        "intensity": str(intensity_for(image)),
        "slicing": None,
    }
    if image.is_volume:
        number = slicing_axis(image, axis)
        rows, columns = (extent for i, extent in enumerate(image.shape) if i != number)
        facts["slicing"] = {
            "axis": "zyx"[number],
            "plane": slice_name(image, number),
            "slices": image.shape[number],
            "rows": rows,
            "columns": columns,
        }
    return facts


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    axes = "z y x" if len(facts["shape"]) == 3 else "y x"
    low, high = facts["range"]
    origin = {
        "header": "says the file",
        "given": "as given",
        "guessed": "guessed",
        "unknown": "say --modality if you know",
    }[facts["modality_origin"]]
    lines = [
        ("image", f"{facts['image']} ({facts['format']})"),
        ("shape", f"{' x '.join(map(str, facts['shape']))} ({axes}){', colour' if facts['colour'] else ''}"),
        ("spacing", f"{' x '.join(f'{value:g}' for value in facts['spacing_mm'])} mm (x y z)"),
        ("orientation", f"{facts['orientation']} (x y z point there)"),
        ("values", f"{low:g} to {high:g} ({facts['dtype']})"),
        ("modality", f"{facts['modality']} ({origin})"),
        ("intensity", f"{facts['intensity']}, to 0..255"),
    ]
    if facts["series"]:
        lines.insert(1, ("series", facts["series"]))
    if facts["slicing"]:
        cut = facts["slicing"]
        size = f"{cut['columns']} columns x {cut['rows']} rows each"
        lines.append(("slices", f"0..{cut['slices'] - 1} along {cut['axis']} ({cut['plane']}), {size}"))
    return lines
