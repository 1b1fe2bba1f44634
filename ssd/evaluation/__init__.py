from ssd.evaluation.coco import coco_numbers as coco_numbers
