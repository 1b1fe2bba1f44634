"""What of COCO 2017 is published, and the disk that it takes."""

from collections.abc import Iterable
from dataclasses import dataclass

from data.archive import Limits

SOURCE = "http://images.cocodataset.org"
"""Without https: the host is a storage bucket with dots in its name, for which no certificate is valid.

The checksums below vouch for the bytes instead.
"""

FILE_BYTES = 4096 + 512
"""What a file takes of a disk besides its bytes, at most: the rest of a block, folder entry, checksum."""


@dataclass(frozen=True)
class Published:
    """One archive.

    folder: what it unpacks to. path: below the source. size: of the archive, bytes. files: that it holds.
    largest_bytes, unpacked_bytes: at most, of one file and of all.
    """

    folder: str
    path: str
    size: int
    sha256: str
    files: int
    largest_bytes: int
    unpacked_bytes: int

    @property
    def archive(self) -> str:
        """The archive's file name."""
        return self.path.rpartition("/")[2]

    @property
    def limits(self) -> Limits:
        """What unpacking may come to; one member more than files, for the folder itself."""
        return Limits(self.files + 1, self.largest_bytes, self.unpacked_bytes)

    @property
    def disk_bytes(self) -> int:
        """What the unpacked files and their checksums take of a disk, at most."""
        return self.unpacked_bytes + self.files * FILE_BYTES


# The sha256 are those that torchvision publishes (prototype/datasets/_builtin/coco.py); mirrors and many
# others give the same, with these sizes. The archives were not at hand when this was written. Images do not
# deflate, so 2 % over the archive's size is ample; the six annotation files have 834,416,290 bytes by what
# others write. Largest first: the less lies unpacked beside an archive, the less disk is needed.
COCO_2017 = (
    Published(
        folder="train2017",
        path="zips/train2017.zip",
        size=19_336_861_798,
        sha256="69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
        files=118_287,
        largest_bytes=16_000_000,
        unpacked_bytes=19_720_000_000,
    ),
    Published(
        folder="val2017",
        path="zips/val2017.zip",
        size=815_585_330,
        sha256="4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
        files=5_000,
        largest_bytes=16_000_000,
        unpacked_bytes=832_000_000,
    ),
    Published(
        folder="annotations",
        path="annotations/annotations_trainval2017.zip",
        size=252_907_541,
        sha256="113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
        files=6,
        largest_bytes=480_000_000,
        unpacked_bytes=840_000_000,
    ),
)


def disk_needed(parts: Iterable[tuple[Published, int]], keep_archives: bool) -> int:
    """Return the most bytes that a disk must have free for parts of which so many archive bytes are there.

    One part after the other is fetched and unpacked, and its archive deleted unless it is kept.
    """
    taken = most = 0
    for part, present in parts:
        taken += part.size - present + part.disk_bytes
        most = max(most, taken)
        taken -= 0 if keep_archives else part.size
    return most
