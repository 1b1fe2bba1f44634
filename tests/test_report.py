"""report.html shows what a run left and what is missing; its controls work in Chromium."""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from scripts import report as script
from ssd.config import ReportConfig, TrainConfig
from ssd.errors import UserError
from ssd.evaluation.coco import RESULT, coco_numbers
from ssd.report import read_run
from tests.data.coco_folder import CocoFolder

pytestmark = pytest.mark.unit

IMAGES = 8
HOSTILE = ("<script>alert(1)</script>", '" onload="alert(1)', "$\\frac{a}$ & {{ 7 * 7 }}")
TIMES = "2026-11-24 12:00:00", "2026-11-24 12:30:00"


def leave_run(folder: Path, evaluations: Sequence[dict[str, Any]], losses: int = 4, **keys: Any) -> Path:
    """Write a run's config and metrics: `losses` records, then evaluations. keys: dotted config keys."""
    folder.mkdir(parents=True)
    config = OmegaConf.structured(TrainConfig(name=folder.name))
    for key, value in keys.items():
        OmegaConf.update(config, key, value)
    OmegaConf.save(config, folder / "config.yaml")
    same = ("loss_localization", "loss_confidence", "learning_rate", "images_per_second", "data_wait")
    records = [
        {"step": 5 * k + 5, "epoch": 0, "loss": 9 - k / losses} | dict.fromkeys(same, 1e-3)
        for k in range(losses)
    ]
    lines = [f"{json.dumps(record)}\n" for record in [*records, *evaluations]]
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


def make_run(folder: Path, names: tuple[str, ...], detect: bool = True) -> Path:
    """Make a data set of these classes and a run on it, resumed once and finished; return its folder."""
    data = CocoFolder(folder, categories=[{"id": k, "name": name} for k, name in enumerate(names, start=1)])
    found = []
    for image in range(1, IMAGES + 1):
        pixels = np.full((200, 200, 3), 30 * image, np.uint8)
        data.add(image, pixels, [(left, 40, 40, 30 + left / 2) for left in (10, 80, 150)])
        for place, box in enumerate(data.annotations[-3:-1]):  # right, of another class if any; one is missed
            category = (box["category_id"] + place - 1) % len(names) + 1
            found.append((image, category, box["bbox"], 0.9 - 0.05 * image))
        found.append((image, 1, [100, 150, 30, 30], 0.2 + 0.05 * image))
    data.write()
    detections = np.array(found if detect else [], RESULT)
    numbers = coco_numbers(data.annotation_file, detections)
    both = {"images": str(data.image_folder), "annotations": str(data.annotation_file)}
    paths = {f"data.{split}_{what}": path for split in ("train", "val") for what, path in both.items()}
    evaluations = [{"step": step, "epoch": 0} | numbers for step in (20, 40)]
    run = leave_run(folder / "run", evaluations, **paths)
    np.save(run / "detections_00000020.npy", detections)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4')  # as a killed process leaves it
    facts = {"command": "train.py experiment=coco_8x128 name=run seed=17", "images": "8 with 24 boxes"}
    starts = [{"started": time, "after step": 20 * k} | facts for k, time in enumerate(TIMES)]
    (run / "starts.jsonl").write_text("".join(json.dumps(start) + "\n" for start in starts) + '{"star')
    (run / "run.log").write_text(
        f"{TIMES[0]} train.py\nstopped by SIGTERM after step 20 of 40\n{TIMES[1]} train.py\nepoch 1\n"
        "bad image, its place in the batch is taken by another: 3.jpg <i>\n"
    )
    return run


def words_of(page: Path) -> str:
    """Return the words of a page as a reader sees them, without plots; | ends each cell."""
    html = page.read_text(encoding="utf-8")
    body = re.sub(r"(?s)<style.*?</style>|<script.*?</script>|<svg.*?</svg>", "", html)
    words = re.sub(r"<[^>]*>", " ", re.sub("</t[dh]>", "|", body))
    return unescape(re.sub(r"\s+", " ", re.sub(r"\s*\|", "|", words)))


def made(run: Path) -> str:
    script.main(ReportConfig(run=str(run)))
    return words_of(run / "report.html")


def test_a_page_tells_what_the_run_was_and_where_it_fails(tmp_path: Path):
    run = make_run(tmp_path, ("cat", "dog"))
    words = made(run)
    best = json.loads((run / "metrics.jsonl").read_text().splitlines()[-2])
    for told in (
        f"AP {best['AP']:.3f} and AP50 {best['AP50']:.3f} after step 20, the best of 2 evaluations.",
        "8 with 24 boxes", "overrides name=run seed=17", f"started {TIMES[1]}",
        f"{TIMES[0]}| 0| train.py", f"{TIMES[1]}| 20| train.py",
        "published AP", "stopped by SIGTERM after step 20 of 40", "taken by another: 3.jpg <i>",
        "classification", "the best image", "missed: ", "24 objects of 8 of 8 training images",
    ):  # fmt: skip
        assert told in words, told
    images = (run / "report.html").read_text().count("<image ")
    assert images == 2 * IMAGES + 2  # an error and a miss each; the best and the median
    assert not list(run.glob("*.tmp"))


