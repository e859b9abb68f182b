"""MobileSAM: SAM with a TinyViT of 5 million parameters for its encoder.

Zhang et al., "Faster Segment Anything: towards lightweight SAM for mobile applications", 2023, arXiv 2306.14289. The
encoder was distilled from that of SAM ViT-H, and the other half is SAM's own. It is the encoder of LiteMedSAM with
another stem, two convolutions of stride 2, so that a canvas of 1024 x 1024 comes to the same grid of 64 x 64; the table
in `palpate.models.lite_medsam` holds from `layers.0` on.
"""

from torch import nn

from palpate.models.frame import Frame
from palpate.models.lite_medsam import TinyViT
from palpate.models.promptable import Array, ImageEmbedding, MaskPrediction, PromptBatch
from palpate.models.sam import SamPromptDecoder


class MobileSAM(nn.Module):
    """A `PromptableModel`: TinyViT encodes, SAM's prompt encoder and mask decoder decode.

    With `keep_levels` embeddings also hold the outputs of the encoder's last two stages; `decode` does without them.
    """

    def __init__(self, frame: Frame, *, image_encoder: TinyViT, prompt_decoder: SamPromptDecoder):
        super().__init__()
        self.frame = frame
        self.image_encoder = image_encoder
        self.prompt_decoder = prompt_decoder
        self.keep_levels = False

    @classmethod
    def untrained(cls, frame: Frame) -> "MobileSAM":
        """The released architecture with random weights, for the canvas of `frame`; no weight depends on its size."""
        encoder = TinyViT(stem="strided")
        decoder = SamPromptDecoder(canvas_size=frame.size, grid_stride=encoder.stride)
        return cls(frame, image_encoder=encoder, prompt_decoder=decoder)

    def encode(self, canvas: Array) -> ImageEmbedding:
        """Embed canvases of shape (image, 3, height, width), as `frame.canvas` makes them.

        The embedding's features have shape (image, 256, height / 16, width / 16), its levels as many rows and columns.

        Raises `ImageError` for any other shape: the decoder knows the positions of one grid only.
        """
        maps = self.image_encoder.maps(self.prompt_decoder.checked_canvas(canvas))
        return ImageEmbedding(self.image_encoder.neck(maps.late), maps[2:] if self.keep_levels else ())

    def decode(
        self, embedding: ImageEmbedding, prompts: PromptBatch, *, multimask_output: bool = False
    ) -> MaskPrediction:
        """Predict one mask an object, or three; see `SamPromptDecoder.decode`."""
        return self.prompt_decoder.decode(embedding, prompts, multimask_output=multimask_output)
