"""The page that compares runs: statistics against closed forms and scipy's numbers; folders good and bad."""

import json
import math
import re
from collections.abc import Sequence
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts import compare_runs
from scripts.compare_runs import chance, interval, main, reach, welch
from ssd.cli import as_plain, as_yaml
from ssd.config import DataConfig, OptimizerConfig, TrainConfig
from ssd.errors import UserError
from ssd.evaluation.coco import NAMES, RESULT, coco_numbers
from ssd.training.state import MUST_STAY
from tests.data.coco_folder import DOCUMENT

pytestmark = pytest.mark.unit


def leave_run(folder: Path, aps: Sequence[float | None] = (0.1, 0.2), losses: int = 4, **keys: Any) -> Path:
    """Leave what compare_runs reads of a run: `losses` records, then evaluations."""
    keys = {"data.path": "coco"} | {key.replace("__", "."): value for key, value in keys.items()}
    data = {key[5:]: keys.pop(key) for key in [*keys] if key.startswith("data.")}
    optimizer = {key[10:]: keys.pop(key) for key in [*keys] if key.startswith("optimizer.")}
    config = TrainConfig(
        name=folder.name, data=DataConfig(**data), optimizer=OptimizerConfig(**optimizer), **keys
    )
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(as_yaml(config))
    train = [
        {"step": 5 * k + 5, "epoch": 0, "loss": 9 - k / losses, "learning_rate": 1e-3} for k in range(losses)
    ]
    scored = [{"step": 100 * k, "epoch": k} | dict.fromkeys(NAMES, ap) for k, ap in enumerate(aps, start=1)]
    lines = map(json.dumps, [*train, *scored])
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder


def compare(*words: str) -> str:
    """Write compare.html and return it as a reader sees it: words, cells parted by |."""
    main(words)
    page = Path("compare.html").read_text(encoding="utf-8")
    body = re.sub(r"(?s)<style.*?</style>|<script.*?</script>|<svg.*?</svg>", "", page)
    words_alone = re.sub(r"<[^>]*>", " ", re.sub("</t[dh]>", "|", body))
    return unescape(re.sub(r"\s+", " ", re.sub(r"\s*\|", "|", words_alone)))


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("t", [0.0, 1e-6, 0.3, 1.0, 2.5, 12.7, 700.0])
def test_students_t_is_that_of_the_closed_forms(t: float):
    for freedom, tails in {
        1: 1 - 2 / math.pi * math.atan(t),
        2: 1 - t / math.sqrt(2 + t * t),
        4: 1 - t * (t * t + 6) / (t * t + 4) ** 1.5,
    }.items():
        assert float(chance(t, freedom)) == pytest.approx(tails, rel=1e-9, abs=1e-13)
        if 1e-9 < tails < 0.3:
            assert reach(freedom, tails) == pytest.approx(t, rel=1e-6)


def test_intervals_and_welchs_test_are_scipys():
    for freedom, t in {1: 12.706204736174705, 4.7: 2.620726075353173, 100: 1.983971518523552}.items():
        assert reach(freedom) == pytest.approx(t, rel=1e-12)
    first, other = (0.478, 0.489, 0.482), (0.501, 0.497, 0.512, 0.493)
    assert interval(first) == pytest.approx((0.4691689065761543, 0.49683109342384557), rel=1e-12)
    # scipy.stats.ttest_ind(other, first, equal_var=False) of scipy 1.17.1, and its confidence_interval(0.95)
    expected = (0.01775, 0.004371880710521326, 0.031128119289478874, 0.019042332208466056)
    assert welch(first, other, 1) == pytest.approx(expected, rel=1e-9)
    of_three = (0.01775, -0.0006462240189759154, 0.036146224018976145, 0.019042332208466056 * 3)
    assert welch(first, other, 3) == pytest.approx(of_three, rel=1e-9)  # confidence_interval(1 − 0.05 / 3)
    assert welch(other, first, 1)[0] == pytest.approx(-expected[0])
    assert welch(first, other, 30)[3] == pytest.approx(expected[3] * 30)
    assert welch((0.1, 0.3), (0.2, 0.2), 9)[3] == 1.0
    assert all(map(math.isnan, welch((0.2, 0.2), (0.3, 0.3), 1)[1:]))


