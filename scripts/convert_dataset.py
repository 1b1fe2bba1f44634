"""Convert Pascal VOC and YOLO to the COCO layout that `data.path=` reads, and back.

    python scripts/convert_dataset.py voc VOCdevkit/VOC2012 OUT
    python scripts/convert_dataset.py yolo DIR OUT
    python scripts/convert_dataset.py coco DIR OUT --to yolo

Conventions for boxes, categories and splits: data/convert/__init__.py.
"""

import argparse
from pathlib import Path

from data.convert import FORMATS, LINKS, Options, convert
from ssd.errors import UserError, printable


def main() -> None:
    """Read the command line, convert, print what was done."""
    command = argparse.ArgumentParser(description="Convert a data set to or from the COCO layout.")
    add = command.add_argument
    add("format", choices=FORMATS, help="format of SOURCE")
    add("source", type=Path, metavar="SOURCE", help="data set folder or YOLO's data.yaml; never changed")
    add("out", type=Path, metavar="OUT", help="folder to create; must be missing or empty")
    add("--to", choices=FORMATS, default="coco", help="format of OUT; default %(default)s")
    share = "fraction of the pictures put in val if SOURCE has no validation split; default %(default)s"
    add("--val-fraction", type=float, default=Options.val_fraction, metavar="F", help=share)
    add("--seed", type=int, default=Options.seed, help="another seed picks others; default %(default)s")
    add("--classes", type=Path, metavar="FILE", help="ordered category names, one a line; default: SOURCE's")
    link = (
        "how pictures get into OUT: hard (default) takes no space but needs the same disk, symlink breaks "
        "if SOURCE moves, copy doubles the space"
    )
    add("--link", choices=LINKS, default=Options.link, help=link)
    given = command.parse_args()
    options = Options(given.val_fraction, given.seed, given.classes, given.link)
    try:
        lines = convert(given.source, given.format, given.out, given.to, options)
    except (UserError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(f"interrupted, {given.out} was not created") from None
    print(printable("\n".join(lines)))


if __name__ == "__main__":
    main()
