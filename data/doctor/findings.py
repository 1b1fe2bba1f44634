"""What can be wrong with a data set, and what each kind of finding means for training."""

from dataclasses import dataclass
from enum import Enum

from ssd.annotations import FIXES


class Severity(Enum):
    """error: training refuses the set or can't use an image. warning: it runs, perhaps without a box."""

    error = "error"
    warning = "warning"
    info = "info"


_ERROR, _WARNING, _INFO = Severity
_FETCH = "download or copy the file again"
_DROPPED = "correct it: training leaves it out"


class Kind(Enum):
    """Every kind of finding in report order: its title, its severity and what to do about it.

    A kind with only a title is an error of the annotation file; its fix is in ssd.annotations.FIXES.
    """

    # the annotation file
    unreadable_file = "unreadable annotation file"
    no_json = "not valid JSON"
    no_list = "missing section"
    no_object = "entry is not a JSON object"
    field_missing = "missing field"
    field_type = "field of the wrong type"
    refused = "refused by training", _ERROR, "follow the message"
    # ids
    id_type = "id is not a 64-bit integer"
    id_range = "id is negative or over 2^31", _WARNING, "renumber it: other tools reject it or overflow"
    id_duplicate = "duplicate id"
    annotation_id_duplicate = "duplicate annotation id", _WARNING, "renumber: pycocotools keeps one"
    # categories
    category_name_duplicate = "duplicate category name", _WARNING, "merge the two categories"
    category_missing = "category missing from a split", _ERROR, "list it in both files"
    category_renamed = "category name differs", _ERROR, "give the id the same name in both splits"
    category_renumbered = "category id differs", _ERROR, "give the name the same id in both splits"
    category_without_boxes = "category without boxes", _INFO, "training can't learn it"
    # images and their files; pictures that DALI refuses have the names that data.pictures.ImageDefect uses
    image_size = "invalid image size"
    path_leaves_folder = "not a path inside the image folder"
    link_leaves_folder = "link leaves the image folder", _WARNING, "copy the file: the set can't be moved"
    file_name_duplicate = "file listed twice", _WARNING, "merge the entries: each has only some of the boxes"
    picture_twice = "duplicate picture", _WARNING, "keep one, with all its boxes"
    picture_in_both = "picture in both splits", _WARNING, "keep it in one: AP would reward memorizing"
    picture_alike = "similar picture in both splits", _WARNING, "keep it in one if it is a copy"
    folder_missing = "missing image folder", _ERROR, "give another with data.…_images="
    missing = "missing file", _ERROR, "add it or remove its entries"
    unreadable = "unreadable file", _ERROR, "check its permissions"
    no_file = unreadable
    empty = "empty file", _ERROR, _FETCH
    not_an_image = "not an image", _ERROR, _FETCH
    unsupported_format = "unsupported image format", _ERROR, "save it as JPEG or PNG"
    too_many_pixels = "too many pixels", _ERROR, "shrink the picture or remove its entries"
    size_unlike = "annotated size differs from the file's", _ERROR, "correct the size and check the boxes"
    undecodable = "truncated or damaged file", _ERROR, _FETCH
    exif_rotation = "EXIF rotation", _WARNING, "training ignores it: the boxes must fit the unrotated picture"
    exif_unreadable = "unreadable EXIF data", _WARNING, "check which way is up: training ignores EXIF"
    animated = "animated picture", _WARNING, "training uses the first frame"
    # annotations
    unknown_image = "annotation of an unknown image"
    unknown_category = "annotation of an unknown category"
    box_numbers = "box is not 4 finite numbers"
    box_inverted = "box with negative width or height", _WARNING, _DROPPED
    box_empty = "box without area", _WARNING, _DROPPED
    box_small = "box smaller than data.min_box_px", _WARNING, "training leaves it out"
    box_outside = "box outside the image", _WARNING, _DROPPED
    box_clipped = "box extends past the image", _WARNING, "training clips it"
    box_twice = "duplicate box", _WARNING, "remove one: a detector can match only one of them"
    # ground truth as detections
    truth_lost = "ground truth that can't be matched", _WARNING, "correct it: evaluation counts a miss"
    truth_unscored = "ground truth not scored", _WARNING, "correct the errors first"
    truth_unlike = "ground truth scores below 1", _ERROR, "report a bug: no finding explains it"

    def __init__(self, title: str, severity: Severity = _ERROR, fix: str = "") -> None:
        self.title = title
        self.severity = severity
        self.fix = fix or FIXES[self.name]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: where it is, and a detail with the values."""

    kind: Kind
    where: str
    detail: str
