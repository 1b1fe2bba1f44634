"""python -m data.demo DIR [--train-images N] [--val-images N] [--seed N]."""

import argparse
import sys
from pathlib import Path

from data.demo.folder import SEED, TRAIN_IMAGES, VAL_IMAGES, generate, report
from ssd.errors import UserError


def main(arguments: list[str]) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m data.demo", description="Make the embedded set.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where to put it: a new or empty folder")
    parser.add_argument("--train-images", type=int, default=TRAIN_IMAGES, help="default %(default)s")
    parser.add_argument("--val-images", type=int, default=VAL_IMAGES, help="default %(default)s")
    parser.add_argument("--seed", type=int, default=SEED, help="default %(default)s")
    options = parser.parse_args(arguments)
    try:
        generate(options.folder, options.train_images, options.val_images, options.seed)
    except UserError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"{options.folder} can't be written ({error.strerror or error}); give another DIR")
    print(f"{options.folder}\n{report(options.folder)}")


if __name__ == "__main__":
    main(sys.argv[1:])
