"""`lightning evaluate geneval`, `geneval2`, `dpg` and `egip`, with detectors and judges that are known exactly."""

from __future__ import annotations

import csv
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lightning_gen.cli import main
from tests.harness.tiny_clip import write_tiny_clip
from tests.harness.tiny_detectors import save_mask2former

Run = Callable[..., str]

JUDGES = '''
import json
import torch
from lightning_gen.interfaces import Detections


class Red:
    """Sees one cat as large as the picture where the picture is red."""

    name = "red"
    fingerprint = "0" * 64

    def __call__(self, images, classes):
        found = []
        for image in images:
            size = float(image.shape[2]), float(image.shape[1])
            is_red = bool(image[0].mean() > 0.5)
            boxes = torch.tensor([[0.0, 0.0, *size]]) if is_red else torch.zeros(0, 4)
            found.append(Detections(boxes, torch.full((len(boxes),), 0.95), ("cat",) * len(boxes)))
        return found


class Silent:
    """Says yes to all entities, and to constraints where the picture is red."""

    name = "silent"
    settings = {"judge_model": "silent"}

    def __call__(self, message):
        image = message[1]
        asked = json.loads(message[-1].split("\\n\\nPrevious")[0]) if isinstance(message[-1], str) else {}
        verdict = "pass" if image[0].float().mean() > 128 else "fail"
        return json.dumps({
            "entities": [{"id": one["id"], "verdict": "pass"} for one in asked["entities"]],
            "constraints": [{"id": one["id"], "verdict": verdict} for one in asked["constraints"]],
        })


class Babbling(Silent):
    def __call__(self, message):
        return "I like it"


class Answers:
    """Says yes with the share of red."""

    name = "redness"
    fingerprint = "0" * 64

    def answer_probabilities(self, images, questions, answers):
        return torch.stack([image[0].double().mean() / 255 for image in images])

    def answer(self, images, questions):
        return ["Yes." if image[0].float().mean() > 128 else "no" for image in images]


class Nothing:
    pass


class Deep(Silent):
    def __call__(self, message):
        return '{"entities": ' + "[" * 100000


class Wordless(Silent):
    def __call__(self, message):
        return None


class Forgetful(Silent):
    """Forgets the constraints and is not sure about the entities."""

    def __call__(self, message):
        return json.dumps({"entities": [{"id": "e", "verdict": "uncertain"}, {"verdict": "pass"}]})


class Mute(Answers):
    def answer(self, images, questions):
        return [None] * len(images)
'''


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `lightning evaluate ...` beside a module of judges; what it prints."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "known_judges.py").write_text(JUDGES)

    def call(*arguments: str) -> str:
        assert main(["evaluate", *arguments]) == 0
        return capsys.readouterr().out

    return call


@pytest.fixture
def refused(run: Run, capsys: pytest.CaptureFixture[str]) -> Run:
    """The message with which it ends; with code 2 and without a stack trace."""

    def call(*arguments: str) -> str:
        with pytest.raises(SystemExit) as end:
            main(["evaluate", *arguments])
        message = capsys.readouterr().err
        assert end.value.code == 2
        assert "Traceback" not in message
        return message

    return call


def save(path: str | Path, red: bool, size: int = 16) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (250, 10, 10) if red else (10, 10, 250)).save(path)


def metrics(folder: str) -> dict[str, Any]:
    entries = json.loads((Path(folder) / "metrics.json").read_text())["metrics"]
    return {entry["protocol"]["metric"]: entry for entry in entries}


def lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


# ---------------------------------------------------------------- GenEval


def geneval_folder(tag: str = "single_object", **clause: Any) -> None:
    for number, red in enumerate(((True, True), (True, False))):
        place = Path(f"out/{number:05d}")
        record = {"tag": tag, "prompt": "a photo of a cat", "include": [{"class": "cat", "count": 1, **clause}]}
        place.mkdir(parents=True)
        (place / "metadata.jsonl").write_text(json.dumps(record))
        for sample, is_red in enumerate(red):
            save(place / f"samples/{sample:04d}.png", is_red)


GENEVAL = ("geneval", "--samples", "out", "--samples-per-prompt", "2", "--detector")


def test_geneval_with_a_detector_of_ones_own(run: Run) -> None:
    geneval_folder()
    out = run(*GENEVAL, "known_judges.Red", "--out", "runs")
    found = metrics("runs")
    assert found["geneval-style:single_object"]["value"] == 0.75
    assert found["geneval-style"]["value"] is None, "five tasks have no picture"
    assert "17.7 points" in found["geneval-style"]["note"]
    assert "why images failed" in out
    assert json.loads(Path("runs/metrics.json").read_text())["failures"] == {"missing": 1}
    assert [row["correct"] for row in lines("runs/samples.jsonl")] == [True, True, True, False]
    assert lines("runs/results.jsonl")[3]["tag"] == "single_object"
    assert Path("runs/contact_sheet.png").is_file()


