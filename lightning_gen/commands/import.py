"""`lightning import`: from weights that others published to a folder of this package, with a report."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from .errors import deliberate, fail
from .options import Examples

__all__ = ["KINDS", "main"]

KINDS: Final = ("auto", "lightningdit", "muse", "pae")
"""Published models that are known here; auto = by the names of the tensors."""

_EPILOG = """\
examples:
  lightning import yangpanqi/MUSE-1B weights/muse_1b
  lightning import dinov2-large.pt weights/pae_dinov2l_d32 --prior-source weights/dinov2-with-registers-large
  lightning import lightningdit-xl.pt weights/lightningdit_xl

what comes out is read by from_pretrained (Muse, PAE) or by init_from of the configurations (LatentDiffusion). The
report names tensors that are missing, that belong to nothing (dead), and for MUSE those that no loss ever reached. A
file is read without running its code.
"""
# What only one of the published state dicts has.
_MARKS: Final = {"muse": "muse_blocks.", "pae": "latent_compressor.", "lightningdit": "x_embedder."}


def main(argv: list[str]) -> int:
    """Run the verb.

    Args:
        argv: arguments after ``import``.

    Returns:
        0 after success.
    """
    parser = argparse.ArgumentParser(
        "lightning import",
        description="Turn published weights of MUSE, PAE or LightningDiT into a folder of this package.",
        epilog=_EPILOG,
        formatter_class=Examples,
    )
    parser.add_argument("source", help="published file; for MUSE also its folder or hub id")
    parser.add_argument("output", help="folder to write")
    parser.add_argument("--kind", choices=KINDS, default="auto", help="what it is (auto: by the names of its tensors)")
    prior = parser.add_argument_group("PAE", "the frozen encoder that it was trained with")
    prior.add_argument("--prior", default="DINOv2Patches", metavar="CLASS", help="its class (%(default)s)")
    prior.add_argument("--prior-source", metavar="WHERE", help="its folder or hub id; by default that of the class")
    prior.add_argument("--prior-heads", type=int, default=16, metavar="N", help="its attention heads (%(default)s)")
    options = parser.parse_args(argv)
    try:
        report = _import(options)
    except Exception as error:
        about_input = deliberate(error)
        if about_input is None:
            raise
        fail("import", str(about_input))
    print(f"{options.output}: {report}")
    return 0


def _import(options: argparse.Namespace) -> Any:
    kind = _kind(options.source) if options.kind == "auto" else options.kind
    if kind == "muse":
        from lightning_gen.autoencoders.muse.convert import import_published as import_muse

        return import_muse(options.source, options.output)
    if kind == "pae":
        from lightning_gen.autoencoders.pae.convert import import_published as import_pae
        from lightning_gen.training.classes import class_named

        place = {} if options.prior_source is None else {"source": options.prior_source}
        encoder = class_named(options.prior, "--prior")(**place)
        return import_pae(options.source, options.output, encoder, options.prior_heads)
    from lightning_gen.generators.dit.module import import_published as import_lightningdit

    return import_lightningdit(options.source, options.output)


def _kind(source: str) -> str:
    path = Path(source).expanduser()
    if not path.is_file():
        # A folder or a hub id: of these three MUSE alone is published as one.
        return "muse"
    names = list(_names(path))
    for kind, mark in _MARKS.items():
        if any(mark in name for name in names):
            return kind
    raise ValueError(
        f"{source} holds {len(names)} tensors, none of them named as in MUSE, PAE or LightningDiT"
        f"{f', for instance {names[0]}' if names else ''}"
    )


def _names(path: Path) -> Iterator[str]:
    """Names of all tensors of a file, at its top or one level below."""
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                yield from list(file.keys())
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged: {error}") from None
        return
    from lightning_gen.training.safe_reading import load_plain

    for name, value in load_plain(path).items():
        yield from (value if isinstance(value, Mapping) else [name])
