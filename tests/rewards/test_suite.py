"""The suite: weights, applicability, threads, errors that name the reward, and the cache."""

from __future__ import annotations

import copy
import math
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from lightning_gen.rewards.applicability import read_metadata
from lightning_gen.rewards.cache import RewardCache, score_key
from lightning_gen.rewards.lanes import Call, RewardError
from lightning_gen.rewards.rewards import RewardEntry, RewardScores, RewardSuite

IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a", "b", "c", "d"]
RECORDS: list[dict[str, Any]] = [{"n": 1}, {"n": 2}, {"n": 3}, {"n": 4}]


class Toy:
    """Calls a function with images, prompts and metadata, and counts what it was asked for."""

    def __init__(self, score: Callable[[Tensor, Sequence[str], Sequence[Mapping[str, Any]]], Any]) -> None:
        self.score, self.asked = score, list[str]()

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        self.asked += prompts
        return self.score(images, prompts, metadata)


class Named(Toy):
    fingerprint = "named-1"


class OnlyOdd(Toy):
    def inapplicable(self, prompt: str, metadata: Mapping[str, Any]) -> str | None:
        return None if metadata["n"] % 2 else "its number is even"


def number(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
    return torch.tensor([float(record["n"]) for record in metadata])


def bright(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
    return images.mean((1, 2, 3))


def scored(*entries: RewardEntry, **options: Any) -> RewardScores:
    return RewardSuite(list(entries), **options)(IMAGES, PROMPTS, RECORDS)


def same(values: Tensor, expected: Sequence[float]) -> None:
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float32), equal_nan=True)


# ------------------------------------------------------------------ weights


def test_scores_are_normalised_weighed_and_added() -> None:
    scores = scored(
        RewardEntry("one", Toy(number), weight=2, offset=1, scale=0.5),
        RewardEntry("two", Toy(lambda *_: torch.full((4,), 3)), weight=0.5, scale=-1),
        RewardEntry("watched", Toy(lambda *_: torch.full((4,), 1e6)), weight=0),
    )
    same(scores.raw["one"], [1, 2, 3, 4])
    same(scores.normalised["one"], [0, 2, 4, 6])
    same(scores.weighted["one"], [0, 4, 8, 12])
    same(scores.weighted["watched"], [0, 0, 0, 0])
    same(scores.total, [-1.5, 2.5, 6.5, 10.5])
    means = scores.means()
    assert {name: float(value) for name, value in means.items()} == {
        "one/raw": 2.5, "one/normalised": 3, "one/weighted": 6, "one/applies": 1,
        "two/raw": 3, "two/normalised": -3, "two/weighted": -1.5, "two/applies": 1,
        "watched/raw": 1e6, "watched/normalised": 1e6, "watched/weighted": 0, "watched/applies": 1,
        "total": 4.5,
    }  # fmt: skip


@pytest.mark.parametrize(("combine", "first"), [("sum", [1 + 9, 9.0]), ("mean", [(1 + 9) / 4, 9 / 3])])
def test_what_does_not_apply_neither_pays_nor_weighs(combine: str, first: list[float]) -> None:
    scores = scored(
        RewardEntry("odd", OnlyOdd(number), elsewhere="skip"),
        RewardEntry("all", Toy(lambda *_: torch.full((4,), 3.0)), weight=3),
        combine=combine,
    )
    same(scores.raw["odd"], [1, math.nan, 3, math.nan])
    same(scores.total[:2], first)
    assert float(scores.means()["odd/applies"]) == 0.5
    assert float(scores.means()["odd/raw"]) == 2


def test_nothing_is_paid_where_no_reward_with_a_weight_applies() -> None:
    odd = OnlyOdd(number)
    scores = scored(RewardEntry("odd", odd, elsewhere="skip"), RewardEntry("seen", Toy(number), weight=0))
    same(scores.total, [1, math.nan, 3, math.nan])
    assert odd.asked == ["a", "c"], "a reward is asked for what it applies to only"


def test_images_are_seen_as_they_are_stored() -> None:
    seen: list[Tensor] = []
    scored(RewardEntry("toy", Toy(lambda images, *_: seen.append(images) or images.mean((1, 2, 3)))))
    levels = seen[0] * 255
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
    torch.testing.assert_close(seen[0], IMAGES, atol=0.51 / 255, rtol=0)


