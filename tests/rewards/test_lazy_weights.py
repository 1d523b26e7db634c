"""Rewards are built without weights, say before a run whether these are here, and read them when they are needed."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_gen.backbones.weights import MissingWeightsError
from lightning_gen.metrics.compositional.geneval_objects import GenEvalRules
from lightning_gen.metrics.detection.colors import ColorClassifier
from lightning_gen.metrics.detectors import GroundingDINODetector, Mask2FormerDetector
from lightning_gen.rewards.geneval import GenEvalReward
from lightning_gen.rewards.lanes import RewardError
from lightning_gen.rewards.preference import AestheticReward, CLIPScoreReward, HPSv21Reward, PickScoreReward
from lightning_gen.rewards.rewards import RewardEntry, RewardSuite
from lightning_gen.rewards.text import OCRReward
from lightning_gen.training.needs import ModelNeeds
from tests.harness.tiny_clip import write_tiny_clip
from tests.harness.tiny_detectors import save_grounding_dino, save_mask2former

IMAGES = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))
DOG = [{"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}]}] * 2


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_clip(tmp_path_factory.mktemp("clip")))


@pytest.fixture(scope="module")
def open_clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_clip(tmp_path_factory.mktemp("open_clip"), "open_clip"))


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_mask2former(tmp_path_factory.mktemp("m2f")))


ABSENT: list[tuple[Callable[[], Any], type[Exception]]] = [
    (lambda: PickScoreReward("no/where"), MissingWeightsError),
    (lambda: CLIPScoreReward("./nowhere"), MissingWeightsError),
    (lambda: HPSv21Reward("./nowhere.pt"), MissingWeightsError),
    (lambda: AestheticReward("./nowhere.pth", "./nowhere"), MissingWeightsError),
    (lambda: GenEvalReward("./nowhere"), MissingWeightsError),
    (OCRReward, ModuleNotFoundError),
]


@pytest.mark.parametrize(("make", "kind"), ABSENT)
def test_a_reward_is_built_without_weights_and_names_what_it_misses(
    make: Callable[[], Any], kind: type[Exception]
) -> None:
    reward = copy.deepcopy(make())
    with pytest.raises(kind):
        reward.load()
    with pytest.raises(RewardError, match="the reward 'first' cannot be made ready: "):
        RewardSuite([RewardEntry("first", reward)]).load()
    with pytest.raises(RewardError, match="the reward 'first' failed"):
        RewardSuite([RewardEntry("first", reward)])(IMAGES, ['a "dog"'] * 2, DOG)


def test_weights_are_read_once(clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = RewardSuite([RewardEntry("clip", CLIPScoreReward(clip))])
    suite.load()
    scorer = suite.entries[0].reward.scorer  # type: ignore[union-attr]
    monkeypatch.setattr(CLIPScoreReward, "_read", lambda _: pytest.fail("read twice"))
    suite.load()
    assert suite(IMAGES, ["a", "b"], [{}, {}]).total.isfinite().all()
    assert suite.entries[0].reward.scorer is scorer  # type: ignore[union-attr]


def test_pickscore_may_have_its_processor_elsewhere(clip: str, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((Path(clip) / name).read_bytes())
    alone = {"clip": str(tmp_path)}
    [need] = PickScoreReward.needs(alone).weights
    assert not need.found and "preprocessor_config.json" in need.hint
    [need] = PickScoreReward.needs({**alone, "processor": clip}).weights
    assert need.found
    found, whole = (PickScoreReward(*a)(IMAGES, ["a", "b"], [{}, {}]) for a in ((str(tmp_path), clip), (clip,)))
    assert torch.equal(found, whole)


# ------------------------------------------------------------------ what the preflight hears


def size(network: Any) -> int:
    return sum(p.numel() for p in network.parameters())


def suite_needs(*rewards: tuple[str, dict[str, Any]]) -> ModelNeeds:
    specifications = [{"class_path": f"lightning_gen.{name}", "init_args": arguments} for name, arguments in rewards]
    return RewardSuite.needs({"entries": [{"name": "x", "reward": one} for one in specifications]})


def test_weights_that_are_here_are_counted(clip: str, open_clip: str, detector: str, tmp_path: Path) -> None:
    weights, head = size(CLIPScoreReward(clip).scorer.clip.network), tmp_path / "head.pth"
    head.write_bytes(b"")
    for name, arguments in (
        ("PickScoreReward", {"clip": clip}),
        ("CLIPScoreReward", {"clip": open_clip}),
        ("HPSv21Reward", {"clip": open_clip}),
        ("AestheticReward", {"head": str(head), "clip": clip}),
    ):
        needs = suite_needs((name, arguments))
        # Files hold the numbers of positions, too.
        assert math.isclose(needs.frozen, weights, abs_tol=200) and needs.frozen_bytes == 4 * needs.frozen, name
        assert all(need.found and not need.hint for need in needs.weights) and needs.trainable == 0
    judge = GenEvalReward(detector).judge.detector.network  # type: ignore[attr-defined]
    both = suite_needs(("GenEvalReward", {"detector": detector, "color_clip": clip}))
    assert len(both.weights) == 2 and both.frozen > size(judge) + weights - 200


def test_weights_that_are_not_here_are_named_with_what_to_do(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    needs = suite_needs(
        ("PickScoreReward", {}),
        ("HPSv21Reward", {"clip": f"{nowhere}.pt"}),
        ("AestheticReward", {"head": nowhere}),
        ("GenEvalReward", {"detector": nowhere, "color_clip": nowhere}),
        ("OCRReward", {"reader": None}),
    )
    assert not any(need.found for need in needs.weights) and needs.frozen == 0
    sources = [need.source for need in needs.weights]
    assert sources == [
        "yuvalkirstain/PickScore_v1", f"{nowhere}.pt", nowhere, "openai/clip-vit-large-patch14", nowhere, nowhere,
        "PaddleOCR",
    ]  # fmt: skip
    assert needs.weights[1].hint.startswith(f"there is no file {nowhere}.pt. ")
    assert all("ive " in need.hint or "there is no file" in need.hint or "pip" in need.hint for need in needs.weights)


def test_rewards_that_say_nothing_or_read_nothing_are_not_judged() -> None:
    detector = {"class_path": "lightning_gen.ShapesDetector"}
    reader = {"class_path": "lightning_gen.RemoteTextReader", "init_args": {"url": "http://localhost:9"}}
    needs = suite_needs(
        ("RequestMatch", {"score": "dense"}),
        ("GenEvalReward", {"detector": detector}),
        ("OCRReward", {"reader": reader}),
    )
    assert needs.weights == () and needs.frozen == 0
    assert RewardSuite.needs({}).weights == ()


# ------------------------------------------------------------------ detectors by their weights


def test_a_detector_is_known_by_its_weights(detector: str, clip: str, tmp_path: Path) -> None:
    reward = GenEvalReward(detector, color_clip=clip)
    scores = reward(IMAGES, ["p", "q"], DOG)
    assert isinstance(reward.judge.detector, Mask2FormerDetector) and isinstance(reward.judge.colors, ColorClassifier)
    given = GenEvalReward(Mask2FormerDetector(detector), colors=ColorClassifier.load(clip))
    assert torch.equal(given(IMAGES, ["p", "q"], DOG), scores) and given.fingerprint == reward.fingerprint
    grounded = GenEvalReward(str(save_grounding_dino(tmp_path)))
    assert isinstance(grounded.judge.detector, GroundingDINODetector)
    with pytest.raises(MissingWeightsError, match="describes 'clip', no detector of mask2former or grounding-dino"):
        GenEvalReward(clip).load()


@pytest.mark.parametrize("background", [False, True])
def test_rewards_of_the_same_weights_read_them_and_look_at_a_picture_once(
    background: bool, detector: str, clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: tuple[Any, ...] = ("dense", "strict", "benchmark")
    own = {kind: GenEvalReward(Mask2FormerDetector(detector), kind, ColorClassifier.load(clip)) for kind in kinds}
    expected = {kind: reward(IMAGES, ["p", "q"], DOG).double() for kind, reward in own.items()}
    read, seen = [], []
    forward, load = Mask2FormerDetector.forward, ColorClassifier.load
    start = Mask2FormerDetector.__init__

    def watched(its: Mask2FormerDetector, images: Any, classes: Any) -> Any:
        seen.append(len(images))
        return forward(its, images, classes)

    monkeypatch.setattr(Mask2FormerDetector, "__init__", lambda *a, **k: read.append("detector") or start(*a, **k))
    monkeypatch.setattr(Mask2FormerDetector, "forward", watched)
    monkeypatch.setattr(ColorClassifier, "load", lambda source: read.append("clip") or load(source))
    rewards = {kind: GenEvalReward(detector, kind, color_clip=clip) for kind in kinds}
    suite = RewardSuite([RewardEntry(kind, reward, background=background) for kind, reward in rewards.items()])
    found = suite(IMAGES, ["p", "q"], DOG)
    assert all(torch.equal(found.raw[kind].double(), scores) for kind, scores in expected.items())
    assert sorted(read) == ["clip", "detector"] and seen == [2]
    # Another prompt and another picture are news, and a row that is not stays out.
    suite(torch.stack([IMAGES[0], IMAGES[0], 1 - IMAGES[0]]), ["p", "other", "p"], [*DOG, DOG[0]])
    assert seen == [2, 2]


def test_networks_are_shared_where_rules_differ_and_die_with_their_rewards(detector: str, clip: str) -> None:
    first, rules = GenEvalReward(detector, color_clip=clip), GenEvalRules(threshold=0.9)
    other, plain = GenEvalReward(detector, color_clip=clip, rules=rules), GenEvalReward(detector)
    assert first.judge.detector is other.judge.detector is plain.judge.detector
    assert first.judge.colors is other.judge.colors and plain.judge.colors is None
    assert first.judge is not other.judge and other.judge.rules == rules
    scores = first(IMAGES, ["p", "q"], DOG)
    for twin in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        assert twin.judge is first.judge and torch.equal(twin(IMAGES, ["p", "q"], DOG), scores)
    network = weakref.ref(first.judge.detector)
    del first, other, plain, twin
    gc.collect()
    assert network() is None


def test_verdicts_are_forgotten_in_time(detector: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_gen.rewards.geneval._REMEMBERED", 1)
    reward: Any = GenEvalReward(detector)
    plain = [{"tag": "single_object", "include": [{"class": "dog", "count": 1}]}] * 2
    assert reward(IMAGES, ["p", "q"], plain).isfinite().all()
    assert [prompt.prompt for _, prompt in reward.judge._known] == ["q"]


def test_colours_are_named_where_the_pictures_are(detector: str, clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reward, moved = GenEvalReward(detector, color_clip=clip), []
    for network in (reward.judge.detector, reward.judge.colors.clip):  # type: ignore[union-attr]
        monkeypatch.setattr(network, "to", moved.append)
    reward(IMAGES, ["p", "q"], DOG)
    assert moved == [IMAGES.device] * 2
