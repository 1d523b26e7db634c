from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gen.metrics.lpips import LPIPS, LearnedPerceptualSimilarity, LPIPSNet

NETS: tuple[LPIPSNet, ...] = ("alex", "squeeze", "vgg")
SIZES = {"alex": (63, 50), "squeeze": (40, 33), "vgg": (32, 20)}
MODELS = {"alex": "alexnet", "squeeze": "squeezenet1_1", "vgg": "vgg16"}


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def random_state(net: str) -> dict[str, Tensor]:
    """The weights of torchvision's network, the classifier cut down to one tensor."""
    import torchvision

    with torch.device("meta"):
        model = getattr(torchvision.models, MODELS[net])(weights=None)
    generator = torch.Generator().manual_seed(5)
    state = {}
    for name, tensor in model.features.state_dict().items():
        fan_in = tensor[0].numel() if tensor.ndim == 4 else 1
        scale = math.sqrt(2 / fan_in) if tensor.ndim == 4 else 0.1
        state[f"features.{name}"] = scale * torch.randn(tensor.shape, generator=generator)
    return state | {"classifier.1.weight": torch.zeros(2, 2)}


@pytest.fixture(scope="module")
def trunks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("trunks")
    for net in NETS:
        torch.save(random_state(net), folder / f"{net}.pth", _use_new_zipfile_serialization=net != "alex")
    return {net: str(folder / f"{net}.pth") for net in NETS}


@pytest.fixture(scope="module")
def distances(trunks: dict[str, str]) -> dict[str, LPIPS]:
    return {net: LPIPS(trunks[net], net) for net in NETS}


@pytest.fixture(params=NETS)
def net(request: pytest.FixtureRequest) -> LPIPSNet:
    return request.param


