"""Probes of frozen features: linear, zero-shot and segmentation. They know nothing of what made the features."""

from typing import TYPE_CHECKING

from lightning_gen._lazy import attach

if TYPE_CHECKING:
    from lightning_gen.metrics.labelled_features import FeatureTable as FeatureTable
    from lightning_gen.metrics.labelled_features import LabelledFeatures as LabelledFeatures
    from lightning_gen.metrics.probes.intersection import MeanIntersectionOverUnion as MeanIntersectionOverUnion
    from lightning_gen.metrics.probes.linear import LinearProbe as LinearProbe
    from lightning_gen.metrics.probes.linear import LinearProbeHead as LinearProbeHead
    from lightning_gen.metrics.probes.linear import LinearProbeResult as LinearProbeResult
    from lightning_gen.metrics.probes.segmentation import SegmentationBatch as SegmentationBatch
    from lightning_gen.metrics.probes.segmentation import SegmentationHead as SegmentationHead
    from lightning_gen.metrics.probes.segmentation import SegmentationProbe as SegmentationProbe
    from lightning_gen.metrics.probes.segmentation_test import SegmentationTest as SegmentationTest
    from lightning_gen.metrics.probes.zero_shot import ZeroShot as ZeroShot
    from lightning_gen.metrics.probes.zero_shot import class_embeddings as class_embeddings
    from lightning_gen.metrics.probes.zero_shot import openai_templates as openai_templates

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "FeatureTable": "lightning_gen.metrics.labelled_features",
        "LabelledFeatures": "lightning_gen.metrics.labelled_features",
        "LinearProbe": ".linear",
        "LinearProbeHead": ".linear",
        "LinearProbeResult": ".linear",
        "MeanIntersectionOverUnion": ".intersection",
        "SegmentationBatch": ".segmentation",
        "SegmentationHead": ".segmentation",
        "SegmentationProbe": ".segmentation",
        "SegmentationTest": ".segmentation_test",
        "ZeroShot": ".zero_shot",
        "class_embeddings": ".zero_shot",
        "openai_templates": ".zero_shot",
    },
)
