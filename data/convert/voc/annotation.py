"""One VOC xml file → its elements, or an error that says what is wrong; entities, bombs too, are refused."""

from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring

from ssd.errors import UserError


def parse(file: Path) -> Element:
    """Return the file's root element. Raises UserError."""
    try:
        root: Element = fromstring(file.read_bytes())
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror}); make it a readable file") from error
    except DefusedXmlException as error:
        raise UserError(f"declares entities, which VOC files never need ({error}); remove them") from error
    except (ParseError, ValueError, LookupError) as error:  # the latter two: of its encoding
        raise UserError(f"is broken xml ({error}); export or fetch it anew") from error
    if root.tag != "annotation":
        raise UserError(f"begins with <{root.tag}>, a VOC file with <annotation>; remove it")
    return root


def child(parent: Element, tag: str) -> Element:
    """Return an element's child, or raise UserError."""
    element = parent.find(tag)
    if element is None:
        raise UserError(f"<{parent.tag}> has no <{tag}>; add it")
    return element


def text_of(parent: Element, tag: str) -> str:
    """Return the text of an element's child, bare of white space; raise UserError where it has none."""
    text = (child(parent, tag).text or "").strip()
    if not text:
        raise UserError(f"<{parent.tag}> has an empty <{tag}>; fill it")
    return text