def test_runs_that_differ_in_the_seed_alone_are_one_config_and_tested_against_others(
    capsys: pytest.CaptureFixture[str],
):
    for seed, ap in enumerate((0.478, 0.489, 0.482)):
        unshaping = {"data.threads": seed + 1, "data.cache": f"cache{seed}"}
        leave_run(Path(f"runs/a{seed}"), (0.3, ap), seed=seed, **unshaping)
    for seed, ap in enumerate((0.501, 0.497, 0.512, 0.493)):
        leave_run(Path(f"runs/b{seed}"), (0.6, ap), seed=seed, optimizer__learning_rate=5e-4)
    page = compare("runs")
    assert "runs: 7, configs: 2" in page
    sentence = (
        "AP of runs/b0 and 3 more against runs/a0 and 2 more: +0.018, 95 % interval +0.004 to +0.031, "
        "p = 0.019: higher by more than seeds explain."
    )
    headline = f"runs/b2 ends with the highest AP, 0.512. {sentence}"
    assert headline in page
    assert headline in capsys.readouterr().out.replace("\n", " ")
    assert "AP50 of runs/a0 and 2 more| 3| 0.483| 0.006| 0.469| 0.497|| AP" in page
    assert "runs/b1| 1| 200| 0.497| 0.497| 0.497| 0.497| 0.497| 0.497| 0.600| 100| 8.250|" in page
    keys = page[page.index("Keys that differ run|") :]
    assert keys.startswith(
        "Keys that differ run| name| seed| data.threads| data.cache| optimizer.learning_rate|"
    )
    assert "runs/a2| a2| 2| 3| cache2| 0.0026|" in keys
    assert "runs/b0| b0| 0| null| null| 0.0005|" in keys


def test_no_key_that_shapes_a_run_counts_as_shaping_nothing():
    keys = {
        f"{section}.{key}" if isinstance(values, dict) else section
        for section, values in as_plain(TrainConfig(name="a")).items()
        for key in (values if isinstance(values, dict) else [""])
    }
    assert keys >= compare_runs.SHAPING_NOTHING
    assert compare_runs.SHAPING_NOTHING & {*MUST_STAY} == {"seed"}


def test_a_key_of_another_version_makes_another_config():
    leave_run(Path("a"), seed=0)
    config = leave_run(Path("b"), seed=1) / "config.yaml"
    config.write_text(config.read_text() + "new: {key: 1}\n")
    page = compare("a", "b")
    assert "runs: 2, configs: 2" in page
    assert "a| a| 0| no such key| b| b| 1| 1|" in page


@pytest.mark.parametrize(
    ("left", "said"),
    [
        ({"a": {}}, "No interval and no test without two evaluated seeds: a."),
        ({"a": {}, "b": {"seed": 1, "aps": ()}}, "two evaluated seeds: a and 1 more."),
        ({"a": {}, "b": {"seed": 1, "aps": (0.1, 0.24)}}, "0.474| two seeds: the interval is wide|"),
        ({"a": {}, "b": {"seed": 1, "aps": (0.3,)}, "c": {"aps": (0.9,)}}, "AP of a and 2 more| 2| 0.250|"),
        ({"a": {}, "b": {}}, "a and 1 more: a seed is there twice; the first of its runs alone counts"),
        (
            {"a": {}, "b": {"seed": 1, "aps": (0.3,)}},
            "a and 1 more: the last evaluations are after 100 to 200",
        ),
        ({"a": {}, "b": {"data.path": "other"}}, "Numbers on different sets can't be compared: coco/"),
        ({"a": {}, "b": {"data.limit": 8}}, "instances_val2017.json (data.limit=8)."),
        ({"a": {}, "b": {"data.path": "coco/"}}, "runs: 2, configs: 1"),
        ({"a": {}, "b": {"data.train_images": "other"}}, "runs: 2, configs: 2"),
        ({"a": {"aps": (-1.0,)}}, "| –| –|"),
    ],
)
def test_what_keeps_numbers_from_being_compared_is_said(
    left: dict[str, dict[str, Any]], said: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(compare_runs, "curves", lambda _: [])  # most of the time, and nothing of it is read
    for name, keys in left.items():
        leave_run(Path(name), **keys)
    assert said in compare(*left)


def test_configs_on_another_set_or_without_a_spread_are_not_tested():
    for seed in (0, 1):
        leave_run(Path(f"a{seed}"), (0.2 + seed / 100,), seed=seed)
        leave_run(Path(f"b{seed}"), (0.9 + seed / 100,), seed=seed, **{"data.path": "other"})
    page = compare("a0", "a1", "b0", "b1").lower()
    assert "against" not in page
    assert "highest" not in page
    for seed in (0, 1):
        leave_run(Path(f"c{seed}"), (0.0,), seed=seed, optimizer__momentum=0.5)
        leave_run(Path(f"d{seed}"), (0.0,), seed=seed, optimizer__momentum=0.6)
    page = compare("c0", "c1", "d0", "d1")
    assert "AP of d0 and 1 more| 0.000| –| –| –| no spread, no test; two seeds are few|" in page


def test_a_folder_stands_for_the_runs_in_it_and_none_counts_twice():
    for number in (10, 9, 2, 0):
        leave_run(Path(f"sweep/{number}"), seed=number)
    Path("sweep/no_run").mkdir()
    page = compare("sweep/2", "sweep", "sweep/../sweep/2/")
    assert "runs: 4, configs: 1" in page
    assert re.findall(r"sweep/(\d+)\| \d+\| 200", page) == ["2", "0", "9", "10"]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda run: (run / "metrics.jsonl").unlink(),
            "a holds no run (metrics.jsonl), nor does a folder in it",
        ),
        (
            lambda run: (run / "config.yaml").unlink(),
            "a can't be read as a run (.*config.yaml.*); leave it out",
        ),
        (lambda run: (run / "config.yaml").write_text("a: [1"), "a can't be read as a run (.*line 1"),
        (lambda run: (run / "config.yaml").write_text("- 1"), "a can't be read as a run"),
        (lambda run: (run / "config.yaml").write_text("x"), "a can't be read as a run"),
        (lambda run: (run / "config.yaml").write_text("{}"), "a can't be read as a run (data.path=null"),
        (lambda run: (run / "config.yaml").write_bytes(b"\xff\xfe\xfa"), "a can't be read as a run"),
        (lambda run: (run.parent / "compare.html").mkdir(), "out=compare.html names the folder"),
    ],
)
def test_what_is_no_run_is_refused_in_one_line(damage: Any, said: str):
    damage(leave_run(Path("a")))
    with pytest.raises(UserError, match=said.replace("(", r"\(").replace(")", r"\)")) as raised:
        compare("a")
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="RUN=null: give the folders of runs"):
        main(["out=other.html"])


