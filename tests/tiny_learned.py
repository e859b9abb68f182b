"""Files of learned prompts on tiny base models: random weights that are always the same, or whatever a test sets."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from palpate.models import learned
from palpate.models.adapters import trainable
from palpate.models.cards import LearnedCard, Trained
from palpate.models.catalogue import ModelCard
from palpate.models.learned import Finder
from palpate.models.promptable import LearnedClass

CLASSES = (LearnedClass("liver", 1), LearnedClass("spleen", 4))


def learned_file(
    path: Path,
    base: ModelCard,
    *,
    classes: Sequence[LearnedClass] = CLASSES,
    change: Callable[[Finder, nn.Module], None] = lambda finder, network: None,
    trained: Trained | None = None,
    **card: Any,
) -> Path:
    """Learned prompts on `base`; `change` may set weights of the finder, and of the network's part that is trained.

    Further arguments go on the card. Every class is there, unless `change` says otherwise.
    """
    about = LearnedCard(
        name=card.pop("name", path.stem),
        base=base.name,
        base_sha256=base.content_sha256 or "",
        classes=tuple(classes),
        variant=card.pop("variant", "linear"),
        tokens=4,
        trained=trained,
        images=10,
        **card,
    )
    network = base.build()
    assert isinstance(network, nn.Module)
    if trained is not None:
        trainable(network, trained)
    state = torch.random.get_rng_state()
    torch.manual_seed(5)
    finder = learned.finder_for(network, about).eval()
    torch.random.set_rng_state(state)
    with torch.no_grad():
        say_there(finder, network, 3.0)
        change(finder, network)
    learned.save(learned.tensors_of(finder, network, about, {}), path)
    return path


def say_there(finder: Finder, network: nn.Module, logit: float) -> None:
    """Make every object logit about this."""
    last = finder.object_head.layers[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.mul_(1e-3)
        assert last.bias is not None
        last.bias.fill_(logit)