def keep(run: Path, records: str) -> None:
    """Keep only the records that contain this word, and no detections."""
    next(run.glob("detections_*")).unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(line for line in lines if records in line))


@pytest.mark.parametrize(
    ("lose", "told"),
    [
        (lambda run: keep(run, "loss"), "No evaluation yet."),
        (lambda run: keep(run, "none"), "No step has been recorded yet"),
        (lambda run: [path.unlink() for path in run.iterdir()], "There is no starts.jsonl"),
        (lambda run: shutil.rmtree(run.parent / "pictures"), " pictures can't be shown; the first: "),
        (lambda run: (run.parent / "annotations.json").unlink(), "annotations.json"),
        (lambda run: (run / "config.yaml").write_text("data: {"), "Missing "),
        (lambda run: next(run.glob("*.npy")).write_bytes(b"\x93NUMPY"), "Missing "),
    ],
)
def test_what_is_missing_is_said_and_the_rest_is_there(lose: Any, told: str, tmp_path: Path):
    run = make_run(tmp_path, ("cat", "dog"))
    lose(run)
    assert told in made(run)


@pytest.mark.parametrize(
    ("names", "detect"),
    [
        (("one",), True),
        (("cat", "dog"), False),
        (tuple(f"class {k}" for k in range(200)), True),
        (HOSTILE, True),
    ],
)
def test_any_classes_and_detections_make_a_page(names: tuple[str, ...], detect: bool, tmp_path: Path):
    run = make_run(tmp_path, names, detect)
    words, html = made(run), (run / "report.html").read_text()
    assert html.count("<script") == 1
    assert not re.search(r'<[^>]* onload="', html)
    assert all(" ".join(name.split()) in words for name in names)
    assert ("Nothing was detected." in words) != detect
    assert len(html) < 700_000


def test_a_report_of_no_run_is_refused_and_says_what_to_give():
    for run in (None, "nowhere"):
        with pytest.raises(UserError, match=r"^run=.*evaluate.py checkpoint=… report=FILE.html"):
            script.main(ReportConfig(run=run))


@pytest.mark.parametrize(
    "experiment", sorted(path.stem for path in (script.ROOT / "conf/experiment").glob("coco_*"))
)
def test_the_published_ap_is_that_of_the_experiments_comment(experiment: str, tmp_path: Path):
    (tmp_path / "starts.jsonl").write_text(json.dumps({"command": f"train.py experiment={experiment}"}))
    comment = (script.ROOT / "conf" / "experiment" / f"{experiment}.yaml").read_text()
    published = script.published_ap(read_run(tmp_path), tf32=False)
    assert f"AP {published:.3f} after 65 epochs" in comment


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright of requirements-dev.txt")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs chromium")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1400])
def test_in_a_browser_tables_sort_boxes_filter_and_the_slider_hides(browser: Any, width: int, tmp_path: Path):
    run = make_run(tmp_path, ("cat", "dog", *HOSTILE))
    made(run)
    page = browser.new_page(viewport={"width": width, "height": 800})
    troubles: list[str] = []
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda request: troubles.extend(re.findall(r"^(?!file:|data:).*", request.url)))
    page.goto((run / "report.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == width  # nothing sticks out

    table = page.locator("table", has=page.get_by_role("button", name="recall"))
    recalls = []
    for _ in range(2):
        table.get_by_role("button", name="recall").click()
        recalls.append([float(cell) for cell in table.locator("td:nth-child(5)").all_inner_texts()])
    assert recalls[0] == sorted(recalls[1], reverse=True) != recalls[1]
    assert recalls[1] == sorted(recalls[0])

    def boxes() -> list[str]:
        return page.locator(".card:visible g[data-score]:visible").evaluate_all(
            "boxes => boxes.map(box => [box.dataset.score, box.dataset.kind, box.dataset.class])"
        )

    everything = boxes()
    assert everything
    page.locator("input[type=range]").fill("0.6")
    assert boxes() == [box for box in everything if float(box[0]) >= 0.6] != everything
    page.locator("input[type=range]").fill("0.05")
    every = boxes()
    page.locator("select").nth(0).select_option("background")
    assert boxes() == [box for box in every if box[1] == "background"] != []
    page.locator("select").nth(1).select_option("dog")
    assert boxes() == []
    assert page.get_by_text("No picture has a box of this kind and class.").is_visible()
    page.locator("select").nth(0).select_option("all")
    assert boxes() == [box for box in every if box[2] == "dog"] != []
    assert troubles == []
