"""Whether two splits have the same categories: training learns those of one, the other's score it."""

from collections.abc import Iterator, Mapping

from data.doctor.findings import Finding, Kind

Names = Mapping[object, str]
"""Category id → name."""


def compare_categories(train: Names, val: Names) -> Iterator[Finding]:
    """Yield a finding for each category that one split lacks, or that has another id or name there."""
    train_ids, val_ids = _ids(train), _ids(val)
    for name, id_ in train_ids.items():
        where = f"category {name!r}"
        if name in val_ids:
            if val_ids[name] != id_:
                detail = f"id {id_!r} in train, {val_ids[name]!r} in val"
                yield Finding(Kind.category_renumbered, where, detail)
        elif id_ in val and val[id_] not in train_ids:
            yield Finding(
                Kind.category_renamed, where, f"id {id_!r} is {name!r} in train, {val[id_]!r} in val"
            )
        else:
            yield Finding(Kind.category_missing, where, f"id {id_!r} in train, missing from val")
    for name, id_ in val_ids.items():
        renamed = id_ in train and train[id_] not in val_ids
        if name not in train_ids and not renamed:
            yield Finding(
                Kind.category_missing, f"category {name!r}", f"id {id_!r} in val, missing from train"
            )


def _ids(names: Names) -> dict[str, object]:
    """Return name → id, the first of each name."""
    ids: dict[str, object] = {}
    for id_, name in names.items():
        ids.setdefault(name, id_)
    return ids
