"""What training by rewards costs: an outer step, the adapters, the prompts, the reference.

(a) one outer step of Flow-GRPO and DiffusionNFT, split into sampling, scoring and training, against the bare passes of
    the network, made by hand: with the embedded world's base and the shipped configurations, and with a random SD3 of
    34 million parameters and the published settings (10 steps; Flow-GRPO guided, DiffusionNFT not)
(b) memory of adapters in one network against further copies of the network: default and reference (Flow-GRPO), default,
    old and reference (DiffusionNFT); counted at the size of SD3.5-Medium, and measured in a training step
(c) prompts from the cache against text encoders that are run: on every prompt once per outer step, and whenever one of
    Flow-GRPO asks, which is for every micro-batch once in sampling and once in learning
(d) the reference as the network with its adapters off against a second network; and what an adapter that is on costs
(e) one outer step at the size of SD3.5-Medium in bfloat16, as in (a): images/s and peak memory; needs a GPU

    python benchmarks/speed/rl.py                            # (a) to (d)
    python benchmarks/speed/rl.py --part c --quick           # half a minute
    python benchmarks/speed/rl.py --part e --device cuda     # --micro-batch 1 with 24 GB

Estimated: (a) 25 minutes of one core, (b) 2, (c) 1, (d) 4, all in 6 GB of memory and 1 GB of disk; (e) 6 minutes of an
H200 and 7 GB of disk. Nothing is downloaded, and no weights are read but those of the package.

A ratio below 1 in (a) and (e) is what records, likelihoods, losses, optimiser, logs and texts looked up cost on top of
the passes. With one thread the time of the processor is taken, which other programs on the machine do not lengthen; on
a GPU the time on the wall.
"""

from __future__ import annotations

import argparse
import functools
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import measure
import torch
from measure import Row, paired, peak_apart, report, with_standard_options
from rl_memory import adapters_of_one, bytes_of_policies, copies_of_network, encoded_and_passed
from rl_models import (
    LARGE,
    MEDIUM,
    SD35M,
    TINY,
    PolicyShape,
    RandomReward,
    be_quiet,
    number_of_parameters,
    open_policy,
    passes,
    random_network,
    write_pipeline,
)
from rl_steps import Machine, Turns, compared, outer_steps, split
from torch import Tensor, nn

from lightning_gen.alignment.diffusion_nft.module import DiffusionNFT
from lightning_gen.alignment.flow_grpo.module import FlowGRPO
from lightning_gen.alignment.online import OnlineTraining, Updates
from lightning_gen.alignment.rollout import micro_batches
from lightning_gen.backbones.lora import AdapterBank, LoRASettings
from lightning_gen.backbones.text_to_image import DiffusersTextToImage
from lightning_gen.commands.trainer import read_config
from lightning_gen.interfaces import Conditioning
from lightning_gen.rewards.rewards import RewardEntry, RewardSuite
from lightning_gen.shapes.prompts import ShapesPromptDataModule

Compare = Callable[..., Row]  # measure.compare with repetitions and clock
peak = functools.partial(peak_apart, imported=("diffusers", "lightning_gen.metrics.preference", "lightning.pytorch"))
ALGORITHMS = {"Flow-GRPO": "flow_grpo", "DiffusionNFT": "diffusion_nft"}


class Rows(NamedTuple):
    """Rows of an outer step."""

    pictures: int
    group: int
    micro_batch: int


class Sizes(NamedTuple):
    """What is run.

    Attributes:
        config: changes of the shipped configurations.
        policy: of (a) and (c).
        rows: of (a) with that policy, and of (c).
        large: network of (b) and (d).
        slow_repetitions: at most so many of what takes minutes.
        sd35m: policy of (e).
        sd35m_rows: of (e).
    """

    config: tuple[str, ...]
    policy: PolicyShape
    rows: Rows
    large: PolicyShape
    slow_repetitions: int
    sd35m: PolicyShape
    sd35m_rows: Rows


FULL = Sizes((), MEDIUM, Rows(4, 2, 2), LARGE, 3, SD35M, Rows(16, 8, 8))
QUICK = Sizes(
    ("--data.init_args.global_batch_size=8", "--data.init_args.repeats=4", "--model.init_args.rollout.steps=3"),
    TINY, Rows(4, 2, 2), TINY, 1, TINY, Rows(4, 2, 2),
)  # fmt: skip


