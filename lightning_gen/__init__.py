"""Components for image generation with PyTorch Lightning.

Every name below is imported the first time it is used, so `import lightning_gen` itself needs neither torch nor
Lightning. The same names may be written in a configuration file as ``class_path: ViTokV2``.
"""

from typing import TYPE_CHECKING, Final

from ._lazy import attach

if TYPE_CHECKING:
    from .alignment.arena_po.module import ArenaPO as ArenaPO
    from .alignment.arena_po.module import DiffusionDPO as DiffusionDPO
    from .alignment.arena_po.sources import FittedGaps as FittedGaps
    from .alignment.arena_po.sources import TableGaps as TableGaps
    from .alignment.diffusion_nft.module import DiffusionNFT as DiffusionNFT
    from .alignment.flow_grpo.module import FlowGRPO as FlowGRPO
    from .alignment.guards import DivergenceGuard as DivergenceGuard
    from .alignment.policies import PipelinePolicy as PipelinePolicy
    from .autoencoders.muse.module import Muse as Muse
    from .autoencoders.muse.perceptual import PerceptualLoss as PerceptualLoss
    from .autoencoders.muse.teacher import AffinityTeacher as AffinityTeacher
    from .autoencoders.muse.teacher import ColorAffinity as ColorAffinity
    from .autoencoders.muse.teacher import DINOv3Attention as DINOv3Attention
    from .autoencoders.muse.text import CLIPText as CLIPText
    from .autoencoders.muse.text import WordVectors as WordVectors
    from .autoencoders.pae.module import PAE as PAE
    from .autoencoders.pae.refine import PAERefine as PAERefine
    from .autoencoders.pae.upsampling import AnyUp as AnyUp
    from .autoencoders.pae.upsampling import JointBilateral as JointBilateral
    from .autoencoders.reconstructions import ReconstructionWriter as ReconstructionWriter
    from .autoencoders.vitok_v2.module import ViTokV2 as ViTokV2
    from .backbones.patch_encoders import DINOPatches as DINOPatches
    from .backbones.patch_encoders import DINOv2Patches as DINOv2Patches
    from .backbones.patch_encoders import DINOv3Patches as DINOv3Patches
    from .backbones.patch_encoders import InternViTPatches as InternViTPatches
    from .backbones.patch_encoders import MAEPatches as MAEPatches
    from .backbones.patch_encoders import SigLIP2Patches as SigLIP2Patches
    from .backbones.patch_features import MapPatches as MapPatches
    from .backbones.patch_features import UntrainedPatches as UntrainedPatches
    from .backbones.text import FrozenTextEncoder as FrozenTextEncoder
    from .backbones.text_to_image import DiffusersTextToImage as DiffusersTextToImage
    from .backbones.vae import DiffusersVAE as DiffusersVAE
    from .data.edits import EditPairsDataModule as EditPairsDataModule
    from .data.folder import FolderDataModule as FolderDataModule
    from .data.image_folder import ImageFolderDataModule as ImageFolderDataModule
    from .data.imagenet import ImageNetDataModule as ImageNetDataModule
    from .data.images import ImageDataModule as ImageDataModule
    from .data.images import MixtureDataModule as MixtureDataModule
    from .data.images import TextImageDataModule as TextImageDataModule
    from .data.latents.module import LatentDataModule as LatentDataModule
    from .data.modules import ShardDataModule as ShardDataModule
    from .data.preferences import HPDv3DataModule as HPDv3DataModule
    from .data.preferences import PickAPicDataModule as PickAPicDataModule
    from .data.preferences import PreferenceDataModule as PreferenceDataModule
    from .data.prompts import PromptDataModule as PromptDataModule
    from .generators.dit.module import LatentDiffusion as LatentDiffusion
    from .generators.dit.text_module import TextLatentDiffusion as TextLatentDiffusion
    from .generators.geneval_validation import GenEvalValidation as GenEvalValidation
    from .generators.spaces import AutoencoderSpace as AutoencoderSpace
    from .generators.spaces import PixelSpace as PixelSpace
    from .metrics.extraction.feature_extractor import ModuleExtractor as ModuleExtractor
    from .metrics.extractors import CLIPImageExtractor as CLIPImageExtractor
    from .metrics.extractors import DINOv2Extractor as DINOv2Extractor
    from .metrics.extractors import DINOv3Extractor as DINOv3Extractor
    from .metrics.extractors import FIDInceptionV3 as FIDInceptionV3
    from .metrics.probes.linear import LinearProbe as LinearProbe
    from .metrics.probes.segmentation_test import SegmentationTest as SegmentationTest
    from .metrics.segmented_pictures import ADE20KShards as ADE20KShards
    from .metrics.segmented_pictures import CocoPanoptic as CocoPanoptic
    from .rewards.cache import RewardCache as RewardCache
    from .rewards.geneval import GenEvalReward as GenEvalReward
    from .rewards.judged import UnifiedReward as UnifiedReward
    from .rewards.preference import AestheticReward as AestheticReward
    from .rewards.preference import CLIPScoreReward as CLIPScoreReward
    from .rewards.preference import HPSv21Reward as HPSv21Reward
    from .rewards.preference import PickScoreReward as PickScoreReward
    from .rewards.remote import RemoteReward as RemoteReward
    from .rewards.remote import RemoteTextReader as RemoteTextReader
    from .rewards.rewards import RewardSuite as RewardSuite
    from .rewards.text import OCRReward as OCRReward
    from .shapes.benchmark import ShapesPrompts as ShapesPrompts
    from .shapes.detector import ShapesDetector as ShapesDetector
    from .shapes.encoder import ShapesEncoder as ShapesEncoder
    from .shapes.encoder import ShapesEncoderTraining as ShapesEncoderTraining
    from .shapes.encoder import ShapesFeatures as ShapesFeatures
    from .shapes.module import ShapesDataModule as ShapesDataModule
    from .shapes.preferences import ShapesPreferenceDataModule as ShapesPreferenceDataModule
    from .shapes.prompts import ShapesPromptDataModule as ShapesPromptDataModule
    from .shapes.rewards import ColorHarmony as ColorHarmony
    from .shapes.rewards import Layout as Layout
    from .shapes.rewards import RequestMatch as RequestMatch
    from .shapes.rewards import Sharpness as Sharpness
    from .shapes.rewards import WordMatch as WordMatch
    from .shapes.segments import ShapesSegments as ShapesSegments
    from .shapes.tokenizer import ShapesTokenizer as ShapesTokenizer
    from .training.callbacks.budget import BudgetCurriculum as BudgetCurriculum
    from .training.callbacks.gradient_routing import GradientRouting as GradientRouting
    from .training.callbacks.sample_grid import SampleGrid as SampleGrid
    from .training.callbacks.throughput import Throughput as Throughput
    from .training.ema import EMA as EMA
    from .training.strategies import FSDP2Strategy as FSDP2Strategy

