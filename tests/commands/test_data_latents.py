"""`lightning data cache-latents`: from a folder of weights and a data set to latents that a model trains on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch

from lightning_gen.autoencoders.vitok_v2.module import ViTokV2
from lightning_gen.cli import main
from lightning_gen.data.finding import find_manifest
from lightning_gen.data.latents.module import LatentDataModule
from lightning_gen.data.latents.record import LatentRecord, weights_sha256
from lightning_gen.data.writing import write_shards
from tests.data.samples import sample, shards

Run = Callable[..., str]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder with pictures in ``p`` and a tiny ViTokV2 in ``weights``."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    shards(tmp_path / "p", 14, 6)
    model = ViTokV2("w16_d1_h1-w16_d1_h1/1x8x6", layer_scale=0.5, dino_weight=0.0)
    model.configure_model()
    model.save_pretrained("weights")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the verb; what it prints, or the message with which it ends."""

    def call(*arguments: str, code: int = 0) -> str:
        if code == 0:
            assert main(["data", "cache-latents", *arguments]) == 0
            return capsys.readouterr().out
        with pytest.raises(SystemExit) as end:
            main(["data", "cache-latents", *arguments])
        message = capsys.readouterr().err
        assert end.value.code == code and "Traceback" not in message
        return message.splitlines()[-1]

    return call


VITOK = ("--autoencoder", "ViTokV2", "--weights", "weights")


def test_latents_of_a_vitok_are_cached_and_can_be_trained_on(run: Run) -> None:
    text = run("p", "l", *VITOK, "--tokens", "16", "--mirror", "--device", "cpu", "--batch-size", "4")
    digest = weights_sha256(ViTokV2.from_pretrained("weights"))
    assert "14 latents" in text and "of 6 channels" in text and digest in text and "could not be used" not in text
    record = LatentRecord.load("l")
    assert (record.autoencoder, record.name, record.sha256) == ("ViTokV2", "weights", digest)
    assert (record.tokens, record.mirrored, record.dtype, record.patch) == (16, True, "float16", 8)
    data = LatentDataModule("l", "l", tokens=16, global_batch_size=4, mirror_probability=0.5, autoencoder_sha256=digest)
    batch = next(iter(data.train_loader(0)))
    images = ViTokV2.from_pretrained("weights").decode(
        batch.images.with_values(data.record.restored(batch.images.values))
    )
    assert [list(image.shape[1:]) for image in images] == batch.images.sizes.tolist()


def test_latents_of_a_diffusers_vae_are_cached(run: Run) -> None:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    diffusers.AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, **blocks).save_pretrained("vae")
    vae = ("--autoencoder", "DiffusersVAE", "--weights", "vae")
    run("p", "square", *vae, "--resolution", "16", "--dtype", "float32")
    record = LatentRecord.load("square")
    assert (record.resolution, record.dtype, record.patch, record.channels) == (16, "float32", 2, 4)
    assert record.num_tokens == 14 * 64
    run("p", "native", *vae, "--tokens", "100")
    batch = next(iter(LatentDataModule("native", tokens=100, global_batch_size=4).train_loader(0)))
    assert len({tuple(size) for size in batch.images.sizes.tolist()}) > 1


def test_pictures_that_cannot_be_used_are_mentioned(run: Run) -> None:
    data = [sample(number) for number in range(6)]
    data[2] = (data[2][0], {**data[2][1], "png": b""})
    write_shards(data, "q")
    text = run("q", "l", *VITOK, "--tokens", "9")
    assert "5 latents" in text and "1 pictures could not be used: l/quarantine.jsonl" in text
    assert json.loads(Path("l/quarantine.jsonl").read_text())["key"] == "s00002"


def test_a_class_in_a_file_of_this_folder_is_found(run: Run, tmp_path: Path) -> None:
    (tmp_path / "idea_of_latents.py").write_text(
        "from tests.data.patch_averages import PatchAverages\n"
        "class Mine(PatchAverages):\n"
        "    @classmethod\n"
        "    def from_pretrained(cls, source): return cls(seed=int(source))\n"
    )
    run("p", "l", "--autoencoder", "idea_of_latents.Mine", "--weights", "3", "--tokens", "4")
    record = LatentRecord.load("l")
    assert (record.autoencoder, record.name, record.channels) == ("Mine", "3", 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("p", "l", *VITOK), "one of the arguments --tokens --resolution is required"),
        (("p", "l", *VITOK, "--tokens", "4", "--resolution", "4"), "not allowed with argument"),
        (("p", "l", *VITOK, "--tokens", "0"), "either tokens or resolution, at least 1"),
        (("p", "p", *VITOK, "--tokens", "4"), "p is the data set that is read"),
        (("gone", "l", *VITOK, "--tokens", "4"), "gone: 1 of 1 shards are missing"),
        (("p", "l", "--autoencoder", "ViTokV2", "--weights", "./gone", "--tokens", "4"), "there is no folder ./gone"),
        (("p", "l", "--autoencoder", "Nothing", "--weights", "x", "--tokens", "4"), "Nothing: no such class"),
        (("p", "l", "--autoencoder", "no.Such", "--weights", "x", "--tokens", "4"), "No module named 'no'"),
        (("p", "l", "--autoencoder", "json.JSONDecoder", "--weights", "x", "--tokens", "4"), "no class with"),
        (("p", "l", "--autoencoder", "SampleGrid", "--weights", "x", "--tokens", "4"), "no class with"),
        (("p", "l", *VITOK, "--tokens", "4", "--device", "tpu7"), "--device tpu7"),
        (("p", "l", *VITOK, "--tokens", "4", "--max-bad-fraction", "2"), "max_bad_fraction is a fraction"),
        (("p", "l", *VITOK, "--tokens", "4", "--batch-size", "0"), "batch_size must be at least 1"),
    ],
)
def test_a_mistake_is_one_line(run: Run, arguments: tuple[str, ...], message: str) -> None:
    assert message in run(*arguments, code=2)
    assert not Path("l/manifest.json").exists()


def test_it_goes_on_or_starts_again_as_it_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, calls = ViTokV2.encode, list[int]()

    def limited(self: ViTokV2, images: object) -> object:
        calls.append(1)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("out of memory")
        return encode(self, images)  # type: ignore[arg-type]

    monkeypatch.setattr(ViTokV2, "encode", limited)
    command = ("p", "l", *VITOK, "--tokens", "9", "--batch-size", "3")
    assert "memory of cpu does not hold 3 pictures at a time: give a smaller --batch-size" in run(*command, code=2)
    assert run(*command[:-1], "1").startswith("l: 14 latents")
    assert len(calls) == 4 + 1 + 8  # one shard of six was done
    assert "--overwrite" in run(*command, code=2)
    run(*command, "--overwrite", "--mirror")
    assert LatentRecord.load("l").mirrored and find_manifest("l").total == 14
