"""`lightning doctor`: what is installed and what is here, who owns the name `lightning`, and can a run start here."""

from __future__ import annotations

import argparse
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path

from lightning_gen import __version__
from lightning_gen.training.float8 import obstacles
from lightning_gen.training.machine import Machine, inspect_machine, readable

__all__ = ["main", "owner_report", "version_report"]

_REPAIR = "pip install --force-reinstall --no-deps lightning-gen"
_PACKAGES = (
    "torch",
    "lightning",
    "torchmetrics",
    "jsonargparse",
    "omegaconf",
    "diffusers",
    "transformers",
    "timm",
    "open_clip_torch",
    "webdataset",
    "peft",
    "bitsandbytes",
    "safetensors",
    "numpy",
    "pillow",
)
# Uploads that stole credentials, withdrawn from the index: advisory GHSA-w37p-236h-pfx3.
_MALICIOUS = {"lightning": ("2.6.2", "2.6.3"), "pytorch-lightning": ("2.6.2", "2.6.3")}


def main(argv: list[str]) -> int:
    """Run the verb.

    Args:
        argv: arguments after ``doctor``; everything beyond ``--config`` is taken as an option of `fit`.

    Returns:
        0 if all is well, 1 if a dangerous package is installed, 2 if the configured run cannot start here.
    """
    parser = argparse.ArgumentParser(
        "lightning doctor", description="What is installed, what this machine has, and whether a run can start here."
    )
    parser.add_argument("-c", "--config", help="configuration or recipe to check, without starting it")
    parser.add_argument("--runs", default="runs", help="folder whose disk is looked at, by default ./runs")
    options, rest = parser.parse_known_args(argv)
    if options.config is not None:
        return _check(options.config, rest, options.runs)
    if rest:
        parser.error(f"{' '.join(rest)}: options of `lightning fit` need --config")
    dangerous = list(_dangerous())
    lines = [*version_report(), "", *_machine_report(inspect_machine(Path(options.runs))), "", *owner_report()]
    print("\n".join(lines + dangerous))
    return 1 if dangerous else 0


def version_report() -> list[str]:
    """Versions of Python, of this package and of what it stands on.

    Returns:
        One line per package; a missing one is said to be missing.
    """
    lines = [
        f"lightning-gen     {__version__}",
        f"python            {platform.python_version()} on {platform.system()} {platform.machine()}",
    ]
    for name in _PACKAGES:
        try:
            lines.append(f"{name:<17} {version(name)}")
        except PackageNotFoundError:
            lines.append(f"{name:<17} missing")
    return lines


def _machine_report(machine: Machine) -> list[str]:
    devices = [
        f"{index}: {machine.device_name}, {readable(size)}" for index, size in enumerate(machine.device_memory)
    ] or ["none, runs use the CPU"]
    missing = [f"{obstacle.needed}, here: {obstacle.here}" for obstacle in obstacles(machine.capability)]
    return [
        *(f"{machine.accelerator:<18}{line}" for line in devices),
        f"float8 products   {'no: they need ' + '; '.join(missing) if missing else 'yes'}",
        f"main memory       {readable(machine.host_memory)} available",
        f"disk for runs     {readable(machine.disk)} free",
    ]


def owner_report() -> list[str]:
    """Who owns the command `lightning`.

    Several distributions install a script of this name; the one installed last owns the file, and removing either
    removes it. `lightning-gen` and `python -m lightning_gen` always belong to this package.

    Returns:
        Lines of text, with the repair command if the name belongs to somebody else.
    """
    claims = sorted(
        f"{entry.dist.name if entry.dist else 'unknown'} ({entry.value})"
        for entry in entry_points(group="console_scripts", name="lightning")
    )
    lines = [f"`lightning` is declared by: {', '.join(claims) or 'nobody'}"]
    script = shutil.which("lightning", path=str(Path(sys.executable).parent)) or shutil.which("lightning")
    module = _imported_by(Path(script)) if script else None
    if script is None:
        lines.append(f"there is no `lightning` on the path; repair: {_REPAIR}")
    elif module != "lightning_gen.cli":
        lines.append(f"{script} runs {module or 'something else'}; to get the name back: {_REPAIR}")
    else:
        lines.append(f"{script} runs lightning_gen.cli, as it should")
    if len(claims) > 1:
        lines.append(f"uninstalling one of them deletes the script of the other; repair: {_REPAIR}")
    return lines


def _imported_by(script: Path) -> str | None:
    """Module whose main a console script calls."""
    found = re.search(r"^from (\S+) import", script.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return found.group(1) if found else None


def _dangerous() -> Iterator[str]:
    for name, bad in _MALICIOUS.items():
        try:
            installed = version(name)
        except PackageNotFoundError:
            continue
        if installed in bad:
            yield (
                f"\nDANGER: {name} {installed} was a malicious upload (GHSA-w37p-236h-pfx3). Remove it, change every "
                'password and token of this machine, then: pip install --force-reinstall "lightning>=2.6.4"'
            )


def _check(config: str, overrides: list[str], runs: str) -> int:
    from lightning_gen.training.preflight import check, table

    from .trainer import fitting_recipes, read_config

    values = read_config(["fit", "--config", config, *overrides])
    machine = inspect_machine(Path(values.get("runs") or runs))
    missing = check(values, machine)
    if not missing:
        print(f"{config}: nothing is missing, the run can start here")
        return 0
    sys.stdout.write(table(missing, fitting_recipes(machine)))
    return 2
