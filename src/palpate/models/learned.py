"""A model that finds its classes by itself: a base model, learned prompts, and what a person adds to them.

Three modes, after Wahd et al. 2024 (Sam2Rad, arXiv 2409.06821): *autonomous*, the predictor prompts the decoder; *semi-
autonomous*, a person's box, points or mask go in as well; *manual*, these alone go in, as into the base model.

The rule by which prompts are combined, for each class of each image:

                   papers' predictors (`linear`, `high-res`)                 ours (`localiser`)
    tokens         learned box corners, free tokens, a person's tokens       a person's box, and else the guessed one;
                                                                             class tokens, a person's points
    dense          the person's mask, if there is one, and else the learned  the person's mask or none

The file holds what was learned and nothing of the base model: the predictor, the object token and head (is there
anything at all?), and what training changed in the decoder, as an adapter; beside it, a card.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.functional import relu

from palpate.errors import OutputError, SettingError, WeightsError
from palpate.images.formats import replacing
from palpate.models.adapters import Adapter, applied, extracted
from palpate.models.cards import AdapterCard, LearnedCard, learned_card, metadata
from palpate.models.localiser import Localiser, peak_boxes
from palpate.models.prompt_predictor import Items, LearnedPrompts, PromptPredictor
from palpate.models.promptable import ImageEmbedding, PromptBatch
from palpate.models.sam import SamPromptDecoder
from palpate.models.sam2 import HieraEncoder, Sam2PromptDecoder


@dataclass(frozen=True, eq=False)
class Learned:
    """A card and its tensors: those of a `Finder` by their names there, and `adapter.` before those of an adapter."""

    card: LearnedCard
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Found:
    """What is found of each item.

    `logits` (item, row, column) on the decoder's grid, `predicted_iou` (item,), `object_logits` (item,): above 0 where
    the class is there at all.
    """

    logits: Float[Tensor, "item row column"]
    predicted_iou: Float[Tensor, " item"]
    object_logits: Float[Tensor, " item"]


class ObjectHead(nn.Module):
    """Whether there is an object, from what became of the object token; SAM 2's three layers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Linear(channels, channels), nn.Linear(channels, channels), nn.Linear(channels, 1)]
        )

    def forward(self, token: Float[Tensor, "item channel"]) -> Float[Tensor, " item"]:
        """A logit: above 0 where there is one."""
        first, second, last = self.layers
        return last(relu(second(relu(first(token)))))[:, 0]

    def be_like(self, head: nn.Module) -> None:
        """Take the weights of a SAM 2's own."""
        names = ("proj_in", "layers.0", "proj_out")
        for own, name in zip(self.layers, names, strict=True):
            own.load_state_dict(head.get_submodule(name).state_dict())


