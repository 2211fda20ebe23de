"""Dense runtimes: all compute the network, and one that does not is found out."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from sparsetime.run.runtimes import LIMITS, DisagreementError, Network, check, distance, prepacked

RIGHT = np.linspace(-1, 1, 60, dtype=np.float32).reshape(1, 3, 4, 5)


def test_distance() -> None:
    assert distance([RIGHT], [RIGHT]) == 0
    assert distance([RIGHT * 1.01], [RIGHT]) == pytest.approx(0.01, rel=1e-3)
    assert distance([np.zeros(3)], [np.zeros(3)]) == 0
    # 3-4-5, over two outputs.
    assert distance([np.array([3.0]), np.array([4.0])], [np.array([0.0]), np.array([5.0])]) == pytest.approx(
        10**0.5 / 5
    )


def _one_element(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x[0, 1, 2, 3] += 0.1
    return x


WRONG = {
    "one percent off": lambda x: x * 1.01,
    "doubled": lambda x: 2 * x,
    "not a number": lambda x: x * np.float32(np.nan),
    "one element": _one_element,
    "transposed": lambda x: x.transpose(0, 1, 3, 2),
    "nothing": lambda x: x * 0,
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_answer_is_refused(wrong) -> None:  # type: ignore[no-untyped-def]
    assert not distance([wrong(RIGHT)], [RIGHT]) <= LIMITS["float32"]
    assert not distance([RIGHT, RIGHT], [RIGHT]) <= LIMITS["float32"]
    assert not distance([RIGHT], [RIGHT * 0]) <= LIMITS["float32"]


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 4, 1))
    module[1].running_var.fill_(4.0)
    module[1].running_mean.fill_(0.5)
    frames = np.random.default_rng(0).standard_normal((4, 1, 3, 12, 14)).astype(np.float32)
    with torch.inference_mode():
        expected = module.eval()(torch.from_numpy(frames[0])).numpy()
    made = Network(module, list(frames))
    assert distance(made.expected, [expected]) < 1e-6, "folding batch norm changed the network"
    assert isinstance(module[1], nn.BatchNorm2d), "the module that was handed over was changed"
    return made


def test_batch_norm_is_gone(network: Network) -> None:
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.module.modules())


def test_batch_norm_that_cannot_be_folded_stays(network: Network) -> None:
    module = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)).eval()
    module[1].running_var.fill_(4.0)
    made = Network(module, network.frames)
    assert any(isinstance(m, nn.BatchNorm2d) for m in made.module.modules())
    assert distance(made.expected, [np.maximum(network.frames[0], 0) / 2]) < 1e-4  # its eps is 1e-5


def test_all_runtimes_agree(network: Network) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra bench")
    pytest.importorskip("openvino", reason="needs the extra bench")
    pytest.importorskip("onnxscript", reason="needs the extra bench")
    found = network.opponents(1, ("float32", "bfloat16", "int8"), compiled=False)
    names = [(o.name.split()[0], o.precision) for o in found]
    assert names == [
        ("PyTorch", "float32"),
        ("ONNX", "float32"),
        ("OpenVINO", "float32"),
        ("PyTorch", "bfloat16"),
        ("OpenVINO", "bfloat16"),
        ("ONNX", "int8"),
        ("OpenVINO", "int8"),
    ]
    assert [o.full_name for o in found if o.name == found[0].name] == [found[0].name, f"{found[0].name}, bfloat16"]
    for opponent in found:
        assert any(c.isdigit() for c in opponent.name), "no version"
        away = check(opponent, network.frames[0], network.expected)
        # Less precision shows; were bfloat16 or int8 float32 in truth, the figures beside ours would be wrong.
        # (OpenVINO computes bfloat16 only where the processor does.)
        if opponent.precision == "float32":
            assert away < 1e-5
        elif opponent.precision == "int8":
            assert away > 1e-4
    lying = replace(found[1], outputs=lambda result: [1.01 * x for x in result])
    with pytest.raises(DisagreementError, match=r"ONNX Runtime .* is 0\.01 away from PyTorch"):
        check(lying, network.frames[0], network.expected)


SIGNAL_AFTER_OPENVINO = """
import os, signal
import numpy as np
from torch import nn
from sparsetime.run.runtimes import Network

frame = np.zeros((1, 3, 8, 8), np.float32)
first, second = (Network(nn.Sequential(nn.Conv2d(3, 4, 3)), [frame])._openvino("float32", 1) for _ in range(2))
del first
del second
signal.signal(signal.SIGINT, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGINT)
"""


def test_signals_are_handled_after_openvino() -> None:
    pytest.importorskip("openvino", reason="needs the extra bench")
    pytest.importorskip("onnxscript", reason="needs the extra bench")
    done = subprocess.run([sys.executable, "-c", SIGNAL_AFTER_OPENVINO], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr  # -11 where the signal's stack is gone


def test_prepacked_convolution() -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch was built without oneDNN")
    torch.manual_seed(0)
    for conv in (nn.Conv2d(6, 10, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1, groups=8)):
        frame = np.random.default_rng(0).standard_normal((1, conv.in_channels, 9, 11)).astype(np.float32)
        with torch.inference_mode():
            expected = conv(torch.from_numpy(frame)).numpy()
        opponent = prepacked(conv, frame)
        assert check(opponent, frame, [expected]) < 1e-5
        with pytest.raises(DisagreementError):
            check(opponent, frame, [expected + 0.1])
