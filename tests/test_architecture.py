"""The house stands: imports run down, nothing is circular, and everything public is exported, documented and typed."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import lightning_gen

ROOT = Path(lightning_gen.__file__).parent
PACKAGE = "lightning_gen"
FLOORS = {
    "interfaces": 0,
    "nn": 1, "flow": 1, "training": 1,
    "data": 2, "backbones": 2,
    "shapes": 3,
    "metrics": 4,
    "autoencoders": 5, "generators": 5, "adapters": 5, "guidance": 5, "orchestration": 5, "rewards": 5,
    "alignment": 6,
    "commands": 7,
    "cli": 8,
    "__main__": 9,
}  # fmt: skip
# May be imported from anywhere: they import nothing of the house.
FOUNDATION = {"_lazy", "__init__"}
# Rooms of one floor do not import each other, except downward in this list.
SIDEWAYS = {("training", "nn")}  # callbacks count the tokens of a batch
SIBLINGS = {("marble", "diffusion_nft"), ("flow_opd", "flow_grpo")}
HEAVY = {"torch", "lightning", "diffusers", "transformers", "timm", "open_clip", "torchvision", "bitsandbytes"}
JUNK_DRAWERS = {"utils", "helpers", "misc", "common"}


class Import(NamedTuple):
    file: Path
    line: int
    target: str  # dotted, without the package's name
    lasting: bool  # executed when the file is imported
    typing: bool  # only read by type checkers


def parsed(root: Path) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(root.rglob("*.py")):
        yield path.relative_to(root), ast.parse(path.read_text(encoding="utf-8"))


def imports_of(root: Path) -> list[Import]:
    """Every import of one part of the package by another, with relative ones made absolute."""
    found = []
    for file, tree in parsed(root):
        lasting = set(_at_import_time(tree))
        typing = {inside for node in ast.walk(tree) if _is_for_types(node) for inside in ast.walk(node)}
        for node in ast.walk(tree):
            for target in _targets(node, file):
                found.append(Import(file, node.lineno, target, node in lasting, node in typing))
    return found


def _at_import_time(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes outside functions and outside `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if not _is_for_types(node):
            yield node
            yield from _at_import_time(node)


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def _targets(node: ast.AST, file: Path) -> Iterator[str]:
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            package = [PACKAGE, *file.parts[:-1]]
            base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
        names = [f"{base}.{alias.name}" for alias in node.names]
    else:
        return
    for name in names:
        if name.startswith(f"{PACKAGE}."):
            yield name.removeprefix(f"{PACKAGE}.")


def _room(parts: tuple[str, ...]) -> tuple[str, str | None]:
    return parts[0], parts[1] if len(parts) > 2 else None


# From this floor on a folder inside a room is a paper; below it is a part of the room.
PAPERS = 5


def upward(root: Path) -> list[str]:
    """Imports that run up, sideways to another room of the same floor, or to a sibling paper."""
    complaints = []
    for found in imports_of(root):
        room, paper = _room(found.file.with_suffix("").parts)
        there = found.target.split(".")
        if found.typing or room in FOUNDATION or there[0] in FOUNDATION or there[0] not in FLOORS:
            continue
        where = f"{found.file}:{found.line} imports {found.target}"
        if room not in FLOORS:
            complaints.append(f"{where}: {room} has no floor")
        elif there[0] != room and FLOORS[there[0]] >= FLOORS[room] and (room, there[0]) not in SIDEWAYS:
            complaints.append(f"{where}: floor {FLOORS[there[0]]} from floor {FLOORS[room]}")
        elif there[0] == room and paper and len(there) > 1:
            is_paper = FLOORS[room] >= PAPERS and (root / room / there[1]).is_dir()
            if is_paper and there[1] != paper and (paper, there[1]) not in SIBLINGS:
                complaints.append(f"{where}: a sibling paper")
    return complaints


def circles(root: Path) -> list[list[str]]:
    """Groups of files that import each other while they are imported."""
    files = {_dotted(file): file for file, _ in parsed(root)}
    graph: dict[str, set[str]] = {name: set() for name in files}
    for found in imports_of(root):
        if found.lasting:
            target = found.target if found.target in files else found.target.rpartition(".")[0]
            if target in files and target != _dotted(found.file):
                graph[_dotted(found.file)].add(target)
    reach = {name: _reachable(graph, name) for name in graph}
    groups = {frozenset({name, *(other for other in reach[name] if name in reach[other])}) for name in graph}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def _dotted(file: Path) -> str:
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    queue = [start]
    while queue:
        for name in graph[queue.pop()] - seen:
            seen.add(name)
            queue.append(name)
    return seen


def undocumented(root: Path) -> list[str]:
    """Public modules, classes, functions and methods without a docstring or with an untyped signature."""
    complaints = []
    for file, tree in parsed(root):
        if not ast.get_docstring(tree):
            complaints.append(f"{file}: module")
        for owner, node in _public(tree):
            name = f"{file}:{node.lineno} {owner}{node.name}"
            overrides = owner and node.name.startswith("__")
            if not ast.get_docstring(node) and not overrides and not _is_overload(node):
                complaints.append(f"{name}: no docstring")
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                complaints += [f"{name}: {what}" for what in _untyped(node, bool(owner))]
    return complaints


def _public(tree: ast.Module) -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in _top_level(tree):
        yield "", node
        if isinstance(node, ast.ClassDef):
            for member in node.body:
                special = member.name.startswith("__") if isinstance(member, ast.FunctionDef) else False
                if isinstance(member, (ast.FunctionDef, ast.AsyncFunctionDef)) and (
                    special or not member.name.startswith("_")
                ):
                    yield f"{node.name}.", member


def _top_level(tree: ast.Module) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith("_"):
            yield node


def _is_overload(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any("overload" in ast.dump(decorator) for decorator in node.decorator_list)


def _untyped(node: ast.FunctionDef | ast.AsyncFunctionDef, is_method: bool) -> Iterator[str]:
    if node.returns is None:
        yield "no return type"
    positional = [*node.args.posonlyargs, *node.args.args]
    is_static = any("staticmethod" in ast.dump(decorator) for decorator in node.decorator_list)
    for argument in [*positional[1 if is_method and not is_static else 0 :], *node.args.kwonlyargs]:
        if argument.annotation is None:
            yield f"{argument.arg} has no type"


def unexported(root: Path) -> list[str]:
    """Public names that `__all__` lacks, and modules with public names but no `__all__`."""
    complaints = []
    for file, tree in parsed(root):
        public = {node.name for node in _top_level(tree)}
        exported = _all_of(tree)
        if exported is None:
            complaints += [f"{file}: no __all__"] if public else []
        else:
            complaints += [f"{file}: {name} is not in __all__" for name in sorted(public - exported)]
    return complaints


def _all_of(tree: ast.Module) -> set[str] | None:
    for node in tree.body:
        names = ast.walk(ast.Tuple(elts=node.targets)) if isinstance(node, ast.Assign) else ()
        if any(isinstance(name, ast.Name) and name.id == "__all__" for name in names):
            return {c.value for c in ast.walk(node.value) if isinstance(c, ast.Constant) and isinstance(c.value, str)}
    return None


def too_long(root: Path) -> list[str]:
    """Functions over 60 lines without their docstring, and files over 600 lines."""
    complaints = []
    for file, tree in parsed(root):
        lines = len((root / file).read_text(encoding="utf-8").splitlines())
        complaints += [f"{file}: {lines} lines"] if lines > 600 else []
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                length -= len((ast.get_docstring(node) or "").splitlines())
                complaints += [f"{file}:{node.lineno} {node.name}: {length} lines"] if length > 60 else []
    return complaints


@pytest.mark.parametrize("rule", [upward, circles, undocumented, unexported, too_long])
def test_house(rule):
    complaints = rule(ROOT)
    assert not complaints, "\n".join(map(str, complaints))


def test_no_junk_drawers():
    assert not [path for path in ROOT.rglob("*.py") if path.stem in JUNK_DRAWERS]


def test_every_room_has_a_floor():
    rooms = {
        path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path.is_dir() and list(path.glob("*.py")))
    }
    assert rooms - FOUNDATION <= set(FLOORS)


def test_package_import_is_light():
    code = f"import sys, lightning_gen; print(sorted(set({sorted(HEAVY)!r}) & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"


def test_components_are_what_the_package_exports():
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    typed = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level and node.module != "_lazy"
        for alias in node.names
    }
    assert typed == set(lightning_gen.COMPONENTS)
    assert set(lightning_gen.COMPONENTS) <= set(lightning_gen.__all__) <= set(dir(lightning_gen))


@pytest.mark.parametrize("name", sorted(lightning_gen.COMPONENTS))
def test_component_exists(name):
    component = getattr(lightning_gen, name)
    assert component.__module__ == lightning_gen.COMPONENTS[name]
    assert name in importlib.import_module(component.__module__).__all__


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = lightning_gen.Nothing


VIOLATIONS = {
    "upward": (upward, {"nn/a.py": "from lightning_gen.data import b"}, "floor 2 from floor 1"),
    "upward, relative": (upward, {"nn/a.py": "from ..cli import main"}, "floor 8 from floor 1"),
    "upward, inside a function": (upward, {"data/a.py": "def f():\n    import lightning_gen.metrics.x"}, "floor 4"),
    "sideways": (upward, {"nn/a.py": "from ..training import optim"}, "floor 1 from floor 1"),
    "sibling": (
        upward,
        {"alignment/marble/a.py": "from ..flow_opd import b", "alignment/flow_opd/b.py": ""},
        "a sibling paper",
    ),
    "circle": (circles, {"nn/a.py": "from . import b", "nn/b.py": "from .a import x"}, "nn.b"),
    "no docstring": (undocumented, {"nn/a.py": '"""M."""\ndef f() -> None: ...'}, "no docstring"),
    "no type": (undocumented, {"nn/a.py": '"""M."""\ndef f(x) -> None:\n    """F."""'}, "x has no type"),
    "not exported": (unexported, {"nn/a.py": "__all__ = ['g']\ndef f(): ...\ndef g(): ..."}, "f is not in __all__"),
    "long": (too_long, {"nn/a.py": "def f():\n" + "    x = 1\n" * 61}, "62 lines"),
}


@pytest.mark.parametrize("case", VIOLATIONS)
def test_rule_finds_its_violation(case, tmp_path):
    rule, files, expected = VIOLATIONS[case]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert expected in str(rule(tmp_path))


def test_allowed_siblings_lazy_circles_and_types(tmp_path):
    files = {
        "alignment/marble/a.py": "from ..diffusion_nft import b",
        "alignment/diffusion_nft/b.py": "def f():\n    from ..marble import a",
        "nn/c.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .d import x",
        "nn/d.py": "from . import c",
        "interfaces.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .nn.c import x",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert circles(tmp_path) == []
    assert [line for line in upward(tmp_path) if "diffusion_nft/b.py" not in line] == []