def test_rules_reach_the_protocol_card(run: Run) -> None:
    geneval_folder()
    run(*GENEVAL, "known_judges.Red", "--threshold", "0.96", "--out", "runs")
    found = metrics("runs")["geneval-style:single_object"]
    assert (found["value"], found["protocol"]["details"]["threshold"]) == (0, 0.96)


def test_geneval_with_weights_of_both_networks(run: Run, tmp_path: Path) -> None:
    geneval_folder("colors", color="red")
    detector = save_mask2former(tmp_path / "m2f")
    clip = write_tiny_clip(tmp_path / "clip")
    run(*GENEVAL, "m2f", str(detector), "--colors", str(clip), "--device", "cpu", "--threshold", "0.0", "--out", "runs")
    details = metrics("runs")["geneval-style:colors"]["protocol"]["details"]
    assert len(details["detector_sha256"]) == len(details["colors_sha256"]) == 64


def test_bad_geneval_input(run: Run, refused: Run) -> None:
    geneval_folder()
    assert "choose m2f, grounding-dino" in refused(*GENEVAL, "yolo", "x")
    assert "needs its weights" in refused(*GENEVAL, "m2f")
    assert "nowhere" in refused(*GENEVAL, "m2f", "nowhere")
    assert "one source" in refused(*GENEVAL, "m2f", "a", "b")
    assert "has a name and a fingerprint" in refused(*GENEVAL, "known_judges.Nothing")
    assert "in [0, 1]" in refused(*GENEVAL, "known_judges.Red", "--threshold", "2")
    Path("out/00001/samples/0001.png").unlink()
    assert "1 pictures instead of 2" in refused(*GENEVAL, "known_judges.Red")
    out = run(*GENEVAL, "known_judges.Red", "--incomplete")
    assert "warning: 00001/samples has 1 pictures" in out
    assert "--incomplete scores what is there" in refused(*GENEVAL, "known_judges.Red")
    for number in range(2, 22):
        Path(f"out/{number:05d}").mkdir()
        Path(f"out/{number:05d}/metadata.jsonl").write_bytes(Path("out/00000/metadata.jsonl").read_bytes())
    out = run(*GENEVAL, "known_judges.Red", "--incomplete", "--out", "runs")
    assert out.count("warning:") == 1
    assert "and 16 more" in " ".join(out.split())
    assert len(json.loads(Path("runs/metrics.json").read_text())["inputs"]["missing"]) == 21


# ---------------------------------------------------------------- GenEval 2 and DPG-Bench


def test_geneval2_asks_the_questions_of_every_prompt(run: Run, refused: Run) -> None:
    prompt = {"prompt": "a cat", "atom_count": 3, "vqa_list": [["Is there a cat?", "Yes"]], "skills": ["object"]}
    Path("prompts.jsonl").write_text("\n".join(json.dumps(prompt) for _ in range(3)))
    save("out/00000.png", True)
    save("out/00002.png", False)
    given = ("geneval2", "--samples", "out", "--prompts", "prompts.jsonl", "--model", "known_judges.Answers")
    assert "1 of 3 prompts have no picture, the first is prompt 1" in refused(*given)
    run(*given, "--incomplete", "--out", "runs")
    assert metrics("runs")["geneval2-am"]["value"] == pytest.approx(100 * (250 + 10) / 2 / 255)
    assert [row["name"] for row in lines("runs/samples.jsonl")] == ["00000.png", "00002.png"]
    assert "has a name and the call" in refused(*given[:-1], "known_judges.Nothing", "--incomplete")
    save("out/00003.png", False)
    assert "00003.png is not named by one of the 3 prompts" in refused(*given)


def test_dpg_cuts_grids_and_gates_answers(run: Run, refused: Run) -> None:
    with open("dpg.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language"])
        for number, (item, parent) in enumerate((("zero", 0), ("one", 0), ("one", 1), ("two", 0))):
            proposition = 2 if parent else 1
            kind = f"{proposition} | entity - whole (x)"
            writer.writerow([item, f"text {number}", proposition, parent, kind, f"question {number}?"])
    grid = np.zeros((32, 32, 3), np.uint8)
    grid[:16, :, 0] = 255  # two of four are red
    Path("out").mkdir()
    Image.fromarray(grid).save("out/one.png")
    for number in range(4):
        save(f"out/two/{number}.png", True)
    given = ("dpg", "--samples", "out", "--prompts", "dpg.csv", "--model", "known_judges.Answers")
    run(*given, "--out", "runs")
    assert metrics("runs")["dpg-bench"]["value"] == pytest.approx(75)
    assert [row["score"] for row in lines("runs/samples.jsonl")] == [0.5, 1.0]
    assert "1 of 3 prompts have no picture" in refused(*given, "--all-rows")


