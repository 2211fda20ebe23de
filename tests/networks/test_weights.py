"""Files of weights: what fits loads exactly, what does not fit is named."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from sparsetime.networks import WeightsError, create
from sparsetime.networks.weights import read_weights

State = dict[str, Tensor]


def random_state(shapes: dict[str, tuple[int, ...]]) -> State:
    generator = torch.Generator().manual_seed(3)
    state = {}
    for key, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        if key.endswith("num_batches_tracked"):
            value = torch.tensor(7)
        elif key.endswith("running_var") or len(shape) == 1:
            value = value.abs() + 0.5
        else:
            value = value / value[0].numel() ** 0.5
        state[key] = value
    return state


def conv_norm(conv: str, norm: str, out: int, into: int, kernel: int) -> dict[str, tuple[int, ...]]:
    keys: dict[str, tuple[int, ...]] = {f"{conv}.weight": (out, into, kernel, kernel)}
    keys |= {f"{norm}.{key}": (out,) for key in ("weight", "bias", "running_mean", "running_var")}
    return keys | {f"{norm}.num_batches_tracked": ()}


def batch_norm(x: Tensor, state: State, name: str) -> Tensor:
    mean, var, weight, bias = (state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, mean, var, weight, bias, eps=1e-5)


# torchvision's names and arithmetic, written down again as plain functions of a state dict.


def resnet_shapes(depths: tuple[int, ...], bottleneck: bool) -> dict[str, tuple[int, ...]]:
    shapes = conv_norm("conv1", "bn1", 64, 3, 7)
    into = 64
    for stage, depth in enumerate(depths):
        width = 64 * 2**stage
        out = 4 * width if bottleneck else width
        for block in range(depth):
            name = f"layer{stage + 1}.{block}"
            kernels = (
                ((into, width, 1), (width, width, 3), (width, out, 1))
                if bottleneck
                else ((into, width, 3), (width, width, 3))
            )
            for index, (a, b, kernel) in enumerate(kernels, start=1):
                shapes |= conv_norm(f"{name}.conv{index}", f"{name}.bn{index}", b, a, kernel)
            if block == 0 and (stage > 0 or bottleneck):
                shapes |= conv_norm(f"{name}.downsample.0", f"{name}.downsample.1", out, into, 1)
            into = out
    return shapes | {"fc.weight": (1000, into), "fc.bias": (1000,)}


def resnet_forward(x: Tensor, state: State, depths: tuple[int, ...], bottleneck: bool) -> Tensor:
    x = F.relu(batch_norm(F.conv2d(x, state["conv1.weight"], None, 2, 3), state, "bn1"))
    x = F.max_pool2d(x, 3, 2, 1)
    for stage, depth in enumerate(depths):
        for block in range(depth):
            name = f"layer{stage + 1}.{block}"
            stride = 2 if stage > 0 and block == 0 else 1
            y, count = x, 3 if bottleneck else 2
            for index in range(1, count + 1):
                weight = state[f"{name}.conv{index}.weight"]
                own = stride if index == (2 if bottleneck else 1) else 1
                y = batch_norm(F.conv2d(y, weight, None, own, weight.shape[-1] // 2), state, f"{name}.bn{index}")
                y = F.relu(y) if index < count else y
            if f"{name}.downsample.0.weight" in state:
                x = F.conv2d(x, state[f"{name}.downsample.0.weight"], None, stride)
                x = batch_norm(x, state, f"{name}.downsample.1")
            x = F.relu(x + y)
    return F.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


V2_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
V2_BLOCKS = [(t, c, s if i == 0 else 1) for t, c, n, s in V2_STAGES for i in range(n)]


def mobilenet_v2_shapes() -> dict[str, tuple[int, ...]]:
    shapes = conv_norm("features.0.0", "features.0.1", 32, 3, 3)
    into = 32
    for index, (expansion, out, _) in enumerate(V2_BLOCKS, start=1):
        name, hidden, position = f"features.{index}.conv", into * expansion, 0
        if expansion != 1:
            shapes |= conv_norm(f"{name}.0.0", f"{name}.0.1", hidden, into, 1)
            position = 1
        shapes |= conv_norm(f"{name}.{position}.0", f"{name}.{position}.1", hidden, 1, 3)
        shapes |= conv_norm(f"{name}.{position + 1}", f"{name}.{position + 2}", out, hidden, 1)
        into = out
    shapes |= conv_norm("features.18.0", "features.18.1", 1280, 320, 1)
    return shapes | {"classifier.1.weight": (1000, 1280), "classifier.1.bias": (1000,)}


def mobilenet_v2_forward(x: Tensor, state: State) -> Tensor:
    def block(x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
        weight = state[f"{conv}.weight"]
        groups = x.shape[1] // weight.shape[1]
        return batch_norm(F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, groups), state, norm)

    x = F.relu6(block(x, "features.0.0", "features.0.1", 2))
    for index, (expansion, _, stride) in enumerate(V2_BLOCKS, start=1):
        name, y, position = f"features.{index}.conv", x, 0
        if expansion != 1:
            y = F.relu6(block(y, f"{name}.0.0", f"{name}.0.1"))
            position = 1
        y = F.relu6(block(y, f"{name}.{position}.0", f"{name}.{position}.1", stride))
        y = block(y, f"{name}.{position + 1}", f"{name}.{position + 2}")
        x = x + y if x.shape == y.shape else y
    x = F.relu6(block(x, "features.18.0", "features.18.1"))
    return F.linear(x.mean((2, 3)), state["classifier.1.weight"], state["classifier.1.bias"])


TORCHVISION: list[tuple[str, dict[str, tuple[int, ...]], Callable[[Tensor, State], Tensor]]] = [
    ("resnet18", resnet_shapes((2, 2, 2, 2), False), lambda x, s: resnet_forward(x, s, (2, 2, 2, 2), False)),
    ("resnet50", resnet_shapes((3, 4, 6, 3), True), lambda x, s: resnet_forward(x, s, (3, 4, 6, 3), True)),
    ("mobilenet_v2", mobilenet_v2_shapes(), mobilenet_v2_forward),
]


@pytest.mark.parametrize(("name", "shapes", "forward"), TORCHVISION, ids=[case[0] for case in TORCHVISION])
@torch.no_grad()
def test_torchvision_state_dict_gives_torchvisions_network(
    tmp_path: Path, name: str, shapes: dict[str, tuple[int, ...]], forward: Callable[[Tensor, State], Tensor]
) -> None:
    state = random_state(shapes)
    torch.save(state, tmp_path / "weights.pth")
    network = create(name, weights=tmp_path / "weights.pth", input_size=(64, 64)).eval().double()
    assert network.spec.num_classes == 1000
    assert network.spec.mean == (123.675, 116.28, 103.53)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    expected = forward(x, {key: value.double() for key, value in state.items()})
    assert expected.std() > 1e-3
    torch.testing.assert_close(network(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".th", ".safetensors"])
@pytest.mark.parametrize("norm", ["batch", "folded"])
def test_own_state_dict_loads_again(tmp_path: Path, suffix: str, norm: Any) -> None:
    network = create("mobilenet_v1_025", num_classes=7, input_size=(32, 32), norm=norm)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(network.state_dict(), path)
    else:
        torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}, "epoch": 3}, path)
    again = create("mobilenet_v1_025", weights=path, input_size=(32, 32))
    assert again.spec == network.spec
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_another_number_of_classes_makes_a_fresh_classifier_alone(tmp_path: Path) -> None:
    network = create("small_cnn", num_classes=7)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    torch.manual_seed(5)
    other = create("small_cnn", num_classes=3, weights=tmp_path / "w.pth")
    torch.manual_seed(5)
    fresh = create("small_cnn", num_classes=3)
    for key, value in other.state_dict().items():
        source = fresh if key.startswith("classifier") else network
        assert torch.equal(value, source.state_dict()[key]), key


def test_weights_without_classifier(tmp_path: Path) -> None:
    state = {k: v for k, v in create("resnet20_cifar").state_dict().items() if not k.startswith("linear")}
    torch.save(state, tmp_path / "w.pth")
    assert create("resnet20_cifar", weights=tmp_path / "w.pth").spec.num_classes == 0
    assert create("resnet20_cifar", weights=tmp_path / "w.pth", num_classes=4).linear.weight.shape == (4, 64)


def test_classifier_of_the_detector_is_its_last_layer_alone(tmp_path: Path) -> None:
    network = create("fastestdet", num_classes=4, input_size=(32, 32))
    torch.save(network.state_dict(), tmp_path / "w.pth")
    other = create("fastestdet", num_classes=2, input_size=(32, 32), weights=tmp_path / "w.pth")
    changed = [k for k, v in other.state_dict().items() if not torch.equal(v, network.state_dict()[k])]
    assert set(changed) <= {
        f"classes.{k}" for k in ("0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var")
    }
    assert "classes.0.weight" in changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("features.1.0.weight"), "missing: features.1.0.weight"),
        (lambda s: s.pop("classifier.bias"), "missing: classifier.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "unexpected: extra"),
        (
            lambda s: s.update({"features.0.0.weight": torch.zeros(8, 3, 3, 3)}),
            r"of another shape: features.0.0.weight \(expected \(16, 3, 3, 3\), got \(8, 3, 3, 3\)\)",
        ),
    ],
)
def test_keys_that_do_not_fit_are_named(tmp_path: Path, change: Callable[[State], Any], message: str) -> None:
    state = dict(create("small_cnn").state_dict())
    change(state)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=rf"w.pth does not fit small_cnn \(10 classes\): {message}"):
        create("small_cnn", weights=tmp_path / "w.pth")


def test_the_wrong_network_is_refused_with_a_short_message(tmp_path: Path) -> None:
    torch.save(create("resnet20_cifar").state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"missing: .* and \d+ more; unexpected: conv1.weight") as error:
        create("small_cnn", weights=tmp_path / "w.pth")
    assert len(str(error.value)) < 1000


def folded_file(path: Path, change: Callable[[dict, dict], Any] = lambda graph, arrays: None) -> dict[str, np.ndarray]:
    """A file in the TFLite format for MobileNetV1 0.25, three classes, with random codes."""
    generator = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    ops = []
    with torch.device("meta"):
        network = create("mobilenet_v1_025", num_classes=3, norm="folded")
    layers = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    for number, layer in enumerate(layers):
        conv = isinstance(layer, torch.nn.Conv2d)
        shape = tuple(layer.weight.shape) if conv else (*layer.weight.shape, 1, 1)
        arrays[f"{number:03d}.weight_q"] = generator.integers(0, 256, shape, dtype=np.uint8)
        arrays[f"{number:03d}.weight_scale"] = np.float32(0.01)
        arrays[f"{number:03d}.weight_zero"] = np.int32(128)
        arrays[f"{number:03d}.bias"] = generator.standard_normal(shape[0], dtype=np.float32)
        geometry = (
            {"stride": layer.stride[0], "dilation": 1, "groups": layer.groups}
            if conv
            else {"stride": 1, "dilation": 1, "groups": 1}
        )
        ops.append({"id": number, "op": "depthwise_conv_2d" if geometry["groups"] > 1 else "conv_2d", **geometry})
    graph = {"ops": [*ops, {"id": len(ops), "op": "softmax"}]}
    change(graph, arrays)
    np.savez(path, graph_json=np.frombuffer(json.dumps(graph).encode(), dtype=np.uint8), **arrays)
    return arrays


def test_folded_weights_by_hand(tmp_path: Path) -> None:
    arrays = folded_file(tmp_path / "w.npz")
    network = create("mobilenet_v1_025", weights=tmp_path / "w.npz")
    assert network.spec.norm == "folded"
    assert network.spec.num_classes == 3
    assert network.spec.mean == network.spec.std == (128.0, 128.0, 128.0)
    weight = network.get_parameter("features.1.pointwise.0.weight")
    expected = (arrays["002.weight_q"].astype(np.float64) - 128) * 0.01
    np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=1e-6)
    assert np.array_equal(network.get_parameter("features.1.pointwise.0.bias").detach().numpy(), arrays["002.bias"])
    assert network.classifier.weight.shape == (3, 256)
    assert np.array_equal(network.classifier.bias.detach().numpy(), arrays["027.bias"])


def test_folded_weights_for_fresh_classes(tmp_path: Path) -> None:
    arrays = folded_file(tmp_path / "w.npz")
    network = create("mobilenet_v1_025", weights=tmp_path / "w.npz", num_classes=5)
    assert network.classifier.weight.shape == (5, 256)
    assert np.array_equal(network.features[0][0].bias.detach().numpy(), arrays["000.bias"])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "mobilenet_v1_050",
            {},
            r"of another shape: features.0.0.weight \(expected \(16, 3, 3, 3\), got \(8, 3, 3, 3\)\)",
        ),
        ("mobilenet_v2", {}, "expected 53 convolutions and linear layers, got 28"),
        ("resnet18", {}, "resnet18 expected norm batch, the file has folded"),
        ("mobilenet_v1_025", {"norm": "batch"}, "expected norm batch, the file has folded"),
    ],
)
def test_folded_weights_of_another_network(tmp_path: Path, name: str, options: dict, message: str) -> None:
    folded_file(tmp_path / "w.npz")
    with pytest.raises(WeightsError, match=message):
        create(name, weights=tmp_path / "w.npz", **options)


def test_folded_geometry_is_checked(tmp_path: Path) -> None:
    folded_file(tmp_path / "w.npz", lambda graph, arrays: graph["ops"][3].update(stride=1))
    with pytest.raises(
        WeightsError, match=r"features.2.depthwise.0 has .*'stride': 2.*layer 3 of the file has .*'stride': 1"
    ):
        create("mobilenet_v1_025", weights=tmp_path / "w.npz")


@pytest.mark.parametrize(
    "change",
    [
        lambda graph, arrays: arrays.pop("005.bias"),
        lambda graph, arrays: graph["ops"][2].pop("op"),
        lambda graph, arrays: graph["ops"][2].pop("stride"),
        lambda graph, arrays: graph.pop("ops"),
    ],
)
def test_folded_file_with_parts_missing(tmp_path: Path, change: Callable[[dict, dict], Any]) -> None:
    folded_file(tmp_path / "w.npz", change)
    with pytest.raises(WeightsError, match=r"expected an \.npz with graph_json"):
        create("mobilenet_v1_025", weights=tmp_path / "w.npz")


def test_codebook_by_hand(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "w.npz",
        graph_json=np.frombuffer(b'{"layers": []}', dtype=np.uint8),
        **{
            "fire2/conv1x1_1.code": np.array([[[[2]], [[0]]]], dtype=np.uint8),
            "fire2/conv1x1_1.codebook": np.array([0.0, 1.5, -2.5], dtype=np.float32),
            "fire2/conv1x1_1.bias": np.array([4.0], dtype=np.float32),
        },
    )
    tensors = read_weights(tmp_path / "w.npz").tensors
    assert tensors["fire2/conv1x1_1.weight"].flatten().tolist() == [-2.5, 0.0]
    assert tensors["fire2/conv1x1_1.bias"].tolist() == [4.0]


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_not_executed(tmp_path: Path) -> None:
    with (tmp_path / "w.pth").open("wb") as file:
        pickle.dump({"a": Harmful(tmp_path / "executed")}, file, protocol=2)
    torch.save({"a": Harmful(tmp_path / "executed")}, tmp_path / "w.pt")
    for name in ("w.pth", "w.pt"):
        with pytest.raises(WeightsError, match="not a plain PyTorch state dict"):
            create("small_cnn", weights=tmp_path / name)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".th", ".safetensors", ".npz"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04" + bytes(100), bytes(200), b"\xff" * 200])
def test_a_broken_file_is_named(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"broken{suffix}"):
        create("small_cnn", weights=path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"w{suffix}"
    if suffix == ".npz":
        folded_file(path)
    elif suffix == ".pth":
        torch.save(create("small_cnn").state_dict(), path)
    else:
        save_file(create("small_cnn").state_dict(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(WeightsError, match=f"w{suffix}"):
        create("small_cnn", weights=path)


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_file_is_named_or_loads(tmp_path: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    paths = [tmp_path / f"w{suffix}" for suffix in (".pth", ".safetensors", ".npz")]
    state = create("small_cnn").state_dict()
    torch.save(state, paths[0])
    save_file(state, paths[1])
    np.savez_compressed(paths[2], **{key: value.numpy() for key, value in state.items()})
    for path in paths:
        content = bytearray(path.read_bytes())
        for place in generator.integers(0, len(content), 20):
            content[place] ^= int(generator.integers(1, 256))
        path.write_bytes(content)
        message = path.name
        try:
            create("small_cnn", weights=path)
        except WeightsError as error:
            message = str(error)
        assert path.name in message


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.npz: no such file"):
        create("small_cnn", weights=tmp_path / "absent.npz")
    (tmp_path / "w.onnx").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"expected one of .npz, .safetensors, .pth, .pt, .th, got .onnx"):
        create("small_cnn", weights=tmp_path / "w.onnx")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(WeightsError, match=r"expected a state dict .* got list"):
        create("small_cnn", weights=tmp_path / "list.pt")
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    with pytest.raises(WeightsError, match="graph_json"):
        create("small_cnn", weights=tmp_path / "arrays.npz")


def test_a_flipped_bit_in_a_tensor_is_damage(tmp_path: Path) -> None:
    """PyTorch itself loads such a file."""
    file = tmp_path / "weights.pth"
    torch.save({"weight": torch.zeros(4096)}, file)
    content = bytearray(file.read_bytes())
    content[content.index(bytes(4096)) + 2000] ^= 64
    file.write_bytes(bytes(content))
    assert torch.load(file, weights_only=True)["weight"].any()
    with pytest.raises(WeightsError, match=r"damaged in weights/data/0"):
        create("small_cnn", weights=file)
