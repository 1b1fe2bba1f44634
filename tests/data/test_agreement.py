"""Ranks that read other annotations are refused by key and host, on all of them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from data.agreement import require_same_data
from ssd.distributed import Ranks
from ssd.errors import UserError
from tests.data.coco_folder import index_of, three_pictures

pytestmark = pytest.mark.unit


class Gathering(Ranks):
    """One rank of four, to which the gathered values are given."""

    values: list[Any]

    def gather(self, value: Any) -> list[Any]:
        return [value, *self.values]


def ranks(*others: tuple[str, str]) -> Ranks:
    gathering = Gathering(torch.device("cpu"), world_size=4)
    gathering.values = [*others]
    return gathering


def test_the_key_and_each_hosts_ranks_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    index = index_of(three_pictures(tmp_path))
    own = index.fingerprint()
    monkeypatch.setattr("socket.gethostname", lambda: "a")
    require_same_data(index, ranks((own, "a"), (own, "b"), (own, "b")))
    with pytest.raises(UserError) as caught:
        require_same_data(index, ranks((own, "a"), ("other fingerprint", "b"), (own, "c")))
    message = str(caught.value)
    assert message.startswith(f"data.train_annotations={index.source.annotation_file}: ")
    assert f"{own[:8]} on a (rank 0, 1), c (rank 3); other fi on b (rank 2). Give all hosts" in message


def test_one_process_agrees_with_itself(tmp_path: Path):
    require_same_data(index_of(three_pictures(tmp_path)), Ranks(torch.device("cpu")))
