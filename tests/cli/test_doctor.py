"""The doctor: versions, devices, and who owns the name `lightning`."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest

from lightning_gen.cli import main
from lightning_gen.commands import doctor


def test_report(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for expected in (f"torch             {importlib.metadata.version('torch')}", "main memory", "disk for runs"):
        assert expected in out
    assert "lightning-gen (lightning_gen.cli:main)" in out


def test_missing_package_is_said(monkeypatch):
    monkeypatch.setattr(doctor, "_PACKAGES", ("torch", "a-package-that-is-not-there"))
    assert doctor.version_report()[-1].split() == ["a-package-that-is-not-there", "missing"]


@pytest.fixture
def rival(tmp_path, monkeypatch):
    """Another distribution that declares the script `lightning`, with the script file in its hands."""
    info = tmp_path / "rival_sdk-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rival-sdk\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[console_scripts]\nlightning = rival_sdk.cli:main\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    scripts = tmp_path / "bin"
    scripts.mkdir()
    (scripts / "lightning").write_text("#!/usr/bin/python\nfrom rival_sdk.cli import main\n")
    (scripts / "lightning").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(scripts / "python"))
    return scripts / "lightning"


def test_name_in_other_hands(rival):
    text = "\n".join(doctor.owner_report())
    assert "rival-sdk (rival_sdk.cli:main)" in text
    assert "lightning-gen (lightning_gen.cli:main)" in text
    assert f"{rival} runs rival_sdk.cli; to get the name back: {doctor._REPAIR}" in text
    assert doctor._REPAIR == "pip install --force-reinstall --no-deps lightning-gen"


def test_name_shared_but_ours(rival):
    rival.write_text("#!/usr/bin/python\nfrom lightning_gen.cli import main\n")
    text = "\n".join(doctor.owner_report())
    assert "as it should" in text
    assert "deletes the script of the other" in text


def test_name_gone(rival, monkeypatch):
    rival.unlink()
    monkeypatch.setenv("PATH", str(Path(rival).parent))
    assert f"repair: {doctor._REPAIR}" in "\n".join(doctor.owner_report())


@pytest.mark.parametrize(("installed", "code"), [("2.6.2", 1), ("2.6.3", 1), ("2.6.4", 0)])
def test_malicious_uploads(monkeypatch, capsys, installed, code):
    genuine = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: installed if name == "lightning" else genuine(name))
    assert main(["doctor"]) == code
    assert ("DANGER: lightning" in capsys.readouterr().out) == bool(code)


def test_options_without_a_configuration(capsys):
    with pytest.raises(SystemExit) as end:
        main(["doctor", "--trainer.devices", "2"])
    assert end.value.code == 2
    assert "need --config" in capsys.readouterr().err


def test_float8_products(monkeypatch, capsys):
    assert main(["doctor"]) == 0
    assert "float8 products   no: they need a GPU that multiplies in float8" in capsys.readouterr().out
    machine = doctor.Machine("cuda", (1,), 1, 1, "H100", capability=(9, 0))
    monkeypatch.setattr(doctor, "obstacles", lambda capability: [] if capability == (9, 0) else ["never"])
    assert "float8 products   yes" in doctor._machine_report(machine)
