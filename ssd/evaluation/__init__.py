"""COCO evaluation of a detector."""

from ssd.evaluation.coco import coco_numbers

__all__ = ["coco_numbers"]
