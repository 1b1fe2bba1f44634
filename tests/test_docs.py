"""Links and paths in README, RECIPE, CONTRIBUTING and docs/ exist."""

import re
from pathlib import Path

import pytest

from tests.bench import ROOT

pytestmark = pytest.mark.unit

DOCUMENTS = [ROOT / name for name in ("README.md", "RECIPE.md", "CONTRIBUTING.md")] + sorted(
    ROOT.glob("docs/*.md")
)


def anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub makes from the headings."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_paths_lead_somewhere(document: Path):
    text = document.read_text(encoding="utf-8")
    wrong = []
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    paths = re.findall(r"`([\w.-]+/[\w./-]+\.(?:py|sh|yaml|md|ipynb))[` ]", text)
    wrong += [path for path in paths if not (ROOT / path).exists() and not (ROOT / "tests" / path).exists()]
    assert wrong == []
