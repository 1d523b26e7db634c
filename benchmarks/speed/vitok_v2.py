"""How fast the blocks of the auto-encoder are, as ratios to a named alternative in the same run.

(a) a training step on a batch of mixed aspect ratios: packed against padded
(b) a training step of our masked block: against the same block in plain PyTorch
(c) windowed against full attention at 4096 tokens
(d) an image in row bands: against the whole image

    python benchmarks/speed/vitok_v2.py                  # ratios with one thread
    python benchmarks/speed/vitok_v2.py --threads 2 --part a --part c
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import measure
import torch
from measure import Row, peak_bytes, report, with_standard_options
from plain_block import MultiheadBlock, PlainBlock
from torch import Tensor

from lightning_gen.autoencoders.vitok_v2.bands import decode_in_bands
from lightning_gen.autoencoders.vitok_v2.network import ViTokV2Network
from lightning_gen.autoencoders.vitok_v2.objective import charbonnier
from lightning_gen.autoencoders.vitok_v2.variants import Variant
from lightning_gen.nn.attention import AttentionPlan, PaddedAttention, plan_attention
from lightning_gen.nn.blocks import ParallelBlock, swiglu_hidden
from lightning_gen.nn.rope import Rotary, rotary_2d
from lightning_gen.nn.tokens import Tokens, pack, patchify, unpack, unpatchify

Compare = Callable[..., Row]  # measure.compare with repetitions and clock
PATCH, CHANNELS, RADIUS = 8, 16, 8
ASPECTS = (1.0, 4 / 3, 3 / 4, 3 / 2, 2 / 3, 16 / 9, 9 / 16)
# Both sides must give the same outputs; windowed and full attention differ by design and are not compared.
TOLERANCE = 1e-5


class Mix(NamedTuple):
    """A batch: token counts from ``shortest`` to ``longest``."""

    width: int
    shortest: int
    longest: int
    images: int


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is run."""

    mixes: tuple[Mix, ...]
    fills: tuple[float, ...]
    blocks: tuple[tuple[int, int], ...]  # width, tokens per image
    grids: tuple[tuple[int, int], ...]
    heads: tuple[tuple[int, int], ...]  # heads, head width
    window_widths: tuple[int, ...]
    bands: tuple[tuple[int, int, int], ...]  # width, rows, columns


FULL = Sizes(
    mixes=(
        Mix(384, 16, 64, 24),
        Mix(384, 16, 256, 8),
        Mix(384, 64, 1024, 4),
        Mix(512, 16, 256, 8),
        Mix(1024, 16, 256, 4),
    ),
    fills=(0.4, 0.6, 0.75, 0.9, 0.95, 1.0),
    blocks=((384, 64), (384, 256), (384, 1024), (512, 256), (1024, 256)),
    grids=((64, 64), (32, 128), (50, 82)),
    heads=((6, 64), (4, 128)),
    window_widths=(384, 512, 1024),
    bands=((384, 64, 64), (384, 256, 20)),
)
QUICK = Sizes(
    mixes=(Mix(32, 4, 16, 4),),
    fills=(0.6, 1.0),
    blocks=((32, 16),),
    grids=((20, 24),),
    heads=((2, 16),),
    window_widths=(32,),
    bands=((32, 40, 20),),
)


def packed_against_padded(sizes: Sizes, compare: Compare) -> Iterator[Row]:
    """One training step of the network; packing, plan and unpacking into images belong to it."""
    for mix in sizes.mixes:
        half = f"w{mix.width}_d1_h{max(2, mix.width // 64)}"
        network = ViTokV2Network(Variant.parse(f"{half}-{half}/1x{PATCH}x{CHANNELS}"), layer_scale=0.5)
        for fill in sizes.fills:
            padded = mixed_batch(mix, fill)

            def step(tokens: Tokens, network: ViTokV2Network = network) -> Tokens:
                network.zero_grad(set_to_none=True)
                pixels = network(tokens).pixels
                charbonnier(pixels, tokens).backward()
                return pixels

            apart = largest_difference(unpack(step(pack(padded)), padded.mask.shape[1]), step(padded))
            actual = padded.mask.float().mean().item()
            yield compare(
                "a",
                f"width {mix.width}, {mix.images} images of {mix.shortest}..{mix.longest} tokens, fill {actual:.2f}",
                lambda padded=padded, step=step: step(pack(padded)),
                lambda padded=padded, step=step: step(padded),
                target=1.5 if actual <= 0.605 else 0.95,
                difference=agreed(apart),
                items=int(padded.mask.sum()),
            )


