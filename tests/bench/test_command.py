"""`sparsetime bench`: files, tables, and errors in one line."""

import json
from pathlib import Path

import pytest
import torch
import typer
from torch import nn
from typer.testing import CliRunner

from sparsetime.bench import layers, network
from sparsetime.cli import benching


@pytest.fixture
def app() -> typer.Typer:
    made = typer.Typer()
    made.callback()(lambda: None)
    benching.register(made)
    return made


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package, reason="needs the extra bench")
    monkeypatch.setattr(layers, "LAYERS", {"1x1 8-8@10": layers.Shape(10, 10, 8, 8, 1)})
    monkeypatch.setattr(network, "CASES", (network.Case("small_cnn", (32, 32), {}),))


@pytest.mark.usefixtures("_small")
def test_layers(app: typer.Typer, tmp_path: Path) -> None:
    file = tmp_path / "new" / "layers.json"
    words = ["bench", "layers", "--density", "0.1", "--pattern", "elements", "--threads", "1"]
    result = CliRunner().invoke(app, [*words, "--precision", "float32", "--rounds", "1", "--json", str(file)])
    assert result.exit_code == 0, result.output
    found = json.loads(file.read_text())
    assert [row["threads"] for row in found["layers"]["1x1 8-8@10"]] == [1]
    assert found["machine"]["versions"]["openvino"]
    assert len(found["summary"]) == 1
    assert "| 1 | elements | 10% |" in result.stdout


@pytest.mark.usefixtures("_small")
def test_network(app: typer.Typer, tmp_path: Path) -> None:
    file = tmp_path / "network.json"
    words = ["bench", "network", "--density", "0.1", "--pattern", "clustered", "--threads", "1", "--no-compiled"]
    result = CliRunner().invoke(app, [*words, "--precision", "float32", "--rounds", "1", "--json", str(file)])
    assert result.exit_code == 0, result.output
    (row,) = json.loads(file.read_text())["controlled"]
    assert row["network"] == "small_cnn"
    assert f"| small_cnn | pixel, clustered, 10% | float32 | 1 | {row['op_density']:.3f} |" in result.stdout


def preactivated() -> nn.Module:
    """With a batch norm that nothing can be folded into, and a path that torch.fx cannot trace."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.stem(x)
            return self.head(torch.relu(self.norm(y)) if y.shape[2] > 1 else y).mean((2, 3))

    return Network().eval()


@pytest.mark.usefixtures("_small")
def test_a_network_of_ones_own(app: typer.Typer, tmp_path: Path) -> None:
    file = tmp_path / "own.json"
    words = [
        "bench",
        "network",
        "--model",
        f"{__name__}:preactivated",
        "--size",
        "32x40",
        "--threads",
        "1",
        "--rounds",
        "1",
    ]
    words += ["--density", "0.1", "--pattern", "clustered", "--no-compiled", "--precision", "float32"]
    result = CliRunner().invoke(app, [*words, "--json", str(file)])
    assert result.exit_code == 0, result.output
    (row,) = json.loads(file.read_text())["controlled"]
    assert (row["network"], row["size"]) == (f"{__name__}:preactivated", [32, 40])
    assert row["op_density"] == pytest.approx(0.1, rel=0.3)  # of two layers of few pixels


def test_what_was_measured_outlasts_an_error(app: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(network, "growth", lambda *_, **__: {"rows": [1]})
    monkeypatch.setattr(network, "still", stopped)
    file = tmp_path / "network.json"
    words = ["bench", "network", "--part", "growth", "--part", "still", "--json", str(file)]
    assert CliRunner().invoke(app, words).exit_code == 130
    assert json.loads(file.read_text())["growth"] == {"rows": [1]}


def test_only_takes_names_and_parts_of_names() -> None:
    names = ["mobilenet_v2", "deeplabv3_mobilenet_v2", "resnet50"]
    assert benching._chosen(names, None) == names
    assert benching._chosen(names, ["mobilenet_v2"]) == ["mobilenet_v2"]
    assert benching._chosen(names, ["mobile", "resnet50"]) == names
    assert benching._chosen(names, ["deeplab"]) == ["deeplabv3_mobilenet_v2"]


def test_what_does_not_fit_together_is_refused(app: typer.Typer) -> None:
    for words, message in (
        (["layers", "--only", "5x5"], "leaves none of"),
        (["network", "--only", "vgg"], "leaves none of"),
        (["network", "--plan", "a.plan"], "--plan also needs --model"),
        (
            ["network", "--plan", "a.plan", "--model", "resnet18", "--video", "a.mp4", "--size", "64x64"],
            "the plan says how large",
        ),
        (["network", "--size", "64x64"], "--size is of a --model"),
        (["network", "--model", "a:b", "--part", "still"], "leave out --only and --part"),
        (["layers", "--threads", "0"], "--threads"),
    ):
        result = CliRunner().invoke(app, ["bench", *words])
        assert result.exit_code == 2
        assert message in " ".join(result.output.replace("│", " ").split())


def test_a_missing_runtime_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    from sparsetime.run.runtimes import _need

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'sparsetime\[bench\]'"):
        _need("openvino")
