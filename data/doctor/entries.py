"""The entries of `categories` and `images`: every one that is wrong, and what the others say."""

import os
from dataclasses import dataclass

from data.coco_checks import leaves_folder
from data.doctor.document import ABSENT, RawCategory, RawImage
from data.doctor.findings import Finding, Kind
from data.doctor.ids import MAX_64_BITS, check_id, check_twice, comparable, entry_name


@dataclass(frozen=True, slots=True)
class ListedImage:
    """An entry of `images`: where it stands, its id; its file and (width, height) where they are usable."""

    where: str
    id: object
    file_name: str | None
    size_px: tuple[int, int] | None


def check_categories(entries: dict[int, RawCategory], findings: list[Finding]) -> dict[object, str]:
    """Report what is wrong with categories; return id → name in file order, the first of each id."""
    names: dict[object, str] = {}
    first_id: dict[object, str] = {}
    first_name: dict[str, str] = {}
    for place, entry in entries.items():
        where = entry_name("categories", place, entry.id)
        check_id(entry.id, "id", where, findings)
        if twice := check_twice(entry.id, where, first_id, Kind.id_duplicate):
            findings.append(twice)
        name = _text(entry.name, "name", where, findings)
        if name is not None and first_name.setdefault(name, where) != where:
            detail = f"{first_name[name]} has the name {name!r} too"
            findings.append(Finding(Kind.category_name_duplicate, where, detail))
        if comparable(entry.id):
            names.setdefault(entry.id, name if name is not None else "")
    return names


def check_images(entries: dict[int, RawImage], findings: list[Finding]) -> list[ListedImage]:
    """Report what is wrong with the entries of `images`; their files are not looked at."""
    images = []
    first_id: dict[object, str] = {}
    first_file: dict[str, str] = {}
    for place, entry in entries.items():
        where = entry_name("images", place, entry.id)
        check_id(entry.id, "id", where, findings)
        if twice := check_twice(entry.id, where, first_id, Kind.id_duplicate):
            findings.append(twice)
        width, height = (_side(entry, side, where, findings) for side in ("width", "height"))
        size_px = None if width is None or height is None else (width, height)
        file_name = _file_name(entry.file_name, where, findings)
        if file_name is not None and first_file.setdefault(os.path.normpath(file_name), where) != where:
            detail = f"{first_file[os.path.normpath(file_name)]} has the file_name {file_name!r} too"
            findings.append(Finding(Kind.file_name_duplicate, where, detail))
        images.append(ListedImage(where, entry.id, file_name, size_px))
    return images


def _side(entry: RawImage, side: str, where: str, findings: list[Finding]) -> int | None:
    value = getattr(entry, side)
    if type(value) is int and 1 <= value <= MAX_64_BITS:
        return value
    if value is ABSENT:
        findings.append(Finding(Kind.field_missing, where, f"no {side}"))
    elif type(value) is int and value < 1:
        findings.append(Finding(Kind.image_size, where, f"{side} {value}"))
    else:
        detail = f"{side} {value!r:.60}, not a whole number of pixels"
        findings.append(Finding(Kind.field_type, where, detail))
    return None


def _file_name(value: object, where: str, findings: list[Finding]) -> str | None:
    name = _text(value, "file_name", where, findings)
    if name is not None and leaves_folder(name):
        findings.append(Finding(Kind.path_leaves_folder, where, f"file_name {name!r}"))
        return None
    return name


def _text(value: object, field: str, where: str, findings: list[Finding]) -> str | None:
    if isinstance(value, str) and _is_utf8(value):
        return value
    if value is ABSENT:
        findings.append(Finding(Kind.field_missing, where, f"no {field}"))
    else:
        findings.append(Finding(Kind.field_type, where, f"{field} {value!r:.60}, not text"))
    return None


def _is_utf8(text: str) -> bool:
    """Tell whether the text can be written: Python's JSON reader takes half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
