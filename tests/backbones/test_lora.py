"""The bank of adapters: one base, several policies."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gen.backbones.lora import AdapterBank, LoRASettings
from lightning_gen.backbones.lora_layers import LowRankFactor
from lightning_gen.backbones.lora_weights import AdapterWeights
from lightning_gen.training.initialisation import initialise, plain_name
from lightning_gen.training.strategies import prepare
from lightning_gen.training.weights import load_matching
from tests.backbones.lora_networks import filled, pairs, random_adapter, sd3, sd3_velocity
from tests.harness import needs_cpu_fsdp2, two_processes
from tests.harness.network import assert_equal_states
from tests.harness.toy import ToyNetwork, toy_batch

TOY = LoRASettings(rank=3, alpha=6.0, targets=("qkv", "out", "head"))


def toy_bank(*names: str, settings: LoRASettings = TOY, seed: int = 0, meta: bool = False) -> AdapterBank:
    with torch.device("meta") if meta else contextlib.nullcontext():
        network = ToyNetwork()
    if not meta:
        initialise(network, 0)
    return AdapterBank(network, settings, names or ("default", "old"), seed=seed)


def out(bank: AdapterBank) -> Tensor:
    found: Tensor = bank.network(toy_batch(torch.arange(3)).images)
    return found


# ------------------------------------------------------------------ the paper's numbers


def test_paper_scale_has_191_layers_and_18776064_parameters() -> None:
    with torch.device("meta"):
        network = sd3(
            sample_size=128,
            in_channels=16,
            out_channels=16,
            num_layers=24,
            num_attention_heads=24,
            attention_head_dim=64,
            joint_attention_dim=4096,
            caption_projection_dim=1536,
            pooled_projection_dim=2048,
            pos_embed_max_size=384,
            dual_attention_layers=tuple(range(13)),
        )
    bank = AdapterBank(network, LoRASettings(), ("default",))
    modules = bank.modules("default")
    assert len(modules) == 191
    assert not [name for name in modules if "attn2" in name]
    assert [f"transformer_blocks.{block}.attn.to_add_out" in modules for block in range(24)] == [True] * 23 + [False]
    trainable = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    assert trainable == bank.num_parameters("default") == 18_776_064


# ------------------------------------------------------------------ one network, several policies


def test_disabled_is_the_base_to_the_last_bit_and_every_adapter_is_another_policy() -> None:
    base = sd3_velocity(sd3().requires_grad_(False))
    bank = AdapterBank(sd3(), LoRASettings(4, 8.0), ("default", "old", "teacher"))
    assert torch.equal(sd3_velocity(bank.network), base), "an adapter does something before it is trained"
    filled(bank)
    with bank.disabled():
        assert torch.equal(sd3_velocity(bank.network), base)
    found = [sd3_velocity(bank.network)]
    for name in ("old", "teacher"):
        with bank.using(name):
            found.append(sd3_velocity(bank.network))
    for number, one in enumerate(found):
        assert not torch.allclose(one, base, atol=1e-3)
        assert not any(torch.allclose(one, other, atol=1e-3) for other in found[:number])


def test_adapters_share_no_memory() -> None:
    bank = toy_bank("default", "old", "teacher")
    where = [parameter.untyped_storage().data_ptr() for name in bank.names for parameter in bank.parameters(name)]
    assert len(set(where)) == len(where) == 3 * 2 * 5


def test_an_adapted_layer_computes_the_formula() -> None:
    network = nn.ModuleDict({"attn": nn.Linear(5, 7).double()})
    bank = AdapterBank(network, LoRASettings(2, 3.0, targets=("attn",)))
    weights = random_adapter(bank, "default", 0)
    bank.load("default", weights)
    x = torch.randn(4, 5, dtype=torch.float64)
    base = network["attn"].base_layer
    down, up = weights.factors["attn"]
    expected = x @ base.weight.T + base.bias + 3.0 / 2 * (x @ down.T) @ up.T
    assert torch.allclose(network["attn"](x), expected, rtol=1e-12, atol=1e-12)
    assert torch.allclose(weights.delta("attn"), 1.5 * up @ down, rtol=1e-14)


def test_switches_nest_and_are_put_back_after_errors() -> None:
    bank = filled(toy_bank())
    default = out(bank)
    with bank.using("old"):
        old = out(bank)
        with bank.disabled():
            with bank.using("old"):
                assert torch.equal(out(bank), old) and bank.active == "old"
            assert bank.active is None
        assert torch.equal(out(bank), old)
    with pytest.raises(KeyError), bank.disabled():
        raise KeyError
    assert bank.active == "default" and torch.equal(out(bank), default) and not torch.equal(old, default)


def test_exactly_one_adapter_is_trained_whatever_is_switched_on() -> None:
    bank = filled(toy_bank())

    def trained() -> set[str]:
        return {name.split(".")[-2] for name, p in bank.network.named_parameters() if p.requires_grad}

    assert trained() == {"default"}
    with bank.using("old"):
        assert trained() == {"default"}
    with bank.disabled():
        assert trained() == {"default"}
    bank.train_only("old")
    assert trained() == {"old"} and bank.active == bank.trainable == "old"
    bank.add("merged", LoRASettings(5, 5.0, targets=("qkv", "embed")))
    assert trained() == {"old"} and bank.active == "old"
    assert not torch.equal(out(bank), toy_bank().network(toy_batch(torch.arange(3)).images))


def test_a_step_with_reference_passes_in_it_learns_the_trained_adapter_alone() -> None:
    """As in a loss with an old policy and a reference: the switch moves between forward and backward."""
    bank = filled(toy_bank())
    expected = copy.deepcopy(bank)
    (out(expected) ** 2).sum().backward()
    loss = (out(bank) ** 2).sum()
    with torch.no_grad(), bank.using("old"):
        out(bank)
    with torch.no_grad(), bank.disabled():
        out(bank)
        loss.backward()
    gradients = {name: p.grad for name, p in bank.network.named_parameters() if p.grad is not None}
    assert len(gradients) == 10 and all(".default." in name and g.any() for name, g in gradients.items())
    for name, parameter in expected.network.named_parameters():
        assert (parameter.grad is None) == (name not in gradients)
        assert parameter.grad is None or torch.equal(parameter.grad, gradients[name])


# ------------------------------------------------------------------ initial weights


def test_start_is_gaussian_of_deviation_one_over_r_and_zero() -> None:
    network = nn.ModuleDict({"attn": nn.Linear(4000, 3)})
    down, up = AdapterBank(network, LoRASettings(8, 8.0, targets=("attn",))).parameters("default")
    assert down.shape == (8, 4000) and not up.any()
    assert down.std().item() == pytest.approx(1 / 8, rel=0.02) and abs(down.mean().item()) < 4e-3
    assert down.square().square().mean().item() == pytest.approx(3 / 8**4, rel=0.1)


def test_start_depends_on_seed_and_layer_alone() -> None:
    network = ToyNetwork()
    state = torch.get_rng_state()
    first = AdapterBank(network, TOY, ("default", "old"))
    assert torch.equal(torch.get_rng_state(), state), "the process's random numbers were used"
    torch.manual_seed(6)
    again, other = toy_bank("old", "default"), toy_bank(seed=1)
    for one, two, old, different in zip(
        pairs(first.parameters("default")),
        pairs(again.parameters("default")),
        pairs(first.parameters("old")),
        pairs(other.parameters("default")),
        strict=True,
    ):
        assert torch.equal(one[0], two[0]) and torch.equal(one[0], old[0]) and not torch.equal(one[0], different[0])
    layers = dict(zip(first.modules("default"), pairs(first.parameters("default")), strict=True))
    assert not torch.equal(layers["layers.0.qkv"][0], layers["layers.1.qkv"][0])


def test_meta_device_gives_the_weights_of_a_network_in_memory() -> None:
    """Of the adapters, and of the base, whose keys the adapters must not move."""
    bank = toy_bank(meta=True)
    assert all(parameter.is_meta for parameter in bank.network.parameters())
    with pytest.raises(RuntimeError, match="meta device: call prepare first"):
        bank.weights("default")
    prepare(bank.network, device_mesh=None, seed=0, activation_checkpointing=True)
    plain = ToyNetwork()
    initialise(plain, 0)
    state = {plain_name(name): value for name, value in bank.network.state_dict().items()}
    assert_equal_states({name: state[name] for name in plain.state_dict()}, plain.state_dict())
    expected = toy_bank()
    for name in bank.names:
        for one, two in zip(bank.parameters(name), expected.parameters(name), strict=True):
            assert torch.equal(one, two)


def test_weights_of_the_base_load_into_an_adapted_network() -> None:
    base = ToyNetwork()
    initialise(base, 7)
    bank = toy_bank(meta=True)
    prepare(bank.network, device_mesh=None, seed=0)
    report = load_matching(bank.network, base.state_dict(), "base")
    assert len(report.loaded) == len(base.state_dict()) and not report.ignored
    images = toy_batch(torch.arange(3)).images
    assert torch.equal(out(bank), base(images))
    plain = ToyNetwork()
    initialise(plain, 0)
    load_matching(plain, bank.network.state_dict(), "adapted")
    assert torch.equal(plain(images), base(images))


def test_adapters_are_at_least_float32() -> None:
    bank = AdapterBank(ToyNetwork().to(torch.bfloat16), TOY)
    assert {parameter.dtype for parameter in bank.parameters("default")} == {torch.float32}
    assert out_dtype(bank) == torch.bfloat16


def out_dtype(bank: AdapterBank) -> torch.dtype:
    tokens = toy_batch(torch.arange(2)).images
    found: Tensor = bank.network(tokens.with_values(tokens.values.to(torch.bfloat16)))
    return found.dtype


# ------------------------------------------------------------------ copies and averages


def double_bank() -> AdapterBank:
    return filled(AdapterBank(ToyNetwork().double(), TOY, ("default", "old")))


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.95, 1.0])
def test_blend_is_the_moving_average_in_place(decay: float) -> None:
    bank = double_bank()
    before = {name: bank.weights(name) for name in bank.names}
    where = [parameter.data_ptr() for parameter in bank.parameters("old")]
    bank.blend("old", "default", decay)
    after = bank.weights("old")
    for module, factors in after.factors.items():
        for number, factor in enumerate(factors):
            old, new = before["old"].factors[module][number], before["default"].factors[module][number]
            expected = old if decay == 1.0 else new if decay == 0.0 else decay * old + (1 - decay) * new
            assert torch.equal(factor, expected) or (0 < decay < 1 and torch.allclose(factor, expected, rtol=1e-13))
    assert [parameter.data_ptr() for parameter in bank.parameters("old")] == where
    for module, factors in bank.weights("default").factors.items():
        assert all(map(torch.equal, factors, before["default"].factors[module]))


def test_copy_makes_the_same_policy_and_mends_a_broken_one() -> None:
    bank = double_bank()
    with torch.no_grad():
        bank.parameters("old")[0].fill_(float("nan"))
    bank.copy("default", "old")
    with torch.no_grad():
        images = toy_batch(torch.arange(2)).images
        tokens = images.with_values(images.values.double())
        expected = bank.network(tokens)
        with bank.using("old"):
            assert torch.equal(bank.network(tokens), expected)
        bank.parameters("default")[1].add_(1.0)
        with bank.using("old"):
            assert torch.equal(bank.network(tokens), expected), "the copy follows the original"


def test_only_like_adapters_are_mixed() -> None:
    bank = toy_bank()
    bank.add("wide", LoRASettings(4, 8.0, TOY.targets))
    bank.add("loud", LoRASettings(3, 60.0, TOY.targets))
    bank.add("few", LoRASettings(3, 6.0, ("qkv",)))
    with pytest.raises(ValueError, match=r"ranks 3 and 4 at layers\.0\.qkv"):
        bank.blend("old", "wide", 0.5)
    with pytest.raises(ValueError, match=r"scaled by 2\.0 and 20\.0"):
        bank.copy("loud", "old")
    with pytest.raises(ValueError, match=r"only one of them adapts layers\.0\.out"):
        bank.copy("few", "old")
    with pytest.raises(ValueError, match=r"a decay is in \[0, 1\], got 1\.5"):
        bank.blend("old", "default", 1.5)


# ------------------------------------------------------------------ behind wrappers


@pytest.mark.parametrize("name", ["default", "old", None])
def test_a_checkpointed_block_is_computed_again_with_its_own_adapter(name: str | None) -> None:
    """Forward under one switch, backward under another; the gradient to the input shows which adapter was used."""
    gradients = []
    for checkpointing in (False, True):
        bank = filled(toy_bank())
        prepare(bank.network, device_mesh=None, seed=0, activation_checkpointing=checkpointing)
        tokens = toy_batch(torch.arange(3)).images
        values = tokens.values.clone().requires_grad_()
        with bank.disabled() if name is None else bank.using(name):
            loss = bank.network(tokens.with_values(values)).square().sum()
        with bank.using("old" if name == "default" else "default"):
            loss.backward()
        assert bank.active == "default" and values.grad is not None
        own = [p.grad for p in bank.parameters("default") if p.grad is not None]
        gradients.append([values.grad, *own])
    assert len(gradients[0]) == len(gradients[1]) == (11 if name == "default" else 1)
    assert all(map(torch.equal, *gradients))


def test_compiled_blocks_follow_the_switch_without_graph_breaks() -> None:
    bank = filled(toy_bank())
    expected = [out(bank)]
    with bank.using("old"):
        expected.append(out(bank))
    with bank.disabled():
        expected.append(out(bank))
    torch.compiler.reset()
    for block in bank.network.blocks():  # type: ignore[operator]
        block.compile(backend="eager", fullgraph=True)
    for _ in range(2):
        assert torch.equal(out(bank), expected[0])
        with bank.using("old"):
            assert torch.equal(out(bank), expected[1])
        with bank.disabled():
            assert torch.equal(out(bank), expected[2])
    torch.compiler.reset()


def test_float8_leaves_the_adapters_alone() -> None:
    pytest.importorskip("torchao")
    from lightning_gen.training.float8 import use_float8_products

    network = ToyNetwork(width=16)
    bank = AdapterBank(network, LoRASettings(16, 16.0, ("qkv",)))
    use_float8_products(network, network.blocks())
    layer = network.layers[0].qkv
    assert type(layer.base_layer) is not nn.Linear and type(layer.lora_A["default"]) is LowRankFactor
    assert len(bank.parameters("default")) == 4


# ------------------------------------------------------------------ sharded


def sharded_run(world: int) -> dict[str, Any]:
    """The life of an adapter on one or two processes, on the targets' root too, which FSDP keeps gathered longest."""
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel")) if world > 1 else None
    bank = toy_bank("default", "old", "teacher", meta=True)
    prepare(bank.network, device_mesh=mesh, seed=0, activation_checkpointing=True)
    filled(bank)
    bank.copy("default", "old")
    results: dict[str, Any] = {}
    optimizer = torch.optim.SGD([p for p in bank.network.parameters() if p.requires_grad], lr=0.02)
    for step in range(2):
        loss = out(bank).square().mean()
        with torch.no_grad(), bank.using("teacher"):
            teacher = out(bank)
        with torch.no_grad(), bank.disabled():
            results[f"base {step}"] = out(bank)
        (loss + (out(bank) - teacher).square().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            out(bank)  # leaves the root's weights gathered
        bank.blend("old", "default", 0.75)
    with torch.no_grad():
        for name in bank.names:
            with bank.using(name):
                results[name] = out(bank)
            results.update({f"{name} {m}": factors for m, factors in bank.weights(name).factors.items()})
    results["parameters"] = bank.num_parameters("default")
    with pytest.raises(RuntimeError, match="ToyNetwork is checkpointed or sharded already"):
        bank.add("late", TOY)
    with pytest.raises(ValueError, match=r"adapter 'old' of ToyNetwork: head is missing from it"):
        bank.load("old", AdapterWeights({n: f for n, f in bank.weights("old").factors.items() if n != "head"}, 6.0))
    return results


@needs_cpu_fsdp2
def test_sharded_adapters_do_what_whole_ones_do() -> None:
    expected = sharded_run(1)
    for found in two_processes(sharded_run, 2, limit=400.0):
        assert set(found) == set(expected) and found["parameters"] == expected["parameters"]
        for name, value in expected.items():
            if isinstance(value, Tensor):
                assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-5), name
            elif isinstance(value, tuple):
                for one, two in zip(found[name], value, strict=True):
                    assert torch.allclose(one, two, rtol=1e-4, atol=1e-5), name
    assert not torch.allclose(expected["old"], expected["default"], atol=1e-3)
    assert torch.equal(expected["base 0"], expected["base 1"])