class Finder(nn.Module):
    """What is learned beside the base model: the predictor, an object head, and for decoders without one its token.

    The head of a SAM 2 begins as the decoder's own; it is a copy, so that it learns even where the decoder does not.
    `presumed` is what the object logit learned from how often training asked for what is there, and not from the image;
    once trained, it is taken off, so that 0 means as likely there as not. `decoder` is the base model's
    `prompt_decoder`; it is used and not owned, so it is no part of this module's weights.
    """

    presumed: Tensor

    def __init__(
        self, predictor: PromptPredictor | Localiser, *, decoder: SamPromptDecoder | Sam2PromptDecoder
    ) -> None:
        super().__init__()
        self.predictor = predictor
        channels = decoder.no_mask.shape[-1]
        token = (
            nn.Parameter(torch.randn(1, channels) / channels**0.5) if isinstance(decoder, SamPromptDecoder) else None
        )
        self.object_token = token
        self.object_head = ObjectHead(channels)
        if not isinstance(decoder, SamPromptDecoder):
            self.object_head.be_like(decoder.mask_decoder.pred_obj_score_head)
        self.register_buffer("presumed", torch.zeros(()))
        self._decoder = (decoder,)  # in a tuple, so that torch does not take it for a part of this module

    @property
    def decoder(self) -> SamPromptDecoder | Sam2PromptDecoder:
        """The base model's prompt encoder and mask decoder."""
        return self._decoder[0]

    def find(self, embedding: ImageEmbedding) -> tuple[Found, LearnedPrompts]:
        """Every class on every image, by learned prompts alone; items are the classes of image 0, of image 1, ..."""
        features, levels = self.held(embedding)
        items = Items.every(len(features), self.predictor.classes, features.device)
        learned = self.learned(features, levels, items)
        return self.answered(features, levels, items, learned=learned), learned

    def held(self, embedding: ImageEmbedding) -> tuple[Tensor, tuple[Tensor, ...]]:
        """An embedding's features and levels as tensors beside the decoder."""
        features, *levels = (
            torch.as_tensor(x).to(self.decoder.no_mask) for x in (embedding.features, *embedding.levels)
        )
        return features, tuple(levels)

    def learned(
        self, features: Float[Tensor, "image channel row column"], levels: Sequence[Tensor], items: Items
    ) -> LearnedPrompts:
        """What the predictor says of these items."""
        high_res = isinstance(self.predictor, PromptPredictor) and self.predictor.variant == "high-res"
        return self.predictor(features, levels if high_res else (), items=items, dense=self.decoder.no_mask)

    def aimed(self, learned: LearnedPrompts, drawn: PromptBatch) -> LearnedPrompts:
        """The same, but where a person clicked on one of several places that were found, the box is around that one.

        Prompt i of `drawn` belongs to item i. Predictors that say a box and no map of places are not moved by it.
        """
        if not isinstance(self.predictor, Localiser) or drawn.points is None or drawn.point_labels is None:
            return learned
        on_it = np.asarray(drawn.point_labels) == 1
        points = [
            torch.as_tensor(xy[here]) / self.decoder.canvas_size for xy, here in zip(drawn.points, on_it, strict=True)
        ]
        return replace(learned, boxes=peak_boxes(learned.mask_logits, points))

    def answered(
        self,
        features: Float[Tensor, "image channel row column"],
        levels: Sequence[Tensor],
        items: Items,
        *,
        learned: LearnedPrompts | None = None,
        drawn: PromptBatch | None = None,
    ) -> Found:
        """What the decoder answers to learned prompts, to those that a person drew, or to both.

        Prompt i of `drawn` belongs to item i, and all have the same parts, as in every `PromptBatch`; its
        `image_index` is not looked at. Once a localiser is trained, the object logit of what was learned is the mean of
        that of the head and the highest of the map; of any predictor, less what is `presumed`.

        Raises:
            SettingError: neither learned nor drawn prompts.
        """
        if learned is None and drawn is None:
            raise SettingError("nothing to go by: use the learned prompts, draw some, or both")
        usual = 1 if features.device.type == "cpu" else 8  # as decoding does; see palpate.models.sam
        at_once = self.decoder.objects_at_once or usual
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for start in range(0, len(items), at_once):
            some = range(start, min(start + at_once, len(items)))
            places = items.at(some).image_index
            parts.append(
                self(
                    features[places],
                    [level[places] for level in levels],
                    learned=None if learned is None else learned.at(some),
                    drawn=None if drawn is None else _some(drawn, some),
                )
            )
        return Found(*(torch.cat(each) for each in zip(*parts, strict=True)))

    def forward(
        self,
        features: Float[Tensor, "item channel row column"],
        levels: Sequence[Tensor],
        *,
        learned: LearnedPrompts | None = None,
        drawn: PromptBatch | None = None,
    ) -> tuple[Float[Tensor, "item mask_row mask_column"], Float[Tensor, " item"], Float[Tensor, " item"]]:
        """Logits, predicted IoU and object logit of each item, given the embedding of the image it is looked for on.

        The plain computation, for export: nothing is checked and everything is computed at once. Use `answered`.
        """
        sparse, dense = self._embedded(learned, drawn)
        logits, ious, objects = self._answer(features, levels, sparse, dense)
        if learned is not None and not self.training:
            if isinstance(self.predictor, Localiser):
                # The map knows best whether there is anything; the head learns from what the decoder sees, without it.
                objects = (objects + learned.mask_logits.flatten(1).amax(dim=1)) / 2
            objects = objects - self.presumed
        return logits, ious, objects

    def _embedded(
        self, learned: LearnedPrompts | None, drawn: PromptBatch | None
    ) -> tuple[Float[Tensor, "item token channel"] | None, Float[Tensor, "any_item channel row column"]]:
        """Prompts as tokens and as what is added to the image, by the rule at the top of this file."""
        decoder, sparse, dense = self.decoder, None, None
        if drawn is not None:
            boxes, points, labels, masks = (
                None if x is None else torch.as_tensor(x).to(decoder.no_mask.device)
                for x in (drawn.boxes, drawn.points, drawn.point_labels, drawn.masks)
            )
            labels = None if labels is None else labels.long()
            sparse, dense = decoder.prompt_embeddings(boxes=boxes, points=points, point_labels=labels, masks=masks)
        if learned is not None:
            guesses = isinstance(self.predictor, Localiser)
            parts = [learned.tokens, *(() if sparse is None else (sparse,))]
            if not (guesses and drawn is not None and drawn.boxes is not None):
                parts.insert(0, self._corner_tokens(learned))
            sparse = torch.cat(parts, dim=1)
            if dense is None and guesses:
                dense = decoder.no_mask.reshape(1, -1, 1, 1).expand(1, -1, decoder.grid_size, decoder.grid_size)
            elif not guesses and (drawn is None or drawn.masks is None):
                _, dense = decoder.prompt_embeddings(masks=learned.mask_logits)
        assert dense is not None
        return sparse, dense

    def _corner_tokens(self, learned: LearnedPrompts) -> Float[Tensor, "item 2 channel"]:
        """The learned boxes as two tokens each, also for SAM 2, whose own boxes come with a third."""
        corners = learned.corners().float() * self.decoder.canvas_size
        # Positions stay in full precision, as those that a person draws.
        with torch.autocast(corners.device.type, enabled=False):
            tokens = self.decoder.prompt_encoder._embed_boxes(corners[:, None])[:, 0]  # pyright: ignore[reportPrivateUsage]
        return tokens[:, :2] if learned.marks is None else tokens[:, :2] + learned.marks

    def _answer(
        self, cells: Tensor, levels: Sequence[Tensor], sparse: Tensor | None, dense: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        decoder = self.decoder
        if isinstance(decoder, SamPromptDecoder):
            logits, ious, token = decoder.answer(cells, sparse, dense, levels=levels, first=self.object_token)
            assert token is not None
            objects = self.object_head(token)
        else:
            with _first_mask_only(decoder):
                logits, ious, objects = decoder.answer(
                    cells, sparse, dense, levels=(levels[0], levels[1]), object_head=self.object_head
                )
        return logits[:, 0], ious[:, 0], objects


@contextmanager
def _first_mask_only(decoder: Sam2PromptDecoder) -> Generator[None]:
    """The one mask that learned tokens ask for is the one that was trained, stable or not."""
    before, decoder.dynamic_multimask = decoder.dynamic_multimask, False
    try:
        yield
    finally:
        decoder.dynamic_multimask = before


def _some(drawn: PromptBatch, places: Sequence[int]) -> PromptBatch:
    def at(values: Any) -> Any:
        return None if values is None else torch.as_tensor(values)[list(places)]

    return PromptBatch(
        at(drawn.image_index), at(drawn.boxes), at(drawn.points), at(drawn.point_labels), at(drawn.masks)
    )


# --- The file ---------------------------------------------------------------------------------------------------------


def finder_for(network: nn.Module, card: LearnedCard) -> Finder:
    """An untrained `Finder` of the kind that a card describes, for a base model."""
    decoder = network.get_submodule("prompt_decoder")
    assert isinstance(decoder, SamPromptDecoder | Sam2PromptDecoder)
    levels = _level_channels(network) if card.variant == "high-res" else ()
    scale = 1 if isinstance(decoder, Sam2PromptDecoder) and card.variant == "high-res" else 4
    channels = decoder.no_mask.shape[-1]
    if card.variant == "localiser":
        localiser = Localiser(classes=len(card.classes), tokens=card.tokens, channels=channels)
        return Finder(localiser, decoder=decoder).to(decoder.no_mask.device)
    predictor = PromptPredictor(
        classes=len(card.classes),
        variant=card.variant,
        level_channels=levels,
        mask_scale=scale,
        tokens=card.tokens,
        channels=channels,
        heads=decoder.heads,
        mlp_channels=decoder.mlp_channels,
    )
    return Finder(predictor, decoder=decoder).to(decoder.no_mask.device)


def _level_channels(network: nn.Module) -> tuple[int, int]:
    """Channels of the levels that the model gives, or can be asked for (`keep_levels`), coarse to fine."""
    encoder = network.get_submodule("image_encoder")
    if isinstance(encoder, HieraEncoder):
        return encoder.conv_s1.out_channels, encoder.conv_s0.out_channels
    # What the neck reads is the last of them, and the one before it has as many channels.
    neck = next(layer for layer in encoder.get_submodule("neck").modules() if isinstance(layer, nn.Conv2d))
    return neck.in_channels, neck.in_channels


def save(learned: Learned, path: Path, *, overwrite: bool = True) -> None:
    """Write what was learned, whole or not at all.

    Raises:
        OutputError: the file exists and may not be replaced, or cannot be written; or a weight is no finite number.
    """
    for name, tensor in learned.tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise OutputError(f"{name} holds numbers that are not finite; training has gone wrong, lower its rate")
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in sorted(learned.tensors.items())
    }
    data = safetensors.torch.save(tensors, metadata=metadata(learned.card))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {path} ({error.strerror or error}); choose another place") from error
    with replacing(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(data)


def read(path: Path) -> Learned:
    """A file of learned prompts.

    Raises:
        WeightsError: no such file, no learned prompts, damaged, or those of a newer palpate.
    """
    card = learned_card(path)
    try:
        return Learned(card, safetensors.torch.load_file(path, device="cpu"))
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is cut short or damaged ({error})") from error


def put_on(network: nn.Module, learned: Learned) -> Finder:
    """The finder of a freshly loaded base model, whose decoder becomes what it was trained to be.

    Raises:
        WeightsError: what was learned does not fit this network, or is damaged; nothing was changed.
    """
    card = learned.card
    own = {name: tensor.float() for name, tensor in learned.tensors.items() if not name.startswith(_ADAPTER)}
    own.setdefault("presumed", torch.zeros(()))  # files of before it was told
    with torch.random.fork_rng(devices=[]):  # whoever loads a model does not expect its dice to roll
        finder = finder_for(network, card)
    expected = {name: tensor.shape for name, tensor in finder.state_dict().items()}
    given = {name: tensor.shape for name, tensor in own.items()}
    if given != expected:
        wrong = sorted(set(given.items()) ^ set(expected.items()))[0][0]
        raise WeightsError(f"the learned prompts {card.name} do not fit the model, or are damaged: {wrong}")
    if bad := [name for name, tensor in own.items() if not bool(torch.isfinite(tensor).all())]:
        raise WeightsError(f"the learned prompts {card.name} are damaged: {bad[0]} holds numbers that are not finite")
    changes = {k.removeprefix(_ADAPTER): v for k, v in learned.tensors.items() if k.startswith(_ADAPTER)}
    if card.trained is not None:
        about = AdapterCard(card.name, card.base, card.base_sha256, card.trained, ())
        applied(network, Adapter(about, changes))
    finder.load_state_dict(own)
    return finder.eval()


_ADAPTER = "adapter."


def tensors_of(finder: Finder, network: nn.Module, card: LearnedCard, weights: Mapping[str, Tensor]) -> Learned:
    """What training made, ready to be saved: of a finder, and of a network that `adapters.trainable` has prepared.

    `weights` take the place of the moving ones: the finder's names after `finder.`, the network's after `network.`.
    """
    kept = {
        name: weights.get(f"finder.{name}", tensor).detach().cpu().clone()
        for name, tensor in finder.state_dict().items()
    }
    if card.trained is not None:
        about = AdapterCard(card.name, card.base, card.base_sha256, card.trained, ())
        moved = {n.removeprefix("network."): t for n, t in weights.items() if n.startswith("network.")}
        kept |= {_ADAPTER + name: t for name, t in extracted(network, about, weights=moved).tensors.items()}
    return Learned(card, kept)
