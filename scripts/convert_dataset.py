"""Pascal VOC and YOLO into the COCO layout that `data.path=` reads, and back.

    python scripts/convert_dataset.py voc VOCdevkit/VOC2012 OUT
    python scripts/convert_dataset.py yolo DIR OUT
    python scripts/convert_dataset.py coco DIR OUT --to yolo

Conventions of boxes, categories and splits: data/convert/__init__.py.
"""

import argparse
from pathlib import Path

from data.convert.conversion import Format, Options, convert
from data.convert.folder import Link
from ssd.errors import UserError


def main() -> None:
    """Read the command line, convert, say what was done."""
    given = parser().parse_args()
    try:
        options = Options(given.val_fraction, given.seed, given.classes, Link(given.link))
        lines = convert(given.source, Format(given.format), given.out, Format(given.to), options)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(f"interrupted, {given.out} was not made") from None
    print("\n".join(lines))


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    formats = [format_.value for format_ in Format]
    command = argparse.ArgumentParser(description="Convert a data set to the COCO layout, or from it.")
    command.add_argument("format", choices=formats, help="what SOURCE is in")
    command.add_argument("source", type=Path, metavar="SOURCE", help="folder of the data set; only read")
    command.add_argument("out", type=Path, metavar="OUT", help="folder to make; absent or empty")
    command.add_argument("--to", choices=formats, default=Format.coco.value, help="default %(default)s")
    command.add_argument(
        "--val-fraction",
        type=float,
        default=Options.val_fraction,
        metavar="F",
        help="share of the pictures dealt to val where SOURCE has no validation split; default %(default)s",
    )
    command.add_argument(
        "--seed", type=int, default=Options.seed, help="another seed deals others; default %(default)s"
    )
    command.add_argument(
        "--classes", type=Path, metavar="FILE", help="category names in order, one a line; default: SOURCE's"
    )
    command.add_argument(
        "--link",
        choices=[link.value for link in Link],
        default=Options.link.value,
        help="how pictures get into OUT; hard (default) costs no space but needs the same disk, symlink "
        "breaks when SOURCE moves, copy doubles them",
    )
    return command


if __name__ == "__main__":
    main()
