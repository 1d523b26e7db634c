"""The network: its counts, its five peculiarities, and the order of the features of sFID."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.metrics.extraction import inception
from lightning_gen.metrics.extraction.inception import InceptionV3, spatial_features
from lightning_gen.metrics.extraction.inception_script import probe_pictures
from tests.harness.tiny_inception import random_inception_state


@pytest.fixture(scope="module")
def network() -> InceptionV3:
    with torch.device("meta"):
        built = InceptionV3()
    built.load_state_dict(random_inception_state(), assign=True)
    return built.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def features(network: InceptionV3) -> dict[str, Tensor]:
    return network(probe_pictures(2))


def test_counts_on_the_meta_device() -> None:
    with torch.device("meta"):
        built = InceptionV3()
    state = built.state_dict()
    assert len(state) == 566
    assert sum(parameter.numel() for parameter in built.parameters()) == 23_850_960
    convolutions = [module for module in built.modules() if isinstance(module, nn.Conv2d)]
    norms = [module for module in built.modules() if isinstance(module, nn.BatchNorm2d)]
    assert (len(convolutions), len(norms)) == (94, 94)
    assert all(norm.eps == 1e-3 for norm in norms)
    assert all(convolution.bias is None for convolution in convolutions)


def test_names_and_shapes_of_the_published_state_dict() -> None:
    with torch.device("meta"):
        state = InceptionV3().state_dict()
    published = {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Conv2d_1a_3x3.bn.running_mean": (32,),
        "Conv2d_4a_3x3.bn.num_batches_tracked": (),
        "Mixed_5b.branch1x1.conv.weight": (64, 192, 1, 1),
        "Mixed_5b.branch5x5_2.conv.weight": (64, 48, 5, 5),
        "Mixed_5d.branch3x3dbl_3.bn.weight": (96,),
        "Mixed_5c.branch_pool.conv.weight": (64, 256, 1, 1),
        "Mixed_6a.branch3x3.conv.weight": (384, 288, 3, 3),
        "Mixed_6b.branch7x7_2.conv.weight": (128, 128, 1, 7),
        "Mixed_6d.branch7x7dbl_2.conv.weight": (160, 160, 7, 1),
        "Mixed_6e.branch7x7dbl_5.conv.weight": (192, 192, 1, 7),
        "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
        "Mixed_7b.branch3x3_2a.conv.weight": (384, 384, 1, 3),
        "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
        "Mixed_7c.branch_pool.bn.running_var": (192,),
        "fc.weight": (1008, 2048),
        "fc.bias": (1008,),
    }
    assert {name: tuple(state[name].shape) for name in published} == published
    assert not [name for name in state if "Aux" in name]


def test_shapes_of_the_features(features: dict[str, Tensor]) -> None:
    shapes = {name: tuple(feature.shape) for name, feature in features.items()}
    assert shapes == {"pool": (2, 2048), "spatial": (2, 2023), "logits": (2, 1008)}


def test_average_pools_leave_the_padding_out(
    network: InceptionV3, features: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inception, "_mean_of_neighbours", lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=True))
    changed = network(probe_pictures(2))["pool"]
    assert abs(float(changed.mean() / features["pool"].mean()) - 1) > 0.01


def test_the_last_block_has_a_max_pool(
    network: InceptionV3, features: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inception, "_largest_neighbour", inception._mean_of_neighbours)
    changed = network(probe_pictures(2))["pool"]
    assert abs(float(changed.mean() / features["pool"].mean()) - 1) > 0.01


def test_which_block_has_which_pool(network: InceptionV3, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    average, largest = inception._mean_of_neighbours, inception._largest_neighbour
    monkeypatch.setattr(inception, "_mean_of_neighbours", lambda x: calls.append("average") or average(x))
    monkeypatch.setattr(inception, "_largest_neighbour", lambda x: calls.append("largest") or largest(x))
    network(probe_pictures(1))
    assert calls == ["average"] * 8 + ["largest"]
    border = average(torch.ones(1, 1, 3, 3))
    assert torch.equal(border, torch.ones(1, 1, 3, 3))


def test_logits_have_no_bias(network: InceptionV3, features: dict[str, Tensor]) -> None:
    assert float(network.fc.bias.abs().min()) >= 0 and float(network.fc.bias.abs().mean()) > 0.1
    wanted = features["pool"].double() @ network.fc.weight.double().T
    assert torch.allclose(features["logits"].double(), wanted, atol=1e-4)
    assert not torch.allclose(features["logits"], network.fc(features["pool"]), atol=1e-2)


def test_pooled_features_are_the_mean_of_the_last_block(network: InceptionV3, features: dict[str, Tensor]) -> None:
    seen: list[Tensor] = []
    handle = network.Mixed_7c.register_forward_hook(lambda module, inputs, output: seen.append(output))
    network(probe_pictures(2))
    handle.remove()
    assert seen[0].shape == (2, 2048, 8, 8)
    assert torch.allclose(features["pool"], seen[0].mean((2, 3)), rtol=1e-6)


def test_spatial_features_are_channels_last_of_the_right_block(
    network: InceptionV3, features: dict[str, Tensor]
) -> None:
    seen: list[Tensor] = []
    handle = network.Mixed_6d.register_forward_hook(lambda module, inputs, output: seen.append(output))
    network(probe_pictures(2))
    handle.remove()
    block = seen[0]
    assert block.shape == (2, 768, 17, 17)
    for c, h, w in [(0, 0, 0), (6, 16, 16), (3, 2, 11), (5, 14, 1), (1, 0, 16)]:
        assert torch.equal(features["spatial"][:, (h * 17 + w) * 7 + c], block[:, c, h, w])
    numbered = torch.arange(768 * 17 * 17.0).reshape(1, 768, 17, 17)
    found = spatial_features(numbered)[0]
    assert found.shape == (2023,)
    assert found[:8].tolist() == [0, 289, 578, 867, 1156, 1445, 1734, 1]


def test_a_picture_does_not_depend_on_its_batch(network: InceptionV3, features: dict[str, Tensor]) -> None:
    alone = network(probe_pictures(2)[1:])
    for name, feature in features.items():
        assert torch.allclose(alone[name][0], feature[1], rtol=1e-6, atol=1e-6 * float(feature.abs().max())), name


def test_another_size_is_refused(network: InceptionV3) -> None:
    with pytest.raises(ValueError, match="resize first"):
        network(torch.zeros(1, 3, 300, 299))