def dpg_table(*items: str) -> tuple[str, ...]:
    with open("dpg.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language"])
        for item in items:
            writer.writerow([item, f"text {item}", 1, 0, "1 | entity - whole (x)", f"question {item}?"])
    return "dpg", "--samples", "out", "--prompts", "dpg.csv", "--all-rows", "--model", "known_judges.Answers"


def test_dpg_keeps_prompts_apart_whose_ids_are_numbers(run: Run) -> None:
    given = dpg_table("0", "1")
    for item, red in (("0", True), ("1", True)):
        for number in range(4):
            save(f"out/{item}/{number}.png", red)
    run(*given, "--out", "runs")
    assert metrics("runs")["dpg-bench"]["value"] == 100
    for number in range(4):
        save(f"out/1/{number}.png", False)
    run(*given, "--out", "runs")
    assert [row["score"] for row in lines("runs/samples.jsonl")] == [1, 0]


@pytest.mark.parametrize(
    "names",
    [
        ["a/0.png"],
        [f"a/{number}.png" for number in range(7)],
        [f"a/{number}.png" for number in range(3)],
        ["a.png", "a.jpg"],
        ["a.png", *(f"a/{number}.png" for number in range(4))],
        ["a/0.png", "a/0.jpg", "a/1.png", "a/2.png"],
    ],
)
def test_dpg_takes_one_grid_or_four_pictures(run: Run, refused: Run, names: list[str]) -> None:
    given = dpg_table("a", "b")
    save("out/b.png", True)
    for name in names:
        save(f"out/{name}", True)
    assert f"({len(names)}); there must be a.png, a grid of four" in refused(*given, "--incomplete")


def test_dpg_counts_pictures_of_no_prompt(run: Run, refused: Run) -> None:
    given = dpg_table("a")
    save("out/a.png", True)
    save("out/c.png", True)
    assert "1 pictures are of no prompt" in run(*given)
    assert "an answer about a is NoneType, no text" in refused(*given[:-1], "known_judges.Mute")


# ---------------------------------------------------------------- EGIP


def gen_arena(count: int = 3, **entity: Any) -> None:
    rows = []
    for number in range(count):
        save(f"arena/reference_images/{number}.png", True)
        rows.append({
            "id": f"1-cartoon_{number:03d}",
            "category": "1-cartoon",
            "prompt": f"prompt {number}",
            "reference_images": [{"id": "r", "path": f"reference_images/{number}.png"}],
            "entities": [{"id": "e", "name": "cat", "reference_ids": ["r"], **entity}],
            "constraints": [{"id": "c", "type": "attribute", "text": "it is red", "depends_on": ["e"]}],
        })  # fmt: skip
    Path("arena/data").mkdir(exist_ok=True)
    Path("arena/data/gen_arena.jsonl").write_text("\n".join(map(json.dumps, rows)))


EGIP = ("egip", "--cases", "arena", "--samples", "out", "--judge")


def test_egip_with_a_judge_of_ones_own(run: Run) -> None:
    gen_arena()
    save("out/1-cartoon_000.png", True)
    save("out/more/1-cartoon_001.png", False)
    save("out/other.png", False)
    out = run(*EGIP, "known_judges.Silent", "--out", "runs")
    found = metrics("runs")
    assert found["egip"]["value"] == pytest.approx(1 / 3)
    assert found["egip"]["protocol"]["id"] == "egip@3/silent"
    assert found["egip:constraint_direct"]["value"] == 0.5
    assert "1 of 3 cases have no picture and fail, the first is 1-cartoon_002" in out
    assert "1 pictures are of no case" in out
    assert [row["passed"] for row in lines("runs/samples.jsonl")] == [True, False, False]
    assert Path("runs/contact_sheet.png").is_file()
    run(*EGIP, "known_judges.Silent", "--out", "runs")
    assert len(lines("runs/results.jsonl")) == 4, "the second call asks again only for what is missing"


