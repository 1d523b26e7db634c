from __future__ import annotations

import importlib
import json
import shutil
import socket
import traceback
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, errors
from safetensors.torch import load_file, save_file

from lightning_gen.backbones import weights
from lightning_gen.backbones.vision import Backend, DINOv3Encoder, weight_need
from lightning_gen.backbones.weights import MissingWeightsError, fetch_files, find_weights
from tests.harness.tiny_dinov3 import save_timm, save_transformers

GATED = "facebook/dinov3-vits16-pretrain-lvd1689m"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a test wants the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty hub cache of this test's own."""
    place = tmp_path / "hub"
    place.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(place))
    return place


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("originals")
    return {"transformers": save_transformers(root / "transformers"), "timm": save_timm(root / "timm")}


@pytest.fixture(params=["transformers", "timm"])
def folder(request: pytest.FixtureRequest, originals: dict[str, Path], tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(originals[request.param], tmp_path / "weights"))


def into_cache(
    cache: Path, source: Path, repository: str, commit: str = "0123456789abcdef0123456789abcdef01234567"
) -> None:
    """Lay a folder out as the hub client does."""
    home = cache / f"models--{repository.replace('/', '--')}"
    shutil.copytree(source, home / "snapshots" / commit)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)


def message(source: str | Path, backend: Backend = "auto") -> str:
    """The text of the error that the encoder raises; nothing of another library may hang on it."""
    with pytest.raises(MissingWeightsError) as caught:
        DINOv3Encoder(str(source), backend=backend)
    assert caught.value.__cause__ is None
    shown = "".join(traceback.format_exception(caught.value))
    assert "During handling" not in shown and "site-packages/huggingface_hub" not in shown
    assert "site-packages/transformers" not in shown and "site-packages/timm" not in shown
    return str(caught.value)


def hub_says(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)


def http(kind: type[errors.HfHubHTTPError], status: int) -> errors.HfHubHTTPError:
    httpx: Any = importlib.import_module(errors.HTTPError.__module__.split(".")[0])  # its name differs between releases
    response = httpx.Response(status, request=httpx.Request("GET", "https://example.invalid"))
    return kind("secret text of the client", response=response)


# ------------------------------------------------------------------ where weights come from


def test_weights_of_a_hub_id_come_from_the_cache_without_network(
    cache: Path, originals: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_says(monkeypatch, AssertionError("the cache is enough"))
    into_cache(cache, originals["transformers"], GATED)
    into_cache(cache, originals["timm"], "timm/vit_small_patch16_dinov3.lvd1689m")
    x = torch.rand(1, 3, 32, 32)
    first, second = DINOv3Encoder(), DINOv3Encoder(backend="timm")
    assert (first.backend, second.backend) == ("transformers", "timm")
    assert (first.source, second.source) == (GATED, "timm/vit_small_patch16_dinov3.lvd1689m")
    torch.testing.assert_close(first(x), second(x), rtol=1e-5, atol=1e-5)


def test_what_the_hub_sends_is_loaded(cache: Path, originals: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repository: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repository, revision, allow_patterns))
        return str(originals["timm"])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert DINOv3Encoder("somebody/dinov3", revision="v2").backend == "timm"
    assert asked == [("somebody/dinov3", "v2", ["config.json", "model.safetensors.index.json", "model*.safetensors"])]


def test_an_incomplete_cache_is_completed_by_the_hub(
    cache: Path, originals: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    into_cache(cache, originals["transformers"], GATED)
    next(cache.rglob("model.safetensors")).unlink()
    assert find_weights(GATED)[0] is None
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(originals["transformers"]))
    assert DINOv3Encoder().backend == "transformers"


