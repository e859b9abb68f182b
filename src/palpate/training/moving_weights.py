"""The weights that training moves, and what becomes of them: their running average, and how they are kept."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class MovingWeights:
    """Parameters by name, as they are when this is made; from then on training moves them.

    - `ema` is the decay of a running average of them, which then is the result (0: none).
    - `anchor` weighs the squared distance from where they started, which is added to the loss (0: none).
    - `half` rounds the result to float16, as the file will hold it.
    - `rates` gives a parameter's learning rate as a multiple of the recipe's, by name; the others have 1.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        ema: float | int = 0.0,
        anchor: float | int = 0.0,
        half: bool = False,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        self.parameters = dict(parameters)
        self.ema, self.anchor, self.half = float(ema), float(anchor), half
        self.rates = dict(rates or {})
        now = {name: parameter.detach() for name, parameter in self.parameters.items()}
        self._average = {name: tensor.clone() for name, tensor in now.items()} if ema else {}
        self._start = {name: tensor.clone() for name, tensor in now.items()} if anchor else {}

    def by_rate(self) -> dict[float, list[nn.Parameter]]:
        """The parameters of each rate (a multiple of the recipe's), in their order."""
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.parameters.items():
            groups.setdefault(self.rates.get(name, 1.0), []).append(parameter)
        return groups

    def result(self) -> dict[str, Tensor]:
        """A copy of the weights that would be the result now: the average, where there is one."""
        chosen = self._average or self.parameters
        copies = {name: tensor.detach().cpu().clone() for name, tensor in chosen.items()}
        # Rounded as the file will be, so that what is measured is what is kept.
        return {name: tensor.half().to(tensor) for name, tensor in copies.items()} if self.half else copies

    @contextmanager
    def as_result(self) -> Generator[None]:
        """The network with the weights that would be the result, for as long as the block lasts."""
        differs = bool(self._average) or self.half
        kept = {name: p.detach().clone() for name, p in self.parameters.items()} if differs else {}
        self._put(self.result() if differs else {})
        try:
            yield
        finally:
            self._put(kept)

    def follow(self, step: int) -> None:
        """Let the average follow the weights after a step (the first is 0)."""
        # Young averages forget their random start sooner: after n steps at least 1 / (n + 10) is new.
        share = max(1 - self.ema, 1 / (step + 10))
        with torch.no_grad():
            for name, tensor in self._average.items():
                tensor.lerp_(self.parameters[name], share)

    def pull_to_start(self) -> None:
        """Add the gradient of the anchor loss."""
        for name, start in self._start.items():
            parameter = self.parameters[name]
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - start, alpha=2 * self.anchor)

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs to know of them."""
        return {
            "weights": {name: parameter.detach().cpu() for name, parameter in self.parameters.items()},
            "average": {name: tensor.cpu() for name, tensor in self._average.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` gave."""
        self._put(state["weights"])
        with torch.no_grad():
            for name, tensor in self._average.items():
                tensor.copy_(state["average"][name])

    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in tensors.items():
                self.parameters[name].copy_(tensor)
