"""The model card names things that exist, its example runs, and its counts and switches are those of the code."""

import inspect
import re

import lightning_gen.autoencoders.vitok_v2 as room
from lightning_gen.autoencoders.vitok_v2.module import ViTokV2
from lightning_gen.autoencoders.vitok_v2.variants import PUBLISHED, Variant
from lightning_gen.data.modules import ShardDataModule
from tests.harness.model_card import card_of, missing_functions, named_functions, python_blocks

CARD = card_of(room)


def test_every_function_of_the_card_exists() -> None:
    assert len(named_functions(CARD)) >= 25
    assert missing_functions(CARD, room) == []


def test_a_name_that_does_not_exist_is_found() -> None:
    assert missing_functions(
        "`network.py:ViTokV2Network.encode` `network.py:Gone` `gone.py:x` `nn/rope.py:no`", room
    ) == [
        "network.py:Gone",
        "gone.py:x",
        "nn/rope.py:no",
    ]


def test_every_published_variant_is_listed_with_its_parameters() -> None:
    for name in PUBLISHED:
        variant = Variant.parse(name)
        counts = [variant.encoder_parameters, variant.decoder_parameters]
        row = " | ".join(f"{count:,}" for count in [*counts, sum(counts)])
        assert f"| `{name}` | `{PUBLISHED[name]}` | {variant.compression:g} | {row} |" in CARD


def test_every_switch_exists() -> None:
    section = CARD.split("## Deviations and choices")[1].split("\n## ")[0]
    rows = [line.rsplit("|", 2)[1] for line in section.splitlines() if line.startswith("| ") and "---" not in line]
    switches = [name for row in rows[1:] for name in re.findall(r"`(model|data)\.(\w+)", row)]
    assert len(switches) >= 10
    owners = {"model": ViTokV2, "data": ShardDataModule}
    for owner, name in switches:
        assert name in inspect.signature(owners[owner]).parameters, f"{owner}.{name}"


def test_the_example_runs(tmp_path, monkeypatch) -> None:
    from PIL import Image

    model = ViTokV2("w32_d1_h2-w32_d1_h2/1x16x8", layer_scale=0.5)
    model.configure_model()
    model.save_pretrained(tmp_path / "weights")
    Image.new("RGB", (50, 33), (200, 30, 30)).save(tmp_path / "photograph.jpg")
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {}
    exec(python_blocks(CARD)[0].replace("350M-f16x64", "weights"), space)
    assert space["latents"].values.shape == (1, 12, 8)  # type: ignore[attr-defined]
    assert space["image"].shape == (1, 3, 33, 50)  # type: ignore[attr-defined]
