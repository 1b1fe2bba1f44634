"""That all ranks read the same data: hosts have disks of their own, and copies on them go stale."""

import socket

from data.coco import CocoIndex
from ssd.distributed import Ranks


def require_same_data(index: CocoIndex, ranks: Ranks) -> None:
    """Raise UserError on every rank, naming key and hosts, unless all have read what this one has."""
    if ranks.world_size == 1:
        return
    readers: dict[str, dict[str, list[int]]] = {}  # fingerprint → host → its ranks
    for rank, (fingerprint, host) in enumerate(ranks.gather((index.fingerprint(), socket.gethostname()))):
        readers.setdefault(fingerprint, {}).setdefault(host, []).append(rank)
    if len(readers) > 1:
        groups = "; ".join(f"{fingerprint[:8]} on {_named(hosts)}" for fingerprint, hosts in readers.items())
        raise index.source.error(
            f"the ranks have read different images, boxes or categories, fingerprint {groups}. Give all "
            "hosts the same file, and all ranks the same data.limit, data.crowd and data.min_box_px"
        )


def _named(hosts: dict[str, list[int]]) -> str:
    return ", ".join(f"{host} (rank {', '.join(map(str, ranks))})" for host, ranks in hosts.items())
