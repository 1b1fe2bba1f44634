"""The page that compares runs: statistics against closed forms and scipy's numbers; folders good and bad."""

import json
import math
import re
from collections.abc import Sequence
from html import unescape
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest

from scripts.compare_runs import chance, interval, main, welch
from ssd.errors import UserError
from ssd.evaluation.coco import NAMES, RESULT, coco_numbers
from tests.data.coco_folder import DOCUMENT
from tests.test_report import leave_run, words_of

pytestmark = pytest.mark.unit


def leave(name: str, aps: Sequence[float] = (0.1, 0.2), losses: int = 4, **keys: Any) -> Path:
    """Leave what compare_runs reads of a run."""
    scored = [{"step": 100 * k, "epoch": k} | dict.fromkeys(NAMES, ap) for k, ap in enumerate(aps, start=1)]
    return leave_run(Path(name), scored, losses, **({"data.path": "coco"} | keys))


def compare(*words: str) -> str:
    main(words)
    return words_of(Path("compare.html"))


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


def test_the_statistics_are_those_of_closed_forms_and_of_scipy():
    for t in (0.0, 1e-6, 0.3, 1.0, 2.5, 12.7, 700.0):
        tails = {
            1: 1 - 2 / math.pi * math.atan(t),
            2: 1 - t / math.sqrt(2 + t * t),
            4: 1 - t * (t * t + 6) / (t * t + 4) ** 1.5,
        }
        for freedom, both in tails.items():
            assert float(chance(t, freedom)) == pytest.approx(both, rel=1e-9, abs=1e-13)
    for count, t in {2: 12.706204736174705, 101: 1.983971518523552}.items():
        values = [float(k) for k in range(count)]
        half = t * stdev(values) / math.sqrt(count)
        assert interval(values)[1] - fmean(values) == pytest.approx(half, rel=1e-12)
    first, other = (0.478, 0.489, 0.482), (0.501, 0.497, 0.512, 0.493)
    assert interval(first) == pytest.approx((0.4691689065761543, 0.49683109342384557), rel=1e-12)
    # scipy.stats.ttest_ind(other, first, equal_var=False) of scipy 1.17.1
    assert welch(first, other) == pytest.approx(0.019042332208466056, rel=1e-9)
    assert welch(other, first) == pytest.approx(0.019042332208466056, rel=1e-9)
    assert math.isnan(welch((0.2, 0.2), (0.3, 0.3)))


def test_runs_that_differ_in_the_seed_alone_are_one_config_and_tested_against_others(
    capsys: pytest.CaptureFixture[str],
):
    for seed, ap in enumerate((0.478, 0.489, 0.482)):
        unshaping = {"data.threads": seed + 1, "data.cache": f"cache{seed}"}
        leave(f"runs/a{seed}", (0.3, ap), seed=seed, **unshaping)
    for seed, ap in enumerate((0.501, 0.497, 0.512, 0.493)):
        leave(f"runs/b{seed}", (0.6, ap), seed=seed, **{"optimizer.learning_rate": 5e-4})
    page = compare("runs")
    assert "runs: 7, configs: 2" in page
    headline = (
        "AP of runs/a0 and 2 more: 0.483, 95% interval 0.469 to 0.497. "
        "AP of runs/b0 and 3 more: 0.501, 95% interval 0.488 to 0.514; "
        "+0.018 against runs/a0 and 2 more, p = 0.019: the configs differ."
    )
    assert headline in page
    assert headline in capsys.readouterr().out.replace("\n", " ")
    assert "AP50 of runs/a0 and 2 more| 3| 0.483| 0.006| 0.469| 0.497| –| –|| AP" in page
    assert "runs/b1| 1| 200| 0.497| 0.497| 0.497| 0.497| 0.497| 0.497| 0.600| 100| 8.250|" in page
    keys = page[page.index("Keys that differ run|") :]
    assert keys[len("Keys that differ run| ") :].startswith(
        "name| seed| data.threads| data.cache| optimizer.learning_rate|"
    )
    assert "runs/a2| a2| 2| 3| cache2| 0.0026|" in keys
    assert "runs/b0| b0| 0| null| null| 0.0005|" in keys


def test_a_key_of_another_version_is_shown():
    config = leave("b", seed=1) / "config.yaml"
    config.write_text(config.read_text() + "new: {key: 1}\n")
    assert "a| a| 0| no such key| b| b| 1| 1|" in compare(str(leave("a", seed=0)), "b")


@pytest.mark.parametrize(
    ("left", "said"),
    [
        ({"a": {}}, "1 of 1 configs have fewer than 3 seeds"),
        ({"a": {}, "b": {"seed": 1, "aps": ()}}, "No config has two evaluated seeds."),
        ({"a": {}, "b": {"seed": 1, "aps": (0.24,)}}, "to 0.474. 1 of 1 configs have fewer"),
        ({"a": {}, "b": {"seed": 1, "aps": (0.3,)}, "c": {"aps": (0.9,)}}, "AP of a and 2 more| 2| 0.600|"),
        ({"a": {}, "b": {"data.path": "other"}}, "Numbers on different sets can't be compared: coco/"),
        ({"a": {}, "b": {"data.limit": 8}}, "instances_val2017.json (data.limit=8)."),
        ({"a": {}, "b": {"data.train_images": "other"}}, "runs: 2, configs: 2"),
        ({"a": {}, "b": {"optimizer.momentum": 0.5}}, "runs: 2, configs: 2"),
    ],
)
def test_what_keeps_numbers_from_being_compared_is_said(left: dict[str, dict[str, Any]], said: str):
    for name, keys in left.items():
        leave(name, **keys)
    assert said in compare(*left)


