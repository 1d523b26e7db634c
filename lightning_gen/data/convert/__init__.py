"""Conversion of data sets into shards: one file per source, and one way from all of them to the shards.

A source gives records with a stable row number, a part of the input at a time (``records.py``). ``pipeline.py`` packs
them: pictures (``pictures.py``), first pass into parts (``spool.py``), final order (``order.py``), second pass into
shards (``gather.py``), with a journal that lets an interrupted conversion go on (``journal.py``).
"""

from typing import TYPE_CHECKING

from lightning_gen._lazy import attach

if TYPE_CHECKING:
    from lightning_gen.data.convert.formats import FORMATS as FORMATS
    from lightning_gen.data.convert.formats import Request as Request
    from lightning_gen.data.convert.formats import open_source as open_source
    from lightning_gen.data.convert.image_folder import write_image_folder as write_image_folder
    from lightning_gen.data.convert.packing import Packing as Packing
    from lightning_gen.data.convert.pictures import PictureRule as PictureRule
    from lightning_gen.data.convert.pipeline import Conversion as Conversion
    from lightning_gen.data.convert.pipeline import convert as convert
    from lightning_gen.data.convert.records import Part as Part
    from lightning_gen.data.convert.records import Record as Record
    from lightning_gen.data.convert.records import Skipped as Skipped
    from lightning_gen.data.convert.records import Source as Source

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Conversion": ".pipeline",
        "FORMATS": ".formats",
        "Packing": ".packing",
        "Part": ".records",
        "PictureRule": ".pictures",
        "Record": ".records",
        "Request": ".formats",
        "Skipped": ".records",
        "Source": ".records",
        "convert": ".pipeline",
        "open_source": ".formats",
        "write_image_folder": ".image_folder",
    },
)
