"""YOLO: a txt file a picture, a line a box; data.yaml, list files or folders say what is in which split."""

from data.convert.yolo.reader import read_yolo
from data.convert.yolo.writer import write_yolo

__all__ = ["read_yolo", "write_yolo"]