# ------------------------------------------------------------------ the embedded world


def test_adapters_in_the_generator_of_the_embedded_world() -> None:
    from lightning_gen.generators.dit.pixel_network import Stem
    from lightning_gen.generators.dit.text_module import TextLatentDiffusion
    from lightning_gen.generators.spaces import PixelSpace
    from lightning_gen.shapes.tokenizer import ShapesTokenizer

    def model() -> TextLatentDiffusion:
        return TextLatentDiffusion(
            PixelSpace(4), ShapesTokenizer(), variant="w24_d2_h2", stem=Stem((4,), (1,), 2), canvas=(8, 8)
        )

    base, adapted = model(), model()
    bank = AdapterBank(adapted.network, LoRASettings(4, 8.0), ("default", "old"))
    assert [name for name in bank.modules("old") if "dit_blocks.1" in name] == [
        f"body.dit_blocks.1.{layer}" for layer in ("attn.qkv_proj", "attn.out_proj", "text_proj")
    ]
    assert len(bank.modules("old")) == 6, "the text encoder's layers have the same names and stay"
    for one in (base, adapted):
        one.configure_model()
    base.network.requires_grad_(False)  # torch's convolutions round otherwise where weights are trained
    x, t = torch.randn(2, 4, 48), torch.tensor([0.3, 0.8])
    with torch.no_grad():
        text = base.encode_prompts(["a red circle", ""])
        assert torch.equal(adapted.velocity(x, t, text), base.velocity(x, t, text))
        filled(bank)
        assert not torch.allclose(adapted.velocity(x, t, text), base.velocity(x, t, text))
        with bank.disabled():
            assert torch.equal(adapted.velocity(x, t, text), base.velocity(x, t, text))


