"""Raw datasets of nnU-Net (v2): `DatasetXXX_Name` with imagesTr, labelsTr, dataset.json; and folders of them.

- An image is `CASE_0000.nii.gz`, the four digits its channel; the label is `CASE.nii.gz`. A picture (PNG) may hold
  all channels in one file. `dataset` in dataset.json may name the files instead.
- Names come from `labels`; a list of values is a region, `ignore` marks voxels that nobody labelled.
- imagesTr is the split `train`; imagesTs is `test` if there is a labelsTs. The subject is the case.
- A TIFF volume takes its spacing from `CASE.json` beside it, in the order z, y, x.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from palpate.datasets.case import Case, Region
from palpate.datasets.layouts import Listing, joined, stem, subfolders
from palpate.datasets.pair import FILES, known_modality
from palpate.datasets.report import Problem, Severity
from palpate.errors import DatasetError

REQUIRED = ("channel_names", "labels", "numTraining", "file_ending")

_PICTURES = (".png", ".bmp", ".tif", ".tiff", ".jpg")


def recognises(path: Path) -> bool:
    """Whether it is one raw dataset, or a folder that holds some."""
    return path.is_dir() and bool(_roots(path))


def listing(path: Path, *, channel: int = 0) -> Listing:
    """The cases of one raw dataset, or of all that lie in the folder; `channel` picks each case's image.

    Raises:
        DatasetError: no dataset.json, or one that is no JSON object.
    """
    roots = _roots(path)
    if roots == [path]:
        return _Raw(path, _description(path), channel).listing()
    nested: list[Listing] = []
    for root in roots:
        one = _Raw(root, _description(root), channel).listing()
        # Equal names in two datasets mean nothing.
        cases = tuple(replace(case, subject=f"{case.dataset}/{case.subject}") for case in one.cases)
        nested.append(replace(one, cases=cases))
    return joined(nested)


@dataclass(frozen=True)
class _Pair:
    """The files of one case, as far as they are known: images by channel, and the label."""

    images: Mapping[int, Path]
    label: Path | None


class _Raw:
    """One raw dataset while it is listed; problems collect as they are met."""

    def __init__(self, root: Path, description: dict[str, Any], channel: int) -> None:
        self.root = root
        self.json = root / "dataset.json"
        self.name = root.resolve().name
        self.description = description
        self.channel = channel
        self.cases: list[Case] = []
        self.incomplete: list[Problem] = []
        self.problems: list[Problem] = []
        self.further: dict[Path, tuple[Path, ...]] = {}

    def listing(self) -> Listing:
        missing = [key for key in REQUIRED if key not in self.description]
        if missing:
            remedy = "add them; see nnU-Net's dataset_format.md"
            if "modality" in self.description:
                remedy = "this is the older format of the Decathlon; convert it with nnUNetv2_convert_MSD_dataset"
            self._say("dataset.json", f"{self.json} lacks {', '.join(missing)}", remedy)
        self.ending = self._file_ending()
        names = self._dictionary("channel_names") or self._dictionary("modality")
        self.regions, self.ignore = self._regions()
        self.modality = known_modality(str(names.get(str(self.channel), ""))) or ""
        self.channels = len(names)
        if names and self.channel >= len(names):
            listed = ", ".join(f"{number} ({title})" for number, title in names.items())
            raise DatasetError(f"{self.json} has no channel {self.channel}; it lists {listed}")

        train = self._mapped() if "dataset" in self.description else self._folder("imagesTr", "labelsTr")
        self._add(train, split="train", prefix="")
        stated = self.description.get("numTraining")
        if stated is not None and stated != len(train):
            self._say(
                "numTraining", f"numTraining is {stated} and there are {len(train)} cases", "correct dataset.json"
            )
        if (self.root / "imagesTs").is_dir() and (self.root / "labelsTs").is_dir():
            test = self._folder("imagesTs", "labelsTs")
            self._add(test, split="test", prefix="imagesTs/" if set(test) & set(train) else "")
        channels = {self.name: self.channels} if names else {}
        return Listing(tuple(self.cases), FILES, tuple(self.incomplete), tuple(self.problems), self.further, channels)

    def _add(self, pairs: dict[str, _Pair], *, split: str, prefix: str) -> None:
        for case, pair in sorted(pairs.items()):
            name = prefix + case
            # A picture may hold its channels in one file; whether it does is seen when it is opened.
            single = self.ending in _PICTURES and set(pair.images) == {0}
            wanted = range(1 if single else max(self.channels, 1))
            absent = [number for number in wanted if number not in pair.images]
            chosen = pair.images.get(0 if single else self.channel)
            if not pair.images:
                self._lack("missing image", f"{pair.label} has no image", "add it, or move the label away", name, split)
            elif chosen is None or not chosen.exists():
                what = f"{case} has no channel {self.channel}" + (f" ({chosen} is not there)" if chosen else "")
                self._lack("missing channel", what, "add the file, or choose another channel", name, split)
            elif pair.label is None or not pair.label.exists():
                what = f"{chosen} has no label" + (f" ({pair.label} is not there)" if pair.label else "")
                self._lack("missing label", what, "add it, or move the image away", name, split)
            else:
                others = tuple(pair.images[number] for number in sorted(pair.images) if pair.images[number] != chosen)
                gone = [*absent, *(number for number in sorted(pair.images) if not pair.images[number].exists())]
                if gone:
                    text = f"{case} has no channel {', '.join(map(str, gone))}"
                    self._say("missing channel", text, "add the files: nnU-Net needs all", name, split)
                if self.channels and max(pair.images) >= self.channels:
                    text = f"{case} has channel {max(pair.images)} and dataset.json lists {self.channels}"
                    self._say("channels", text, "correct channel_names or the files' names", name, split)
                if others:
                    self.further[chosen] = tuple(path for path in others if path.exists())
                self.cases.append(
                    Case(
                        dataset=self.name,
                        subject=case,
                        name=name,
                        image=chosen,
                        label=pair.label,
                        load=FILES,
                        modality=self.modality,
                        split=split,
                        regions=self.regions,
                        ignore=self.ignore,
                    )
                )

    def _folder(self, images: str, labels: str) -> dict[str, _Pair]:
        for name in (images, labels):
            if not (self.root / name).is_dir():
                raise DatasetError(f"{self.root} has no folder {name}; nnU-Net wants imagesTr and labelsTr")
        channels: dict[str, dict[int, Path]] = {}
        for path, name in self._files(images):
            match = re.fullmatch(r"(.+)_(\d{4})", name)
            if match is None:
                text = f"{path} does not end in a channel number"
                self._say("file name", text, f"call it {name}_0000{self.ending}", name)
                continue
            channels.setdefault(match[1], {})[int(match[2])] = path
        references = {name: path for path, name in self._files(labels)}
        return {name: _Pair(channels.get(name, {}), references.get(name)) for name in {*channels, *references}}

    def _files(self, folder: str) -> list[tuple[Path, str]]:
        found: list[tuple[Path, str]] = []
        for path in sorted((self.root / folder).iterdir()):
            if path.name.startswith(".") or path.suffix == ".json":
                continue
            if not path.name.endswith(self.ending):
                text = f"{path} does not end in {self.ending}, as dataset.json says, and is not used"
                self._say("file ending", text, "convert it or move it away", severity="warning")
                continue
            found.append((path, path.name[: -len(self.ending)]))
        return found

    def _mapped(self) -> dict[str, _Pair]:
        pairs: dict[str, _Pair] = {}
        for name, entry in self._dictionary("dataset").items():
            images = entry.get("images") if isinstance(entry, dict) else None
            label = entry.get("label") if isinstance(entry, dict) else None
            if (
                not isinstance(images, list)
                or not isinstance(label, str)
                or not all(isinstance(i, str) for i in images)
            ):
                text = f"the entry {name!r} of `dataset` in {self.json} is not {{images: [...], label: ...}}"
                self._lack("missing image", text, "correct it", name, "train")
                continue
            paths = {number: self.root / str(image) for number, image in enumerate(images)}
            pairs[name] = _Pair(paths, self.root / label)
        return pairs

    def _file_ending(self) -> str:
        ending = self.description.get("file_ending")
        if isinstance(ending, str) and ending.startswith("."):
            return ending
        if ending is not None:
            self._say("dataset.json", f"file_ending is {ending!r}", 'write it with its dot, as in ".nii.gz"')
        folder = self.root / "labelsTr"
        names = [path.name for path in sorted(folder.iterdir())] if folder.is_dir() else []
        return next((name[len(stem(Path(name))) :] for name in names if stem(Path(name)) != name), ".nii.gz")

    def _regions(self) -> tuple[tuple[Region, ...], int | None]:
        regions: list[Region] = []
        ignore: int | None = None
        labels = self._dictionary("labels")
        for name, stated in labels.items():
            values: list[Any] = stated if isinstance(stated, list) else [stated]
            if not values or not all(type(value) is int and value >= 0 for value in values):
                swapped = isinstance(stated, str) and name.isdigit()
                self._say(
                    "dataset.json",
                    f"the label {name!r} is {stated!r}",
                    "write name: value, not value: name" if swapped else "write a whole number or a list of them",
                )
            elif name == "ignore":
                ignore = values[0]
            elif any(values):
                regions.append(Region(name, tuple(value for value in values if value)))
        if labels:
            self._check_labels(labels, regions, ignore)
        return tuple(regions), ignore

    def _check_labels(self, labels: dict[str, Any], regions: list[Region], ignore: int | None) -> None:
        values = sorted({0, *(value for region in regions for value in region.values)})
        expected = [*values, ignore] if ignore is not None else values
        if "background" not in labels:
            self._say("dataset.json", "`labels` has no background", 'add "background": 0')
        if expected != list(range(len(expected))):
            text = f"the label values are {', '.join(map(str, expected))}"
            self._say("dataset.json", text, "nnU-Net wants 0, 1, 2, ... without gaps, `ignore` last; renumber them")
        if any(isinstance(value, list) for value in labels.values()) and "regions_class_order" not in self.description:
            self._say("dataset.json", "`labels` has regions and there is no regions_class_order", "add it")

    def _dictionary(self, key: str) -> dict[str, Any]:
        value = self.description.get(key, {})
        if isinstance(value, dict):
            return {str(name): entry for name, entry in value.items()}
        self._say("dataset.json", f"`{key}` is no object with names and values", "correct it")
        return {}

    def _lack(self, kind: str, what: str, remedy: str, case: str, split: str) -> None:
        self.incomplete.append(Problem("error", kind, what, remedy, self.name, case, split))

    def _say(
        self, kind: str, what: str, remedy: str, case: str = "", split: str = "", severity: Severity = "error"
    ) -> None:
        self.problems.append(Problem(severity, kind, what, remedy, self.name, case, split))


def _roots(path: Path) -> list[Path]:
    return [path] if _is_root(path) else [folder for folder in subfolders(path) if _is_root(folder)]


def _is_root(path: Path) -> bool:
    named = re.fullmatch(r"Dataset\d{3}_.+", path.resolve().name) and (path / "dataset.json").is_file()
    return bool(named) or (path / "imagesTr").is_dir()


def _description(root: Path) -> dict[str, Any]:
    path = root / "dataset.json"
    if not path.is_file():
        raise DatasetError(
            f"{root} looks like a raw dataset of nnU-Net and has no dataset.json; write one, or give two folders: "
            f"{root / 'imagesTr'} --labels {root / 'labelsTr'}"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path} is no JSON ({error}); correct it") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path} is no JSON object; see nnU-Net's dataset_format.md")
    return {str(key): value for key, value in content.items()}
