"""The kinds of things that can be wrong with a data set, and what each means for training on it."""

from dataclasses import dataclass
from enum import Enum


class Severity(Enum):
    """error: training refuses the set, or can't use an image. warning: it goes on, perhaps without a box."""

    error = "error"
    warning = "warning"
    info = "info"


@dataclass(frozen=True)
class Meaning:
    """How a kind of finding is called, what it means, and what to do about it."""

    title: str
    severity: Severity
    mend: str


_FETCH = "fetch the file anew"
_WHOLE_ID = "number the entries with whole numbers, and everything that refers to them"
_EDIT = "correct or remove the entry"
_DROPPED = "training leaves the box out; correct it"


class Kind(Enum):
    """Every kind of finding. A member's value is its Meaning."""

    # the annotation file
    unreadable_file = Meaning("annotation file unreadable", Severity.error, "name another, or fetch it anew")
    no_json = Meaning("no JSON", Severity.error, _FETCH)
    no_standard_json = Meaning("JSON that training refuses", Severity.error, "write it as UTF-8, without NaN")
    no_list = Meaning("section missing", Severity.error, "write the three lists of a COCO file")
    no_object = Meaning("entry that is no object", Severity.error, _EDIT)
    field_missing = Meaning("field missing", Severity.error, _EDIT)
    field_type = Meaning("field of a wrong type", Severity.error, _EDIT)
    refused = Meaning("refused by training", Severity.error, "do as the message says")
    stale_cache = Meaning("parsed copy unlike the file", Severity.error, "delete the copy in data.cache")
    # ids
    id_text = Meaning("id that is text", Severity.error, _WHOLE_ID)
    id_fraction = Meaning("id that is a float", Severity.error, _WHOLE_ID)
    id_type = Meaning("id that is no number", Severity.error, _WHOLE_ID)
    id_beyond_64_bits = Meaning("id beyond 64 bits", Severity.error, _WHOLE_ID)
    id_beyond_32_bits = Meaning("id over 2^31", Severity.warning, "DALI's and others' readers wrap it round")
    id_negative = Meaning("id negative", Severity.warning, "other tools refuse it")
    id_duplicate = Meaning("id twice", Severity.error, "give each entry its own id")
    annotation_id_large = Meaning("annotation id over 2^31", Severity.info, "COCO numbers crowd boxes so")
    annotation_id_duplicate = Meaning(
        "annotation id twice", Severity.warning, "pycocotools takes one of them"
    )
    # categories
    category_name_duplicate = Meaning("category name twice", Severity.warning, "make one category of them")
    category_missing = Meaning("category missing from a split", Severity.error, "list it in both files")
    category_renamed = Meaning(
        "category named differently", Severity.error, "give an id the same name in both"
    )
    category_renumbered = Meaning(
        "category numbered differently", Severity.error, "give a name the same id in both"
    )
    category_without_boxes = Meaning("category without a box", Severity.info, "nothing is learned of it")
    # images and their files
    image_size = Meaning("image size below 1", Severity.error, "write the picture's size")
    path_leaves_folder = Meaning("path leaves the folder", Severity.error, "write it relative to the folder")
    link_leaves_folder = Meaning(
        "link leaves the folder", Severity.warning, "the set can't be moved or copied"
    )
    file_name_duplicate = Meaning(
        "file listed twice", Severity.warning, "each entry trains with half the boxes"
    )
    folder_missing = Meaning("image folder missing", Severity.error, "name another with data.…_images=")
    file_missing = Meaning("file missing", Severity.error, "add it or remove its entries")
    file_unreadable = Meaning("file unreadable", Severity.error, "see to its permissions")
    file_empty = Meaning("file of 0 bytes", Severity.error, _FETCH)
    not_an_image = Meaning("no image", Severity.error, _FETCH)
    unsupported_format = Meaning("format that DALI does not read", Severity.error, "save it as JPEG or PNG")
    too_many_pixels = Meaning("absurd dimensions", Severity.error, "make it smaller, or remove its entries")
    size_unlike = Meaning("size unlike the file's", Severity.error, "write the file's size, check its boxes")
    undecodable = Meaning("truncated or damaged", Severity.error, _FETCH)
    exif_rotation = Meaning(
        "EXIF rotation",
        Severity.warning,
        "training does not turn it: its boxes must fit the unturned picture",
    )
    exif_unreadable = Meaning("EXIF unreadable", Severity.warning, "its orientation is unknown")
    animated = Meaning("animated", Severity.warning, "training sees the first frame")
    file_not_listed = Meaning("file not listed", Severity.info, "training does not see it")
    # annotations
    unknown_image = Meaning("annotation of an unknown image", Severity.error, _EDIT)
    unknown_category = Meaning("annotation of an unknown category", Severity.error, _EDIT)
    box_length = Meaning("box without 4 numbers", Severity.error, "write left, top, width, height")
    box_not_finite = Meaning("box with NaN or infinity", Severity.error, _EDIT)
    box_inverted = Meaning("box inverted", Severity.warning, _DROPPED)
    box_empty = Meaning("box without area", Severity.warning, _DROPPED)
    box_small = Meaning("box under data.min_box_px", Severity.warning, "training leaves the box out")
    box_outside = Meaning("box outside the image", Severity.warning, _DROPPED)
    box_clipped = Meaning("box leaves the image", Severity.warning, "training clips it")
    # ground truth as detections
    truth_lost = Meaning("ground truth that can't be found", Severity.warning, "mend the box")
    truth_unscored = Meaning("ground truth not scored", Severity.warning, "mend the errors first")
    truth_unlike = Meaning("ground truth scored wrong", Severity.error, "report it: no finding explains it")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: where it stands, and a sentence with the values."""

    kind: Kind
    where: str
    detail: str