def test_egip_with_a_judge_behind_an_address(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    class Endpoint(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append({**body, "key": self.headers["Authorization"]})
            verdicts = {"entities": [{"id": "e", "verdict": "pass"}], "constraints": [{"id": "c", "verdict": "pass"}]}
            choice = {"message": {"content": json.dumps(verdicts)}, "finish_reason": "stop"}
            answer = json.dumps({"choices": [choice]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    gen_arena(2)
    for number in range(2):
        save(f"out/1-cartoon_{number:03d}.png", True)
    monkeypatch.setenv("TEST_JUDGE", "a-key")
    with ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/v1"
        more = ("--judge-model", "some/Judge", "--judge-key", "TEST_JUDGE", "--no-json-mode", "--workers", "2")
        run(*EGIP, address, *more, "--out", "runs")
        server.shutdown()
    assert metrics("runs")["egip"]["protocol"]["id"] == "egip@2/judge"
    assert metrics("runs")["egip"]["value"] == 1
    assert [(body["model"], body["key"], "response_format" in body) for body in seen] == [
        ("some/Judge", "Bearer a-key", False)
    ] * 2
    assert "a-key" not in Path("runs/metrics.json").read_text()


def test_a_judge_that_answers_in_no_form_is_counted_never_guessed(run: Run) -> None:
    gen_arena(1)
    save("out/1-cartoon_000.png", True)
    out = run(*EGIP, "known_judges.Babbling", "--attempts", "2", "--out", "runs")
    assert metrics("runs")["egip"]["value"] == 0
    assert "1 cases have no verdict" in out
    assert "in 2 attempts" in out
    assert not Path("runs/contact_sheet.png").exists()


@pytest.mark.parametrize(("judge", "reason"), [("Deep", "nested deeper"), ("Wordless", "NoneType, no text")])
def test_malformed_answers_are_counted_with_their_reason(run: Run, judge: str, reason: str) -> None:
    gen_arena(2)
    for number in range(2):
        save(f"out/1-cartoon_{number:03d}.png", True)
    out = run(*EGIP, f"known_judges.{judge}", "--attempts", "1", "--out", "runs")
    assert metrics("runs")["egip"]["protocol"]["details"]["num_errors/judge"] == 2
    assert "2 cases have no verdict" in out
    assert reason in out
    assert all(reason in row["error"] for row in lines("runs/samples.jsonl"))


def test_omitted_and_undecided_verdicts_are_said(run: Run) -> None:
    gen_arena(2)
    for number in range(2):
        save(f"out/1-cartoon_{number:03d}.png", True)
    out = run(*EGIP, "known_judges.Forgetful")
    assert "warning: verdicts of the judge: 2 omitted, 2 undecided, 2 unreadable; only a clear pass passes" in out
    assert "verdicts of the judge" not in run(*EGIP, "known_judges.Silent")


def test_bad_egip_input(run: Run, refused: Run) -> None:
    gen_arena()
    save("out/000.png", True)
    assert "no picture is named by a case id, such as 1-cartoon_000.png" in refused(*EGIP, "known_judges.Silent")
    save("out/a/1-cartoon_000.png", True)
    assert "needs --judge-model" in refused(*EGIP, "http://localhost:1/v1")
    assert "has a name and settings" in refused(*EGIP, "known_judges.Nothing")
    assert "--workers is for judges behind an address" in refused(*EGIP, "weights/judge", "--workers", "2")
    assert "weights/judge" in refused(*EGIP, "weights/judge")
    save("out/b/1-cartoon_000.png", True)
    assert "are both pictures of 1-cartoon_000" in refused(*EGIP, "known_judges.Silent")
    gen_arena(2, reference_ids=["nobody"])
    message = refused(*EGIP, "known_judges.Silent")
    assert "entity 'e' points to reference 'nobody', which is not there" in message
    assert "gen_arena.jsonl, line 1" in message


def test_a_detector_may_bring_its_classes_and_name_its_colours(run: Run) -> None:
    from lightning_gen.shapes.grammar import Phrase, Request
    from lightning_gen.shapes.layout import draw_scene
    from lightning_gen.shapes.render import render
    from lightning_gen.training.randomness import numpy_generator

    asked = Request((Phrase("star", "red"), Phrase("moon", "blue")))
    swapped = Request((Phrase("star", "blue"), Phrase("moon", "red")))
    for number, shown in enumerate((asked, asked, asked, swapped)):
        folder = Path("drawn") / f"{number:05d}" / "samples"
        folder.mkdir(parents=True)
        (folder.parent / "metadata.jsonl").write_text(json.dumps(asked.metadata()) + "\n")
        picture = render(draw_scene(shown, numpy_generator(0, "drawn", number)), (64, 64))
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / "0000.png")
    detector = ("--detector", "lightning_gen.ShapesDetector", "--out", "runs")
    run("geneval", "--samples", "drawn", "--samples-per-prompt", "1", *detector)
    found = metrics("runs")["geneval-style:color_attr"]
    assert found["value"] == 0.75 and found["protocol"]["details"]["colors_sha256"] == "the detector"
