from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightning_gen.data.transforms import uint8_to_signed
from lightning_gen.metrics.contact_sheet import best_median_worst
from lightning_gen.metrics.extraction.feature_extractor import ModuleExtractor
from lightning_gen.metrics.features import ReconstructionFrechet
from lightning_gen.metrics.lpips import LPIPS
from lightning_gen.metrics.reconstruction import EIGHT_BIT_PSNR, psnr_per_image, ssim_per_image
from lightning_gen.metrics.reconstruction_table import reconstruction_table
from lightning_gen.metrics.reconstruction_variants import muse_ssim_per_image

SIZES = [(24, 30), (24, 30), (20, 20), (24, 30), (33, 18)]


def pictures() -> tuple[list[Tensor], list[Tensor]]:
    """Originals, and reconstructions that get worse from one to the next; the first is perfect."""
    generator = torch.Generator().manual_seed(0)
    originals = [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in SIZES]
    worse = []
    for number, original in enumerate(originals):
        noise = torch.randint(-10 * number, 10 * number + 1, original.shape, generator=generator)
        worse.append((original.int() + noise).clamp(0, 255).to(torch.uint8))
    return worse, originals


@pytest.fixture(scope="module")
def lpips(tmp_path_factory: pytest.TempPathFactory) -> LPIPS:
    import torchvision

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("trunk") / "squeeze.pth"
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), path)
    return LPIPS(str(path), "squeeze")