def test_configs_on_another_set_or_without_a_spread_are_not_said_to_differ():
    for seed in (0, 1):
        leave(f"a{seed}", (0.2 + seed / 100,), seed=seed)
        leave(f"b{seed}", (0.9 + seed / 100,), seed=seed, **{"data.path": "other"})
        leave(f"c{seed}", (0.0,), seed=seed, **{"optimizer.momentum": 0.5})
        leave(f"d{seed}", (0.0,), seed=seed, **{"optimizer.momentum": 0.6})
    page = compare("a0", "a1", "b0", "b1")
    assert "significant" not in page
    assert "the configs differ" not in page
    assert "Classes" not in page
    page = compare("c0", "c1", "d0", "d1")
    assert "AP of d0 and 1 more| 2| 0.000| 0.000| 0.000| 0.000| 0.000| –| no significant difference|" in page


def test_a_folder_stands_for_the_runs_in_it_and_none_counts_twice():
    for number in (10, 9, 2, 0):
        leave(f"sweep/{number}", seed=number)
    Path("sweep/no_run").mkdir()
    page = compare("sweep/2", "sweep", "./sweep/2/")
    assert "runs: 4, configs: 1" in page
    assert re.findall(r"sweep/(\d+)\| \d+\| 200", page) == ["2", "0", "9", "10"]


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("metrics.jsonl", None, r"a holds no run \(metrics.jsonl\), nor does a folder in it"),
        ("config.yaml", None, r"a can't be read as a run \(.*config.yaml.*\); leave it out"),
        ("config.yaml", b"a: [1", r"a can't be read as a run \(.*line 1"),
        ("config.yaml", b"- 1", "a can't be read as a run"),
        ("config.yaml", b"{}", r"a can't be read as a run \(data.path=null"),
        ("config.yaml", b"\xff\xfe\xfa", "a can't be read as a run"),
    ],
)
def test_what_is_no_run_is_refused_in_one_line(file: str, content: bytes | None, said: str):
    run = leave("a")
    (run / file).unlink()
    if content is not None:
        (run / file).write_bytes(content)
    with pytest.raises(UserError, match=said) as raised:
        compare("a")
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="RUN=null: give the folders of runs"):
        main(["out=other.html"])
    with pytest.raises(UserError, match="out=a names the folder"):
        main(["a", "out=a"])


@pytest.mark.parametrize("losses", [0, 4])
@pytest.mark.parametrize("aps", [(), (0.1, 0.2)])
def test_runs_that_were_cut_short_or_not_finite_are_shown(aps: tuple[float, ...], losses: int):
    lasts = ["", '{"step": 7, "lo', '{"step": 7, "loss": null, "learning_rate": 0.001}\n']
    for number, last in enumerate(lasts):
        folder = leave(f"runs/{number}", aps, losses, seed=number)
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(last)
    page = compare("runs")
    assert "runs: 3, configs: 1" in page
    assert ("AP of runs/0 and 2 more| 3| 0.200| 0.000| 0.200| 0.200|" in page) == bool(aps)


def test_thirty_runs_have_a_legend_beside_the_plots_and_names_are_shown_as_they_are():
    names = ["<b>$x_1$ & “q”<script>alert(1)", *(f"run {number}" for number in range(29))]
    for number, name in enumerate(names):
        losses = 500 if number == 3 else 2
        leave(name, losses=losses, **{"optimizer.learning_rate": 1e-3 + number, "data.path": "<i>set"})
    words = compare(*names)
    assert "30 of 30 configs have fewer than 3 seeds: intervals are wide or missing." in words
    assert f"{names[0]}|" in words
    html = Path("compare.html").read_text(encoding="utf-8")
    assert not re.search(r"<b>\$|<script>alert|<i>", html)
    legend = re.search(r'(?s)<p class="legend">.*?</p>', html)
    assert legend
    assert [unescape(name) for name in re.findall(r"<span .*?>(.*?)</span>", legend[0])] == names
    assert not any("run" in svg for svg in re.findall(r"(?s)<svg.*?</svg>", html))


def test_ap_by_class_is_that_of_the_detections_beside_each_run():
    file = Path("coco/annotations/instances_val2017.json")
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(DOCUMENT))
    found = [(30, 7, (20, 10, 100, 50), 0.9), (30, 90, (0, 0, 200, 80), 0.8)]
    for seed, (name, rows) in enumerate({"a": found, "b": found[:1], "c": found[:1], "d": found}.items()):
        momentum = {"c": 0.5, "d": 0.6}.get(name, 0.9)
        run = leave(name, seed=seed, **{"optimizer.momentum": momentum})
        np.save(run / "detections_00000200.npy", np.array(rows, RESULT))
    Path("d/detections_00000200.npy").write_bytes(b"")
    leave("e", **{"optimizer.momentum": 0.7})
    page = compare("a", "b", "c", "d", "e")
    bus = 2 * coco_numbers(file, np.array(found, RESULT))["AP"] - 1
    assert 0 < bus < 1
    assert "class| AP of a and 1 more| c: difference|" in page
    assert f"bird| 1.000| 0.000| bus| {bus / 2:.3f}| −{bus / 2:.3f}|" in page
    assert "Not shown: d: No data left in file." in page
    assert "Not shown: e: [Errno 2] No such file or directory: 'e/detections_STEP.npy'." in page
    file.unlink()
    assert f"Not shown: c: annotation file {file} cannot be read" in compare("c")
    leave("g", **{"data.limit": 8})
    assert "Not shown: g: scored on" in compare("g")
