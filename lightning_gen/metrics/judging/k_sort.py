"""K-Sort Eval: a judge sorts a new model's picture among four whose models are rated, and TrueSkill rates the new one.

The judge is trusted as far as it sorts the four as people did. Every round picks the case that says most: opponents
about as good as the new model is believed to be.

Shape letters: K pictures of a round, the new model's among them.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from torch import Tensor

from lightning_gen.metrics.judging.judges import Judge, JudgeError, JudgeReplyError, ask, parse_judge_json
from lightning_gen.metrics.judging.k_sort_cases import KSortCase
from lightning_gen.metrics.protocol import Measurement, Protocol
from lightning_gen.metrics.ratings import BETA, DRAW_PROBABILITY, TAU, Rating, rate_ranking
from lightning_gen.training.randomness import numpy_generator

__all__ = [
    "KSortReport",
    "KSortRound",
    "KSortSettings",
    "agreement_weight",
    "corrected",
    "evaluate_k_sort",
    "next_case",
    "parse_ranking",
    "ranking_instruction",
    "spearman",
]

_SHARPNESS: Final = 5.0


@dataclasses.dataclass(frozen=True)
class KSortSettings:
    """Numbers of the protocol.

    Attributes:
        max_rounds: prompts at most.
        overlap: alpha, how much opponents that were met before count against a case.
        enough: stop when the new model's sigma is below.
        attempts: questions per round until the answer can be read.
        seed: of the order in which the judge sees the pictures.

    Source: published code of arXiv:2602.09411 (150 rounds, alpha 0.5, 0.75).
    """

    max_rounds: int = 150
    overlap: float = 0.5
    enough: float = 0.75
    attempts: int = 3
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class KSortRound:
    """What happened to a case.

    Attributes:
        case_id: of it.
        rank: of the new model's picture, 1 = the best; None = the judge gave no answer.
        agreement: Spearman's rho of the judge and of people over the anchors; None likewise.
        rating: of the new model afterwards.
        error: why there is no answer; empty = there is one.
    """

    case_id: str
    rank: int | None
    agreement: float | None
    rating: Rating
    error: str = ""


@dataclasses.dataclass(frozen=True)
class KSortReport:
    """The result.

    Attributes:
        rating: of the new model.
        score: mu - 3 mean sigma of the anchors.
        rounds: in order.
        settled: whether sigma fell below what is enough, so that rounds ended before cases did.
        measurements: ``ksort`` and its mu, with the protocol's card.
    """

    rating: Rating
    score: float
    rounds: tuple[KSortRound, ...]
    settled: bool
    measurements: tuple[Measurement, ...]


def ranking_instruction(prompt: str, count: int) -> str:
    """Ask for an order of pictures.

    Args:
        prompt: what they were made for.
        count: K.

    Returns:
        The instruction; it goes behind the pictures.

    Source: weights of arXiv:2602.09411's published code (aesthetics 50: photorealism 30, light 10, artefacts 10;
        alignment 50: entities 30, style 20); our words.
    """
    return (
        f"The {count} images above, numbered 1 to {count} in this order, were made for the prompt: {prompt!r}.\n"
        "Score each out of 100. Aesthetics, 50 points: photorealism 30, light and shadow 10, absence of artefacts 10. "
        "Alignment with the prompt, 50 points: entities and their attributes 30, style 20. Then sort the images, the "
        f'best first.\nAnswer with one JSON object: {{"ranking": [the {count} numbers, best first]}}'
    )


def parse_ranking(reply: str, count: int) -> list[int]:
    """Read an answer to :func:`ranking_instruction`.

    Args:
        reply: the judge's words.
        count: K.

    Returns:
        Places 0..K-1 of the pictures, the best first.

    Raises:
        JudgeReplyError: no such JSON object, or not every number once.
    """
    answer = parse_judge_json(reply)
    order = answer.get("ranking") if isinstance(answer, dict) else None
    if not isinstance(order, list) or any(isinstance(one, bool) or not isinstance(one, int) for one in order):
        raise JudgeReplyError(f"'ranking' must be a list of whole numbers, got {order!r}")
    if sorted(order) != list(range(1, count + 1)):
        raise JudgeReplyError(f"'ranking' must hold each of 1 to {count} once, got {order}")
    return [number - 1 for number in order]


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation; equal values share their mean rank.

    Args:
        first: numbers.
        second: as many.

    Returns:
        rho in [-1, 1]; 0 where either side is constant, which says nothing.
    """
    ranks = [np.array([_mean_rank(values, one) for one in values]) for values in (first, second)]
    a, b = (one - one.mean() for one in ranks)
    size = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / size if size else 0.0


def agreement_weight(rho: float) -> float:
    """How far a judge is trusted that sorts the anchors so.

    lambda = 1 / (1 + exp(-5 rho))

    Args:
        rho: Spearman's, in [-1, 1].

    Returns:
        In (0, 1).

    Source: published code of arXiv:2602.09411.
    """
    return 1 / (1 + math.exp(-_SHARPNESS * rho))


def corrected(old: Rating, new: Rating, weight: float) -> Rating:
    """A rating between the one before a round and the one after it.

    mu = l mu_new + (1 - l) mu_old;  sigma^2 = k sigma_new^2 + (1 - k) sigma_old^2,  k = l^2 / (l^2 + (1 - l)^2)

    Args:
        old: before.
        new: after, with the judge fully trusted.
        weight: lambda.

    Returns:
        The rating.

    Source: published code of arXiv:2602.09411.
    """
    share = weight**2 / (weight**2 + (1 - weight) ** 2)
    variance = share * new.deviation**2 + (1 - share) * old.deviation**2
    return Rating(weight * new.mean + (1 - weight) * old.mean, math.sqrt(variance))


