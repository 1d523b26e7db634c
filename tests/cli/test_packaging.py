"""What is installed: the wheel, the editable install, the scripts, and how little is imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import lightning_gen
from lightning_gen.backbones.shipped import SHIPPED
from lightning_gen.commands.recipes import recipes

ROOT = Path(lightning_gen.__file__).parent.parent
HEAVY = ("torch", "lightning", "jsonargparse", "omegaconf", "numpy", "diffusers", "transformers", "timm", "torchvision")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def python(code, cwd=None, **environment):
    variables = {**os.environ, **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=variables)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    return next(folder.glob("lightning_gen-*.whl"))


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """A folder into which the wheel is installed, as another machine would have it."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    install = [*pip, "install", "--no-deps", "--no-index", "--target", str(folder), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    return folder


def test_recipes_are_shipped(site):
    shipped = {file.name for file in (site / "lightning_gen/_configs").glob("*.yaml")}
    assert shipped == {file.name for file in (ROOT / "configs").glob("*.yaml")}
    assert shipped
    for name in shipped:
        assert (site / "lightning_gen/_configs" / name).read_bytes() == (ROOT / "configs" / name).read_bytes()


@pytest.mark.parametrize("name", SHIPPED)
def test_weights_are_shipped(site, name):
    folder = site / "lightning_gen" / "_data" / name
    assert {file.name for file in folder.iterdir()} == {file.name for file in (ROOT / "data" / name).iterdir()}
    for file in folder.iterdir():
        assert file.read_bytes() == (ROOT / "data" / name / file.name).read_bytes()


def test_installed_package_makes_pictures_without_extras(site, tmp_path):
    code = """
from importlib.machinery import PathFinder
from lightning_gen.cli import main

find = PathFinder.find_spec
extras = ("skimage", "sklearn")  # torchmetrics asks the installer for matplotlib: it cannot be hidden like this
PathFinder.find_spec = lambda name, *rest: None if name.partition(".")[0] in extras else find(name, *rest)
main(["demo", "shapes", "a photo of a star", "--steps", "2"])
"""
    assert "images/s" in python(code, cwd=tmp_path, PYTHONPATH=str(site), HF_HUB_OFFLINE="1")
    assert (tmp_path / "shapes.png").stat().st_size > 1000


def test_installed_package_finds_its_recipes(site, tmp_path):
    code = "from lightning_gen.commands.recipes import recipes; print(*(f'{k}={v}' for k, v in recipes().items()))"
    found = dict(item.split("=") for item in python(code, cwd=tmp_path, PYTHONPATH=str(site)).split())
    assert found
    assert all(str(path).startswith(str(site)) for path in found.values())


def test_everything_of_the_package_is_in_the_wheel(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    package = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "lightning_gen").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert package <= inside
    assert "lightning_gen/py.typed" in inside
    assert not [name for name in inside if name.startswith(("tests/", "configs/", "benchmarks/"))]


def test_scripts_of_the_wheel(site, tmp_path):
    for name in ("lightning", "lightning-gen"):
        script = site / "bin" / name
        assert "from lightning_gen.cli import main" in script.read_text()
        done = subprocess.run(
            [sys.executable, str(script), "--version"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(site)},
        )
        assert done.stdout.strip() == f"lightning-gen {lightning_gen.__version__}"


def test_editable_install_uses_the_source_tree(tmp_path):
    build = (
        f"import os; os.chdir({str(ROOT)!r}); import hatchling.build as b; print(b.build_editable({str(tmp_path)!r}))"
    )
    name = python(build).split()[-1]
    target = tmp_path / "site"
    zipfile.ZipFile(tmp_path / name).extractall(target)
    code = (
        f"import site; site.addsitedir({str(target)!r});"
        "import lightning_gen; from lightning_gen.commands.recipes import recipes;"
        "print(lightning_gen.__file__, *recipes().values())"
    )
    # -I -S: without the environment that the tests themselves run in
    command = [sys.executable, "-I", "-S", "-c", code]
    package, *files = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.split()
    assert Path(package) == ROOT / "lightning_gen/__init__.py"
    assert [Path(file) for file in files] == list(recipes().values()) == sorted((ROOT / "configs").glob("*.yaml"))


def test_module_can_be_run(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "lightning_gen", "--version"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.strip() == f"lightning-gen {lightning_gen.__version__}"


def test_no_upper_bounds():
    extras = [need for needs in PROJECT["optional-dependencies"].values() for need in needs]
    for need in [*PROJECT["dependencies"], *extras, PROJECT["requires-python"]]:
        assert not re.search(r"(<|==|~=)", need.partition(";")[0]), need


def test_agreed_base_packages():
    names = {re.split(r"[\[>;\s]", need)[0] for need in PROJECT["dependencies"]}
    assert names == {
        "lightning", "torch", "torchmetrics", "diffusers", "timm", "open_clip_torch", "webdataset", "omegaconf",
        "bitsandbytes", "jsonargparse", "transformers", "peft", "safetensors", "pillow", "numpy", "rich",
    }  # fmt: skip
    extras = {"demo", "data", "fid", "ocr", "fp8", "docs", "wandb", "tensorboard", "dev"}
    assert set(PROJECT["optional-dependencies"]) == extras


@pytest.mark.parametrize(
    ("code", "most"),
    [
        ("import lightning_gen", 45),
        ("from lightning_gen.cli import main; main(['--help'])", 40),
        ("from lightning_gen.cli import main; main(['recipes', 'list'])", 80),
    ],
)
def test_little_is_imported(code, most):
    """Counts instead of seconds: the modules beyond those that Python itself starts with."""
    count = "import sys; before = set(sys.modules)\n{}\nnew = set(sys.modules) - before\nprint(); print(*sorted(new))"
    new = python(count.format(code)).splitlines()[-1].split()
    assert not {name.partition(".")[0] for name in new} & set(HEAVY)
    assert len(new) <= most, new
