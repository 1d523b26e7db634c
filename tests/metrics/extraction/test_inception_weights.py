"""Files of weights: what is read, and what is refused with a sentence."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_gen.backbones.weights import MissingWeightsError
from lightning_gen.metrics.extraction import inception_script, inception_weights
from lightning_gen.metrics.extraction.inception import InceptionV3
from lightning_gen.metrics.extraction.inception_script import ScriptedInception, probe_pictures
from lightning_gen.metrics.extraction.inception_weights import PUBLISHED_FILES, load_inception, verify_inception_weights
from lightning_gen.metrics.extractors import FIDInceptionV3
from lightning_gen.metrics.protocol import file_sha256
from tests.harness.tiny_inception import (
    random_inception_state,
    write_random_inception,
    write_random_legacy,
    write_random_script,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inception")
    write_random_inception(root)
    write_random_legacy(root)
    write_random_script(root)
    return root


@pytest.fixture(scope="module")
def zipped(folder: Path) -> Path:
    return folder / "random-inception-0.pth"


def test_both_layouts_of_a_state_dict_give_the_same_network(folder: Path, zipped: Path) -> None:
    first = load_inception(zipped, "any")
    second = load_inception(str(folder / "random-inception-legacy-0.pth"), "any")
    assert first.layout == second.layout == "state dict"
    assert first.sha256 == file_sha256(zipped) != second.sha256
    assert first.fingerprint == second.fingerprint
    assert first.sizes == {"pool": 2048, "spatial": 2023, "logits": 1008}
    wanted = random_inception_state()
    for name, tensor in second.network.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name
    assert not first.network.training
    assert not any(parameter.requires_grad for parameter in first.network.parameters())


def test_counters_of_batches_are_not_part_of_the_weights(tmp_path: Path) -> None:
    prints = []
    for value in (0, 7):
        counter = torch.tensor(value)
        torch.save(state_with(Mixed_5b__branch1x1__bn__num_batches_tracked=counter), tmp_path / "counted.pth")
        prints.append(load_inception(tmp_path / "counted.pth", "any").fingerprint)
    assert prints[0] == prints[1]


def test_torchscript_gives_the_same_features_but_no_spatial_ones(folder: Path, zipped: Path) -> None:
    scripted = load_inception(folder / "random-inception-0.pt")
    assert isinstance(scripted.network, ScriptedInception)
    assert scripted.layout == "torchscript"
    assert scripted.sizes == {"pool": 2048, "logits": 1008}
    assert scripted.fingerprint == scripted.sha256 == file_sha256(folder / "random-inception-0.pt")
    with torch.no_grad():
        found = scripted.network(probe_pictures(2))
        wanted = load_inception(zipped, "any").network(probe_pictures(2))
    assert set(found) == {"pool", "logits"}
    for name, feature in found.items():
        assert torch.allclose(feature, wanted[name], rtol=1e-5, atol=1e-4), name


def test_torchscript_computes_in_float32_only(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"TorchScript and computes in float32; torch\.float64 needs one of the \.pth"):
        FIDInceptionV3(folder / "random-inception-0.pt", dtype=torch.float64)


def test_the_classifier_of_torchscript_is_the_one_it_answers_with(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.load(str(folder / "random-inception-0.pt"))
        with torch.no_grad():
            script.output.weight.mul_(2)
        script.save(str(tmp_path / "changed.pt"))
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "other.pt"))
    found = load_inception(tmp_path / "changed.pt").network
    assert torch.equal(found.classifier, script.output.weight)
    with pytest.raises(MissingWeightsError, match=r"TorchScript, but not inception-2015-12-05\.pt"):
        load_inception(tmp_path / "other.pt")
    monkeypatch.setattr(inception_script, "NUM_CLASSES", 1009)
    with pytest.raises(MissingWeightsError, match="no tensor of 1009 x 2048 explains its class probabilities"):
        load_inception(tmp_path / "changed.pt")


def test_only_the_published_sha256_passes_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "hollow.pth"
    torch.save(state_with(), path)
    sha256 = file_sha256(path)
    message = rf"sha256 {sha256}, expected 6726825d.*expected_sha256 to '{sha256[:16]}'"
    with pytest.raises(MissingWeightsError, match=message):
        load_inception(path)
    assert load_inception(path, sha256[:8].upper()).sha256 == sha256
    with pytest.raises(MissingWeightsError, match="expected 00000000"):
        load_inception(path, "0" * 64)
    with pytest.raises(ValueError, match="8 to 64 hexadecimal digits"):
        load_inception(path, "abc")
    monkeypatch.setattr(inception_weights, "_PUBLISHED", sha256[:8])
    assert load_inception(path).sha256 == sha256


def test_a_given_sha256_is_asked_of_torchscript_too(folder: Path) -> None:
    with pytest.raises(MissingWeightsError, match="expected 00000000"):
        load_inception(folder / "random-inception-0.pt", "00000000")


def test_published_names_carry_the_published_hash() -> None:
    assert [name for name in PUBLISHED_FILES if name.endswith("-6726825d.pth")] == list(PUBLISHED_FILES)[:2]


def test_a_missing_file_says_which_files_there_are(tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError, match=r"no file .*pt_inception-2015-12-05-6726825d\.pth.*torch-fidelity"):
        load_inception(tmp_path / "nothing.pth")
    with pytest.raises(MissingWeightsError, match="is a folder; give the file"):
        load_inception(tmp_path)


def state_with(**changes: Any) -> dict[str, Any]:
    """Of the right shapes, but every tensor is one number that is repeated, so that the file is small."""
    with torch.device("meta"):
        shapes = InceptionV3().state_dict()
    state: dict[str, Any] = {name: torch.ones(()).expand(tensor.shape) for name, tensor in shapes.items()}
    for name, value in changes.items():
        key = name.replace("__", ".")
        if value is None:
            del state[key]
        else:
            state[key] = value
    return state


CASES: dict[str, tuple[Any, str]] = {
    "missing": ({"Mixed_6c__branch1x1__bn__weight": None}, r"lacks Mixed_6c\.branch1x1\.bn\.weight \(1 tensors"),
    "extra": ({"AuxLogits__fc__weight": torch.zeros(1)}, r"holds beyond the network AuxLogits\.fc\.weight"),
    "misshaped": (
        {"Mixed_7b__branch1x1__conv__weight": torch.zeros(320, 1280, 3, 3)},
        r"other shapes: Mixed_7b\.branch1x1\.conv\.weight \(320, 1280, 3, 3\) instead of \(320, 1280, 1, 1\)",
    ),
    "half": ({"fc__bias": torch.zeros(1008).half()}, r"less exact than float32: fc\.bias"),
    "torchvision": (
        {"fc__weight": torch.zeros(1000, 2048), "fc__bias": torch.zeros(1000)},
        "1000 classes, such as torch",
    ),
    "not tensors": ({"fc__bias": [0.0]}, "not a state dict of tensors"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_file_that_does_not_fit_is_refused(case: str, tmp_path: Path) -> None:
    changes, message = CASES[case]
    torch.save(state_with(**changes), tmp_path / "wrong.pth")
    with pytest.raises(MissingWeightsError, match=message):
        load_inception(tmp_path / "wrong.pth", "any")


class Evil:
    """Would run code when it is unpickled."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("the pickle ran code",))


