from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gen.data.transforms import unit_to_uint8
from lightning_gen.interfaces import Reward
from lightning_gen.metrics import preference
from lightning_gen.metrics.extraction.clip import CLIPModel, load_clip
from lightning_gen.metrics.intervals import bootstrap_interval, ratio_bootstrap_interval
from lightning_gen.metrics.preference import (
    PICKSCORE_DIVISOR,
    AestheticScore,
    CLIPScore,
    HPSv21,
    PickScore,
    PreferenceScorer,
)
from lightning_gen.metrics.preference_score import PairwiseAccuracy, PreferenceScore
from lightning_gen.metrics.protocol import Protocol
from tests.harness.metric_jobs_preference import count_on_ranks
from tests.harness.processes import two_processes
from tests.harness.tiny_clip import open_clip_config, write_tiny_clip

PROMPTS = ["a red cat", "two dogs on a sofa", "a blue car"]
WIDTHS = (16, 12, 8, 6, 4, 1)
LAYERS = (0, 2, 4, 6, 7)


def images(count: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 40, 40, generator=torch.Generator().manual_seed(seed))


def head_state(seed: int = 0, widths: Sequence[int] = WIDTHS) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for layer, wide, narrow in zip(LAYERS, widths, widths[1:], strict=False):
        state[f"layers.{layer}.weight"] = torch.randn(narrow, wide, generator=generator) / math.sqrt(wide)
        state[f"layers.{layer}.bias"] = torch.randn(narrow, generator=generator)
    return state


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(folder: Path) -> CLIPModel:
    return load_clip(str(folder))


@pytest.fixture(scope="module")
def cosine(clip: CLIPModel) -> Tensor:
    return (clip.embed_images(images()).double() * clip.embed_texts(PROMPTS).double()).sum(1).float()


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("head") / "sac+logos+ava1-l14-linearMSE.pth"
    torch.save(head_state(), path)
    return str(path)


@pytest.fixture(params=["pickscore", "hpsv2.1", "clipscore", "aesthetic"])
def scorer(request: pytest.FixtureRequest, clip: CLIPModel, head: str) -> PreferenceScorer:
    makers: dict[str, Any] = {
        "pickscore": lambda: PickScore(clip),
        "hpsv2.1": lambda: HPSv21(clip),
        "clipscore": lambda: CLIPScore(clip),
        "aesthetic": lambda: AestheticScore(head, clip),
    }
    made: PreferenceScorer = makers[request.param]()
    assert made.name == request.param
    return made


# ------------------------------------------------------------------ definitions


def test_pickscore_is_the_scaled_cosine(clip: CLIPModel, cosine: Tensor) -> None:
    expected = math.exp(4.0) * cosine
    torch.testing.assert_close(PickScore(clip)(images(), PROMPTS), expected, rtol=1e-5, atol=1e-5)
    divided = PickScore(clip, divide=True)
    torch.testing.assert_close(divided(images(), PROMPTS), expected / 26, rtol=1e-5, atol=1e-6)
    assert PICKSCORE_DIVISOR == 26
    assert divided.protocol.id != PickScore(clip).protocol.id and divided.protocol.id.endswith("-over-26")


def test_hpsv2_is_the_plain_cosine(clip: CLIPModel, cosine: Tensor) -> None:
    torch.testing.assert_close(HPSv21(clip)(images(), PROMPTS), cosine, rtol=1e-5, atol=1e-6)


def test_clipscore_has_its_factor_and_clamp_by_name(clip: CLIPModel, cosine: Tensor) -> None:
    assert cosine.min() < 0 < cosine.max()
    for factor, clamp, expected in (
        (1.0, False, cosine),
        (100.0, False, 100 * cosine),
        (2.5, True, 2.5 * cosine.clamp(min=0)),
    ):
        score = CLIPScore(clip, factor, clamp)
        torch.testing.assert_close(score(images(), PROMPTS), expected, rtol=1e-5, atol=1e-5)
    names = [CLIPScore(clip).variant, CLIPScore(clip, 100).variant, CLIPScore(clip, 2.5, True, "A photo of ").variant]
    assert names == ["", "x100", "x2.5-positive-prefixed"]
    prefixed = CLIPScore(clip, prefix="A photo depicts ")
    expected = CLIPScore(clip)(images(), [f"A photo depicts {prompt}" for prompt in PROMPTS])
    assert torch.equal(prefixed(images(), PROMPTS), expected)