# ------------------------------------------------------------------ what does not fit


def without(weights: AdapterWeights, module: str) -> AdapterWeights:
    return AdapterWeights({name: pair for name, pair in weights.factors.items() if name != module}, weights.alpha)


def changed(weights: AdapterWeights, rename: tuple[str, str], narrow: int = 0) -> AdapterWeights:
    factors = {}
    for name, (down, up) in weights.factors.items():
        here = name == rename[0]
        factors[rename[1] if here else name] = (down[:, narrow:] if here else down, up)
    return AdapterWeights(factors, weights.alpha)


def test_an_adapter_that_does_not_fit_names_the_first_wrong_module() -> None:
    bank = toy_bank()
    weights = random_adapter(bank, "default", 0)
    cases = [
        (without(weights, "layers.0.out"), r"layers\.0\.out is missing from it"),
        (changed(weights, ("layers.1.qkv",) * 2, 3), r"layers\.1\.qkv takes 5 inputs and gives 24 outputs there, 8"),
        (
            AdapterWeights({**weights.factors, "embed": weights.factors["head"]}, 6.0),
            r"embed is not adapted here: other targets",
        ),
        (
            AdapterWeights({**weights.factors, "tail": weights.factors["head"]}, 6.0),
            r"tail is no module of this network",
        ),
        (
            AdapterWeights({n: (a[:2], b[:, :2]) for n, (a, b) in weights.factors.items()}, 6.0),
            r"layers\.0\.qkv has rank 2 instead of 3",
        ),
    ]
    before = bank.weights("old")
    for wrong, message in cases:
        with pytest.raises(ValueError, match=r"file\.x does not fit the adapter 'old' of ToyNetwork: " + message):
            bank.load("old", wrong, "file.x")
    for module, pair in bank.weights("old").factors.items():
        assert all(map(torch.equal, pair, before.factors[module])), "a part of a wrong adapter was loaded"


