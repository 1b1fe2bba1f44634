"""Which xml files of a VOC folder make which split, and where the picture of each lies."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data.coco_checks import leaves_folder
from data.convert.dataset import Split
from data.convert.findings import Findings
from data.convert.pictures import SUFFIXES, find_files
from data.convert.text import read_lines
from ssd.errors import UserError

VAL_FOLDERS = ("val", "valid")


@dataclass(frozen=True)
class Entry:
    """An xml file, the folder its picture is somewhere in, and the pictures there of the same stem."""

    xml: Path
    stem: str
    pictures: Path
    candidates: tuple[str, ...]

    def picture_name(self, claimed: str) -> str:
        """Return the picture's name in its folder; claimed: what the xml's <filename> says.

        The stem counts: <filename> is often left over from before a renaming. It decides where several
        pictures have the stem, or none has. Raises UserError.
        """
        if len(self.candidates) == 1:
            return self.candidates[0]
        named = PurePosixPath(self.stem).parent / PurePosixPath(claimed).name
        inside = claimed != "" and (self.pictures / named).is_file()
        if inside and (not self.candidates or named.as_posix() in self.candidates):
            return named.as_posix()
        if self.candidates:
            raise UserError(
                f"belongs to {' or '.join(self.candidates)}, and <filename> says {claimed!r}; correct that"
            )
        raise UserError(
            f"its picture is missing: {self.pictures / self.stem} with any of {' '.join(SUFFIXES)}, or "
            f"{claimed!r} as <filename> says; add it, or remove the xml file"
        )


def find_entries(source: Path, findings: Findings) -> dict[Split, list[Entry]]:
    """Return the entries of each split, sorted; `train` alone where the source has no validation split.

    The devkit's Annotations, JPEGImages and ImageSets/Main, or xml files beside their pictures: in train/ and
    val/ (or valid/), else anywhere in the folder. Raises UserError for anything else.
    """
    if (source / "Annotations").is_dir():
        return _devkit(source, findings)
    val = next((source / name for name in VAL_FOLDERS if (source / name).is_dir()), None)
    if val is None or not (source / "train").is_dir():
        return {"train": _all_entries(source, source, findings)}
    if (source / "test").is_dir():
        findings.remark(f"{source / 'test'} is not used: the COCO layout has train and val")
    train = source / "train"
    return {"train": _all_entries(train, train, findings), "val": _all_entries(val, val, findings)}


def _devkit(source: Path, findings: Findings) -> dict[Split, list[Entry]]:
    annotations, pictures = source / "Annotations", source / "JPEGImages"
    if not pictures.is_dir():
        raise UserError(f"{source} has Annotations and no JPEGImages; add that folder with the pictures")
    lists = source / "ImageSets" / "Main"
    present = {name for name in ("train", "val", "trainval", "test") if (lists / f"{name}.txt").is_file()}
    if "test" in present:
        findings.remark(f"{lists / 'test.txt'} is not used: the COCO layout has train and val")
    used: dict[Split, str]
    if {"train", "val"} <= present:
        used = {"train": "train", "val": "val"}
    elif present & {"train", "trainval"}:
        used = {"train": "trainval" if "trainval" in present else "train"}
    else:
        return {"train": _all_entries(annotations, pictures, findings)}
    of_stem = _pictures_by_stem(pictures)
    entries: dict[Split, list[Entry]] = {}
    for split, name in used.items():
        stems = _listed(lists / f"{name}.txt", annotations, findings)
        entries[split] = [_entry(stem, annotations, pictures, of_stem) for stem in sorted(stems)]
    return entries


def _listed(file: Path, annotations: Path, findings: Findings) -> list[str]:
    """Return the stems of a list, those whose xml file is there; the others are problems."""
    lines = read_lines(file)
    if not any(lines):
        raise UserError(f"{file} names no picture; add some, or remove the file")
    stems = []
    for number, stem in enumerate(lines, start=1):
        with findings.collect(f"{file}: line {number}"):
            if stem and leaves_folder(stem):
                raise UserError(f"{stem!r} leaves the folder {annotations}; correct or remove the line")
            if stem and not (annotations / f"{stem}.xml").is_file():
                raise UserError(f"there is no {annotations / stem}.xml; add it, or remove the line")
            if stem:
                stems.append(stem)
    return stems


def _all_entries(annotations: Path, pictures: Path, findings: Findings) -> list[Entry]:
    """Return an entry for each xml file of the folder."""
    stems = [_stem(name) for name in find_files(annotations, (".xml",))]
    if not stems:
        raise UserError(
            f"{annotations} holds no xml file; give the folder that holds Annotations and JPEGImages (of a "
            "devkit: VOCdevkit/VOC2012), or xml files beside their pictures"
        )
    of_stem = _pictures_by_stem(pictures)
    for stem in sorted(of_stem.keys() - stems):
        findings.count("pictures without an xml file are left out", pictures / of_stem[stem][0])
    return [_entry(stem, annotations, pictures, of_stem) for stem in stems]


def _entry(stem: str, annotations: Path, pictures: Path, of_stem: dict[str, list[str]]) -> Entry:
    return Entry(annotations / f"{stem}.xml", stem, pictures, tuple(of_stem.get(stem, ())))


def _pictures_by_stem(folder: Path) -> dict[str, list[str]]:
    of_stem: dict[str, list[str]] = {}
    for name in find_files(folder, SUFFIXES):
        of_stem.setdefault(_stem(name), []).append(name)
    return of_stem


def _stem(name: str) -> str:
    return PurePosixPath(name).with_suffix("").as_posix()
