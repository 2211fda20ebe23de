"""Accuracy against operations as a file of its own."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from sparsetime.report import ReportError, accuracy_figure_svg

from .fabricate import edit_json, fabricate

SVG = "{http://www.w3.org/2000/svg}"


def test_the_figure_has_a_mark_for_each_run_and_each_mean(tmp_path: Path) -> None:
    runs = [fabricate(tmp_path / f"{m}{s}", method=m, seed=s) for m in ("dense", "delta") for s in (0, 1, 2)]
    runs.append(fabricate(tmp_path / "single", method="spatial_l1"))
    root = ET.fromstring(accuracy_figure_svg(runs))
    assert root.tag == f"{SVG}svg"
    marks = [mark.get("class", "").split() for mark in root.iter(f"{SVG}path") if mark.get("data-x")]
    assert sum("run" in mark for mark in marks) == 7
    assert sum("mean" in mark for mark in marks) == 2
    assert sum("alone" in mark for mark in marks) == 1
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert "ut_interaction · mobilenet_v1_025" in texts
    assert texts.count("delta") == 2  # beside its mean and in the legend


def test_marks_lie_where_the_axes_say(tmp_path: Path) -> None:
    root = ET.fromstring(accuracy_figure_svg([fabricate(tmp_path / "a", density=0.2, right=20, clips=40)]))
    (holder,) = [e for e in root.iter(f"{SVG}svg") if any(c.get("data-x") for c in e)]
    # Densities: 0 to 0.2. Accuracies: 50 %, its interval 35.2 to 64.8 %, so 35 to 65 % and 250 pixels.
    assert holder.get("x") == "100%"
    assert float(holder.get("y", "nan")) == pytest.approx(125)


def test_runs_without_figures_are_an_error(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "a")
    edit_json(run / "evaluation-test.json", accuracy=None)
    with pytest.raises(ReportError, match="sparsetime evaluate"):
        accuracy_figure_svg([run])


def test_names_are_escaped(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "a")
    edit_json(run / "config.json", network="<b>&\"'")
    texts = [text.text for text in ET.fromstring(accuracy_figure_svg([run])).iter(f"{SVG}text")]
    assert "ut_interaction · <b>&\"'" in texts
