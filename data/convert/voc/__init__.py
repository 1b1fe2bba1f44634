"""Pascal VOC: an xml file a picture, lists of pictures for the splits."""

from data.convert.voc.reader import read_voc
from data.convert.voc.writer import write_voc

__all__ = ["read_voc", "write_voc"]
