"""Networks small enough for tests: the whole path in milliseconds, with random weights that are always the same."""

import torch

from palpate.models.frame import Frame
from palpate.models.lite_medsam import LiteMedSAM, TinyViT
from palpate.models.mobile_sam import MobileSAM
from palpate.models.sam import SamPromptDecoder
from palpate.models.sam_vit import SAM, VisionTransformer, VitSize
from palpate.models.swin_lite_medsam import SkipPromptDecoder, SwinEncoder, SwinLiteMedSAM


def tiny_lite_medsam() -> LiteMedSAM:
    """A LiteMedSAM of 40 thousand parameters on a canvas of 64 x 64."""
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(0)
    model = LiteMedSAM(
        Frame(size=64, mask_size=64),
        image_encoder=TinyViT(widths=(8, 32, 32, 32), depths=(1, 1, 1, 1), windows=(7, 5, 7), channels=32),
        prompt_decoder=SamPromptDecoder(canvas_size=64, grid_stride=4, channels=32, heads=2, mlp_channels=32),
    )
    torch.random.set_rng_state(generator_state)
    return model.eval()


def tiny_mobile_sam() -> MobileSAM:
    """A MobileSAM of 40 thousand parameters on a canvas of 64 x 64, with a grid of 4 x 4."""
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(0)
    model = MobileSAM(
        Frame(size=64, mask_size=16, intensities="imagenet"),
        image_encoder=TinyViT(
            stem="strided", widths=(8, 32, 32, 32), depths=(1, 1, 1, 1), windows=(7, 5, 7), channels=32
        ),
        prompt_decoder=SamPromptDecoder(canvas_size=64, grid_stride=16, channels=32, heads=2, mlp_channels=32),
    )
    torch.random.set_rng_state(generator_state)
    return model.eval()


def tiny_sam() -> SAM:
    """A SAM of 40 thousand parameters on a canvas of 64 x 64, with a grid of 8 x 8; the second of its blocks is global.

    Positions, which start as zero, are drawn as well.
    """
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(0)
    model = SAM(
        Frame(size=64, mask_size=32, intensities="imagenet"),
        image_encoder=VisionTransformer(
            canvas_size=64,
            size=VitSize(width=16, depth=3, heads=2, global_blocks=(1,)),
            channels=32,
            window=3,
            stride=8,
        ),
        prompt_decoder=SamPromptDecoder(canvas_size=64, grid_stride=8, channels=32, heads=2, mlp_channels=32),
    )
    for name, parameter in model.image_encoder.named_parameters():
        if "pos" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    torch.random.set_rng_state(generator_state)
    return model.eval()


def tiny_swin_lite_medsam() -> SwinLiteMedSAM:
    """A Swin-LiteMedSAM of 90 thousand parameters on a canvas of 64 x 64; its third stage has two pairs of blocks."""
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(0)
    model = SwinLiteMedSAM(
        Frame(size=64, mask_size=64, mask_prompt="picture"),
        image_encoder=SwinEncoder(widths=(8, 16, 24, 32, 32), heads=(2, 1, 2, 1), pairs=(1, 1, 2, 1), channels=32),
        prompt_decoder=SkipPromptDecoder(
            canvas_size=64, grid_stride=4, fine_channels=16, channels=32, heads=2, mlp_channels=32
        ),
    )
    torch.random.set_rng_state(generator_state)
    return model.eval()
