"""What an id may be: training takes whole numbers of 64 bits, other tools fewer."""

from data.doctor.document import ABSENT
from data.doctor.findings import Finding, Kind

MAX_32_BITS = 2**31 - 1
MAX_64_BITS = 2**63 - 1


def entry_name(section: str, place: int, entry_id: object) -> str:
    """Say where an entry stands."""
    return f"{section}[{place}] (id {'none' if entry_id is ABSENT else repr(entry_id)[:40]})"


def check_id(value: object, field: str, where: str, findings: list[Finding]) -> None:
    """Report what is wrong with an id, or with a reference to one."""
    if type(value) is int and 0 <= value <= MAX_32_BITS:
        return  # nearly all are
    detail = f"no {field}" if value is ABSENT else f"{field} {value!r:.60}"
    findings.append(Finding(_kind(value), where, detail))


def check_twice(value: object, where: str, first: dict[object, str], kind: Kind) -> Finding | None:
    """Remember which entry had an id first; return the finding that another with the same is."""
    if not comparable(value) or first.setdefault(value, where) == where:
        return None
    return Finding(kind, where, f"{first[value]} has the id {value!r} too")


def comparable(value: object) -> bool:
    """Tell whether entries can refer to each other by this value, be it what an id should be or not."""
    return isinstance(value, int | float | str) and not isinstance(value, bool)


def _kind(value: object) -> Kind:
    if value is ABSENT:
        return Kind.field_missing
    if isinstance(value, str):
        return Kind.id_text
    if isinstance(value, float):
        return Kind.id_fraction
    if not isinstance(value, int) or isinstance(value, bool):
        return Kind.id_type
    if not -MAX_64_BITS - 1 <= value <= MAX_64_BITS:
        return Kind.id_beyond_64_bits
    return Kind.id_negative if value < 0 else Kind.id_beyond_32_bits
