"""One VOC xml file → its elements, or an error that says what is wrong; entities, bombs too, are refused."""

from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring

from data.errors import DatasetError


def parse(file: Path) -> Element:
    """Return the file's root element. Raises DatasetError."""
    try:
        root: Element = fromstring(file.read_bytes())
    except OSError as error:
        raise DatasetError(f"cannot be read ({error.strerror}); make it a readable file") from error
    except DefusedXmlException as error:
        raise DatasetError(f"declares entities, which VOC files never need ({error}); remove them") from error
    except (ParseError, ValueError, LookupError) as error:  # the latter two: of its encoding
        raise DatasetError(f"is broken xml ({error}); export or fetch it anew") from error
    if root.tag != "annotation":
        raise DatasetError(f"begins with <{root.tag}>, a VOC file with <annotation>; remove it")
    return root


def child(parent: Element, tag: str) -> Element:
    """Return an element's child, or raise DatasetError."""
    element = parent.find(tag)
    if element is None:
        raise DatasetError(f"<{parent.tag}> has no <{tag}>; add it")
    return element


def text_of(parent: Element, tag: str) -> str:
    """Return the text of an element's child, bare of white space; raise DatasetError where it has none."""
    text = (child(parent, tag).text or "").strip()
    if not text:
        raise DatasetError(f"<{parent.tag}> has an empty <{tag}>; fill it")
    return text