# ---------------------------------------------------------------------- (a) and (e)


def steps(sizes: Sizes, compare: Compare) -> Iterator[Row]:
    """Part (a)."""
    machine = Machine(clock=compare.keywords["clock"])  # type: ignore[attr-defined]
    repetitions = min(sizes.slow_repetitions, compare.keywords["repetitions"])  # type: ignore[attr-defined]
    found = {}
    for name, stem in ALGORITHMS.items():
        turns = outer_steps(*shipped(f"{stem}_shapes_tiny", sizes.config), repetitions, machine)
        yield from split("a", f"{name}, shapes_base", turns)
        found[name] = turns
    yield compared("a", "shapes_base: a step of DiffusionNFT, one of Flow-GRPO", *reversed(found.values()))
    yield from random_steps("a", sizes.policy, sizes.rows, repetitions, machine, torch.float32)


def steps_of_sd35m(sizes: Sizes, compare: Compare, device: str) -> Iterator[Row]:
    """Part (e)."""
    repetitions = min(sizes.slow_repetitions, compare.keywords["repetitions"])  # type: ignore[attr-defined]
    machine = Machine(device, "bf16-mixed", time.perf_counter)
    yield from random_steps("e", sizes.sd35m, sizes.sd35m_rows, repetitions, machine, torch.bfloat16)


def random_steps(
    part: str, shape: PolicyShape, rows: Rows, repetitions: int, machine: Machine, dtype: torch.dtype
) -> Iterator[Row]:
    """Both algorithms with a random policy whose prompts are cached."""
    found: dict[str, Turns] = {}
    data = prompts_of(rows)
    reward = RandomReward(shape.reward, machine.device)
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_pipeline(Path(temporary) / "pipeline", shape, machine.device, dtype)
        for name in ALGORITHMS:
            policy = open_policy(folder, shape, Path(temporary) / "prompts", str(dtype).removeprefix("torch."))  # type: ignore[arg-type]
            policy.cache_prompts([*texts_of(data), ""])
            policy.free_text_encoders()
            size = number_of_parameters(policy.network)
            rewards = RewardSuite([RewardEntry("clip", reward)])
            turns = outer_steps(published(name, policy, rewards, rows), data, repetitions, machine)
            yield from split(part, f"{name}, SD3 of {size / 1e6:.3g} M", turns)
            for ours, bare in turns.peaks[:1]:
                case = f"{name}, SD3 of {size / 1e6:.3g} M: peak memory {ours / 1e9:.1f} GB; bare passes"
                yield memory_row(part, case, ours, bare)
            found[name] = turns
            del policy
    yield compared(
        part, f"SD3 of {size / 1e6:.3g} M: a step of DiffusionNFT, one of Flow-GRPO", *reversed(found.values())
    )


def shipped(name: str, changes: Sequence[str]) -> tuple[Any, Any]:
    """Model and data of a shipped configuration, built as the command line does it."""
    from jsonargparse import ArgumentParser

    file = Path(__file__).resolve().parents[2] / "configs" / f"{name}.yaml"
    config = read_config(["fit", "--config", str(file), *changes])
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(pl.LightningModule, "model")
    parser.add_subclass_arguments(pl.LightningDataModule, "data")
    built = parser.instantiate(parser.parse_object({"model": config["model"], "data": config["data"]}))
    return built.model, built.data


def published(name: str, policy: nn.Module, rewards: RewardSuite, rows: Rows) -> OnlineTraining:
    """An algorithm with its published settings."""
    if name == "Flow-GRPO":
        return FlowGRPO(policy, rewards, updates=Updates(2, rows.micro_batch))
    return DiffusionNFT(policy, rewards, updates=Updates(1, rows.micro_batch, skip_worthless=False))


def prompts_of(rows: Rows) -> ShapesPromptDataModule:
    """The same prompts in every outer step, so that all of them can be cached."""
    return ShapesPromptDataModule(
        global_batch_size=rows.pictures, repeats=rows.group, samples=rows.pictures // rows.group, num_workers=0
    )


def texts_of(data: ShapesPromptDataModule) -> list[str]:
    """The prompts of an outer step, row by row."""
    data.setup("fit")
    return list(next(iter(data.train_dataloader())).prompt)


# ---------------------------------------------------------------------- (b)


