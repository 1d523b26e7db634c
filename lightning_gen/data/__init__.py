"""Data: shards of pictures, the deterministic plan, loaders that resume exactly, and the DataModules."""

from typing import TYPE_CHECKING

from lightning_gen._lazy import attach

if TYPE_CHECKING:
    from lightning_gen.data.batches import ImageBatch as ImageBatch
    from lightning_gen.data.convert.image_folder import write_image_folder as write_image_folder
    from lightning_gen.data.finding import find_manifest as find_manifest
    from lightning_gen.data.folder import FolderDataModule as FolderDataModule
    from lightning_gen.data.imagenet import ImageNetDataModule as ImageNetDataModule
    from lightning_gen.data.manifest import Manifest as Manifest
    from lightning_gen.data.modules import ShardDataModule as ShardDataModule
    from lightning_gen.data.quarantine import DataError as DataError
    from lightning_gen.data.report import DataReport as DataReport
    from lightning_gen.data.shards import IndexedShards as IndexedShards
    from lightning_gen.data.transforms import resize_to_budget as resize_to_budget
    from lightning_gen.data.writing import write_shards as write_shards

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "DataError": ".quarantine",
        "DataReport": ".report",
        "FolderDataModule": ".folder",
        "ImageBatch": ".batches",
        "ImageNetDataModule": ".imagenet",
        "IndexedShards": ".shards",
        "Manifest": ".manifest",
        "ShardDataModule": ".modules",
        "find_manifest": ".finding",
        "resize_to_budget": ".transforms",
        "write_image_folder": ".convert.image_folder",
        "write_shards": ".writing",
    },
)