def extractor() -> ModuleExtractor:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(3, 4, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return ModuleExtractor(network, "toy", size=16)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_all_numbers_of_all_pairs(lpips: LPIPS, batch_size: int) -> None:
    ys, xs = pictures()
    table = reconstruction_table(iter(ys), iter(xs), lpips, variants=True, batch_size=batch_size)
    sides = [uint8_to_signed(y) for y in ys], [uint8_to_signed(x) for x in xs]
    expected = {
        "psnr": psnr_per_image(*sides, quantise=True),
        "ssim": ssim_per_image(*sides, quantise=True, scale="unit"),
        "lpips": torch.cat([lpips(y[None], x[None]) for y, x in zip(*sides, strict=True)]).double(),
    }
    assert set(table.per_image) == set(expected)
    for name, values in expected.items():
        torch.testing.assert_close(table.per_image[name], values, rtol=1e-5, atol=1e-6)
    by_id = {one.protocol.id: one for one in table.measurements}
    means = ["psnr/image-mean", "ssim/gaussian-11", "lpips/squeeze"]
    assert list(by_id) == [*means, "psnr/pooled-error", "ssim/gaussian-11-signed", "ssim/muse"]
    for one, name in zip(table.measurements, expected, strict=False):
        assert one.value == pytest.approx(float(expected[name].mean()), rel=1e-5)
        assert one.error == pytest.approx(float(expected[name].std()) / math.sqrt(5), rel=1e-4)
        assert one.protocol.count == 5
    assert (by_id["psnr/image-mean"].unit, by_id["ssim/gaussian-11"].unit) == ("dB", "")
    assert "torchvision" in by_id["lpips/squeeze"].note
    muse = muse_ssim_per_image(*sides, quantise=True)
    signed = ssim_per_image(*sides, quantise=True, scale="signed")
    assert by_id["ssim/gaussian-11-signed"].value == pytest.approx(float(signed.mean()), rel=1e-9)
    assert by_id["ssim/gaussian-11-signed"].value != pytest.approx(by_id["ssim/gaussian-11"].value, abs=1e-3)
    assert "ViTok" in by_id["ssim/gaussian-11-signed"].note
    assert by_id["ssim/muse"].value == pytest.approx(float(muse.mean()), rel=1e-9) and by_id["ssim/muse"].note


def test_ssim_is_what_its_card_says() -> None:
    """8-bit values with a range of 255, and MUSE's on [0, 1] with a range of 2, by scikit-image."""
    from skimage.metrics import structural_similarity

    ys, xs = pictures()
    by_id = {one.protocol.id: one for one in reconstruction_table(ys, xs, variants=True).measurements}
    common = {"channel_axis": 0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}

    def wanted(scale: float, data_range: float) -> float:
        pairs = zip(ys, xs, strict=True)
        values = [structural_similarity(y.numpy() / scale, x.numpy() / scale, data_range=data_range, **common)
                  for y, x in pairs]  # fmt: skip
        return float(sum(values) / len(values))

    card = by_id["ssim/gaussian-11"].protocol.details
    assert card["values"] == "8 bits" and card["range"] == 255
    assert by_id["ssim/gaussian-11"].value == pytest.approx(wanted(1, 255), abs=1e-9)
    assert by_id["ssim/muse"].value == pytest.approx(wanted(255, 2), abs=1e-9)
    assert by_id["ssim/gaussian-11-signed"].protocol.details["range"] == 2


def test_psnr_is_that_of_the_stored_levels() -> None:
    ys, xs = pictures()
    table = reconstruction_table(ys, xs, variants=True)
    assert list(table.per_image) == ["psnr", "ssim"]
    errors = [(y.double() - x.double()).square().mean() for y, x in zip(ys, xs, strict=True)]
    expected = [min(float(10 * torch.log10(255**2 / error)), EIGHT_BIT_PSNR) for error in errors]
    assert table.per_image["psnr"].tolist() == pytest.approx(expected, rel=1e-9)
    assert expected[0] == EIGHT_BIT_PSNR
    pooled = 10 * math.log10(255**2 / float(torch.stack(errors).mean()))
    (of_pool,) = (one.value for one in table.measurements if one.protocol.method == "pooled-error")
    assert of_pool == pytest.approx(pooled, rel=1e-9)
    assert pooled < sum(expected) / 5 - 1


def test_a_perfect_set() -> None:
    _, xs = pictures()
    table = reconstruction_table(xs, xs, variants=True)
    assert [one.value for one in table.measurements] == pytest.approx([EIGHT_BIT_PSNR, 1, EIGHT_BIT_PSNR, 1, 1])
    single = reconstruction_table(xs[:1], xs[:1])
    assert single.measurements[0].error is None


def test_the_worst_can_be_shown() -> None:
    ys, xs = pictures()
    table = reconstruction_table(ys, xs)
    chosen = best_median_worst(table.per_image["psnr"].tolist(), higher_is_better=True, count=1)
    assert (chosen.best, chosen.median, chosen.worst) == ([0], [2], [4])


def test_distances_of_both_sets_are_measured_on_the_way() -> None:
    ys, xs = pictures()
    table = reconstruction_table(ys, xs, frechet=[ReconstructionFrechet(extractor(), expected_count=5)], batch_size=2)
    alone = ReconstructionFrechet(extractor(), expected_count=5)
    alone.update(ys, xs)
    (expected,) = alone.measurements()
    last = table.measurements[-1]
    assert last.protocol.metric == "rfid" and last.protocol.count == 5
    assert last.value == pytest.approx(expected.value, rel=1e-6) and last.value > 0
    swapped = reconstruction_table(xs, xs, frechet=[ReconstructionFrechet(extractor(), expected_count=5)])
    assert abs(swapped.measurements[-1].value) < 1e-6


def test_pairs_that_are_none_are_named() -> None:
    ys, xs = pictures()
    with pytest.raises(ValueError, match="pair 4 has no reconstruction"):
        reconstruction_table(ys[:4], xs)
    with pytest.raises(ValueError, match="pair 3 has no original"):
        reconstruction_table(ys, xs[:3], batch_size=2)
    with pytest.raises(ValueError, match=r"pair 2: a reconstruction \(3, 20, 20\) of an original \(3, 24, 30\)"):
        reconstruction_table(ys, [xs[0]] * 5)
    with pytest.raises(ValueError, match=r"original 1.*torch.float32"):
        reconstruction_table(ys, [xs[0], uint8_to_signed(xs[1])])
    with pytest.raises(ValueError, match="no pictures to compare"):
        reconstruction_table([], [])


def test_image_sets_can_be_compared(tmp_path: Path) -> None:
    from itertools import chain

    from PIL import Image

    from lightning_gen.metrics.image_sets import open_images

    ys, xs = pictures()
    sides = []
    for name, images in (("out", ys), ("val", xs)):
        (tmp_path / name).mkdir()
        for number, image in enumerate(images):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / name / f"{number}.png")
        sides.append(chain.from_iterable(open_images(tmp_path / name).batches(2)))
    table = reconstruction_table(*sides)
    assert torch.equal(table.per_image["psnr"], reconstruction_table(ys, xs).per_image["psnr"])