def test_another_scale_moves_into_b() -> None:
    bank = toy_bank()
    weights = random_adapter(bank, "default", 0)
    other = AdapterWeights(weights.factors, 1.5)
    bank.load("default", other)
    for module in bank.modules("default"):
        assert torch.allclose(bank.weights("default").delta(module), other.delta(module), rtol=1e-6, atol=1e-7)
    assert not torch.allclose(bank.weights("default").delta("head"), weights.delta("head"))


class Convolving(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Conv2d(2, 2, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: toy_bank("old"), "trainable adapter 'default' is none of old"),
        (lambda: toy_bank("default", "default"), "'default' is no name for a new adapter"),
        (lambda: toy_bank("default", "a.b"), r"'a\.b' is no name"),
        (lambda: toy_bank(settings=LoRASettings()), r"no list of LoRA targets for ToyNetwork \(there is for SD3"),
        (lambda: toy_bank(settings=LoRASettings(targets=("qkv", "to_q"))), "no layer of ToyNetwork is named 'to_q'"),
        (lambda: toy_bank(settings=LoRASettings(targets=("gamma",))), "layers.0.gamma of ToyNetwork is a Gain: only"),
        (lambda: AdapterBank(Convolving(), LoRASettings(targets=("to_q",))), "to_q of Convolving is a Conv2d"),
        (lambda: toy_bank().using("young").__enter__(), "no adapter 'young', only default, old"),
        (lambda: LoRASettings(rank=0), "rank of at least 1"),
        (lambda: LoRASettings(alpha=0.0), "positive alpha"),
        (lambda: LoRASettings(targets=()), "targets is empty"),
        (lambda: LoRASettings(exclude=("a",)), "exclude goes with targets"),
    ],
)
def test_errors_say_what_is_wrong(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_suffixes_are_whole_parts_of_names_and_exclusions_too() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn, self.attn2, self.xattn, self.kept = (nn.ModuleDict({"q": nn.Linear(2, 2)}) for _ in range(4))
            self.kept = nn.ModuleDict({"attn": nn.ModuleDict({"q": nn.Linear(2, 2)})})

    assert AdapterBank(Two(), LoRASettings(1, 1.0, ("attn.q",))).modules("default") == ("attn.q", "kept.attn.q")
    assert AdapterBank(Two(), LoRASettings(1, 1.0, ("attn.q",), ("kept",))).modules("default") == ("attn.q",)
    assert AdapterBank(Two(), LoRASettings(1, 1.0, ("q",), ("att",))).modules("default")[0] == "attn.q"
