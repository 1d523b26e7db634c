"""`lightning evaluate`: its help, npz, verify-weights, and several evaluations in one file."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lightning_gen.cli import main
from lightning_gen.commands.evaluate_options import built, check_pairs, compressed
from lightning_gen.metrics.image_sets import open_images
from lightning_gen.metrics.protocol import file_sha256
from tests.harness.tiny_dinov2 import save_torch_hub

VERBS = ("gfid", "statistics", "rfid", "geneval", "geneval2", "dpg", "egip", "preference", "npz", "verify-weights")
CONFIGS = Path(__file__).parents[2] / "configs"
Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `lightning evaluate ...` in an empty folder; what it prints."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, code: int = 0) -> str:
        assert main(["evaluate", *arguments]) == code
        return capsys.readouterr().out

    return call


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The message with which it ends; with code 2 and without a stack trace."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> str:
        with pytest.raises(SystemExit) as end:
            main(["evaluate", *arguments])
        message = capsys.readouterr().err
        assert end.value.code == 2
        assert "Traceback" not in message
        return message

    return call


def pictures(folder: Path, count: int, size: int = 16, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)):
        Image.fromarray(image).save(folder / f"{number:03d}.png")
    return folder


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_with_examples(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(["evaluate", verb, "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    assert f"  lightning evaluate {verb} " in text
    assert max(map(len, text.splitlines())) <= 120


def test_the_verbs_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    text = capsys.readouterr().out
    assert all(re.search(rf"^    {verb}\s", text, re.MULTILINE) for verb in VERBS)
    assert main([]) == 0
    assert "  evaluate " in capsys.readouterr().out


def test_help_needs_no_package_at_all() -> None:
    code = (
        "import sys\nfrom lightning_gen.cli import main\ntry: main(['evaluate', 'gfid', '--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'numpy', 'lightning', 'rich', 'PIL', 'yaml') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"


def test_a_verb_or_a_config_is_needed(refused: Run) -> None:
    assert "give a verb or --config" in refused()
    assert "one or the other" in refused("--config", "x.yaml", "npz", "--samples", "a", "--out", "b.npz")


# ---------------------------------------------------------------- npz


def test_npz_holds_the_pictures_in_order(run: Run, tmp_path: Path) -> None:
    pictures(tmp_path / "set", 5)
    assert "arr_0 uint8 (3, 16, 16, 3)" in run("npz", "--samples", "set", "--count", "3", "--out", "a.npz")
    folder, file = open_images("set"), open_images("a.npz")
    assert all(torch.equal(folder.read(number), file.read(number)) for number in range(3))


def test_npz_says_what_became_of_alpha(run: Run, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    Image.new("RGBA", (16, 16), (200, 0, 0, 60)).save(tmp_path / "set/x.png")
    assert "laid over white" in run("npz", "--samples", "set", "--out", "white.npz")
    assert "without their alpha" in run("npz", "--samples", "set", "--alpha", "drop", "--out", "drop.npz")
    white, drop = (open_images(f"{name}.npz").read(0)[:, 0, 0].tolist() for name in ("white", "drop"))
    assert drop == [200, 0, 0]
    assert white == pytest.approx([round(255 + (level - 255) * 60 / 255) for level in drop], abs=1)


def test_out_is_looked_at_before_the_work(refused: Run, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    (tmp_path / "folder").mkdir()
    for out in ("taken", "taken/deeper"):
        assert re.search(
            r"--out: \S*taken is a file: name a folder", refused("gfid", "--samples", "nowhere", "--out", out)
        )
    assert "folder is a folder: name a file" in refused("npz", "--samples", "nowhere", "--out", "folder")
    assert "taken is a file" in refused("npz", "--samples", "nowhere", "--out", "taken/a.npz")
    given = [{"verb": "gfid", **COLOURS, "out": "taken"}]
    assert "taken is a file" in refused("--config", config(tmp_path / "one.yaml", evaluations=given))


def test_npz_refuses_what_it_cannot_hold(run: Run, refused: Run, tmp_path: Path) -> None:
    pictures(tmp_path / "set", 2)
    Image.new("RGB", (16, 17)).save(tmp_path / "set/x.png")
    assert "x.png has 17 x 16 pixels" in refused("npz", "--samples", "set", "--out", "a.npz")
    assert not (tmp_path / "a.npz").exists()
    assert "4 are asked for" in refused("npz", "--samples", "set", "--count", "4", "--out", "a.npz")
    assert "end in .npz" in refused("npz", "--samples", "set", "--count", "2", "--out", "a")
    assert "'0' is no number of things" in refused("npz", "--samples", "set", "--count", "0", "--out", "a.npz")
    assert "no file or folder nowhere" in refused("npz", "--samples", "nowhere", "--out", "a.npz")


# ---------------------------------------------------------------- verify-weights


def test_hashes_of_weights(run: Run, refused: Run, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(3)}, path)
    digest = file_sha256(path)
    assert f"ok   {digest}  model.safetensors: as expected" in run("verify-weights", str(path), "--sha256", digest[:8])
    assert "readable" in run("verify-weights", str(tmp_path))
    assert "BAD" in run("verify-weights", str(path), "--sha256", "00000000", code=1)
    assert "there is no such file" in run("verify-weights", "missing.bin", code=1)
    path.write_bytes(path.read_bytes()[:40])
    assert "damaged or cut off" in run("verify-weights", str(path), code=1)
    assert "is that of one file" in refused("verify-weights", "a", "b", "--sha256", "00000000")


def test_a_file_that_is_no_inception_is_named(run: Run, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pth")
    assert "not the published Inception" in run("verify-weights", "a.pth", code=1)
    assert "does not" not in run("verify-weights", "a.pth", "--sha256", file_sha256(tmp_path / "a.pth")[:8], code=1)


LAYERS = {0: (8, 16), 2: (8, 8), 4: (8, 8), 6: (8, 8), 7: (1, 8)}


def alexnet() -> dict[str, torch.Tensor]:
    import torchvision

    with torch.device("meta"):
        features = torchvision.models.alexnet(weights=None).features
    return {f"features.{name}": torch.zeros(tensor.shape) for name, tensor in features.state_dict().items()}


def known_file(kind: str, path: Path) -> Path:
    """The layout that is published, with weights of no meaning."""
    if kind == "dinov2":
        return save_torch_hub(path)
    if kind == "clip":
        names = ("logit_scale", "text_projection", "visual.conv1.weight")
        torch.save({"state_dict": {name: torch.zeros(2) for name in names}}, path)
    elif kind == "aesthetic":
        state = {f"layers.{number}.weight": torch.zeros(shape) for number, shape in LAYERS.items()}
        torch.save({**state, **{f"layers.{number}.bias": torch.zeros(1) for number in LAYERS}}, path)
    else:
        torch.save(alexnet(), path, _use_new_zipfile_serialization=False)
    return path


@pytest.mark.parametrize("kind", ["lpips", "dinov2", "clip", "aesthetic"])
def test_other_files_than_inceptions_pass(run: Run, tmp_path: Path, kind: str) -> None:
    path = known_file(kind, tmp_path / ("a.pt" if kind == "clip" else "a.pth"))
    digest = file_sha256(path)
    assert f"ok   {digest}  {path.name}: {kind} and readable" in run("verify-weights", str(path))
    assert f"{kind} and as expected" in run("verify-weights", str(path), "--sha256", digest[:8].upper())
    assert "ok " in run("verify-weights", str(path), "--kind", kind)
    assert "another file" in run("verify-weights", str(path), "--sha256", "00000000", code=1)
    other = "aesthetic" if kind == "lpips" else "lpips"
    assert f"does not hold what {other} needs" in run("verify-weights", str(path), "--kind", other, code=1)
    assert "BAD" in run("verify-weights", str(path), "--kind", "inception", code=1)
    path.write_bytes(path.read_bytes()[:-200])
    assert "BAD" in run("verify-weights", str(path), "--kind", kind, code=1)


def test_weights_that_could_give_no_number_are_bad(run: Run, refused: Run, tmp_path: Path) -> None:
    path = known_file("aesthetic", tmp_path / "a.pth")
    state = torch.load(path)
    state["layers.4.weight"][0, 0] = float("nan")
    torch.save(state, path)
    assert "layers.4.weight holds NaN or infinity (1 tensors in all)" in run("verify-weights", "a.pth", code=1)
    state = alexnet()
    del state["features.3.weight"]
    torch.save(state, path)
    assert "none of alex, vgg and squeeze" in run("verify-weights", "a.pth", code=1)
    hub = torch.load(known_file("dinov2", tmp_path / "b.pth"))
    torch.save(hub | {"register_tokens": torch.zeros(1)}, tmp_path / "b.pth")
    assert "a network with registers" in run("verify-weights", "b.pth", code=1)
    (tmp_path / "c.safetensors").write_bytes(b"")
    assert "--kind is for torch files" in refused("verify-weights", "c.safetensors", "--kind", "clip")


@pytest.mark.parametrize("digits", ["", "3", "3f2a90c", "any", "3f2a90cg", "0" * 65])
def test_a_sha256_has_8_digits_or_more(refused: Run, tmp_path: Path, digits: str) -> None:
    (tmp_path / "a.bin").write_bytes(b"")
    assert "8 to 64 hexadecimal digits" in refused("verify-weights", "a.bin", f"--sha256={digits}")


# ---------------------------------------------------------------- options that verbs share


def write_tar(path: str, *names: str) -> str:
    with tarfile.open(path, "w") as file:
        for name in names:
            content = io.BytesIO()
            Image.new("RGB", (4, 4)).save(content, "PNG")
            member = tarfile.TarInfo(name)
            member.size = content.tell()
            content.seek(0)
            file.addfile(member, content)
    return path


def test_pairs_must_stand_in_the_same_order(tmp_path: Path) -> None:
    first, same, other = (str(tmp_path / name) for name in ("a.tar", "b.tar", "c.tar"))
    write_tar(first, "0.png", "1.png", "2.png")
    write_tar(same, "0.png", "1.png", "2.png")
    write_tar(other, "0.png", "2.png", "1.png")
    assert check_pairs(open_images(first), open_images(same)) == []
    write_tar(same, "0.jpg.png", "1.JPG.png", "2.png.PNG")
    assert check_pairs(open_images(first), open_images(same)) == [], "reconstructions keep the ending of their original"
    with pytest.raises(ValueError, match="in the same order: 1 stands against 2"):
        check_pairs(open_images(first), open_images(other))


def test_compressed_samples_are_counted(tmp_path: Path) -> None:
    for name in ("0.png", "1.jpg", "2.JPEG", "3.webp"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    [warning] = compressed(open_images(tmp_path))
    assert "3 of 4 pictures" in warning
    for name in ("1.jpg", "2.JPEG", "3.webp"):
        (tmp_path / name).unlink()
    assert compressed(open_images(tmp_path)) == []


def test_a_class_that_cannot_be_called_so_is_refused(refused: Run, tmp_path: Path) -> None:
    (tmp_path / "my_networks.py").write_text(
        "class Bare:\n    pass\n\n\nclass Needy:\n    def __init__(self, weights):\n        raise TypeError('own')\n"
    )
    pictures(tmp_path / "a", 2)
    given = ("gfid", "--samples", "a", "--reference", "a", "--extractor")
    assert "my_networks.Bare() cannot be called with the argument 'x'" in refused(
        *given, "my_networks.Bare", "--weights", "x"
    )
    assert "my_networks.Needy(weights) cannot be called without an argument: missing" in refused(
        *given, "my_networks.Needy"
    )
    with pytest.raises(TypeError, match="own"):
        built("my_networks.Needy", "--extractor", "x")


def test_the_numbers_are_written_before_anything_is_printed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(tmp_path / "t[/b]", 4)
    given = ("gfid", "--samples", "t[/b]", "--reference", "t[/b]", "--extractor", "grid-colours", "--metrics", "gfid")
    out = run(*given, "--out", "runs[/b]")
    assert "t[/b]" in out
    assert str(Path("runs[/b]/metrics.json")) in out
    assert "check" not in json.loads((tmp_path / "runs[/b]/metrics.json").read_text())["inputs"]["options"]

    def broken(*_: object, **__: object) -> None:
        raise OSError("the terminal is gone")

    monkeypatch.setattr("rich.console.Console.print", broken)
    with pytest.raises(OSError, match="the terminal is gone"):
        main(["evaluate", *given, "--out", "later"])
    assert (tmp_path / "later/metrics.json").is_file()
    assert (tmp_path / "later/samples.jsonl").is_file()


# ---------------------------------------------------------------- several evaluations


def config(path: Path, **content: object) -> str:
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return str(path)


COLOURS = {"samples": "a", "reference": "b", "extractor": "grid-colours"}
SCORED = {"samples": "a", "prompts": "a"}


def test_a_file_says_the_same_as_the_command_line(run: Run, tmp_path: Path) -> None:
    pictures(tmp_path / "a", 8)
    pictures(tmp_path / "b", 8, seed=1)
    one = config(
        tmp_path / "one.yaml",
        out="runs",
        evaluations=[
            {"verb": "gfid", **COLOURS, "metrics": ["gfid"], "count": 6, "extrapolate": True},
            {"verb": "gfid", **COLOURS, "metrics": "gfid", "count": None, "extrapolate": False},
            {"verb": "npz", "samples": "a", "out": "a.npz"},
            {"verb": "verify-weights", "files": ["a.npz"]},
        ],
    )
    assert "gfid@6/grid-colours-4x4" in run("--config", one)
    run(
        "gfid",
        "--samples",
        "a",
        "--reference",
        "b",
        "--extractor",
        "grid-colours",
        "--metrics",
        "gfid",
        "--out",
        "typed",
    )
    written, typed = (
        json.loads((tmp_path / name / "metrics.json").read_text())["metrics"] for name in ("runs/gfid-2", "typed")
    )
    assert written == typed
    first = json.loads((tmp_path / "runs/gfid/metrics.json").read_text())["metrics"]
    assert [entry["protocol"]["metric"] for entry in first] == ["gfid", "gfid-infinity"]
    assert (tmp_path / "a.npz").is_file()


def test_what_an_earlier_evaluation_writes_need_not_be_there_yet(run: Run, tmp_path: Path) -> None:
    pictures(tmp_path / "a", 4)
    given = [
        {"verb": "npz", "samples": "a", "out": "a.npz"},
        {"verb": "statistics", "images": "a.npz", "extractor": "grid-colours", "out": "s.safetensors"},
        {"verb": "gfid", "samples": "a.npz", "reference": "s.safetensors", "extractor": "grid-colours"},
    ]
    assert "gfid@4/grid-colours-4x4" in run("--config", config(tmp_path / "one.yaml", evaluations=given))


def test_a_key_that_is_written_twice_is_refused(refused: Run, tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text("evaluations:\n  - verb: npz\n    samples: a\n    out: a.npz\n    samples: b\n")
    assert "one.yaml, line 5: samples is written twice" in refused("--config", str(path))
    path.write_text("evaluations:\n  - verb: gfid\n    samples: a\n    batch-size: 1\n    batch_size: 2\n")
    assert "line 5: batch_size is written twice" in refused("--config", str(path))
    path.write_text("out: a\nevaluations: [{verb: npz}]\nout: b\n")
    assert "line 3: out is written twice" in refused("--config", str(path))


def test_the_largest_code_is_kept(run: Run, tmp_path: Path) -> None:
    given = [{"verb": "verify-weights", "files": ["none"]}, {"verb": "verify-weights", "files": ["one.yaml"]}]
    assert "BAD" in run("--config", config(tmp_path / "one.yaml", evaluations=given), code=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"evaluations": [{"verb": "gfid", "sample": "a"}]}, "unknown key 'sample'; did you mean samples?"),
        ({"evaluations": [{"verb": "gfidd"}]}, "verb is 'gfidd'; known: gfid,"),
        ({"evaluations": ["gfid"]}, "verb is 'gfid'"),
        ({"evaluations": []}, "a list of verbs"),
        ({"evaluation": []}, "must hold `evaluations:`"),
        ({"evaluations": [{"verb": "npz"}], "outs": "x"}, "unknown key 'outs'"),
        ({"evaluations": [{"verb": "gfid", **COLOURS, "count": "many"}]}, "written in"),
        ({"evaluations": [{"verb": "gfid", **COLOURS, "extrapolate": "yes"}]}, "extrapolate is true or false"),
        ({"evaluations": [{"verb": "gfid", **COLOURS, "count": False}]}, "count takes a value, got false"),
        ({"evaluations": [{"verb": "gfid", **COLOURS, "extractor": {"class_path": "a.B"}}]}, "takes a value or a list"),
        ({"evaluations": [{"verb": "npz", "out": "a.npz"}]}, "--samples"),
        ({"evaluations": [{"verb": "gfid", **COLOURS}]}, "no file or folder b, which --reference names"),
        ({"evaluations": [{"verb": "gfid", **COLOURS, "reference": "a", "metrics": "fdi"}]}, "--metrics fdi"),
        ({"evaluations": [{"verb": "gfid", **COLOURS, "extractor": "no.Such"}]}, "--extractor no.Such"),
        ({"evaluations": [{"verb": "gfid", **COLOURS, "device": "tpu9"}]}, "--device tpu9"),
        (
            {"evaluations": [{"verb": "statistics", "images": "a", "out": "s.npz", "weights": "fid.pth"}]},
            "no file or folder fid.pth, which --weights names",
        ),
        ({"evaluations": [{"verb": "preference", **SCORED, "scorer": "magic"}]}, "choose pickscore, hpsv2"),
        ({"evaluations": [{"verb": "preference", **SCORED, "scorer": ["a.b", "c", "d"]}]}, "--scorer a.b"),
        ({"evaluations": [{"verb": "preference", **SCORED, "scorer": "aesthetic"}]}, "takes HEAD and CLIP"),
        ({"evaluations": [{"verb": "geneval", "samples": "a", "detector": "yolo"}]}, "choose m2f, grounding-dino"),
        (
            {"evaluations": [{"verb": "egip", "samples": "a", "cases": "a", "judge": "http://localhost:1/v1"}]},
            "needs --judge-model",
        ),
        (
            {"evaluations": [{"verb": "egip", "samples": "a", "cases": "a", "judge": "b", "workers": 2}]},
            "a local model answers one question at a time",
        ),
    ],
)
def test_a_wrong_file_is_refused_before_anything_runs(
    refused: Run, tmp_path: Path, content: dict[str, object], message: str
) -> None:
    pictures(tmp_path / "a", 2)
    good = {"verb": "npz", "samples": "a", "out": "early.npz"}
    if isinstance(content.get("evaluations"), list) and content["evaluations"]:
        content = {**content, "evaluations": [good, *content["evaluations"]]}
    found = refused("--config", config(tmp_path / "one.yaml", **content))
    assert message in found
    assert "one.yaml" in found
    assert not (tmp_path / "early.npz").exists()


def test_an_evaluation_that_fails_names_its_place(refused: Run, tmp_path: Path) -> None:
    given = [{"verb": "npz", "samples": "nowhere", "out": "a.npz"}]
    message = refused("--config", config(tmp_path / "one.yaml", evaluations=given))
    assert re.search(r"evaluate npz \(.*one\.yaml, evaluation 1\): error: there is no file or folder nowhere", message)


def test_other_files_are_refused(refused: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("evaluations: [")
    assert "is not YAML" in refused("--config", "bad.yaml")
    assert "neither a file nor a shipped recipe" in refused("--config", "nowhere")


def test_the_tiny_recipe_runs_without_weights(run: Run, tmp_path: Path) -> None:
    for name, seed in (("samples", "0"), ("reference", "1")):
        options = ["--as", "folder", "--count", "40", "--size", "32", "--seed", seed]
        assert main(["data", "synth", "imagenet", f"practice/{name}", *options]) == 0
    out = run("--config", "evaluate_tiny")
    assert "gfid@40/grid-colours-4x4" in out
    assert (tmp_path / "runs/evaluate_tiny/gfid/contact_sheet.png").is_file()


def test_the_recipes_hold_only_known_keys() -> None:
    from lightning_gen.commands.evaluate import _parsers
    from lightning_gen.commands.evaluate_config import _evaluations, _parsed

    _, verbs = _parsers()
    for path in sorted(CONFIGS.glob("evaluate_*.yaml")):
        assert [_parsed(where, verb, keys, verbs) for where, verb, keys in _evaluations(path, verbs)]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("evaluate_*.yaml")), ids=lambda path: path.stem)
def test_every_key_of_a_recipe_is_commented(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    keys = [number for number, line in enumerate(lines) if line.strip() and not line.strip().startswith("#")]
    assert [lines[number] for number in keys if not lines[number - 1].strip().startswith("#")] == []