def replace_trunk(package: Any, net: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the other package find our random trunk; it would download the real one."""
    make = getattr(package, MODELS[net])

    def without_download(*_: Any, **__: Any) -> Any:
        with torch.device("meta"):
            model = make(weights=None)
        state = {name.removeprefix("features."): tensor for name, tensor in torch.load(path).items()}
        state.pop("classifier.1.weight")
        model.features.load_state_dict(state, assign=True)
        return model

    monkeypatch.setattr(package, MODELS[net], without_download)


def test_it_is_the_package_lpips(
    net: LPIPSNet, trunks: dict[str, str], distances: dict[str, LPIPS], monkeypatch: pytest.MonkeyPatch
) -> None:
    import lpips
    import lpips.pretrained_networks

    replace_trunk(lpips.pretrained_networks.tv, net, trunks[net], monkeypatch)
    load = torch.load
    # The package's own copies of the heads were stored on a GPU by an old torch.
    monkeypatch.setattr(torch, "load", lambda path, **kw: load(path, **{**kw, "map_location": "cpu"}))
    reference = lpips.LPIPS(net=net, verbose=False)
    y, x = images(3, 3, *SIZES[net]), images(3, 3, *SIZES[net], seed=1)
    x[2] = y[2] * 0.9
    with torch.no_grad():
        expected = reference(y, x)[:, 0, 0, 0]
    assert expected.min() > 5e-5
    torch.testing.assert_close(distances[net](y, x), expected, rtol=1e-6, atol=1e-6)


def test_it_is_that_of_torchmetrics_but_for_the_epsilon(
    net: LPIPSNet, trunks: dict[str, str], distances: dict[str, LPIPS], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision
    from torchmetrics.functional.image.lpips import _LPIPS

    replace_trunk(torchvision.models, net, trunks[net], monkeypatch)
    reference = _LPIPS(net=net)
    y, x = images(2, 3, *SIZES[net]), images(2, 3, *SIZES[net], seed=1)
    with torch.no_grad():
        expected = reference(y, x)[:, 0, 0, 0]
    torch.testing.assert_close(distances[net](y, x), expected, rtol=1e-5, atol=1e-6)


def test_it_is_its_definition(distances: dict[str, LPIPS]) -> None:
    """Layer by layer on alex, in float64 and with indices written out."""
    lpips = distances["alex"]
    y, x = images(1, 3, 63, 50), images(1, 3, 63, 50, seed=1)
    trunk = copy.deepcopy(lpips.network.trunk).double()
    shift = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float64)[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450], dtype=torch.float64)[:, None, None]
    sides = [(side.double() - shift) / scale for side in (y, x)]
    total = 0.0
    for number, layer in enumerate(trunk):
        sides = [layer(side) for side in sides]
        if number in (1, 4, 7, 9, 11):
            head = lpips.network.heads[(1, 4, 7, 9, 11).index(number)].double().flatten()
            a, b = (side[0] / (side[0].norm(dim=0) + 1e-10) for side in sides)
            total += float((head[:, None, None] * (a - b) ** 2).sum(0).mean())
    assert float(lpips(y, x)) == pytest.approx(total, rel=1e-5)


def test_equal_images_have_no_distance_and_it_is_symmetric(net: LPIPSNet, distances: dict[str, LPIPS]) -> None:
    y, x = images(2, 3, *SIZES[net]), images(2, 3, *SIZES[net], seed=1)
    assert torch.equal(distances[net](x, x), torch.zeros(2))
    torch.testing.assert_close(distances[net](y, x), distances[net](x, y), rtol=1e-6, atol=0)
    nearer = distances[net](x + 0.1 * (y - x), x)
    assert (nearer < distances[net](y, x)).all() and (nearer > 0).all()


def test_the_input_range_is_minus_1_to_1(distances: dict[str, LPIPS]) -> None:
    y, x = images(1, 3, 63, 50), images(1, 3, 63, 50, seed=1)
    assert float(distances["alex"]((y + 1) / 2, (x + 1) / 2)) < 0.9 * float(distances["alex"](y, x))


def test_an_image_does_not_depend_on_its_batch(distances: dict[str, LPIPS]) -> None:
    y, x = images(3, 3, 63, 50), images(3, 3, 63, 50, seed=1)
    alone = torch.cat([distances["alex"](y[i : i + 1], x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(distances["alex"](y, x), alone, rtol=1e-6, atol=1e-7)


def test_gradients_flow_to_the_image_and_stay_finite_where_features_are_0(distances: dict[str, LPIPS]) -> None:
    lpips = distances["squeeze"]
    x = torch.zeros(1, 3, 40, 33)
    y = x.clone().requires_grad_()
    lpips(y, x).sum().backward()
    assert y.grad is not None and y.grad.isfinite().all()
    y = images(1, 3, 40, 33, seed=2).requires_grad_()
    with torch.no_grad():
        for parameter in (first := copy.deepcopy(lpips)).network.trunk[0].parameters():
            parameter.copy_(-parameter.abs())  # no feature of the first layer survives the ReLU on a white image
    white = torch.ones(1, 3, 40, 33).requires_grad_()
    first(white, y.detach()).sum().backward()
    assert white.grad is not None and white.grad.isfinite().all()
    lpips(y, x).sum().backward()
    assert y.grad.isfinite().all() and y.grad.abs().sum() > 0  # type: ignore[union-attr]
    assert all(parameter.grad is None for parameter in lpips.network.parameters())


def test_precision_of_the_run_does_not_matter_and_a_parent_does_not_own_it(distances: dict[str, LPIPS]) -> None:
    lpips = copy.deepcopy(distances["squeeze"])
    y, x = images(1, 3, 40, 33), images(1, 3, 40, 33, seed=1)
    expected = lpips(y, x)
    parent = nn.Module()
    parent.lpips = lpips
    parent.to(torch.bfloat16).train()
    assert not list(parent.parameters()) and not parent.state_dict()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(parent.lpips(y, x), expected)
    assert lpips(y.to(torch.bfloat16), x.to(torch.bfloat16)).dtype == torch.float32


def test_files_of_other_networks_are_refused(trunks: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="other weights than torchvision's squeezenet1_1"):
        LPIPS(trunks["alex"], "squeeze")
    with pytest.raises(ValueError, match="unknown net"):
        LPIPS(trunks["alex"], "resnet")  # type: ignore[arg-type]
    for name in ("none.pth", "none.safetensors"):
        with pytest.raises(FileNotFoundError):
            LPIPS(str(tmp_path / name))
    torch.save({"lin0.model.1.weight": torch.ones(1, 64, 1, 1)}, tmp_path / "heads.pth")
    with pytest.raises(ValueError, match="does not hold the linear weights of LPIPS for net='squeeze'"):
        LPIPS(trunks["squeeze"], "squeeze", str(tmp_path / "heads.pth"))


def test_heads_and_trunk_from_files(trunks: dict[str, str], distances: dict[str, LPIPS], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    channels = (64, 128, 256, 384, 384, 512, 512)
    heads = {f"lin{i}.model.1.weight": torch.ones(1, width, 1, 1) for i, width in enumerate(channels)}
    save_file(heads, tmp_path / "heads.safetensors")
    save_file(torch.load(trunks["squeeze"]), tmp_path / "trunk.safetensors")
    lpips = LPIPS(str(tmp_path / "trunk.safetensors"), "squeeze", str(tmp_path / "heads.safetensors"))
    y, x = images(1, 3, 40, 33), images(1, 3, 40, 33, seed=1)
    expected = 0.0
    for layer_y, layer_x in zip(*(lpips.network._layers(side) for side in (y, x)), strict=True):
        expected += 2 - 2 * float(torch.cosine_similarity(layer_y, layer_x).mean())
    assert float(lpips(y, x)) == pytest.approx(expected, rel=1e-4)
    assert lpips.heads_sha256 != distances["squeeze"].heads_sha256


def test_images_that_cannot_be_compared_are_refused(net: LPIPSNet, distances: dict[str, LPIPS]) -> None:
    y = images(1, 3, *SIZES[net])
    for other in (images(2, 3, *SIZES[net]), y[:, :1], y[0], (y * 127).to(torch.uint8)):
        with pytest.raises(ValueError, match=r"two float batches \(B, 3, H, W\)"):
            distances[net](y, other)
    smallest = {"alex": 31, "vgg": 16, "squeeze": 17}[net]
    assert distances[net](y[..., :smallest, :smallest], y[..., :smallest, :smallest]).isfinite().all()
    small = y[..., : smallest - 1]
    with pytest.raises(ValueError, match=f"at least {smallest} x {smallest}"):
        distances[net](small, small)
    with pytest.raises(RuntimeError):
        distances[net].network(small, small)  # the limit is not stricter than the network's own


# ------------------------------------------------------------------ metric


def test_the_metric_is_the_mean_over_images_of_any_sizes(distances: dict[str, LPIPS]) -> None:
    lpips = distances["squeeze"]
    ys, xs = ([images(3, 20 + 5 * i, 30, seed=i + s) for i in range(3)] for s in (0, 10))
    expected = torch.cat([lpips(y[None], x[None]) for y, x in zip(ys, xs, strict=True)]).double()
    metric = LearnedPerceptualSimilarity(lpips)
    metric.update(ys[:2], xs[:2], torch.tensor([True, False]))
    metric.update(ys[2:], xs[2:])
    torch.testing.assert_close(metric.compute(), expected[[0, 2]].mean(), rtol=1e-6, atol=0)
    assert metric.num_images == 2 and metric.higher_is_better is False
    assert not list(metric.parameters())


def test_the_metric_clamps_and_compares_8_bit_values_on_request(distances: dict[str, LPIPS]) -> None:
    x = torch.full((1, 3, 24, 24), 100 / 127.5 - 1)
    assert float(LearnedPerceptualSimilarity(distances["squeeze"]).per_image(x + 0.4 / 127.5, x)) > 0
    metric = LearnedPerceptualSimilarity(distances["squeeze"], quantise=True)
    assert float(metric.per_image(x + 0.4 / 127.5, x)) == 0
    assert float(metric.per_image(x * 0 + 5, x * 0 + 1)) == 0


def test_the_protocol_says_what_was_measured_with(distances: dict[str, LPIPS]) -> None:
    protocol = LearnedPerceptualSimilarity(distances["squeeze"], quantise=True).protocol
    assert protocol.id == "lpips/squeeze"
    assert protocol.details["trunk"] == distances["squeeze"].trunk_sha256 and protocol.details["quantise"] is True
    assert protocol.details["trunk_is_published"] is False


def test_a_published_trunk_is_told_by_its_hash(distances: dict[str, LPIPS]) -> None:
    lpips = copy.deepcopy(distances["squeeze"])
    lpips.trunk_sha256 = "b8a52dc0" + "0" * 56
    assert lpips.is_published
    lpips.net = "alex"
    assert not lpips.is_published


def test_a_target_of_another_range_is_refused(trunks: dict[str, str]) -> None:
    lpips = LPIPS(trunks["squeeze"], "squeeze")
    good, levels = images(1, 3, 40, 33), 255 * images(1, 3, 40, 33).abs()
    for call in (lpips, LearnedPerceptualSimilarity(lpips).per_image):
        with pytest.raises(ValueError, match=r"expected \[-1, 1\].*uint8_to_signed"):
            call(good, levels)
    asked = good.clone().requires_grad_()
    with pytest.raises(ValueError, match=r"expected \[-1, 1\]"):
        LPIPS(trunks["squeeze"], "squeeze")(asked, levels)  # the first step of a training
    assert lpips(good * math.nan, good).isnan().all() and lpips(3 * good, good).isfinite().all()


def test_training_steps_do_not_wait_for_the_check(trunks: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_gen.metrics import lpips as module

    lpips, seen = LPIPS(trunks["squeeze"], "squeeze"), []
    monkeypatch.setattr(module, "check_target_range", seen.append)
    good = images(1, 3, 40, 33)
    for _ in range(3):
        lpips(good.clone().requires_grad_(), good)
    assert len(seen) == 1
    lpips(good, good)
    with torch.no_grad():
        lpips(good.clone().requires_grad_(), good)
    assert len(seen) == 3
