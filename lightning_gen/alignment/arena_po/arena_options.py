"""How an arena is fitted."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, get_args

from lightning_gen.alignment.arena_po.arena_solvers import ThurstoneModel
from lightning_gen.alignment.arena_po.arena_table import UNKNOWN
from lightning_gen.metrics.ratings import BETA, MU, SIGMA, draw_margin

__all__ = ["ArenaOptions"]

Solver = Literal["ep_sequential", "batch_ep", "laplace"]
Ties = Literal["drop", "draw"]
UnknownModels = Literal["own_player", "drop", "prior"]


@dataclasses.dataclass(frozen=True)
class ArenaOptions:
    """How an arena is fitted.

    Attributes:
        solver: ``ep_sequential`` = one pass of TrueSkill in the order of the table ("traversing" in the abstract);
            re-ordering 2000 games moves its means by 0.6, their differences by 0.06. ``batch_ep`` and ``laplace`` have
            no order, and know that capabilities are correlated.
        prior_mean: mu_0; K-Sort Eval's code has TrueSkill's 25.
        prior_deviation: sigma_0; 25 / 3.
        performance: beta, deviation of a picture around its model's capability; 25 / 6. Not the beta of DPO.
        dynamics: tau, by which deviations grow before every game; 0 because models of a data set do not change.
            TrueSkill has 25 / 300, which keeps every deviation above 0.8. Only for ``ep_sequential``.
        ties: ``drop`` = left out, as training does; ``draw`` = they pull capabilities together.
        draw_probability: of two equal models, gives the draw margin eps; > 0 for ``ties: draw``.
        order_seed: draws another order of the games; None = that of the table. Only for ``ep_sequential``.
        orders: with a seed, the average over so many orders; their spread is added to the variance.
        unknown_models: pictures whose model is not named, or is in ``unknown_names``: ``own_player`` = they are a model
            like any other; ``drop`` = their rows are left out; ``prior`` = others learn from them, they keep the prior,
            for they are many models.
        unknown_names: further canonical names that count as unknown, for instance ``real`` for HPDv3's photographs.

    There is a single pass: with five, every game would count five times, and deviations come out half as large.

    Raises:
        ValueError: a word that is none of these, or a number outside its range.

    Source: arXiv:2605.06070 could be read up to its introduction; the update is that of its authors' K-Sort Arena and
        K-Sort Eval. Every choice beyond that is an attribute here.
    """

    solver: Solver = "ep_sequential"
    prior_mean: float = MU
    prior_deviation: float = SIGMA
    performance: float = BETA
    dynamics: float = 0.0
    ties: Ties = "drop"
    draw_probability: float = 0.0
    order_seed: int | None = None
    orders: int = 1
    unknown_models: UnknownModels = "own_player"
    unknown_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, known in (("solver", Solver), ("ties", Ties), ("unknown_models", UnknownModels)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(f"{name} is one of {', '.join(get_args(known))}, got {getattr(self, name)!r}")
        numbers = (self.prior_mean, self.prior_deviation, self.performance, self.dynamics)
        if not all(map(math.isfinite, numbers)) or self.prior_deviation <= 0 or self.performance <= 0:
            raise ValueError(f"prior_deviation and performance are positive, everything is finite; got {self}")
        if self.dynamics < 0 or self.orders < 1:
            raise ValueError(f"dynamics is not negative and orders at least 1, got {self.dynamics} and {self.orders}")
        if not 0 <= self.draw_probability < 1 or (self.ties == "draw" and self.draw_probability == 0):
            raise ValueError(
                f"draw_probability lies in [0, 1), and ties: draw needs one above 0, for instance 0.1 as TrueSkill; "
                f"got {self.draw_probability}"
            )
        ordered = self.dynamics > 0 or self.order_seed is not None or self.orders > 1
        if self.solver != "ep_sequential" and ordered:
            raise ValueError(f"{self.solver} knows no order: leave dynamics, order_seed and orders as they are")
        if self.orders > 1 and self.order_seed is None:
            raise ValueError("orders counts drawn orders: give order_seed")

    @property
    def belief(self) -> ThurstoneModel:
        """What the solvers are told."""
        margin = draw_margin(self.draw_probability, self.performance)
        return ThurstoneModel(self.prior_mean, self.prior_deviation, self.performance, self.dynamics, margin)

    def is_fixed(self, name: str) -> bool:
        """Whether a canonical name keeps the prior and only teaches others.

        Args:
            name: the name.

        Returns:
            True for it.
        """
        return self.unknown_models == "prior" and self.is_unknown(name)

    def is_unknown(self, name: str) -> bool:
        """Whether a canonical name stands for no one model.

        Args:
            name: the name.

        Returns:
            True for it.
        """
        return name == UNKNOWN or name in self.unknown_names
