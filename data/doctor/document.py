"""An annotation file as it stands, whatever stands in it: every entry is kept to be looked at.

data.coco_json reads for training and stops at the first entry that it can't use. This reads on.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from data.coco_json import REFUSALS, Text
from data.doctor.findings import Finding, Kind
from data.json_text import mapped_text

ABSENT = msgspec.UNSET
"""What a field holds that an entry does not have."""

# gc=False: the garbage collector need not visit a million entries; the values in them are looked at once.


class RawImage(msgspec.Struct, gc=False):
    """One entry of `images`, any values in it."""

    id: Any = ABSENT
    file_name: Any = ABSENT
    width: Any = ABSENT
    height: Any = ABSENT


class RawCategory(msgspec.Struct, gc=False):
    """One entry of `categories`, any values in it."""

    id: Any = ABSENT
    name: Any = ABSENT


class RawAnnotation(msgspec.Struct, gc=False):
    """One entry of `annotations`, any values in it."""

    id: Any = ABSENT
    image_id: Any = ABSENT
    category_id: Any = ABSENT
    bbox: Any = ABSENT
    iscrowd: Any = ABSENT
    area: Any = ABSENT


_Scalar = str | float | bool | None
_NoList = dict[str, Any] | _Scalar | msgspec.UnsetType


class _Sections(msgspec.Struct):
    images: list[RawImage | list[Any] | _Scalar] | _NoList = ABSENT
    categories: list[RawCategory | list[Any] | _Scalar] | _NoList = ABSENT
    annotations: list[RawAnnotation | list[Any] | _Scalar] | _NoList = ABSENT


@dataclass(frozen=True)
class Entries:
    """The entries that are objects, with their place in the file's list; and what is wrong so far."""

    images: dict[int, RawImage] = field(default_factory=dict)
    categories: dict[int, RawCategory] = field(default_factory=dict)
    annotations: dict[int, RawAnnotation] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def read_entries(path: Path) -> Entries:
    """Read an annotation file; nothing in it makes this raise. Without a finding, it is as COCO's are."""
    entries = Entries()
    try:
        with mapped_text(path) as text:
            sections = _decode(text, str(path), entries.findings)
    except OSError as error:
        entries.findings.append(Finding(Kind.unreadable_file, str(path), str(error.strerror)))
        return entries
    if isinstance(sections, _Sections):
        for name in ("images", "categories", "annotations"):
            _sort_out(getattr(sections, name), name, entries)
    elif sections is not ABSENT:
        detail = f"the file holds {sections!r:.60}, not an object with images, annotations and categories"
        entries.findings.append(Finding(Kind.no_list, str(path), detail))
    return entries


def _decode(text: Text, where: str, findings: list[Finding]) -> object:
    """Parse strictly as training does, or else as Python does, which takes NaN; ABSENT where neither can."""
    kinds = _Sections | list[Any] | _Scalar
    try:
        return msgspec.json.decode(text, type=kinds)
    except REFUSALS as error:
        refusal = str(error)
    try:
        sections = msgspec.convert(json.loads(bytes(text)), type=kinds)
    except (ValueError, RecursionError) as error:
        findings.append(Finding(Kind.no_json, where, f"{error or refusal} (the file has {len(text)} bytes)"))
        return ABSENT
    findings.append(Finding(Kind.no_standard_json, where, refusal))
    return sections


def _sort_out(section: object, name: str, entries: Entries) -> None:
    if not isinstance(section, list):
        detail = "the file has none" if section is ABSENT else f"it is {section!r:.60}, not a list"
        entries.findings.append(Finding(Kind.no_list, name, detail))
        return
    objects = getattr(entries, name)
    for place, entry in enumerate(section):
        if isinstance(entry, msgspec.Struct):
            objects[place] = entry
        else:
            entries.findings.append(
                Finding(Kind.no_object, f"{name}[{place}]", f"it is {entry!r:.60}, not an object")
            )
