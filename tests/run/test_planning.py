"""From what a user calls a network to its plan."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import sparsetime
from sparsetime.engine import Plan
from sparsetime.files import TargetError
from sparsetime.networks import create
from sparsetime.run.models import Model, ModelError, load_model
from sparsetime.run.planning import _calibration_frames, compile_file, spread
from sparsetime.run.sources import SourceError


@pytest.mark.parametrize(("length", "count"), [(0, 4), (1, 4), (4, 4), (5, 4), (9, 4), (100, 4), (1000, 16)])
def test_frames_are_spread_evenly(length: int, count: int) -> None:
    kept = [int(frame) for frame in spread((np.asarray(i) for i in range(length)), count)]  # type: ignore[misc]
    assert min(length, count / 2) <= len(kept) <= count
    if len(kept) > 1:
        steps = set(np.diff(kept).tolist())
        assert len(steps) == 1
        assert kept[0] == 0
        assert length - kept[-1] <= steps.pop()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "small_cnn.safetensors"
    torch.manual_seed(0)
    save_file(create("small_cnn", num_classes=4).state_dict(), path)
    return path


MODULE = """
import torch
from torch import nn
from sparsetime.networks import create

def plain():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)).eval()

def sized():
    return create("small_cnn", num_classes=3, input_size=(40, 56))

def learned():
    import sparsetime
    return sparsetime.sparsify(sized(), torch.zeros(1, 3, 40, 56), codec="exact")

def broken():
    raise OSError("no\\nluck")

def number():
    return 3

class Box:
    make = staticmethod(sized)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "own_networks.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield "own_networks"
    sys.modules.pop("own_networks", None)


def test_a_built_in_network(weights: Path, square: Path, tmp_path: Path) -> None:
    result = compile_file("small_cnn", tmp_path / "p.plan", weights=weights, calibrate=str(square), size=(32, 48))
    plan = Plan.load(tmp_path / "p.plan")
    assert plan.input_shape == (1, 3, 32, 48)
    assert {op.codec["kind"] for op in plan.ops if op.codec} == {result["codec"]} == {"pixel"}
    assert (result["calibration_frames"], result["islands"], result["normalised"]) == (10, [], True)
    assert result["file_bytes"] == (tmp_path / "p.plan").stat().st_size


def test_int8_has_the_same_default_codec(weights: Path, square: Path, tmp_path: Path) -> None:
    result = compile_file(
        "small_cnn", tmp_path / "p.plan", weights=weights, calibrate=str(square), size=(32, 48), precision="int8"
    )
    assert result["codec"] == "pixel"
    assert any(op.codec and op.codec.get("pixel") for op in Plan.load(tmp_path / "p.plan").ops)


def test_calibration_is_that_of_compile(weights: Path, square: Path, tmp_path: Path) -> None:
    from sparsetime.video import read_frames

    compile_file("small_cnn", tmp_path / "p.plan", weights=weights, calibrate=str(square), codec="exact")
    frames = torch.from_numpy(read_frames(square, size=(64, 64))).permute(0, 3, 1, 2)
    network = create("small_cnn", weights=weights).eval()
    expected = sparsetime.compile(network, torch.zeros(1, 3, 64, 64), steps=frames, codec="exact")
    found = Plan.load(tmp_path / "p.plan")
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        np.testing.assert_allclose(found.tensors[name], tensor, rtol=1e-5, err_msg=name)


def test_functions_of_ones_own(module: str, square: Path, tmp_path: Path) -> None:
    assert load_model(f"{module}:sized").size == (40, 56)
    assert load_model(f"{module}:Box.make", size=(32, 32)).size == (32, 32)
    learned = compile_file(f"{module}:learned", tmp_path / "l.plan")
    assert (learned["calibration_frames"], learned["codec"], learned["normalised"]) == (0, None, True)
    held = compile_file(f"{module}:learned", tmp_path / "h.plan", codec="hold")
    assert held["codec"] == "hold"
    kinds = [{op.codec["kind"] for op in Plan.load(tmp_path / f).ops if op.codec} for f in ("l.plan", "h.plan")]
    assert kinds == [{"exact"}, {"hold"}]
    with pytest.raises(ModelError, match="has learned its steps; leave out --calibrate"):
        compile_file(f"{module}:learned", tmp_path / "l.plan", calibrate=str(square))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_networks:broken", "model own_networks:broken: OSError: no"),
        ("own_networks:number", "expected a function that returns a torch module, got int"),
        ("own_networks:absent", "AttributeError"),
        ("no_such_package:make", "ModuleNotFoundError"),
        ("own_networks:plain", "its input size is not known; give --size HxW"),
        ("small_cnn", "a built-in network needs its weights; give --weights FILE"),
        ("small_cmm", "no such run directory, and no built-in network; expected .* small_cnn"),
    ],
)
def test_models_that_are_none(module: str, name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(name)


def test_options_that_do_not_belong_together(module: str, weights: Path, square: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.plan"
    with pytest.raises(ModelError, match=r"give --calibrate VIDEO, a short clip"):
        compile_file("small_cnn", out, weights=weights)
    with pytest.raises(ModelError, match="--weights is for built-in networks"):
        compile_file(f"{module}:sized", out, weights=weights)
    with pytest.raises(TargetError, match="is a folder; expected the file to write"):
        compile_file("small_cnn", tmp_path, weights=weights)
    with pytest.raises(SourceError, match="expected a video file or a folder of pictures"):
        compile_file("small_cnn", out, weights=weights, calibrate="rtsp://host/x")
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(square.read_bytes()[:-2000])
    with pytest.raises(SourceError, match=r"--calibrate .*cut off"):
        compile_file("small_cnn", out, weights=weights, calibrate=str(cut))
    assert not out.exists()


def test_what_a_network_with_steps_needs_a_clip_for(module: str, square: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.plan"
    with pytest.raises(ModelError, match=r"learned: int8 needs the ranges of its values; give --calibrate VIDEO"):
        compile_file(f"{module}:learned", out, precision="int8")
    with pytest.raises(ModelError, match=r"sized: it has no steps of its own; give --calibrate VIDEO"):
        compile_file(f"{module}:sized", out)
    model = Model(torch.nn.Identity(), (24, 32), learned=True, config={"data": str(tmp_path / "gone"), "allow": ()})
    with pytest.raises(ModelError, match=r"its values, and the videos that it was trained on are gone; give"):
        _calibration_frames("run", model, None)
    assert compile_file(f"{module}:learned", out, precision="int8", calibrate=str(square))["precision"] == "int8"
