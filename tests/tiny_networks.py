"""Networks small enough for tests: the whole path in milliseconds, with random weights that are always the same."""

import torch

from palpate.models.frame import Frame
from palpate.models.lite_medsam import LiteMedSAM, TinyViT
from palpate.models.sam import SamPromptDecoder


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
