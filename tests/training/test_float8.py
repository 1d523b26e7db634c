"""Float8 products: which layers take part, what they compute, and who may ask for them.

torchao emulates the products of training on the CPU: factors are rounded, the rest is float32.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gen.nn.tokens import Tokens, patchify
from lightning_gen.training import float8
from lightning_gen.training.float8 import obstacles, quantise_blocks, require_float8, use_float8_products
from lightning_gen.training.initialisation import initialise
from lightning_gen.training.strategies import prepare
from tests.harness import needs_cpu_fsdp2, two_processes
from tests.harness.emulated_float8 import emulated_float8, needs_torchao
from tests.harness.network import assert_equal_states
from tests.harness.toy import ToyBlock, ToyNetwork


class Network(ToyNetwork):
    """A block of 32 channels, and one more layer in it whose width no hardware multiplies."""

    def __init__(self) -> None:
        super().__init__(width=32)
        self.layers[0] = Odd(32)


class Odd(ToyBlock):
    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.narrow = nn.Linear(width, 24)
        self.wide = nn.Linear(24, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        out: Tensor = super().forward(x, mask) + self.wide(self.narrow(x))
        return out


def tokens() -> Tokens:
    """Two pictures of 15 tokens: 30 is no multiple of 16."""
    generator = torch.Generator().manual_seed(0)
    return patchify(torch.rand(2, 3, 12, 20, generator=generator) * 2 - 1, 4)


def built() -> Network:
    network = Network()
    initialise(network, 0)
    return network


def converted(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if type(module).__name__ == "Float8Linear"]


@pytest.fixture
def emulated() -> Iterator[None]:
    with emulated_float8():
        yield


LAYERS = ["layers.0.qkv", "layers.0.out", "layers.1.qkv", "layers.1.out"]


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@needs_torchao
@pytest.mark.usefixtures("emulated")
class TestTraining:
    def test_only_fitting_layers_of_the_blocks_are_exchanged(self) -> None:
        network = built()
        before, parameters = network.state_dict(), dict(network.named_parameters())
        use_float8_products(network, network.blocks())
        assert converted(network) == LAYERS, "not embed, head, narrow and wide"
        assert list(network.state_dict()) == list(before)
        assert_equal_states(network.state_dict(), before)
        assert all(parameter is parameters[name] for name, parameter in network.named_parameters())

    def test_products_are_near_and_so_are_gradients(self) -> None:
        plain, rounded = built(), built()
        use_float8_products(rounded, rounded.blocks())
        outputs = [network(tokens()) for network in (plain, rounded)]
        for output in outputs:
            output.square().sum().backward()
        assert 1e-4 < relative(outputs[1], outputs[0]) < 0.05
        for (name, exact), found in zip(plain.named_parameters(), rounded.parameters(), strict=True):
            assert found.dtype == torch.float32
            assert relative(found.grad, exact.grad) < 0.15, name
        own = [relative(found.grad, exact.grad) for exact, found in _weights(plain, rounded)]
        assert min(own) > 1e-3, "dW was computed from factors that nobody rounded"

    def test_sums_over_tokens_are_filled_up(self) -> None:
        """dW sums over 30 tokens; the hardware wants a multiple of 16, the emulation does not care."""
        network = built()
        use_float8_products(network, network.blocks())
        assert network.get_submodule(LAYERS[0]).config.pad_inner_dim

    def test_prepare_exchanges_before_it_wraps(self) -> None:
        with torch.device("meta"):
            network = Network()
        prepare(network, device_mesh=None, seed=0, activation_checkpointing=True, compile_blocks=True, float8=True)
        names = [name.replace("_checkpoint_wrapped_module.", "") for name in converted(network)]
        assert names == LAYERS
        assert_equal_states(network.state_dict(), built().state_dict())
        kept = built()
        use_float8_products(kept, kept.blocks())
        with torch.compiler.set_stance("force_eager"):
            for one in (network, kept):
                one(tokens()).square().sum().backward()
        for first, second in zip(network.parameters(), kept.parameters(), strict=True):
            assert torch.equal(first.grad, second.grad)

    def test_prepare_leaves_products_alone_unless_asked(self) -> None:
        network = built()
        prepare(network, device_mesh=None, seed=0)
        assert converted(network) == []


def _weights(plain: nn.Module, rounded: nn.Module) -> list[tuple[Tensor, Tensor]]:
    return [tuple(network.get_parameter(f"{name}.weight") for network in (plain, rounded)) for name in LAYERS]


def sharded_gradients() -> tuple[list[str], dict[str, Tensor], dict[str, Tensor]]:
    """Names of the exchanged layers, whole initial weights and whole gradients of two sharded processes."""
    from torch.distributed.device_mesh import init_device_mesh

    with torch.device("meta"):
        network = Network()
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    with emulated_float8():
        prepare(network, device_mesh=mesh, seed=0, activation_checkpointing=True, float8=True)
    start = {name: value.full_tensor() for name, value in network.state_dict().items()}
    network(tokens()).square().mean().backward()
    whole = {name: parameter.grad.full_tensor() for name, parameter in network.named_parameters()}
    return converted(network), start, whole


@needs_torchao
@needs_cpu_fsdp2
@pytest.mark.usefixtures("emulated")
def test_sharded_blocks_compute_the_same() -> None:
    alone = built()
    use_float8_products(alone, alone.blocks())
    alone(tokens()).square().mean().backward()
    for names, start, gradients in two_processes(sharded_gradients):
        assert len(names) == len(LAYERS)
        assert_equal_states(start, built().state_dict())
        for (name, parameter), found in zip(alone.named_parameters(), gradients.values(), strict=True):
            torch.testing.assert_close(found, parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


@needs_torchao
class TestUse:
    @pytest.fixture(autouse=True)
    def any_hardware(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from torchao.quantization import quant_api

        monkeypatch.setattr(quant_api, "_check_hardware_support", lambda granularity: None)

    def test_weights_of_the_blocks_are_rounded_for_good(self) -> None:
        network, exact = built().requires_grad_(False), built()
        quantise_blocks(network, network.blocks())
        rounded = [name for name, value in network.named_parameters() if type(value) is not nn.Parameter]
        assert rounded == [f"{name}.weight" for name in LAYERS]
        for name in rounded:
            weight = network.get_parameter(name)
            assert weight.qdata.dtype == torch.float8_e4m3fn
            assert 1e-3 < relative(weight.dequantize(), exact.get_parameter(name)) < 0.05

    def test_outputs_are_near(self) -> None:
        network, exact = built().requires_grad_(False), built().requires_grad_(False)
        expected = exact(tokens())
        quantise_blocks(network, network.blocks())
        try:
            found = network(tokens())
        except (RuntimeError, NotImplementedError) as error:
            pytest.skip(f"this torch has no float8 products on the CPU: {error}")
        assert 1e-4 < relative(found, expected) < 0.05


def test_what_a_machine_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float8.importlib.util, "find_spec", lambda name: object())
    assert obstacles((8, 9)) == obstacles((9, 0)) == obstacles((12, 0)) == []
    (old,) = obstacles((8, 6))
    assert "8.9 or newer" in old.needed and old.here == "compute capability 8.6"
    (none,) = obstacles(None)
    assert none.here == "no CUDA compute capability"
    monkeypatch.setattr(float8.importlib.util, "find_spec", lambda name: None)
    (package,) = obstacles((9, 0))
    assert package.needed == "the package torchao" and package.remedy == "pip install 'lightning-gen[fp8]'"
    assert len(obstacles((8, 0))) == 2


def test_devices_without_float8_products_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"8\.9 or newer.*, cpu has no CUDA compute capability: switch float8 off"):
        require_float8(torch.device("cpu"))
    with pytest.raises(ValueError, match="float8 needs a GPU"):
        prepare(built(), device_mesh=None, seed=0, float8=True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0) if device.index else (9, 0))
    require_float8(torch.device("cuda", 0))
    with pytest.raises(ValueError, match=r"cuda:1 has compute capability 8\.0"):
        require_float8(torch.device("cuda", 1))


@pytest.mark.parametrize("change", [use_float8_products, quantise_blocks])
def test_missing_package_and_unfit_widths_are_named(change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    network = built()
    with monkeypatch.context() as patch:
        for name in ("torchao.float8", "torchao.quantization"):
            patch.setitem(sys.modules, name, None)
        with pytest.raises(ModuleNotFoundError, match=r"torchao.*pip install 'lightning-gen\[fp8\]'"):
            change(network, network.blocks())
    if importlib.util.find_spec("torchao") is not None:
        narrow = ToyNetwork(width=8)
        with pytest.raises(ValueError, match="blocks of ToyNetwork have no linear layer whose widths are multiples of"):
            change(narrow, narrow.blocks())