@pytest.mark.parametrize("losses", [0, 4])
@pytest.mark.parametrize("aps", [(), (0.1, 0.2)])
def test_runs_that_were_cut_short_or_not_finite_are_shown(aps: tuple[float, ...], losses: int):
    lasts = [
        "",
        '{"step": 7, "epoch": 0, "lo',
        '{"step": 7, "epoch": 0, "loss": null, "learning_rate": 0.001}\n',
        '{"step": 7, "epoch": 0, "AP": null, "AP50": null, "AP75": null}\n',
    ]
    for number, last in enumerate(lasts):
        with (leave_run(Path(f"runs/{number}"), aps, losses, seed=number) / "metrics.jsonl").open(
            "a"
        ) as file:
            file.write(last)
    page = compare("runs")
    assert "runs: 4, configs: 1" in page
    assert ("AP of runs/0 and 3 more| 4| 0.200| 0.000| 0.200| 0.200|" in page) == bool(aps)


def test_names_are_shown_as_they_are():
    name = "<b>$x_1$ & “q”<script>alert(1)"
    leave_run(Path(name))
    leave_run(Path("b"), data__path="<i>set")
    assert f"{name}|" in compare(name, "b")
    page = Path("compare.html").read_text(encoding="utf-8")
    assert "<b>$" not in page
    assert "<script>alert" not in page
    assert "<i>" not in page


def test_thirty_runs_have_a_legend_beside_the_plots_and_a_short_headline():
    for number in range(30):
        leave_run(
            Path(f"runs/{number}"), losses=500 if number == 3 else 2, optimizer__learning_rate=1e-3 + number
        )
    page = compare("runs")
    assert "two evaluated seeds: runs/0, runs/1, runs/2 and 27 more." in page
    html = Path("compare.html").read_text(encoding="utf-8")
    legend = re.search(r'(?s)<p class="legend">.*?</p>', html)
    assert legend
    curves = re.findall(r'<span class="(\w+)" style="(.*?)">(.*?)</span>', legend[0])
    assert [name for _, _, name in curves] == [f"runs/{number}" for number in range(30)]
    assert len({curve[:2] for curve in curves}) == 24
    assert not any("runs/" in svg for svg in re.findall(r"(?s)<svg.*?</svg>", html))


def test_ap_by_class_is_that_of_the_detections_beside_each_run():
    file = Path("coco/annotations/instances_val2017.json")
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(DOCUMENT))
    found = [(30, 7, (20, 10, 100, 50), 0.9), (30, 90, (0, 0, 200, 80), 0.8)]
    for name, rows in {"a": found, "b": found[:1], "c": found}.items():
        momentum = 0.5 if name == "b" else 0.9
        run = leave_run(Path(name), seed=ord(name), optimizer__momentum=momentum)
        np.save(run / "detections_00000200.npy", np.array(rows, RESULT))
    Path("c/detections_00000200.npy").write_bytes(b"")
    leave_run(Path("d"), seed=9)
    page = compare("a", "b", "c", "d")
    bus = 2 * coco_numbers(file, np.array(found, RESULT))["AP"] - 1
    assert 0 < bus < 1
    assert "class| AP of a and 2 more| b: difference|" in page
    assert f"bird| 1.000| 0.000| bus| {bus:.3f}| −{bus:.3f}|" in page
    assert "Not shown: d: the folder holds no detections_*.npy." in page
    assert "Not shown: c: " in page
    file.unlink()
    assert f"Not shown: a, b: annotation file {file} cannot be read" in compare("a", "b")