def next_case(
    cases: Sequence[KSortCase], ratings: Mapping[str, Rating], rating: Rating, met: Mapping[str, int], overlap: float
) -> int:
    """The case that says most about a model.

    minimise |mean opponents' mu - mu| + alpha mean share of the rounds so far in which the opponents were met

    Args:
        cases: those that are left.
        ratings: of the anchors' models.
        rating: of the new model.
        met: model -> rounds in which it was met.
        overlap: alpha.

    Returns:
        Number of the case; of equally good ones the first.

    Source: published code of arXiv:2602.09411; what its term for overlap counts could not be read, this is a choice.
    """
    rounds = max(1, sum(met.values()))

    def cost(case: KSortCase) -> float:
        mean = float(np.mean([ratings[anchor.model].mean for anchor in case.anchors]))
        seen = sum(met.get(anchor.model, 0) for anchor in case.anchors) / rounds
        return abs(mean - rating.mean) + overlap * seen

    return min(range(len(cases)), key=lambda number: cost(cases[number]))


def evaluate_k_sort(
    cases: Sequence[KSortCase],
    ratings: Mapping[str, Rating],
    picture_of: Callable[[KSortCase], Tensor],
    read: Callable[[Path], Tensor],
    judge: Judge,
    settings: KSortSettings | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> KSortReport:
    """Rate a model.

    Args:
        cases: for which there is a picture of it.
        ratings: of the anchors' models; they stay as they are.
        picture_of: a case -> the new model's picture, uint8, (3, H, W).
        read: a file -> an anchor's picture.
        judge: sorts pictures.
        settings: numbers of the protocol.
        progress: gets rounds done and rounds at most.

    Returns:
        The result. A round without a usable answer changes nothing and is listed.

    Raises:
        ValueError: there are no cases, or the judge never gave a usable answer.

    Source: arXiv:2602.09411 and its published code.
    """
    settings = settings or KSortSettings()
    if not cases:
        raise ValueError("K-Sort Eval needs at least one case with a picture of the model under test")
    left, rating, met = list(cases), Rating(), Counter[str]()
    rounds: list[KSortRound] = []
    total = min(settings.max_rounds, len(cases))
    while left and len(rounds) < total and rating.deviation >= settings.enough:
        case = left.pop(next_case(left, ratings, rating, met, settings.overlap))
        try:
            order = _sorted_by(judge, case, picture_of(case), read, settings, len(rounds))
        except JudgeError as error:
            done = KSortRound(case.case_id, None, None, rating, str(error))
        else:
            met.update(anchor.model for anchor in case.anchors)
            rating, done = _rated(case, order, ratings, rating)
        rounds.append(done)
        progress(len(rounds), total)
    answered = [one for one in rounds if not one.error]
    if not answered:
        raise ValueError(f"the judge gave no usable answer in {len(rounds)} rounds; the last: {rounds[-1].error}")
    sigma = float(np.mean([ratings[model].deviation for model in met]))
    score = rating.mean - 3 * sigma
    settled = rating.deviation < settings.enough
    return KSortReport(
        rating, score, tuple(rounds), settled, _measurements(judge, settings, rating, score, answered, len(rounds))
    )


def _sorted_by(
    judge: Judge,
    case: KSortCase,
    picture: Tensor,
    read: Callable[[Path], Tensor],
    settings: KSortSettings,
    number: int,
) -> list[int]:
    """Places of the pictures, best first: anchors in their order, the new one last."""
    pictures = [*(read(anchor.path) for anchor in case.anchors), picture]
    shown = numpy_generator(settings.seed, "k-sort order", number).permutation(len(pictures)).tolist()
    message: list[str | Tensor] = []
    for place, which in enumerate(shown, 1):
        message += [f"Image {place}:", pictures[which]]
    message.append(ranking_instruction(case.prompt, len(pictures)))
    answer = ask(judge, message, lambda reply: parse_ranking(reply, len(pictures)), settings.attempts)
    return [shown[place] for place in answer.parsed]


def _rated(
    case: KSortCase, order: Sequence[int], ratings: Mapping[str, Rating], rating: Rating
) -> tuple[Rating, KSortRound]:
    players = [*(ratings[anchor.model] for anchor in case.anchors), rating]
    place = [order.index(which) for which in range(len(players))]
    rho = spearman([anchor.rank for anchor in case.anchors], place[:-1])
    new = rate_ranking([players[which] for which in order])[place[-1]]
    rating = corrected(rating, new, agreement_weight(rho))
    return rating, KSortRound(case.case_id, place[-1] + 1, rho, rating)


def _measurements(
    judge: Judge, settings: KSortSettings, rating: Rating, score: float, answered: Sequence[KSortRound], rounds: int
) -> tuple[Measurement, ...]:
    details = {
        **judge.settings,
        "rounds": rounds,
        "answered": len(answered),
        "mean_agreement": float(np.mean([one.agreement for one in answered])),
        "overlap": settings.overlap,
        "enough": settings.enough,
        "seed": settings.seed,
        "beta": BETA,
        "tau": TAU,
        "draw_probability": DRAW_PROBABILITY,
    }
    note = f"{rounds - len(answered)} of {rounds} rounds have no answer" if rounds > len(answered) else ""
    return (
        Measurement(score, Protocol("ksort", judge.name, len(answered), None, details), note=note),
        Measurement(
            rating.mean,
            Protocol("ksort:mu", judge.name, len(answered), None, details),
            error=rating.deviation,
            note="+- is the rating's sigma",
        ),
    )


def _mean_rank(values: Sequence[float], one: float) -> float:
    return sum(other < one for other in values) + (sum(other == one for other in values) + 1) / 2
