"""What can be wrong with a data set, and what each kind of finding means for training on it."""

from dataclasses import dataclass
from enum import Enum

from ssd.annotations import FIXES


class Severity(Enum):
    """error: training refuses the set, or can't use an image. warning: it goes on, perhaps without a box."""

    error = "error"
    warning = "warning"
    info = "info"


_ERROR, _WARNING, _INFO = Severity
_FETCH = "fetch the file again"
_DROPPED = "training leaves the box out; correct it"


class Kind(Enum):
    """Every kind of finding in the order of the report: its title, its severity and what to do about it.

    A title alone is an error of the annotation file, which ssd.annotations.FIXES says what to do about.
    """

    # the annotation file
    unreadable_file = "annotation file unreadable"
    no_json = "not JSON"
    no_list = "section missing"
    no_object = "entry that is not an object"
    field_missing = "field missing"
    field_type = "field of a wrong type"
    refused = "refused by training", _ERROR, "do as the message says"
    # ids
    id_type = "id that is not a whole number of 64 bits"
    id_range = "id negative or over 2^31", _WARNING, "other tools refuse it or wrap it round"
    id_duplicate = "id twice"
    annotation_id_duplicate = "annotation id twice", _WARNING, "pycocotools takes one of them"
    # categories
    category_name_duplicate = "category name twice", _WARNING, "merge the two categories"
    category_missing = "category missing from a split", _ERROR, "list it in both files"
    category_renamed = "category named differently", _ERROR, "give an id the same name in both"
    category_renumbered = "category numbered differently", _ERROR, "give a name the same id in both"
    category_without_boxes = "category without a box", _INFO, "nothing is learned of it"
    # images and their files; of a picture that DALI refuses, under the names of data.pictures.ImageDefect
    image_size = "image size that is none"
    path_leaves_folder = "no path inside the folder"
    link_leaves_folder = "link leaves the folder", _WARNING, "the set can't be moved or copied"
    file_name_duplicate = "file listed twice", _WARNING, "each entry trains with half the boxes"
    picture_twice = "picture there twice", _WARNING, "keep one, with all its boxes"
    picture_in_both = "picture in both splits", _WARNING, "keep it in one: AP will not tell what was learned"
    picture_alike = "picture alike in both splits", _WARNING, "keep it in one, if it is a copy"
    folder_missing = "image folder missing", _ERROR, "name another with data.…_images="
    missing = "file missing", _ERROR, "add it or remove its entries"
    unreadable = "file unreadable", _ERROR, "check its permissions"
    no_file = unreadable
    empty = "file of 0 bytes", _ERROR, _FETCH
    not_an_image = "not an image", _ERROR, _FETCH
    unsupported_format = "format that training does not read", _ERROR, "save it as JPEG or PNG"
    too_many_pixels = "absurd dimensions", _ERROR, "make it smaller, or remove its entries"
    size_unlike = "size differs from the file's", _ERROR, "write the file's size, check its boxes"
    undecodable = "truncated or damaged", _ERROR, _FETCH
    exif_rotation = "EXIF rotation", _WARNING, "training ignores it: the boxes must fit the unrotated picture"
    exif_unreadable = "EXIF unreadable", _WARNING, "its orientation is unknown"
    animated = "animated", _WARNING, "training sees the first frame"
    # annotations
    unknown_image = "annotation of an unknown image"
    unknown_category = "annotation of an unknown category"
    box_numbers = "box without 4 finite numbers"
    box_inverted = "box inverted", _WARNING, _DROPPED
    box_empty = "box without area", _WARNING, _DROPPED
    box_small = "box under data.min_box_px", _WARNING, "training leaves the box out"
    box_outside = "box outside the image", _WARNING, _DROPPED
    box_clipped = "box leaves the image", _WARNING, "training clips it"
    box_twice = "box there twice", _WARNING, "remove one; scored, one of them is never found"
    # ground truth as detections
    truth_lost = "ground truth that can't be found", _WARNING, "correct the box"
    truth_unscored = "ground truth not scored", _WARNING, "correct the errors first"
    truth_unlike = "ground truth scored wrong", _ERROR, "report it: no finding explains it"

    def __init__(self, title: str, severity: Severity = _ERROR, fix: str = "") -> None:
        self.title = title
        self.severity = severity
        self.fix = fix or FIXES[self.name]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: where it stands, and a sentence with the values."""

    kind: Kind
    where: str
    detail: str
