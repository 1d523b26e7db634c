"""The embedded world: scenes of coloured shapes whose every property is known, their pictures, and an exact reader."""

from lightning_gen._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Scene": ".scene",
        "SceneObject": ".scene",
        "ShapesDetector": ".detector",
        "render": ".render",
    },
)