# ------------------------------------------------------------------ applicability


def test_a_prompt_that_a_reward_is_not_for_is_an_error_before_anything_is_scored() -> None:
    first = Toy(number)
    suite = RewardSuite([RewardEntry("first", first), RewardEntry("odd", OnlyOdd(number))])
    with pytest.raises(RewardError, match=r"'odd' does not apply to the prompt 'b' \(row 1\): its number is even"):
        suite(IMAGES, PROMPTS, RECORDS)
    assert first.asked == []


def test_keys_that_an_entry_needs() -> None:
    with pytest.raises(RewardError, match='the metadata lack "include", they have: n'):
        scored(RewardEntry("x", Toy(number), needs=("include",)))
    scores = scored(RewardEntry("x", Toy(number), needs=("include",), elsewhere="skip"))
    assert scores.total.isnan().all()


def test_metadata_are_read_from_a_batch_of_prompts() -> None:
    assert read_metadata(['{"tag": "colors"}', ""]) == [{"tag": "colors"}, {}]
    for text in ("{", "[1]"):
        with pytest.raises(ValueError, match="row 1: the metadata"):
            read_metadata(["{}", text])


# ------------------------------------------------------------------ failures


def fails(*_: Any) -> Tensor:
    raise KeyError("weights")


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize(
    ("score", "message"),
    [
        (fails, "the reward 'bad' failed: KeyError: 'weights'"),
        (lambda *_: torch.zeros(3), r"'bad' must give 4 numbers for 4 images, got torch.float32 \(3,\)"),
        (lambda *_: torch.zeros(4, 1), r"got torch.float32 \(4, 1\)"),
        (lambda *_: [1.0] * 4, "got list"),
        (lambda *_: torch.tensor([0, 0, math.inf, 0]), "'bad' gave an infinite score for image 2"),
    ],
)
def test_a_reward_that_fails_is_named_and_nothing_is_stored(
    score: Any, message: str, background: bool, tmp_path: Path
) -> None:
    cache = RewardCache(str(tmp_path / "cache"))
    entries = [RewardEntry("good", Named(number)), RewardEntry("bad", Toy(score), background=background)]
    with pytest.raises(RewardError, match=message):
        RewardSuite(entries, cache=cache)(IMAGES, PROMPTS, RECORDS)
    assert not (tmp_path / "cache").exists() or count(tmp_path / "cache") == 0


@pytest.mark.parametrize("background", [False, True])
def test_nan_everywhere_is_an_error_over_all_batches_that_are_waited_for(background: bool) -> None:
    """A few pictures may well have no score; a model that never gives one is broken."""
    dark = Toy(lambda images, *_: torch.where(images.mean((1, 2, 3)) > 0, 1.0, math.nan))
    suite = RewardSuite([RewardEntry("dark", dark, background=background)], max_pending=3)
    first, second, bright = (suite.submit(images, PROMPTS, RECORDS) for images in (0 * IMAGES, 0 * IMAGES, IMAGES))
    same(suite.results([second, bright]).total, [math.nan] * 4 + [1.0] * 4)
    with pytest.raises(RewardError, match="'dark' gave NaN for all of its 8 images"):
        suite.results([first, second])


