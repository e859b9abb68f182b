"""Moving weights by their gradients: the optimiser, its rates from step to step, and processes that add up."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import torch

from palpate.training.moving_weights import MovingWeights
from palpate.training.recipe import OptimiserRecipe


class Optimisation:
    """What a recipe says about the optimiser, at work on weights. Every rate of theirs has a parameter group."""

    def __init__(self, wanted: OptimiserRecipe, weights: MovingWeights, fabric: Any) -> None:
        self._wanted, self._weights, self._fabric = wanted, weights, fabric
        kind = torch.optim.AdamW if wanted.name == "adamw" else torch.optim.Adam
        groups = weights.by_rate()
        self._multiples = list(groups)
        self._plain = kind(
            [{"params": members, "lr": multiple * wanted.rate} for multiple, members in groups.items()],
            lr=wanted.rate,
            weight_decay=wanted.weight_decay,
            betas=wanted.betas,
        )
        self._optimiser = fabric.setup_optimizers(self._plain)
        self._plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self._plain, mode="max", factor=wanted.factor, patience=wanted.plateau_patience
        )

    # --- A step -------------------------------------------------------------------------------------------------------

    def forget_gradients(self) -> None:
        """Before the first batch of a step, and after one that was only a trial."""
        self._optimiser.zero_grad(set_to_none=True)

    def step(self, number: int) -> None:
        """Move the weights by the gradients of all processes, and let the average follow; the first step is 0."""
        self._share_gradients()
        # In half precision gradients come multiplied by a large number, which the two below must not see.
        self._fabric.strategy.precision.unscale_gradients(self._plain)
        self._weights.pull_to_start()
        if self._wanted.clip is not None:
            torch.nn.utils.clip_grad_norm_(list(self._weights.parameters.values()), self._wanted.clip)
        self._optimiser.step()
        self._weights.follow(number)

    def _share_gradients(self) -> None:
        """Add up the gradients of all processes; a weight that none of them used keeps no gradient."""
        if self._fabric.world_size == 1:
            return
        parameters = list(self._weights.parameters.values())
        used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32, device=self._fabric.device)
        torch.distributed.all_reduce(used)
        shared = [p for p, count in zip(parameters, used.tolist(), strict=True) if count]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in shared])
        torch.distributed.all_reduce(flat)
        for parameter, part in zip(shared, flat.split([p.numel() for p in shared]), strict=True):
            parameter.grad = part.view_as(parameter).clone()

    # --- Rates --------------------------------------------------------------------------------------------------------

    @property
    def rate(self) -> float:
        """The rate of the first parameter group."""
        return float(self._plain.param_groups[0]["lr"])

    def set_rate(self, step: int, *, total: int) -> None:
        """The rate of this step of so many, where it follows from the step's number."""
        wanted = self._wanted
        if wanted.schedule == "cosine":
            done = min(1.0, max(0.0, (step - wanted.warmup) / max(1, total - wanted.warmup)))
            rate = wanted.rate * 0.5 * (1 + math.cos(math.pi * done))
        elif step <= wanted.warmup and wanted.warmup:
            rate = wanted.rate
        else:
            return
        if step < wanted.warmup:
            rate = wanted.rate * (step + 1) / wanted.warmup
        for multiple, group in zip(self._multiples, self._plain.param_groups, strict=True):
            group["lr"] = multiple * rate

    def hear(self, *, score: float | None, loss: float) -> None:
        """What a validation found, the more the better, and the mean loss since the last: a plateau lowers the rate.

        Without validation data there is nothing but the loss to go by.
        """
        if self._wanted.schedule == "plateau":
            self._plateau.step(-loss if score is None else score)

    # --- What stays ---------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs to know of it."""
        return {
            "optimiser": self._plain.state_dict(),
            "plateau": json.dumps(self._plateau.state_dict()),
            "precision": self._fabric.strategy.precision.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` gave."""
        self._plain.load_state_dict(state["optimiser"])
        self._plateau.load_state_dict(json.loads(state["plateau"]))
        self._fabric.strategy.precision.load_state_dict(state["precision"])