def memory(sizes: Sizes, compare: Compare) -> Iterator[Row]:
    """Part (b)."""
    del compare
    large, medium = (number_of_parameters(random_network(shape, "meta")) for shape in (sizes.large, sizes.sd35m))
    for names in (("default",), ("default", "old")):
        who = f"{', '.join(names)} and reference"
        ours, other = bytes_of_policies(sizes.sd35m, names)
        case = f"parameters counted, SD3 of {medium / 1e6:.4g} M in bfloat16: {who}, {ours / 1e9:.2f} GB"
        case = f"{case}; {1 + len(names)} networks, {other / 1e9:.2f} GB"
        yield memory_row("b", case, ours, other)
        ours = peak(functools.partial(adapters_of_one, sizes.large, names, learn=True))
        other = peak(functools.partial(copies_of_network, sizes.large, names, learn=True))
        case = f"peak of a training step, SD3 of {large / 1e6:.3g} M: {who}, {ours / 1e6:.0f} MB"
        yield memory_row("b", f"{case}; {1 + len(names)} networks, {other / 1e6:.0f} MB", ours, other)


def memory_row(part: str, case: str, ours: float, other: float) -> Row:
    """A row of bytes."""
    return Row(part, case, other / ours, (other / ours, other / ours), ours, other)


# ---------------------------------------------------------------------- (c)


def prompts(sizes: Sizes, compare: Compare) -> Iterator[Row]:
    """Part (c)."""
    texts = texts_of(prompts_of(sizes.rows))
    few = min(sizes.slow_repetitions, compare.keywords["repetitions"])  # type: ignore[attr-defined]
    clock = compare.keywords["clock"]  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as temporary:
        folder, cache = write_pipeline(Path(temporary) / "pipeline", sizes.policy), Path(temporary) / "prompts"
        open_policy(folder, sizes.policy, cache).cache_prompts([*texts, ""])
        cached, live = open_policy(folder, sizes.policy, cache), open_policy(folder, sizes.policy)
        apart = largest_difference(cached.encode_prompts(texts), live.encode_prompts(texts))
        if apart != 0:
            raise SystemExit(f"cached prompts differ from encoded ones by {apart:.2e}: no ratio to tell")
        one = texts[:1]
        one_pass = functools.partial(passes(sizes.policy), live.network)
        case = f"text encoders of {encoder_share(live):.2f} times the network's parameters"
        yield compare("c", f"a prompt by {case}; one pass", lambda: live.encode_prompts(one), _quietly(one_pass))
        yield compare(
            "c",
            "a prompt from the cache; encoded",
            lambda: cached.encode_prompts(one),
            lambda: live.encode_prompts(one),
            difference=apart,
        )
        asked = functools.partial(ask_as_flow_grpo, texts=texts, rows=sizes.rows)
        case = f"texts of a step of Flow-GRPO, {len(texts)} pictures, from the cache"
        once = [*dict.fromkeys(texts), ""]
        yield compare(
            "c",
            f"{case}; each prompt encoded once",
            lambda: asked(cached),
            lambda: live.encode_prompts(once),
            repetitions=few,
        )
        pairs = [(_seconds(asked, cached, clock), _seconds(asked, live, clock))]
        yield paired("c", f"{case}; encoded whenever asked for", pairs)
        ours, other = (
            peak(functools.partial(encoded_and_passed, folder, sizes.policy, place, tuple(once)))
            for place in (cache, None)
        )
        case = f"peak of reading the model, {len(once)} prompts and one pass: cached, {ours / 1e6:.0f} MB"
        yield memory_row("c", f"{case}; encoded, {other / 1e6:.0f} MB", ours, other)


def ask_as_flow_grpo(policy: DiffusersTextToImage, texts: Sequence[str], rows: Rows) -> None:
    """What a guided step asks for: with the empty prompt, once in sampling and once in learning."""
    for part in micro_batches(len(texts), rows.micro_batch):
        for _ in range(2):
            policy.encode_prompts(texts[part])
            policy.encode_prompts([""] * len(texts[part]))


def encoder_share(policy: DiffusersTextToImage) -> float:
    """Parameters of the text encoders over those of the network."""
    assert policy._text is not None
    return number_of_parameters(policy._text.network) / number_of_parameters(policy.network)


def largest_difference(a: Conditioning, b: Conditioning) -> float:
    """Of two encodings."""
    assert a.pooled is not None and b.pooled is not None
    return float(max((a.sequence - b.sequence).abs().max(), (a.pooled - b.pooled).abs().max()))