def test_the_aesthetic_head_is_linear_layers_on_the_unit_vector(clip: CLIPModel, head: str) -> None:
    state = {name: tensor.double() for name, tensor in head_state().items()}
    out = clip.embed_images(images()).double()
    for layer in LAYERS:
        out = out @ state[f"layers.{layer}.weight"].T + state[f"layers.{layer}.bias"]
    score = AestheticScore(head, clip)
    torch.testing.assert_close(score(images(), PROMPTS), out[:, 0].float(), rtol=1e-5, atol=1e-5)
    assert torch.equal(score(images(), ["x"] * 3), score(images(), PROMPTS))


def test_the_head_may_be_safetensors(clip: CLIPModel, head: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(head_state(), tmp_path / "head.safetensors")
    ours = AestheticScore(str(tmp_path / "head.safetensors"), clip)
    assert torch.equal(ours(images(), PROMPTS), AestheticScore(head, clip)(images(), PROMPTS))


def test_another_head_is_refused(clip: CLIPModel, tmp_path: Path) -> None:
    path = tmp_path / "head.pth"
    cases: list[tuple[dict[str, Tensor], str]] = [
        ({name.replace("layers.7", "layers.8"): tensor for name, tensor in head_state().items()}, "layers.7.bias"),
        (head_state(widths=(16, 12, 8, 6, 4, 2)), "do not end in one number"),
        (head_state() | {"layers.2.weight": torch.zeros(8, 13)}, "do not follow each other"),
    ]
    for state, message in cases:
        torch.save(state, path)
        with pytest.raises(ValueError, match=message):
            AestheticScore(str(path), clip)
    torch.save(head_state(widths=(768, 12, 8, 6, 4, 1)), path)
    with pytest.raises(ValueError, match="reads embeddings of width 768, this CLIP .* has 16"):
        AestheticScore(str(path), clip)(images(), PROMPTS)
    torch.save({"model": nn.Linear(2, 2)}, path)
    with pytest.raises(ValueError, match="may run code"):
        AestheticScore(str(path), clip)
    with pytest.raises(FileNotFoundError):
        AestheticScore(str(tmp_path / "none.pth"), clip)


def test_hpsv2_reads_the_published_kind_of_file(tmp_path: Path, cosine: Tensor) -> None:
    import open_clip
    from safetensors.torch import load_file

    source = write_tiny_clip(tmp_path / "open", "open_clip")
    torch.save({"state_dict": load_file(source / "open_clip_model.safetensors")}, tmp_path / "HPS_v2.1_compressed.pt")
    (tmp_path / "tiny-hps.json").write_text(json.dumps(open_clip_config()))
    open_clip.add_model_config(tmp_path / "tiny-hps.json")
    scorer = HPSv21(load_clip(str(tmp_path / "HPS_v2.1_compressed.pt"), "tiny-hps"))
    torch.testing.assert_close(scorer(images(), PROMPTS), cosine, rtol=0, atol=1e-5)


def test_hpsv2_is_a_vit_h14_if_nothing_else_is_said(monkeypatch: pytest.MonkeyPatch, clip: CLIPModel) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(preference, "load_clip", lambda *arguments: asked.append(arguments) or clip)
    assert HPSv21("HPS_v2.1_compressed.pt").clip is clip
    assert asked == [("HPS_v2.1_compressed.pt", "ViT-H-14")]


def test_scorers_load_their_clip_from_a_folder(folder: Path, clip: CLIPModel, head: str) -> None:
    for made, shared in ((PickScore(str(folder)), PickScore(clip)), (CLIPScore(str(folder)), CLIPScore(clip))):
        assert torch.equal(made(images(), PROMPTS), shared(images(), PROMPTS))
        assert made.fingerprint == shared.fingerprint == clip.fingerprint


# ------------------------------------------------------------------ as a reward


def test_a_scorer_is_a_reward(scorer: PreferenceScorer) -> None:
    reward: Reward = scorer
    scores = reward(images(), PROMPTS, [{}] * 3)
    assert scores.shape == (3,) and scores.dtype == torch.float32 and not scores.requires_grad
    assert torch.equal(scores, scorer(images(), PROMPTS))


def test_scores_do_not_depend_on_the_batch_and_tell_pictures_apart(scorer: PreferenceScorer) -> None:
    scores = scorer(images(), PROMPTS)
    alone = torch.cat([scorer(images()[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(scores, alone, rtol=1e-4, atol=1e-4)
    assert len(set(scores.tolist())) == 3
    listed = scorer(list(images()), PROMPTS)
    torch.testing.assert_close(listed, scores, rtol=1e-4, atol=1e-4)


def test_stored_pictures_score_nearly_the_same(scorer: PreferenceScorer) -> None:
    stored = scorer(unit_to_uint8(images()), PROMPTS)
    torch.testing.assert_close(stored, scorer(images(), PROMPTS), rtol=0.1, atol=0.5)


def test_gradients_flow_to_the_pictures(scorer: PreferenceScorer) -> None:
    pictures = images().requires_grad_()
    scorer(pictures, PROMPTS).sum().backward()
    assert pictures.grad is not None and pictures.grad.isfinite().all() and pictures.grad.abs().sum() > 0


def test_a_scorer_has_no_parameters_and_stays_in_float32(scorer: PreferenceScorer) -> None:
    twin = copy.deepcopy(scorer)
    assert not list(twin.parameters()) and not twin.state_dict()
    expected = twin(images(), PROMPTS)
    twin.to(torch.bfloat16).train()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(twin(images(), PROMPTS), expected)


def test_one_prompt_per_picture(scorer: PreferenceScorer) -> None:
    for prompts in (PROMPTS[:2], "cat"):
        with pytest.raises(ValueError, match="one prompt per image: got 3 images"):
            scorer(images(), prompts)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        scorer(images() * 2 - 1, PROMPTS)


def test_protocols_name_network_and_weights(scorer: PreferenceScorer, head: str, clip: CLIPModel) -> None:
    protocol = scorer.protocol
    assert protocol.id == f"{scorer.name}/vit-2x32-8-32"
    assert protocol.details["weights"] == scorer.fingerprint and len(scorer.fingerprint) == 64
    if isinstance(scorer, AestheticScore):
        assert scorer.fingerprint != clip.fingerprint


def test_measure_is_the_mean_over_the_set(scorer: PreferenceScorer) -> None:
    pictures, prompts = [*images(5)], [*PROMPTS, *PROMPTS[:2]]
    mean, median = scorer.measure(iter(pictures), prompts, batch_size=2)
    expected = scorer(pictures, prompts).double()
    assert mean.value == pytest.approx(float(expected.mean()), rel=1e-4)
    assert median.value == pytest.approx(float(expected.median()), rel=1e-4)
    assert mean.protocol.count == 5 and mean.protocol.details["prompts"] == 3
    for others in (PROMPTS, [*prompts, "more"]):
        with pytest.raises(ValueError, match="one prompt per image"):
            scorer.measure(iter(pictures), others, batch_size=2)


# ------------------------------------------------------------------ averages

PROTOCOL = Protocol("toy", "table", details={"weights": "abc"})


def counted(values: Sequence[float], prompts: Sequence[int], samples: Sequence[int]) -> PreferenceScore:
    metric = PreferenceScore(PROTOCOL, {"seed": 3})
    metric.update(torch.tensor(values, dtype=torch.float64), prompts, samples)
    return metric


def test_mean_median_and_error() -> None:
    values = [3.0, 1.0, 10.0, 2.0]
    metric = counted(values, range(4), [0] * 4)
    out = metric.compute()
    assert float(out["mean"]) == 4 and float(out["median"]) == 2.5
    assert float(out["error"]) == pytest.approx(float(torch.tensor(values).std()) / 2, rel=1e-6)
    mean, median = metric.measurements()
    assert (mean.value, median.value, mean.protocol.id, median.protocol.id) == (4, 2.5, "toy/table", "toy:median/table")
    assert mean.error == pytest.approx(float(out["error"]))
    assert mean.interval == pytest.approx(bootstrap_interval(torch.tensor(values)))
    assert median.interval is not None and median.interval[0] <= 2.5 <= median.interval[1]
    assert mean.protocol.details["seed"] == 3 and mean.protocol.details["weights"] == "abc"


def test_the_interval_draws_whole_prompts() -> None:
    """Four equal pictures per prompt say no more than one."""
    values = torch.randn(30, generator=torch.Generator().manual_seed(0)).double()
    once = counted(values.tolist(), range(30), [0] * 30).measurements()
    many = counted(values.repeat(4).tolist(), [*range(30)] * 4, [k for k in range(4) for _ in range(30)]).measurements()
    assert many[0].interval == pytest.approx(once[0].interval)
    assert many[0].value == pytest.approx(once[0].value)
    assert once[1].interval is not None and many[1].interval is None
    uneven = counted([1.0, 2.0, 4.0], [0, 0, 1], [0, 1, 0]).measurements()[0]
    assert uneven.value == pytest.approx(7 / 3)
    assert uneven.interval == ratio_bootstrap_interval(torch.tensor([3.0, 4.0]), torch.tensor([2.0, 1.0]))


def test_pictures_without_a_score_are_left_out_and_counted() -> None:
    metric = counted([1.0, math.nan, 3.0], [0, 1, 2], [0, 0, 0])
    mean, _ = metric.measurements()
    assert mean.value == 2 and mean.protocol.count == 2 and mean.protocol.details["unscored"] == 1
    nothing = counted([math.nan], [0], [0])
    assert nothing.compute()["mean"].isnan()
    assert math.isnan(nothing.measurements()[0].value) and nothing.measurements()[0].interval is None


def test_a_picture_that_is_shown_twice_counts_once() -> None:
    metric = counted([1.0, 5.0], [0, 1], [0, 0])
    metric.update(torch.tensor([1.0, 1.0]), [0, 0], [0, 1])
    assert float(metric.compute()["mean"]) == pytest.approx(7 / 3)
    assert metric.measurements()[0].protocol.details["repeats"] == 1
    metric.reset()
    metric.update(torch.tensor([8.0]), [0], [0])
    assert float(metric.compute()["mean"]) == 8


def test_pairwise_accuracy_counts_ties_half() -> None:
    metric = PairwiseAccuracy(PROTOCOL, {"pairs": "toy"})
    metric.update(torch.tensor([2.0, 1.0, 1.0]), torch.tensor([1.0, 1.0, 2.0]), [0, 1, 2])
    assert float(metric.compute()) == 0.5
    metric.update(torch.tensor([2.0, 2.0]), torch.tensor([1.0, math.nan]), [3, 4])
    assert float(metric.compute()) == 0.625
    metric.update(torch.tensor([1.0]), torch.tensor([2.0]), [2])  # again
    (one,) = metric.measurements()
    assert one.value == 0.625 and one.protocol.id == "toy:pairwise/table"
    assert (one.protocol.count, one.protocol.details["ties"], one.protocol.details["unscored"]) == (4, 1, 1)
    assert one.protocol.details["repeats"] == 1 and one.interval is not None


def test_two_real_ranks_give_the_result_of_one() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [(p, s, *torch.randn(2, generator=generator).tolist()) for p in range(4) for s in range(2)]
    alone: dict[str, Any] = {}
    metrics = (PreferenceScore(PROTOCOL), PairwiseAccuracy(PROTOCOL))
    for p, s, a, b in rows:
        metrics[0].update(torch.tensor([a]), [p], [s])
        metrics[1].update(torch.tensor([a]), torch.tensor([b]), [10 * p + s])
    alone = {name: float(value) for name, value in metrics[0].compute().items()}
    # uneven, one row on both, and one rank that has nothing
    for shares in ((rows[:3] + rows[:1], rows[2:]), (rows, [])):
        first, second = two_processes(count_on_ranks, [list(share) for share in shares])
        assert first == second
        assert first["values"]["mean"] == pytest.approx(alone["mean"], rel=1e-6)
        assert first["values"]["median"] == pytest.approx(alone["median"], rel=1e-6)
        assert first["values"]["pairwise"] == float(metrics[1].compute())
        counts = [one["protocol"]["count"] for one in first["measured"]]
        assert counts[:4] == [8, 8, 8, 4]