def test_a_call_is_for_a_batch_at_most_and_has_its_own_time() -> None:
    sizes: list[int] = []

    def slow(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        sizes.append(len(images))
        time.sleep(0.3)
        return number(images, prompts, metadata)

    scores = scored(RewardEntry("slow", OnlyOdd(slow), elsewhere="skip", batch_size=1, time_limit=0.5))
    same(scores.raw["slow"], [1, math.nan, 3, math.nan])
    assert sizes == [1, 1]
    with pytest.raises(RewardError, match="'x' gave an infinite score"):
        scored(RewardEntry("x", Toy(lambda images, *_: images.mean((1, 2, 3)) / 0), batch_size=3))


def test_prompts_can_be_looked_at_before_there_are_pictures() -> None:
    suite = RewardSuite([RewardEntry("odd", OnlyOdd(number))])
    suite.require_applicable(PROMPTS[:1], RECORDS[:1])
    with pytest.raises(RewardError, match=r"'odd' does not apply to the prompt 'b' \(row 1\): its number is even"):
        suite.require_applicable(PROMPTS, RECORDS)
    RewardSuite([RewardEntry("odd", OnlyOdd(number), elsewhere="skip")]).require_applicable(PROMPTS, RECORDS)


def test_batches_that_are_given_up_do_not_hold_later_ones() -> None:
    free = threading.Event()
    slow = Toy(lambda images, *_: (free.wait(20), torch.zeros(len(images)))[1])
    suite = RewardSuite([RewardEntry("slow", slow, background=True)], max_pending=3)
    first, _ = (suite.submit(IMAGES, PROMPTS, RECORDS) for _ in range(2))
    suite.give_up()
    free.set()
    assert not suite._pending
    with pytest.raises(RewardError, match="given up"):
        first.result()
    same(suite(IMAGES, PROMPTS, RECORDS).total, [0, 0, 0, 0])


def test_single_nan_of_a_reward_are_not_applicable() -> None:
    some = scored(RewardEntry("some", Toy(lambda *_: torch.tensor([1, math.nan, 2, 3]))))
    same(some.total, [1, math.nan, 2, 3])
    assert some.means()["some/applies"] == 0.75


@pytest.mark.parametrize("background", [False, True])
def test_a_reward_that_hangs_is_named_and_does_not_hold_the_next_batch(background: bool) -> None:
    free = threading.Event()

    def hang(*_: Any) -> Tensor:
        free.wait(20)
        return torch.zeros(4)

    after = Toy(number)
    entries = [RewardEntry("hung", Toy(hang), time_limit=0.2, background=background), RewardEntry("after", after)]
    suite = RewardSuite(entries)
    for _ in range(2):
        with pytest.raises(RewardError, match="'hung' has not answered within 0.2 seconds"):
            suite(IMAGES, PROMPTS, RECORDS)
    free.set()
    if not background:
        # What was given up has been passed over when a later call is done.
        probe = Call("probe", lambda: torch.zeros(1), 20)
        suite._foreground.start(probe)
        assert probe.done.wait(20)
        assert after.asked == []


def test_rewards_are_called_without_gradients() -> None:
    grad: list[bool] = []
    scored(RewardEntry("x", Toy(lambda *_: grad.append(torch.is_grad_enabled()) or torch.zeros(4))))
    assert grad == [False]


# ------------------------------------------------------------------ threads


def test_background_rewards_go_on_and_results_stay_in_order() -> None:
    free, threads = threading.Event(), list[str]()

    def slow(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        free.wait(20)
        return number(images, prompts, metadata)

    def quick(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        time.sleep(0.1)
        threads.append(threading.current_thread().name)
        return number(images, prompts, metadata)

    suite = RewardSuite(
        [RewardEntry("slow", Toy(slow), background=True), RewardEntry("quick", Toy(quick))], max_pending=2
    )
    first = suite.submit(IMAGES, PROMPTS, RECORDS)
    second = suite.submit(IMAGES[:2], PROMPTS[:2], [{"n": 10}, {"n": 20}])
    assert threads == ["rewards"] * 2, "what is not in the background is done when submit returns"
    free.set()
    same(second.result().total, [20, 40])
    same(first.result().total, [2, 4, 6, 8])
    assert first.raw() is first.raw()


def test_a_suite_that_was_used_can_be_copied() -> None:
    suite = RewardSuite([RewardEntry("one", Toy(number)), RewardEntry("two", Toy(number), background=True)])
    first = suite(IMAGES, PROMPTS, RECORDS)
    assert torch.equal(copy.deepcopy(suite)(IMAGES, PROMPTS, RECORDS).total, first.total)


def test_batches_under_way_are_bounded() -> None:
    free, started = threading.Event(), list[int]()

    def slow(images: Tensor, *_: Any) -> Tensor:
        started.append(len(images))
        free.wait(20)
        return torch.zeros(len(images))

    suite = RewardSuite([RewardEntry("slow", Toy(slow), background=True)], max_pending=1)
    suite.submit(IMAGES, PROMPTS, RECORDS)
    threading.Timer(0.1, free.set).start()
    pending = suite.submit(IMAGES[:1], PROMPTS[:1], RECORDS[:1])
    assert free.is_set(), "the second batch waited for the first"
    pending.result()
    assert started == [4, 1]


# ------------------------------------------------------------------ cache


def count(path: Path) -> int:
    with sqlite3.connect(path) as connection:
        return int(connection.execute("SELECT count(*) FROM scores").fetchone()[0])


def test_scores_are_computed_once_for_reward_picture_prompt_and_metadata(tmp_path: Path) -> None:
    reward = Named(bright)
    suite = RewardSuite([RewardEntry("x", reward)], cache=RewardCache(str(tmp_path / "a" / "cache")))
    first = suite(IMAGES, PROMPTS, RECORDS).total
    again = suite(IMAGES[[2, 0]], ["c", "a"], [RECORDS[2], RECORDS[0]]).total
    assert torch.equal(again, first[[2, 0]]) and reward.asked == PROMPTS
    suite(IMAGES[[1, 0, 0, 2]], ["a", "x", "a", "c"], [RECORDS[0], RECORDS[0], {"n": 9}, RECORDS[2]])
    assert reward.asked == [*PROMPTS, "a", "x", "a"], "another picture, prompt or metadata is another score"
    other = Named(bright)
    other.fingerprint = "named-2"
    RewardSuite([RewardEntry("x", other)], cache=suite.cache)(IMAGES, PROMPTS, RECORDS)
    assert other.asked == PROMPTS, "and so is another reward"
    nameless = Toy(bright)
    for _ in range(2):
        RewardSuite([RewardEntry("x", nameless)], cache=suite.cache)(IMAGES, PROMPTS, RECORDS)
    assert len(nameless.asked) == 8, "what has no fingerprint is not stored"


def test_single_nan_are_not_stored(tmp_path: Path) -> None:
    reward = Named(lambda images, *_: torch.tensor([math.nan, 1.0, 2.0, 3.0])[-len(images) :])
    suite = RewardSuite([RewardEntry("x", reward)], cache=RewardCache(str(tmp_path / "cache")))
    suite(IMAGES, PROMPTS, RECORDS)
    assert count(tmp_path / "cache") == 3


def test_the_oldest_scores_are_forgotten(tmp_path: Path) -> None:
    cache = RewardCache(str(tmp_path / "cache"), max_entries=3)
    keys = [score_key("r", "i", str(number), {}) for number in range(6)]
    for number, key in enumerate(keys):
        cache.write({key: number / 3})
    assert cache.read(keys) == {key: number / 3 for number, key in enumerate(keys) if number >= 3}
    cache.write({keys[4]: 9.0})
    assert cache.read(keys)[keys[4]] == 4 / 3, "what is stored stays as it is"
    assert count(tmp_path / "cache") == 3


def test_many_keys_are_read(tmp_path: Path) -> None:
    cache = RewardCache(str(tmp_path / "cache"))
    scores = {score_key("r", "i", str(number), {}): float(number) for number in range(1200)}
    cache.write(scores)
    assert cache.read(list(scores)) == scores


def test_a_damaged_or_foreign_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    path.write_bytes(b"not a database, but long enough to be looked at" * 20)
    with pytest.raises(ValueError, match=f"{path} cannot be used"):
        RewardCache(str(path)).read([b"x"])
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 7")
    with pytest.raises(ValueError, match="has the format 7"):
        RewardCache(str(path)).read([b"x"])
    with pytest.raises(ValueError, match="only finite"):
        RewardCache(str(tmp_path / "other")).write({b"x": math.nan})


def test_keys_do_not_depend_on_the_order_of_metadata() -> None:
    assert score_key("r", "i", "p", {"a": 1, "b": 2}) == score_key("r", "i", "p", {"b": 2, "a": 1})
    assert score_key("r", "i", "p", {}) != score_key("r", "ip", "", {})
    with pytest.raises(ValueError, match="not plain JSON"):
        score_key("r", "i", "p", {"a": object()})


# ------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "a b"}, "one word"),
        ({"reward": 3}, "must be callable, got int"),
        ({"weight": -1}, "weights are at least 0"),
        ({"weight": math.nan}, "weights are at least 0"),
        ({"scale": 0}, "scale that is not 0"),
        ({"offset": math.inf}, "finite offset"),
        ({"time_limit": 0}, "time limit"),
    ],
)
def test_entries_make_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RewardEntry(**{"name": "x", "reward": Toy(number), **options})


def test_suites_make_sense() -> None:
    entry = RewardEntry("x", Toy(number))
    for entries, options, message in (
        ([], {}, "at least one"),
        ([entry, entry], {}, "a name of its own"),
        ([entry], {"combine": "product"}, "sum or mean"),
        ([entry], {"max_pending": 0}, "max_pending"),
    ):
        with pytest.raises(ValueError, match=message):
            RewardSuite(entries, **options)
    with pytest.raises(ValueError, match="no scores of the reward 'x'"):
        RewardSuite([entry]).combine_scores({})
    suite = RewardSuite([entry])
    with pytest.raises(ValueError, match="one prompt and one record"):
        suite(IMAGES, PROMPTS[:3], RECORDS)
    with pytest.raises(ValueError, match="float images"):
        suite((IMAGES * 255).to(torch.uint8), PROMPTS, RECORDS)
    with pytest.raises(ValueError, match="NaN"):
        suite(IMAGES * math.nan, PROMPTS, RECORDS)


CONFIG = """
suite:
  class_path: lightning_gen.rewards.rewards.RewardSuite
  init_args:
    combine: mean
    cache:
      class_path: lightning_gen.rewards.cache.RewardCache
      init_args: {path: scores.sqlite, max_entries: 10}
    entries:
      - name: objects
        weight: 2
        elsewhere: skip
        reward:
          class_path: lightning_gen.rewards.geneval.GenEvalReward
          init_args:
            score: strict
            detector: {class_path: lightning_gen.shapes.detector.ShapesDetector}
      - name: word
        elsewhere: skip
        reward:
          class_path: lightning_gen.rewards.text.OCRReward
          init_args:
            reader: {class_path: lightning_gen.shapes.reader.GlyphReader}
      - name: match
        elsewhere: skip
        reward:
          class_path: lightning_gen.shapes.rewards.RequestMatch
          init_args: {score: strict}
      - {name: harmony, weight: 0, reward: {class_path: lightning_gen.shapes.rewards.ColorHarmony}}
      - {name: sharpness, reward: {class_path: lightning_gen.shapes.rewards.Sharpness}}
      - {name: layout, elsewhere: skip, reward: {class_path: lightning_gen.shapes.rewards.Layout}}
      - {name: letters, elsewhere: skip, reward: {class_path: lightning_gen.shapes.rewards.WordMatch}}
      - name: quality
        needs: [quality]
        elsewhere: skip
        time_limit: 30
        reward:
          class_path: lightning_gen.rewards.remote.RemoteReward
          init_args:
            url: http://localhost:9/score
            model: deqa
            scale: {least: 1, most: 5, divisor: 5}
      - name: unified
        needs: [quality]
        elsewhere: skip
        reward:
          class_path: lightning_gen.rewards.judged.UnifiedReward
          init_args:
            judge:
              class_path: lightning_gen.metrics.judging.http_judge.HTTPJudge
              init_args: {url: "http://localhost:9/v1", model: UnifiedReward, json_mode: false}
      - name: remote_word
        needs: [quality]
        elsewhere: skip
        reward:
          class_path: lightning_gen.rewards.text.OCRReward
          init_args:
            reader: {class_path: lightning_gen.rewards.remote.RemoteTextReader, init_args: {url: "http://localhost:9/v1"}}
"""


def test_everything_is_named_in_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_gen.shapes.render import render
    from tests.shapes.worlds import scenes

    monkeypatch.chdir(tmp_path)
    parser = ArgumentParser()
    parser.add_argument("--suite", type=RewardSuite)
    suite = parser.instantiate(parser.parse_string(CONFIG)).suite
    assert suite.weights["objects"] == 2 and suite.cache.max_entries == 10
    requests, worlds = zip(*scenes(6, words=True), strict=True)
    images = torch.stack([render(scene, (32, 32)) for scene in worlds]).float() / 255
    scores = suite(images, [request.prompt() for request in requests], [request.metadata() for request in requests])
    assert scores.total.isfinite().all()
    assert scores.raw["quality"].isnan().all()
    for name in ("objects", "match", "word", "letters"):
        assert set(scores.raw[name].nan_to_num(1.0).tolist()) == {1.0}
