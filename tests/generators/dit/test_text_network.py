"""The text-conditional network: what reaches the velocity, and what must not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gen.generators.dit.pixel_network import ConditionedConvolution, PixelTextDiT, Stem
from lightning_gen.generators.dit.text_network import TextDiT, WordEncoder
from lightning_gen.interfaces import Conditioning
from lightning_gen.nn.tokens import Tokens, pack, patchify, unpatchify
from lightning_gen.training.initialisation import initialise
from tests.harness.network import NetworkChecks, stir


def tiny() -> TextDiT:
    return TextDiT("w24_d2_h2", 12, 16, 16, WordEncoder(9, 16, 2, 2, 0.5), layer_scale=0.5)


def ready() -> TextDiT:
    network = tiny()
    initialise(network, 0)
    stir(network)
    return network.eval()


def states(*sizes: tuple[int, int]) -> Tokens:
    generator = torch.Generator().manual_seed(1)
    return patchify([torch.randn(3, *size, generator=generator) for size in sizes], 2)


WORDS = torch.tensor([[1, 2, 3, 0], [4, 5, 0, 0], [0, 0, 0, 0]])
SIZES = ((6, 8), (4, 6), (8, 8))
TIMES = torch.tensor([0.2, 0.5, 0.9])


def velocity(network: TextDiT, tokens: Tokens, words: Tensor = WORDS, times: Tensor = TIMES) -> Tensor:
    return network(tokens, times, network.encode_words(words, words > 0))


class TestTextDiT(NetworkChecks):
    def network(self) -> nn.Module:
        return tiny()

    def batch(self) -> Any:
        return states(*SIZES)

    def loss(self, network: nn.Module, batch: Any) -> Tensor:
        assert isinstance(network, TextDiT)
        return velocity(network, batch)[batch.mask].float().square().mean()


STEM = Stem((4, 6), (1, 2), 2)


def picture_states(*sizes: tuple[int, int]) -> Tokens:
    generator = torch.Generator().manual_seed(1)
    return patchify([torch.randn(3, *size, generator=generator) for size in sizes], 4)


class TestPixelTextDiT(NetworkChecks):
    def network(self) -> nn.Module:
        return PixelTextDiT("w24_d2_h2", 4, STEM, 16, 16, WordEncoder(9, 16, 2, 2, 0.5), layer_scale=0.5)

    def batch(self) -> Any:
        return picture_states((8, 12), (8, 12), (8, 12))

    def loss(self, network: nn.Module, batch: Any) -> Tensor:
        assert isinstance(network, PixelTextDiT)
        found: Tensor = network(batch, TIMES, network.encode_words(WORDS, WORDS > 0))
        return found.float().square().mean()


def test_convolutions_see_over_the_edge_of_a_patch_and_need_one_size() -> None:
    network = TestPixelTextDiT().stirred().eval()
    assert isinstance(network, PixelTextDiT)
    tokens = picture_states((8, 12), (8, 12), (8, 12))
    text = network.encode_words(WORDS, WORDS > 0)
    changed = tokens.values.clone()
    changed[0, 0] += 1.0
    before, after = network(tokens, TIMES, text), network(tokens.with_values(changed), TIMES, text)
    assert not torch.allclose(before[0, 1], after[0, 1], atol=1e-4) and torch.equal(before[1:], after[1:])
    image = network._pixels(tokens.values, 2, 3)
    assert torch.equal(image, torch.stack(unpatchify(tokens)))
    assert torch.equal(network._patches(image, 2, 3), tokens.values)
    with pytest.raises(ValueError, match="pictures of one size"):
        network(picture_states((8, 12), (8, 8), (12, 8)), TIMES, text)


@pytest.mark.parametrize("part", ["time", "prompt"])
def test_every_convolution_is_told_the_time_and_the_prompt(part: str) -> None:
    network = TestPixelTextDiT().stirred().eval()
    assert isinstance(network, PixelTextDiT)
    text = network.encode_words(WORDS, WORDS > 0)
    seen: list[dict[str, Tensor]] = [{}, {}]
    for now in seen:
        hooks = [
            module.register_forward_hook(lambda _, given, made, name=name, now=now: now.update({name: given[1]}))
            for name, module in network.named_modules()
            if isinstance(module, ConditionedConvolution)
        ]
        assert len(hooks) == 2 * sum(STEM.depths)
        other = now is seen[1]
        network(
            picture_states((8, 12), (8, 12), (8, 12)),
            TIMES.flip(0) if other and part == "time" else TIMES,
            Conditioning(text.sequence, text.mask, text.pooled.flip(0)) if other and part == "prompt" else text,
        )
        for hook in hooks:
            hook.remove()
    assert all(not torch.allclose(seen[0][name][0], seen[1][name][0], atol=1e-4) for name in seen[0])


def test_a_conditioned_convolution_is_its_formula() -> None:
    layer = ConditionedConvolution(3, 5).double()
    h, c = torch.randn(2, 3, 4, 6, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    a, b = (c @ layer.film.weight.T + layer.film.bias).chunk(2, 1)
    inside = (1 + a[:, :, None, None]) * layer.conv(h) + b[:, :, None, None]
    torch.testing.assert_close(layer(h, c), h + inside * inside.sigmoid())


@pytest.mark.parametrize(
    ("stem", "patch", "message"),
    [
        (lambda: Stem((), ()), 8, "has levels"),
        (lambda: Stem((8, 8), (1,)), 8, "as many depths as channels"),
        (lambda: Stem((8, 0), (1, 1)), 8, "at least 1"),
        (lambda: Stem((8, 8), (1, 1)), 6, "patches of 6 pixels are not made of whole places of 4 pixels"),
    ],
)
def test_a_stem_that_does_not_fit_is_refused(stem: Callable[[], Stem], patch: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stem().steps(patch)


def test_levels_halve_and_the_last_one_reaches_the_tokens() -> None:
    assert Stem((8, 8, 8), (1, 1, 1), 2).steps(16) == [2, 2, 2]
    assert Stem((8,), (1,), 2).steps(8) == [4]


def test_neighbours_and_padding_change_nothing() -> None:
    network, tokens = ready(), states(*SIZES)
    together = velocity(network, tokens)
    for number, size in enumerate(SIZES):
        count = int(tokens.mask[number].sum())
        values, mask, row, col = (
            part[number : number + 1, :count] for part in (tokens.values, tokens.mask, tokens.row, tokens.col)
        )
        alone = Tokens(values, mask, row, col, torch.zeros_like(row), torch.tensor([size]), 2)
        words = WORDS[number : number + 1]
        words = words[:, : max(1, int((words > 0).sum()))]
        found = velocity(network, alone, words, TIMES[number : number + 1])
        torch.testing.assert_close(found[0], together[number, :count], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("change", ["word", "order", "time", "text only"])
def test_every_word_its_place_and_the_time_matter(change: str) -> None:
    network, tokens = ready(), states(*SIZES)
    words, times = WORDS.clone(), TIMES.clone()
    if change == "word":
        words[0, 2] = 6
    elif change == "order":
        words[0, :2] = words[0, :2].flip(0)
    elif change == "time":
        times[0] = 0.3
    before, after = velocity(network, tokens), velocity(network, tokens, words, times)
    if change == "text only":
        # The pooled vector alone must not carry the prompt: tokens are read one by one.
        text = network.encode_words(WORDS, WORDS > 0)
        after = network(tokens, TIMES, Conditioning(text.sequence.flip(0), text.mask, text.pooled))
    assert not torch.allclose(before[0], after[0], atol=1e-4)
    if change != "text only":
        assert torch.equal(before[1:], after[1:])


def test_the_pooled_vector_is_the_mean_over_real_words() -> None:
    network = ready()
    text = network.encode_words(WORDS, WORDS > 0)
    real = text.sequence[1][text.mask[1]]
    assert text.mask.sum(1).tolist() == [4, 3, 1], "a mark begins every prompt, the empty one too"
    assert text.pooled is not None
    torch.testing.assert_close(text.pooled[1], real.mean(0))
    assert bool(torch.isfinite(text.sequence).all())


def test_what_does_not_belong_together_is_refused() -> None:
    network, tokens = ready(), states(*SIZES)
    text = network.encode_words(WORDS, WORDS > 0)
    for arguments in ((pack(tokens), TIMES, text), (tokens, TIMES[:2], text)):
        with pytest.raises(ValueError, match="one image, one time and one prompt per row"):
            network(*arguments)
    with pytest.raises(ValueError, match="no pooled vector"):
        network(tokens, TIMES, Conditioning(text.sequence, text.mask))
    network.text_encoder = None
    with pytest.raises(RuntimeError, match="no text encoder of its own"):
        network.encode_words(WORDS, WORDS > 0)