def _seconds(asked: Callable[[Any], None], policy: DiffusersTextToImage, clock: Callable[[], float]) -> float:
    start = clock()
    asked(policy)
    return clock() - start


# ---------------------------------------------------------------------- (d)


def reference(sizes: Sizes, compare: Compare) -> Iterator[Row]:
    """Part (d)."""
    network, second = random_network(sizes.large), random_network(sizes.large)
    bank = AdapterBank(network, LoRASettings(), ("default", "old"))
    predicted = passes(sizes.large)
    count = f"{number_of_parameters(second) / 1e6:.3g} M"

    def switched_off() -> Tensor:
        with torch.no_grad(), bank.disabled():
            return predicted(network)

    copied, adapted = _quietly(lambda: predicted(second)), _quietly(lambda: predicted(network))
    apart = float((switched_off() - copied()).abs().max())
    if apart != 0:
        raise SystemExit(f"the network without its adapters differs from its copy by {apart:.2e}: no ratio to tell")
    yield compare(
        "d", f"a pass of the reference, {count}: adapters off; second network", switched_off, copied, difference=apart
    )
    yield compare("d", f"a pass of the policy, {count}: its adapter on; no adapter in the network", adapted, copied)
    ours, other = (
        peak(functools.partial(side, sizes.large, ("default",), learn=False))
        for side in (adapters_of_one, copies_of_network)
    )
    case = f"peak of a pass of policy and reference, {count}: one network, {ours / 1e6:.0f} MB"
    yield memory_row("d", f"{case}; two networks, {other / 1e6:.0f} MB", ours, other)


def _quietly(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Without gradients."""

    def inside() -> Tensor:
        with torch.no_grad():
            return function()

    return inside


PARTS: dict[str, Callable[[Sizes, Compare], Iterator[Row]]] = {"a": steps, "b": memory, "c": prompts, "d": reference}


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line, and refuse what cannot be measured here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=[*PARTS, "e"], help="only these parts; default: a to d")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of part e; the others use the CPU")
    parser.add_argument("--size", choices=("tiny", "sd35m"), help="of part e; default: sd35m, or tiny if --quick")
    parser.add_argument("--micro-batch", type=int, help="pictures in one pass of part e; default: 8")
    options = with_standard_options(parser, "benchmarks/results/speed_rl.json").parse_args(arguments)
    options.part = options.part or list(PARTS)
    options.size = options.size or ("tiny" if options.quick else "sd35m")
    if "e" in options.part and options.size == "sd35m" and options.device == "cpu":
        parser.error("part e at the size of SD3.5-Medium needs a GPU: --device cuda; --size tiny runs anywhere")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda, but torch sees no GPU here: run part e on a machine that has one")
    return options


def main() -> None:
    """Run the parts that were asked for."""
    options = options_of()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    be_quiet()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # trainers of two steps have nothing to say either
    warnings.filterwarnings("ignore", module="lightning.pytorch")
    sizes, repetitions = (QUICK, 1) if options.quick else (FULL, options.repetitions)
    if options.size == "tiny":
        sizes = sizes._replace(sd35m=QUICK.sd35m, sd35m_rows=QUICK.sd35m_rows)
    if options.micro_batch:
        sizes = sizes._replace(sd35m_rows=sizes.sd35m_rows._replace(micro_batch=options.micro_batch))
    clock = time.process_time if options.threads == 1 else time.perf_counter
    compare = functools.partial(measure.compare, repetitions=repetitions, clock=clock)
    parts = PARTS | {"e": functools.partial(steps_of_sd35m, device=options.device)}
    rows = []
    for part in options.part:
        for row in parts[part](sizes, compare):
            print(f"{row.part} {row.case}: {row.ratio:.2f}", flush=True)
            rows.append(row)
    settings = {"threads": options.threads, "repetitions": repetitions, "quick": options.quick, "clock": clock.__name__}
    if "e" in options.part:
        settings |= {"device": options.device, "size": options.size, **sizes.sd35m_rows._asdict()}
        if options.device == "cuda":
            settings["gpu"] = torch.cuda.get_device_name()
    else:
        print("part e was left out: one step at the size of SD3.5-Medium needs a GPU (--part e --device cuda)")
    report(rows, options.out, settings, "images")


if __name__ == "__main__":
    main()
