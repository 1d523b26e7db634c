"""One pass over pictures: every picture counts once, whatever ranks, batches, samplers and epochs do."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_gen.metrics.features import ImageGenerationMetrics, ReconstructionFrechet
from lightning_gen.metrics.frechet import Gaussian, Moments, frechet_distance
from lightning_gen.metrics.inception_score import inception_score
from lightning_gen.metrics.kernel import clip_mmd, kernel_inception_distance
from lightning_gen.metrics.precision_recall import manifold_scores
from lightning_gen.metrics.reference import ReferenceStatistics
from tests.harness import two_processes
from tests.harness.metric_jobs_distribution import SETTINGS, ToyExtractor, evaluate, partial_counts, pictures

REAL, FAKE = pictures(101, 1), pictures(101, 2, 30, 200)
IDS = [
    "gfid/toy/101", "gfid-infinity/toy/101", "sfid/toy/101", "inception_score/toy/101", "precision/toy/101",
    "recall/toy/101", "density/toy/101", "coverage/toy/101", "kid/toy", "cmmd/toy",
]  # fmt: skip


MANIFOLD = ("precision", "recall", "density", "coverage")


def gaussian(rows: Tensor) -> Gaussian:
    moments = Moments(rows.shape[1])
    moments.add(rows)
    return moments.gaussian()


def reference(keep: bool = True) -> ReferenceStatistics:
    return ReferenceStatistics.from_images([REAL], ToyExtractor(), keep=("pool",) if keep else ())


def generation(**settings: Any) -> ImageGenerationMetrics:
    return ImageGenerationMetrics(ToyExtractor(), **{"expected_count": 101, **SETTINGS, **settings})


def test_every_value_is_that_of_its_own_function() -> None:
    metrics = generation(reference=reference())
    for number, batch in enumerate(FAKE.split(17)):
        metrics.update(batch, index=torch.arange(len(batch)) + 17 * number)
    values = metrics.compute()
    assert list(values) == IDS and all(value.dtype == torch.float64 for value in values.values())
    real, fake = ToyExtractor()(REAL), ToyExtractor()(FAKE)
    scores = manifold_scores(fake["pool"], real["pool"])
    wanted = {
        "gfid/toy/101": frechet_distance(gaussian(real["pool"]), gaussian(fake["pool"])),
        "sfid/toy/101": frechet_distance(gaussian(real["spatial"]), gaussian(fake["spatial"])),
        "inception_score/toy/101": inception_score(fake["logits"], 20).mean,
        "precision/toy/101": scores.precision,
        "recall/toy/101": scores.recall,
        "density/toy/101": scores.density,
        "coverage/toy/101": scores.coverage,
        "kid/toy": kernel_inception_distance(fake["pool"], real["pool"], 5, 40).mean,
        "cmmd/toy": clip_mmd(fake["pool"], real["pool"]),
    }
    assert {name: values[name].item() for name in wanted} == pytest.approx(wanted, rel=1e-10)
    assert metrics.extractor.seen == 101  # one forward per picture for all of them


def test_an_ordinary_loop_needs_neither_index_nor_given_reference() -> None:
    numbered, plain = generation(), generation()
    for batch in REAL.split(40):
        plain.update(batch, real=True)
    for batch in FAKE.split(33):
        plain.update(list(batch))
    order = torch.randperm(101, generator=torch.Generator().manual_seed(0))
    for some in order.split(25):
        numbered.update(REAL[some], real=True, index=some)
        numbered.update(FAKE[some], index=some)
    found = {name: value.item() for name, value in numbered.compute().items()}
    assert found == pytest.approx({name: value.item() for name, value in plain.compute().items()}, rel=1e-12)


def merged(parts: list[ImageGenerationMetrics]) -> dict[str, float]:
    """What torchmetrics does with the states of several ranks."""
    whole = parts[0]
    for part in parts[1:]:
        part._update_count = 1
        part._reduce_states({name: getattr(whole, name) for name in whole._defaults})
        whole = part
    return {name: value.item() for name, value in whole.compute().items()}


@pytest.mark.parametrize("settings", [{}, {"metrics": ("gfid", "sfid"), "extrapolate": False}], ids=["kept", "summed"])
def test_uneven_ranks_that_pad_equal_one_pass(settings: dict[str, Any]) -> None:
    """Four ranks as DistributedSampler shares 101 pictures: 26 each, three of them twice."""
    alone = generation(reference=reference(), **settings)
    alone.update(FAKE, index=torch.arange(101))
    wanted = {name: value.item() for name, value in alone.compute().items()}
    padded = torch.cat((torch.arange(101), torch.arange(3)))
    by_index, by_mask = [], []
    for rank in range(4):
        mine = padded[rank::4]
        by_index.append(generation(reference=reference(), **settings))
        by_mask.append(generation(reference=reference(), **settings))
        for batch in mine.split(3 + rank):
            by_index[-1].update(FAKE[batch], index=batch)
        repeated = torch.arange(26) * 4 + rank >= 101
        by_mask[-1].update(FAKE[mine], valid=~repeated, index=mine)
    found = merged(by_index)
    if not settings:
        kept = {name: value for name, value in wanted.items() if not name.startswith("sfid")}
        assert {name: found[name] for name in kept} == kept  # bit for bit
    assert found == pytest.approx(wanted, rel=1e-12)
    assert merged(by_mask) == pytest.approx(wanted, rel=1e-12)


def test_sums_grow_in_blocks_and_the_last_batch_can_be_taken_back() -> None:
    images = pictures(3001, 5)
    settings: dict[str, Any] = {"metrics": ("gfid",), "extrapolate": False, "expected_count": 3001}
    metrics = generation(reference=reference(), **settings)
    for batch in torch.cat((torch.arange(3001), torch.arange(7))).split(500):
        metrics.update(images[batch], index=batch)
    assert int(metrics.fake_pool_count) > 1000
    wanted = frechet_distance(gaussian(ToyExtractor()(REAL)["pool"]), gaussian(ToyExtractor()(images)["pool"]))
    assert metrics.compute()["gfid/toy/3001"].item() == pytest.approx(wanted, rel=1e-12)
    for batch in torch.arange(3001).split(500):
        metrics.update(images[batch], index=batch)
    with pytest.raises(ValueError, match="picture 0 went into the sums more than once"):
        metrics.compute()


def test_another_number_of_samples_has_another_name_and_more_are_refused() -> None:
    metrics = generation(reference=reference(), metrics=("gfid", "inception_score"), extrapolate=False)
    metrics.update(FAKE[:100])
    assert list(metrics.compute()) == ["gfid@100/toy", "inception_score@100/toy"]
    metrics.update(FAKE[:2])
    with pytest.raises(ValueError, match="102 pictures were counted, 101 are expected"):
        metrics.compute()


def test_samples_beyond_the_expected_number_are_left_out_by_their_index() -> None:
    metrics = generation(reference=reference(), metrics=("gfid",), truncate=True, expected_count=60)
    with pytest.raises(ValueError, match="pass index"):
        metrics.update(FAKE)
    metrics.update(FAKE.flip(0), index=torch.arange(101).flip(0))
    wanted = frechet_distance(gaussian(ToyExtractor()(REAL)["pool"]), gaussian(ToyExtractor()(FAKE[:60])["pool"]))
    assert metrics.compute()["gfid/toy/60"].item() == pytest.approx(wanted, rel=1e-10)
    assert metrics.extractor.seen == 60  # what does not count costs nothing


def test_reset_keeps_a_given_reference_and_forgets_real_pictures_unless_told() -> None:
    given, measured, forgetful = generation(reference=reference()), generation(reset_real_features=False), generation()
    values = []
    for metrics in (given, measured, forgetful):
        metrics.update(REAL, real=True)
        for _ in range(2):
            metrics.update(FAKE)
            values.append({name: value.item() for name, value in metrics.compute().items()})
            metrics.reset()
            if metrics is forgetful:
                break
        assert metrics.seen("fake") == 0
    assert all(one == pytest.approx(values[0], rel=1e-12) for one in values[1:])
    assert given.extractor.seen == 2 * 101 and measured.extractor.seen == 3 * 101
    measured.update(REAL, real=True)  # passed over
    assert measured.extractor.seen == 3 * 101 and not measured.needs_reference and forgetful.needs_reference
    forgetful.update(FAKE)
    with pytest.raises(ValueError, match="at least 2 samples, got 0"):
        forgetful.compute()
    measured.forget_reference()
    assert measured.needs_reference
    with pytest.raises(ValueError, match="given at construction"):
        given.forget_reference()


def test_only_a_measured_reference_is_saved() -> None:
    given, metrics = generation(reference=reference()), generation(reset_real_features=False)
    for one in (given, metrics):
        one.update(REAL, real=True)
        one.update(FAKE)
        one.compute()
        assert one.state_dict() == {}
        one.reset()
    assert given.state_dict() == {} and list(metrics.state_dict()) == ["reference"]
    other = generation(reset_real_features=False)
    assert other.load_state_dict(metrics.state_dict()).unexpected_keys == []
    other.update(FAKE)
    metrics.update(FAKE)
    assert other.compute() == metrics.compute()
    assert other.reference is not None and other.reference.source == metrics.reference.source  # type: ignore[union-attr]
    stranger = ImageGenerationMetrics(ToyExtractor(seed=1), **SETTINGS)
    with pytest.raises(ValueError, match="do not compare"):
        stranger.load_state_dict(metrics.state_dict())


def test_a_measurement_says_how_it_was_made() -> None:
    statistics = reference()
    metrics = generation(reference=statistics, quantisation="truncate", sampling="cfg 1.5")
    metrics.update(FAKE, index=torch.arange(101))
    cards = {one.protocol.metric: one for one in metrics.measurements()}
    for one in cards.values():
        details = one.protocol.details
        assert details["extractor"] == "toy" and details["extractor_sha256"] == metrics.extractor.fingerprint
        assert details["quantisation"] == "truncate" and details["sampling"] == "cfg 1.5"
        assert details["dtype"] == "float32"
    assert all(
        one.protocol.details["reference_sha256"] == statistics.source
        for name, one in cards.items()
        if name != "inception_score"
    )
    assert cards["gfid"].error is not None and cards["gfid"].error > 0 and cards["sfid"].error is None
    assert cards["gfid-infinity"].value < cards["gfid"].value
    assert cards["kid"].protocol.details["seed"] == 2020 and cards["kid"].protocol.details["subsets"] == 5
    assert cards["precision"].protocol.details["k"] == 3 and "101 here, 10,000 in published" in cards["recall"].note
    assert cards["inception_score"].protocol.details["splits"] == 6 and cards["gfid"].note == ""


def test_few_samples_warn_and_the_warning_travels_with_the_value() -> None:
    metrics = generation(reference=reference(), metrics=("fdd",), extrapolate=False)
    metrics.update(FAKE[:7])
    with pytest.warns(UserWarning, match="7 samples of 8 features.*about c / N"):
        values = metrics.compute()
    assert list(values) == ["fdd@7/toy"] and "7 samples of 8 features" in metrics.measurements()[0].note


def test_casts_and_deep_copies_leave_float64_sums_alone() -> None:
    metrics = generation(reference=reference())
    metrics.update(FAKE, index=torch.arange(101))
    wanted = generation(reference=reference())
    wanted.update(FAKE, index=torch.arange(101))
    parent = torch.nn.ModuleList([metrics])
    parent.to(torch.bfloat16)
    parent.half()
    assert metrics.fake_spatial_outer.dtype == torch.float64
    copied = copy.deepcopy(metrics)
    assert copied.compute() == metrics.compute() == wanted.compute()
    assert list(parent.parameters()) == [] and parent.state_dict() == {}


def test_states_reset_inside_a_validation_loop_can_be_used_outside() -> None:
    metrics = generation(reference=reference(), metrics=("gfid",), extrapolate=False, expected_count=5000)
    with torch.inference_mode():
        metrics.update(FAKE)
        metrics.reset()
    for _ in range(30):
        metrics.update(FAKE)
    assert int(metrics.fake_pool_count) > 1000 and "gfid@3030/toy" in metrics.compute()


def test_a_forward_counts_and_computes_nothing() -> None:
    metrics = generation(reference=reference(), metrics=("gfid",), extrapolate=False)
    assert metrics(FAKE) == {} and metrics.seen("fake") == 101


def test_reconstructions_are_compared_with_their_originals() -> None:
    metrics = ReconstructionFrechet(ToyExtractor(), expected_count=101)
    index = torch.cat((torch.arange(101), torch.arange(4)))
    for some in index.split(21):
        metrics.update(FAKE[some], REAL[some], index=some)
    metrics.update(FAKE[:2], REAL[:2], valid=torch.tensor([False, False]))
    values = metrics.compute()
    real, fake = (gaussian(ToyExtractor()(images)["pool"]) for images in (REAL, FAKE))
    assert values["rfid/toy/101"].item() == pytest.approx(frechet_distance(real, fake), rel=1e-10)
    assert "originals" in str(metrics.measurements()[0].protocol.details["reference"])
    same = ReconstructionFrechet(ToyExtractor(), "rfdd")
    same.update(REAL, REAL)
    assert abs(same.compute()["rfdd@101/toy"].item()) < 1e-8
    with pytest.raises(ValueError, match="2 reconstructions, 3 originals"):
        same.update(FAKE[:2], REAL[:3])


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown metrics"):
        generation(metrics=("fid",))
    with pytest.raises(ValueError, match="holds none: build it with keep"):
        generation(reference=reference(keep=False))
    with pytest.raises(ValueError, match="the samples would go through toy"):
        other = ReferenceStatistics.from_images([REAL], ToyExtractor(seed=3), keep=("pool",))
        generation(reference=other)
    metrics = generation(reference=reference(), metrics=("gfid",))
    with pytest.raises(ValueError, match="signed_to_uint8"):
        metrics.update(FAKE.float())
    with pytest.raises(ValueError, match="bool mask of 101"):
        metrics.update(FAKE, valid=torch.ones(101))
    with pytest.raises(ValueError, match="101 whole numbers"):
        metrics.update(FAKE, index=torch.arange(100))
    metrics.update(FAKE[:50], index=torch.arange(50))
    metrics.update(FAKE[50:])
    with pytest.raises(ValueError, match="some pictures were counted with their index"):
        metrics.compute()


@pytest.mark.parametrize("masked", [False, True])
def test_a_rank_without_pictures_adds_nothing(masked: bool) -> None:
    pair = two_processes(partial_counts, masked)
    assert pair[0] == pair[1] and set(pair[0]) == {"gfid@2300/toy", "kid/toy"}


def test_two_processes_of_a_lightning_module_equal_one(tmp_path: Path) -> None:
    """The values of kept features to the last bit, sums (sFID) to 1e-12; the same after reset and from a checkpoint."""
    first, second, seen = evaluate(tmp_path, 1, 16)
    assert list(first) == IDS and second == pytest.approx(first, rel=1e-12)
    assert seen == 101  # the reference came from the checkpoint
    for rank_first, rank_second, _ in two_processes(evaluate, tmp_path, 2, 7):
        for values in (rank_first, rank_second):
            assert {name: values[name] for name in IDS if "sfid" not in name} == {
                name: first[name] for name in IDS if "sfid" not in name
            }
            assert values == pytest.approx(first, rel=1e-12)


def test_the_error_of_the_inception_score_is_that_of_a_mean_of_its_splits() -> None:
    metrics = generation(reference=reference(), metrics=("inception_score",))
    metrics.update(FAKE)
    (found,) = metrics.measurements()
    splits = torch.tensor(inception_score(ToyExtractor()(FAKE)["logits"], 20).splits)
    assert len(splits) == 6 and found.error == pytest.approx(float(splits.std(correction=1)) / 6**0.5, rel=1e-6)


def test_a_value_that_cannot_be_computed_leaves_the_others_alone() -> None:
    """Ten samples: no subset of 40, but neighbours and moments; two: no third neighbour either; one: a score alone."""
    for count, impossible in ((10, {"kid"}), (2, {"kid", *MANIFOLD, "gfid-infinity"}), (1, {"all"})):
        metrics = generation(reference=reference())
        metrics.update(FAKE[:count])
        with pytest.warns(UserWarning, match=f"kid: subsets of 40 cannot be drawn from {count} samples"):
            found = {one.protocol.metric: one for one in metrics.measurements()}
        if impossible == {"all"}:
            impossible = set(found) - {"inception_score"}
        assert {name for name, one in found.items() if one.value != one.value} == impossible
        assert all(bool(found[name].note) for name in impossible)
    assert found["precision"].note == "1 samples have no neighbour number 3"
    few = ReferenceStatistics.from_images([REAL[:3]], ToyExtractor(), keep=("pool",))
    metrics = generation(reference=few, metrics=("precision_recall", "cmmd"))
    metrics.update(FAKE)
    with pytest.warns(UserWarning, match="3 reference pictures have no neighbour number 3"):
        values = {one.protocol.metric: one.value for one in metrics.measurements()}
    assert values["recall"] != values["recall"] and values["cmmd"] > 0
    pair = ReconstructionFrechet(ToyExtractor())
    pair.update(FAKE[:1], REAL[:1])
    with pytest.warns(UserWarning, match="at least 2 pictures, not 1 pairs"):
        (one,) = pair.measurements()
    assert one.value != one.value and one.note and one.protocol.id == "rfid@1/toy"


def test_settings_without_meaning_are_refused_at_once() -> None:
    for name, value in (("kid_subset_size", 1), ("neighbours", 0), ("split_size", 0), ("kid_subsets", 0)):
        with pytest.raises(ValueError, match=f"{name} is at least"):
            generation(**{name: value})


def test_distances_on_features_they_are_not_defined_on_say_so() -> None:
    for metric, kind in (("fdd", "DINOv2"), ("gfdd", "DINOv3"), ("rfdd", "DINO"), ("cmmd", "CLIP")):
        metrics = generation(reference=reference(), metrics=(metric,), extrapolate=False)
        metrics.update(FAKE)
        (one,) = metrics.measurements()
        assert one.note == f"{metric} is defined on features of {kind}, these are of toy"
    own = ToyExtractor("dinov2-l14")
    statistics = ReferenceStatistics.from_images([REAL], own, keep=("pool",))
    metrics = ImageGenerationMetrics(own, statistics, ("fdd", "gfid"), expected_count=101)
    metrics.update(FAKE)
    assert [one.note for one in metrics.measurements()] == ["", ""]
    own.note = "other weights"
    metrics = ImageGenerationMetrics(own, statistics, ("fdd", "gfid"), expected_count=101)
    metrics.update(FAKE)
    assert {one.note for one in metrics.measurements()} == {"other weights"}