def test_sharded_weights(originals: dict[str, Path], tmp_path: Path) -> None:
    whole = DINOv3Encoder(str(originals["timm"]))
    state = load_file(originals["timm"] / "model.safetensors")
    parts = tmp_path / "parts"
    parts.mkdir()
    shutil.copy(originals["timm"] / "config.json", parts)
    names = sorted(state)
    for i, keys in enumerate((names[::2], names[1::2]), 1):
        save_file({key: state[key] for key in keys}, parts / f"model-0000{i}-of-00002.safetensors")
    index = {key: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, key in enumerate(names)}
    (parts / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(DINOv3Encoder(str(parts))(x), whole(x))
    (parts / "model-00002-of-00002.safetensors").unlink()
    assert "holds no model-00002-of-00002.safetensors" in message(parts)


def test_a_classifier_head_is_left_behind(originals: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(originals["timm"], tmp_path / "with-head"))
    state = load_file(folder / "model.safetensors")
    save_file({**state, "head.weight": torch.zeros(10, 32), "head.bias": torch.zeros(10)}, folder / "model.safetensors")
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(DINOv3Encoder(str(folder))(x), DINOv3Encoder(str(originals["timm"]))(x))


def test_files_by_name(tmp_path: Path, cache: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    save_file({"x": torch.zeros(3)}, source / "encoder.safetensors")
    with pytest.raises(MissingWeightsError, match="holds no decoder.safetensors"):
        fetch_files(str(source), ["encoder.safetensors", "decoder.safetensors"])
    save_file({"x": torch.zeros(3)}, source / "decoder.safetensors")
    names = ["encoder.safetensors", "decoder.safetensors"]
    assert fetch_files(str(source), names, optional=["config.json"]) == source
    into_cache(cache, source, "somebody/model")
    assert (fetch_files("somebody/model", names) / "decoder.safetensors").is_file()


# ------------------------------------------------------------------ what can be wrong with a folder


def test_no_such_folder(tmp_path: Path) -> None:
    assert f"there is no folder {tmp_path / 'nowhere'}" in message(tmp_path / "nowhere")


def test_a_file_instead_of_a_folder(folder: Path) -> None:
    assert "is a file; give the folder" in message(folder / "model.safetensors")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert f"holds no {name}" in message(folder)


def test_pickled_weights_are_not_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    text = message(folder)
    assert "only pickled weights (pytorch_model.bin), which are not read" in text


def test_weights_cut_off_in_the_middle(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    text = message(folder)
    assert "damaged or cut off" in text and f"{len(whole) // 2} bytes" in text


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_an_unreadable_configuration(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    assert "config.json is not a readable JSON object" in message(folder)


def test_another_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    key = "architecture" if "architecture" in config else "model_type"
    config[key] = {"architecture": "vit_small_patch16_224", "model_type": "dinov2"}[key]
    (folder / "config.json").write_text(json.dumps(config))
    assert f"describes {config[key]!r}, not a DINOv3 vision transformer" in message(folder)


def test_the_other_library(folder: Path) -> None:
    found: Backend = DINOv3Encoder(str(folder)).backend
    other: Backend = "timm" if found == "transformers" else "transformers"
    assert f"written in the layout of {found}: set backend to {found!r}" in message(folder, other)


def test_a_tensor_is_missing(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    key = next(name for name in sorted(state) if name.endswith("norm1.weight"))
    del state[key]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    text = message(folder)
    assert "lack 1 tensors" in text and key.removeprefix("model.") in text


def test_a_tensor_too_many(folder: Path) -> None:
    state = load_file(folder / "model.safetensors") | {"something.else": torch.zeros(2)}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    text = message(folder)
    assert "hold beyond it 1 tensors" in text and "something.else" in text


def test_a_tensor_of_another_shape(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    key = next(name for name in sorted(state) if name.endswith("norm1.weight"))
    state[key] = torch.zeros(5)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    assert "do not fit its config.json" in message(folder)


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="unknown DINOv3 size 'XL'; there are S, S"):
        DINOv3Encoder(model="XL")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown back end 'jax'"):
        DINOv3Encoder(backend="jax")  # type: ignore[arg-type]


# ------------------------------------------------------------------ what the hub can answer


def test_a_gated_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_says(monkeypatch, http(errors.GatedRepoError, 403))
    text = message(GATED)
    assert text.startswith(f"weights of {GATED}: the repository is gated. Accept its licence on its hub page")
    assert "HF_TOKEN" in text and "another machine" in text and "secret text" not in text


def test_no_such_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_says(monkeypatch, http(errors.RepositoryNotFoundError, 404))
    text = message("runs/dino")  # as well a folder that somebody mistyped
    assert "there is no folder of this name here and no such repository on the hub" in text


def test_no_such_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_says(monkeypatch, http(errors.RevisionNotFoundError, 404))
    with pytest.raises(MissingWeightsError, match="no revision 'v9'"):
        DINOv3Encoder(GATED, revision="v9")


def test_offline(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # the hub client's own answer, nothing is replaced
    text = message(GATED)
    assert "HF_HUB_OFFLINE forbids fetching" in text and str(cache) in text


def test_no_connection(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub_says(monkeypatch, ConnectionError("secret text"))
    text = message(GATED)
    assert "the hub could not be reached (ConnectionError)" in text and "secret text" not in text


def test_a_repository_without_safetensors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "fetched").mkdir()
    (tmp_path / "fetched" / "config.json").write_text("{}")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path / "fetched"))
    assert "holds no model.safetensors" in message("somebody/pickles")


# ------------------------------------------------------------------ the preflight's question


def test_need_of_weights_that_are_here(folder: Path, cache: Path) -> None:
    need = weight_need(str(folder))
    assert (need.what, need.source, need.found, need.hint) == ("DINOv3", str(folder), True, "")
    into_cache(cache, folder, "somebody/dinov3")
    assert weight_need("somebody/dinov3").found


def test_need_of_a_published_size(originals: dict[str, Path], cache: Path) -> None:
    into_cache(cache, originals["transformers"], GATED)
    need = weight_need(model="S")
    assert (need.what, need.source, need.found, need.hint) == ("DINOv3 ViT-S/16", GATED, True, "")


def test_need_of_weights_that_are_not_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_says(monkeypatch, AssertionError("the preflight asks nobody"))
    need = weight_need(model="B")
    assert need.source == "facebook/dinov3-vitb16-pretrain-lvd1689m" and not need.found
    assert "licence" in need.hint and "hf auth login" in need.hint and "local folder" in need.hint
    (folder / "model.safetensors").unlink()
    need = weight_need(str(folder))
    assert not need.found and need.hint.startswith(f"{folder} holds no model.safetensors")


def test_need_of_weights_of_something_else(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "bert"}')
    need = weight_need(str(folder))
    assert not need.found and "describes 'bert'" in need.hint


def test_the_error_needs_no_torch() -> None:
    assert issubclass(weights.MissingWeightsError, RuntimeError)
    assert not any(name.startswith("torch") for name in vars(weights))