def mixed_batch(mix: Mix, fill: float) -> Tokens:
    """Images whose padded batch has the wanted share of real tokens; at 1 all have the same number."""
    low, high = 0.0, 64.0
    for _ in range(40):  # the share falls as the exponent grows
        exponent = (low + high) / 2
        grids = mixed_grids(mix, exponent)
        counts = [rows * cols for rows, cols in grids]
        above = sum(counts) / (max(counts) * len(counts)) > fill
        low, high = (exponent, high) if above else (low, exponent)
    grids = mixed_grids(mix, high) if fill < 1 else mixed_grids(mix, 0.0)
    generator = torch.Generator().manual_seed(0)
    return patchify([torch.rand(3, r * PATCH, k * PATCH, generator=generator) * 2 - 1 for r, k in grids], PATCH)


def mixed_grids(mix: Mix, exponent: float) -> list[tuple[int, int]]:
    """Token counts along a power curve, aspect ratios in turns; exponent 0 = one count in two orientations."""
    if exponent == 0:
        rows = round(mix.longest**0.5 / 2)
        return [(rows, 4 * rows) if i % 2 else (2 * rows, 2 * rows) for i in range(mix.images)]
    grids = []
    for i in range(mix.images):
        count = max(mix.shortest, round(mix.longest * (1 - i / mix.images) ** exponent))
        rows = max(1, round((count / ASPECTS[i % len(ASPECTS)]) ** 0.5))
        grids.append((rows, max(1, count // rows)))
    return grids


def masked_block_against_plain(sizes: Sizes, compare: Compare) -> Iterator[Row]:
    """Forward and backward of one block on padded rows at fill 0.75."""
    for width, length in sizes.blocks:
        batch = max(1, 1024 // length)
        heads, hidden = max(2, width // 64), swiglu_hidden(width, 2.67)
        block = ParallelBlock(width, heads, hidden, layer_scale=0.5)
        plain, multihead = PlainBlock(block), MultiheadBlock(width, heads, hidden)
        counts = torch.linspace(length / 2, length, batch).long() if batch > 1 else torch.tensor([3 * length // 4])
        mask = torch.arange(length) < counts[:, None]
        side = int(length**0.5)
        place = torch.arange(length).expand(batch, length)
        rotary = rotary_2d(place // side, place % side, width // heads)
        turns = torch.complex(rotary.cos, rotary.sin).transpose(1, 2)
        x = torch.randn(batch, length, width, generator=torch.Generator().manual_seed(0))
        weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)) * mask[..., None]
        attend = PaddedAttention(mask)

        def ours(block=block, x=x, weight=weight, rotary=rotary, attend=attend) -> Tensor:  # type: ignore[no-untyped-def]
            return backward(block, x, weight, lambda x: block(x, rotary, attend))

        def same(plain=plain, x=x, weight=weight, turns=turns, mask=mask) -> Tensor:  # type: ignore[no-untyped-def]
            return backward(plain, x, weight, lambda x: plain(x, turns, mask))

        def layer(multihead=multihead, x=x, weight=weight, mask=mask) -> Tensor:  # type: ignore[no-untyped-def]
            return backward(multihead, x, weight, lambda x: multihead(x, ~mask))

        apart = agreed(float(((ours() - same()) * mask[..., None]).abs().max()))
        case = f"width {width}, {batch} x {length} tokens"
        yield compare("b", f"{case}: plain PyTorch", ours, same, difference=apart)
        yield compare("b", f"{case}: nn.MultiheadAttention, no q/k norm, no rotary", ours, layer)


def backward(module: torch.nn.Module, x: Tensor, weight: Tensor, forward: Callable[[Tensor], Tensor]) -> Tensor:
    """A training step on one block, gradient of the input included."""
    module.zero_grad(set_to_none=True)
    out = forward(x.detach().requires_grad_())
    (out * weight).sum().backward()
    return out.detach()


def windowed_against_full(sizes: Sizes, compare: Compare) -> Iterator[Row]:
    """Attention alone and whole blocks, as in inference; one training step for completeness."""
    for rows, cols in sizes.grids:
        tokens = patchify(torch.zeros(1, 3, rows, cols), 1)
        window, full = plan_attention(tokens, RADIUS), plan_attention(tokens)
        where = f"{rows} x {cols}"
        for heads, head_dim in sizes.heads:
            q, k, v = torch.randn(3, 1, rows * cols, heads, head_dim, generator=torch.Generator().manual_seed(0))
            yield compare(
                "c",
                f"{where}, attention alone, {heads} heads of {head_dim}",
                lambda q=q, k=k, v=v, window=window: window(q, k, v),
                lambda q=q, k=k, v=v, full=full: full(q, k, v),
                target=1.3,
            )
        rotary_at = (tokens.row, tokens.col)
        for width in sizes.window_widths:
            heads = max(2, width // 64)
            block = ParallelBlock(width, heads, swiglu_hidden(width, 2.67), layer_scale=0.5)
            yield from block_with_window(block, rotary_2d(*rotary_at, width // heads), window, full, where, compare)
        yield compare(
            "c",
            f"{where}, plan of the window against one full attention of {sizes.heads[0][0]} heads",
            lambda tokens=tokens: plan_attention(tokens, RADIUS),
            lambda full=full, cells=rows * cols: full(*torch.zeros(3, 1, cells, *sizes.heads[0])),
        )


def block_with_window(
    block: ParallelBlock, rotary: Rotary, window: AttentionPlan, full: AttentionPlan, where: str, compare: Compare
) -> Iterator[Row]:
    """One block with either attention."""
    width = block.norm1.weight.numel()
    x = torch.randn(1, rotary.cos.shape[1], width, generator=torch.Generator().manual_seed(0))
    case = f"{where}, block of width {width}"

    def forward(attend: AttentionPlan) -> Tensor:
        with torch.no_grad():
            return block(x, rotary, attend)

    def training(attend: AttentionPlan) -> Tensor:
        return backward(block, x, torch.ones(()), lambda x: block(x, rotary, attend))

    yield compare("c", f"{case}, forward", lambda: forward(window), lambda: forward(full), target=1.3)
    yield compare("c", f"{case}, training step", lambda: training(window), lambda: training(full))


def bands_against_whole(sizes: Sizes, compare: Compare) -> Iterator[Row]:
    """Decoding one picture with a window: time and memory of the row bands."""
    for width, rows, cols in sizes.bands:
        half = f"w{width}_d1_h{max(2, width // 64)}"
        network = ViTokV2Network(
            Variant.parse(f"{half}-{half.replace('d1', 'd3')}/1x{PATCH}x{CHANNELS}"), layer_scale=0.5
        )
        latents = patchify(torch.zeros(1, 3, rows * PATCH, cols * PATCH), PATCH)
        values = torch.randn(1, rows * cols, CHANNELS, generator=torch.Generator().manual_seed(0))
        latents = latents.with_values(values)

        @torch.no_grad()
        def whole(network: ViTokV2Network = network, latents: Tokens = latents) -> Tensor:
            return unpatchify(network.decode(latents, RADIUS))[0]

        @torch.no_grad()
        def bands(network: ViTokV2Network = network, latents: Tokens = latents) -> Iterator[Tensor]:
            yield from decode_in_bands(network, latents, RADIUS)

        def drained(bands: Callable[[], Iterator[Tensor]] = bands) -> int:
            return sum(strip.shape[1] for strip in bands())

        apart = agreed(float((torch.cat(list(bands()), dim=1) - whole()).abs().max()))
        case = f"{rows} x {cols} patches, width {width}, 3 blocks"
        yield compare("d", f"{case}: time", drained, whole, difference=apart)
        small, large = peak_bytes(drained), peak_bytes(whole)
        yield Row("d", f"{case}: peak memory", large / small, (large / small, large / small), small, large)


def largest_difference(a: Tokens, b: Tokens) -> float:
    """Over the real tokens of two batches of one layout."""
    return float((a.values - b.values).detach()[b.mask].abs().max())


def agreed(difference: float) -> float:
    """The difference, if both sides computed the same thing."""
    if not difference <= TOLERANCE:
        raise SystemExit(f"the two sides differ by {difference:.2e}, more than {TOLERANCE:.0e}: no ratio to tell")
    return difference


PARTS = {
    "a": packed_against_padded,
    "b": masked_block_against_plain,
    "c": windowed_against_full,
    "d": bands_against_whole,
}


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=sorted(PARTS), help="only these parts; default: all")
    options = with_standard_options(parser, "benchmarks/results/speed_vitok_v2.json").parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    sizes, repetitions = (QUICK, 1) if options.quick else (FULL, options.repetitions)
    # With one thread the time of the processor counts, which other programs on the machine do not lengthen.
    clock = time.process_time if options.threads == 1 else time.perf_counter
    compare = functools.partial(measure.compare, repetitions=repetitions, clock=clock)
    rows = []
    for part in options.part or sorted(PARTS):
        for row in PARTS[part](sizes, compare):
            print(f"{row.part} {row.case}: {row.ratio:.2f}", flush=True)
            rows.append(row)
    settings = {"threads": options.threads, "repetitions": repetitions, "quick": options.quick, "clock": clock.__name__}
    report(rows, options.out, settings)


if __name__ == "__main__":
    main()
