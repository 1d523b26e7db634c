"""The embedded world: scenes of coloured shapes whose every property is known, their pictures, and an exact reader."""

from typing import TYPE_CHECKING

from lightning_gen._lazy import attach

if TYPE_CHECKING:
    from lightning_gen.shapes.benchmark import benchmark_prompts as benchmark_prompts
    from lightning_gen.shapes.degraded import Degraded as Degraded
    from lightning_gen.shapes.detector import ShapesDetector as ShapesDetector
    from lightning_gen.shapes.edits import apply_edit as apply_edit
    from lightning_gen.shapes.edits import draw_edit as draw_edit
    from lightning_gen.shapes.grammar import parse_prompt as parse_prompt
    from lightning_gen.shapes.layout import draw_scene as draw_scene
    from lightning_gen.shapes.mixture import draw_request as draw_request
    from lightning_gen.shapes.module import ShapesDataModule as ShapesDataModule
    from lightning_gen.shapes.reader import GlyphReader as GlyphReader
    from lightning_gen.shapes.render import render as render
    from lightning_gen.shapes.scene import Scene as Scene
    from lightning_gen.shapes.scene import SceneObject as SceneObject
    from lightning_gen.shapes.tokenizer import ShapesTokenizer as ShapesTokenizer

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Degraded": ".degraded",
        "GlyphReader": ".reader",
        "Scene": ".scene",
        "SceneObject": ".scene",
        "ShapesDataModule": ".module",
        "ShapesDetector": ".detector",
        "ShapesTokenizer": ".tokenizer",
        "apply_edit": ".edits",
        "benchmark_prompts": ".benchmark",
        "draw_edit": ".edits",
        "draw_request": ".mixture",
        "draw_scene": ".layout",
        "parse_prompt": ".grammar",
        "render": ".render",
    },
)
