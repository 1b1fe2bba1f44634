"""A COCO annotation file → the fields that the detector needs, or an error that names the place in it."""

import codecs
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from data.json_text import mapped_text
from ssd.errors import UserError

Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]

Text = bytes | memoryview

REFUSALS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for a text that it does not take; RecursionError for brackets nested too deeply."""

# gc=False: the garbage collector need not visit a million objects that hold no references in a circle.


class Category(msgspec.Struct, gc=False):
    """One entry of `categories`."""

    id: Int64
    name: str


class Image(msgspec.Struct, gc=False):
    """One entry of `images`; the size is in pixels."""

    id: Int64
    file_name: str
    width: Int64
    height: Int64


class Annotation(msgspec.Struct, gc=False):
    """One entry of `annotations`; bbox is ltwh in pixels."""

    image_id: Int64
    category_id: Int64
    bbox: tuple[float, float, float, float]
    iscrowd: bool | int = 0
    id: Int64 | None = None


class Document(msgspec.Struct):
    """The three lists of an annotation file; one without annotations lists images to evaluate on."""

    images: list[Image]
    categories: list[Category] = []
    annotations: list[Annotation] = []


class _Identified(msgspec.Struct):
    """An entry of which only the id is looked at."""

    id: object = None


_AnyEntry = _Identified | list[object] | str | float | bool | None


class _Entries(msgspec.Struct):
    """The same lists, whatever their entries are."""

    images: list[_AnyEntry] = []
    categories: list[_AnyEntry] = []
    annotations: list[_AnyEntry] = []


@dataclass(frozen=True)
class Source:
    """Where a data set lies, and which overrides say so."""

    annotation_file: Path
    image_folder: Path
    split: Literal["train", "val"]

    @property
    def annotations_key(self) -> str:
        """The override that names the annotation file."""
        return f"data.{self.split}_annotations"

    @property
    def images_key(self) -> str:
        """The override that names the image folder."""
        return f"data.{self.split}_images"

    def error(self, what: str) -> UserError:
        """Return the error of something in the annotation file."""
        return UserError(f"{self.annotations_key}={self.annotation_file}: {what}")

    def unreadable(self, error: OSError) -> UserError:
        """Return the error of an annotation file that the system does not hand out."""
        return self.error(
            f"cannot be read ({error.strerror}); name the annotation file with {self.annotations_key}="
        )


def read_document(source: Source) -> Document:
    """Parse the annotation file. It is mapped, not copied: the ranks of one machine share its pages.

    Raises UserError where the file is missing, truncated, no JSON or lacks a field, naming the entry.
    """
    key = source.annotations_key
    try:
        with mapped_text(source.annotation_file) as text:
            if not text:
                raise source.error(f"the file is empty; fetch it anew or name another with {key}=")
            try:
                return msgspec.json.decode(text, type=Document)
            except REFUSALS as error:
                raise source.error(_explain(text, error)) from error
    except OSError as error:
        raise source.unreadable(error) from error


def _explain(text: Text, error: Exception) -> str:
    """Take the slow second look at a file that was refused: what is wrong, where, and what to do."""
    if isinstance(error, msgspec.ValidationError):
        return f"{_at_entry(text, error)}; edit the file"
    if isinstance(error, RecursionError):
        return "its brackets are nested too deeply for an annotation file; name a COCO annotation file"
    if "truncated" in str(error):
        return (
            f"the JSON text breaks off after {len(text)} bytes, a download cut short perhaps; fetch it anew"
        )
    byte = re.search(r"\(byte (\d+)\)", str(error))
    if byte is None:
        return f"it is no JSON text ({error}); name a COCO annotation file"
    if bytes(text[:2]) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "it is UTF-16 text, as some tools on Windows write; save it as UTF-8"
    place = int(byte[1])
    if re.compile(rb"NaN|Infinity").match(text, place):
        return f"{_at_nan(text)}; edit the file"
    near = bytes(text[max(place - 20, 0) : place + 20]).decode(errors="replace")
    return (
        f"it is no JSON text, unexpected character at byte {place} in {near!r}; name a COCO annotation file"
    )


def _at_entry(text: Text, error: msgspec.ValidationError) -> str:
    """Turn "… - at `$.annotations[17].bbox`" into "annotations[17].bbox (id 4711): …"."""
    what, _, place = str(error).partition(" - at `$")
    place = place.strip(".`")
    entry = re.match(r"(images|categories|annotations)\[(\d+)\]", place)
    if entry is None:
        return f"{place}: {what}" if place else what
    try:
        entries = msgspec.json.decode(text, type=_Entries)
    except REFUSALS:  # damaged further on too: the place alone must do
        return f"{place}: {what}"
    bad = getattr(entries, entry[1])[int(entry[2])]
    return f"{place} (id {getattr(bad, 'id', None)}): {what}"


def _at_nan(text: Text) -> str:
    """Name the entry of the first NaN or Infinity: written as null it is refused by its place."""
    what = "it holds NaN or Infinity, which is no JSON number"
    with_null = re.sub(rb"-?\b(NaN|Infinity)\b", b"null", text)
    try:
        msgspec.json.decode(with_null, type=Document)
    except msgspec.ValidationError as error:
        return (
            f"{_at_entry(with_null, error)} after NaN or Infinity, which is no JSON number, was read as null"
        )
    except REFUSALS as error:
        return f"{what}, and besides: {error}"
    return what  # in a field that is not needed