def test_pickles_and_rubbish_are_refused_without_running_them(tmp_path: Path, zipped: Path) -> None:
    torch.save({"fc.weight": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.pth").write_text("<html>not found</html>")
    (tmp_path / "cut.pth").write_bytes(zipped.read_bytes()[:100_000])
    torch.save(InceptionV3().fc.weight.detach()[:1], tmp_path / "tensor.pth")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(MissingWeightsError, match=r"not a file of weights.*Give one of"):
            load_inception(path, "any")


def test_a_tensorflow_graph_is_answered_with_the_file_to_use(tmp_path: Path) -> None:
    (tmp_path / "classify_image_graph_def.pb").write_bytes(b"\x0a\x10")
    with pytest.raises(MissingWeightsError, match=r"TensorFlow graph is not read.*pt_inception"):
        load_inception(tmp_path / "classify_image_graph_def.pb", "any")


def test_the_report_of_a_check(zipped: Path, folder: Path, tmp_path: Path) -> None:
    refused = verify_inception_weights(zipped)
    assert not refused.usable and "expected 6726825d" in refused.problem
    assert refused.sha256 == file_sha256(zipped)
    found = verify_inception_weights(zipped, "any")
    assert found.usable and found.published is False and found.layout == "state dict"
    assert found.features == ("pool", "spatial", "logits") and len(found.fingerprint) == 64
    script = verify_inception_weights(folder / "random-inception-0.pt")
    assert script.usable and script.published is None and script.features == ("pool", "logits")
    absent = verify_inception_weights(tmp_path / "nothing.pth")
    assert not absent.usable and absent.sha256 == "" and "no file" in absent.problem


def test_weights_that_are_not_finite_are_found(tmp_path: Path) -> None:
    broken = torch.tensor(float("nan")).expand(320, 2048, 1, 1)
    torch.save(state_with(Mixed_7c__branch1x1__conv__weight=broken), tmp_path / "nan.pth")
    report = verify_inception_weights(tmp_path / "nan.pth", "any")
    assert not report.usable and "NaN or infinite: copy the file again" in report.problem


def test_it_is_built_inside_a_meta_context_and_leaves_the_random_state_alone(zipped: Path) -> None:
    before = torch.get_rng_state()
    with torch.device("meta"):
        loaded = load_inception(zipped, "any")
    assert {parameter.device.type for parameter in loaded.network.parameters()} == {"cpu"}
    assert torch.equal(torch.get_rng_state(), before)