__version__ = "0.1.0"

COMPONENTS: Final[dict[str, str]] = {
    "ADE20KShards": "lightning_gen.metrics.segmented_pictures",
    "AestheticReward": "lightning_gen.rewards.preference",
    "AffinityTeacher": "lightning_gen.autoencoders.muse.teacher",
    "AnyUp": "lightning_gen.autoencoders.pae.upsampling",
    "ArenaPO": "lightning_gen.alignment.arena_po.module",
    "AutoencoderSpace": "lightning_gen.generators.spaces",
    "BudgetCurriculum": "lightning_gen.training.callbacks.budget",
    "CLIPImageExtractor": "lightning_gen.metrics.extractors",
    "CLIPScoreReward": "lightning_gen.rewards.preference",
    "CLIPText": "lightning_gen.autoencoders.muse.text",
    "CocoPanoptic": "lightning_gen.metrics.segmented_pictures",
    "ColorAffinity": "lightning_gen.autoencoders.muse.teacher",
    "ColorHarmony": "lightning_gen.shapes.rewards",
    "DINOPatches": "lightning_gen.backbones.patch_encoders",
    "DINOv2Extractor": "lightning_gen.metrics.extractors",
    "DINOv2Patches": "lightning_gen.backbones.patch_encoders",
    "DINOv3Attention": "lightning_gen.autoencoders.muse.teacher",
    "DINOv3Extractor": "lightning_gen.metrics.extractors",
    "DINOv3Patches": "lightning_gen.backbones.patch_encoders",
    "DiffusersTextToImage": "lightning_gen.backbones.text_to_image",
    "DiffusersVAE": "lightning_gen.backbones.vae",
    "DiffusionDPO": "lightning_gen.alignment.arena_po.module",
    "DiffusionNFT": "lightning_gen.alignment.diffusion_nft.module",
    "DivergenceGuard": "lightning_gen.alignment.guards",
    "EMA": "lightning_gen.training.ema",
    "EditPairsDataModule": "lightning_gen.data.edits",
    "FIDInceptionV3": "lightning_gen.metrics.extractors",
    "FSDP2Strategy": "lightning_gen.training.strategies",
    "FittedGaps": "lightning_gen.alignment.arena_po.sources",
    "FlowGRPO": "lightning_gen.alignment.flow_grpo.module",
    "FolderDataModule": "lightning_gen.data.folder",
    "FrozenTextEncoder": "lightning_gen.backbones.text",
    "GenEvalReward": "lightning_gen.rewards.geneval",
    "GenEvalValidation": "lightning_gen.generators.geneval_validation",
    "GradientRouting": "lightning_gen.training.callbacks.gradient_routing",
    "HPDv3DataModule": "lightning_gen.data.preferences",
    "HPSv21Reward": "lightning_gen.rewards.preference",
    "ImageDataModule": "lightning_gen.data.images",
    "ImageFolderDataModule": "lightning_gen.data.image_folder",
    "ImageNetDataModule": "lightning_gen.data.imagenet",
    "InternViTPatches": "lightning_gen.backbones.patch_encoders",
    "JointBilateral": "lightning_gen.autoencoders.pae.upsampling",
    "LatentDataModule": "lightning_gen.data.latents.module",
    "LatentDiffusion": "lightning_gen.generators.dit.module",
    "Layout": "lightning_gen.shapes.rewards",
    "LinearProbe": "lightning_gen.metrics.probes.linear",
    "MAEPatches": "lightning_gen.backbones.patch_encoders",
    "MapPatches": "lightning_gen.backbones.patch_features",
    "MixtureDataModule": "lightning_gen.data.images",
    "ModuleExtractor": "lightning_gen.metrics.extraction.feature_extractor",
    "Muse": "lightning_gen.autoencoders.muse.module",
    "OCRReward": "lightning_gen.rewards.text",
    "PAE": "lightning_gen.autoencoders.pae.module",
    "PAERefine": "lightning_gen.autoencoders.pae.refine",
    "PerceptualLoss": "lightning_gen.autoencoders.muse.perceptual",
    "PickAPicDataModule": "lightning_gen.data.preferences",
    "PickScoreReward": "lightning_gen.rewards.preference",
    "PipelinePolicy": "lightning_gen.alignment.policies",
    "PixelSpace": "lightning_gen.generators.spaces",
    "PreferenceDataModule": "lightning_gen.data.preferences",
    "PromptDataModule": "lightning_gen.data.prompts",
    "ReconstructionWriter": "lightning_gen.autoencoders.reconstructions",
    "RemoteReward": "lightning_gen.rewards.remote",
    "RemoteTextReader": "lightning_gen.rewards.remote",
    "RequestMatch": "lightning_gen.shapes.rewards",
    "RewardCache": "lightning_gen.rewards.cache",
    "RewardSuite": "lightning_gen.rewards.rewards",
    "SampleGrid": "lightning_gen.training.callbacks.sample_grid",
    "SegmentationTest": "lightning_gen.metrics.probes.segmentation_test",
    "ShapesDataModule": "lightning_gen.shapes.module",
    "ShapesDetector": "lightning_gen.shapes.detector",
    "ShapesEncoder": "lightning_gen.shapes.encoder",
    "ShapesEncoderTraining": "lightning_gen.shapes.encoder",
    "ShapesFeatures": "lightning_gen.shapes.encoder",
    "ShapesPreferenceDataModule": "lightning_gen.shapes.preferences",
    "ShapesPromptDataModule": "lightning_gen.shapes.prompts",
    "ShapesPrompts": "lightning_gen.shapes.benchmark",
    "ShapesSegments": "lightning_gen.shapes.segments",
    "ShapesTokenizer": "lightning_gen.shapes.tokenizer",
    "ShardDataModule": "lightning_gen.data.modules",
    "Sharpness": "lightning_gen.shapes.rewards",
    "SigLIP2Patches": "lightning_gen.backbones.patch_encoders",
    "TableGaps": "lightning_gen.alignment.arena_po.sources",
    "TextImageDataModule": "lightning_gen.data.images",
    "TextLatentDiffusion": "lightning_gen.generators.dit.text_module",
    "Throughput": "lightning_gen.training.callbacks.throughput",
    "UnifiedReward": "lightning_gen.rewards.judged",
    "UntrainedPatches": "lightning_gen.backbones.patch_features",
    "ViTokV2": "lightning_gen.autoencoders.vitok_v2.module",
    "WordMatch": "lightning_gen.shapes.rewards",
    "WordVectors": "lightning_gen.autoencoders.muse.text",
}
"""Short name -> module of every class that a configuration may name."""

__getattr__, __dir__, _names = attach(__name__, COMPONENTS)
__all__ = ["COMPONENTS", "__version__", *_names]
