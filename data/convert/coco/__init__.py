"""The COCO layout that `data.path=` reads: an annotation file and a folder of pictures for each split."""

from data.convert.coco.reader import read_coco
from data.convert.coco.writer import write_coco

__all__ = ["read_coco", "write_coco"]
