"""Published weights on real pictures and video."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sparsetime
from sparsetime.networks import Network, box_iou, create, decode_boxes
from sparsetime.networks.blocks import same_padding

pytestmark = pytest.mark.data

FILES = {
    "mobilenet_v1_025": "imagenet/mobilenet_v1_0.25_128_quant.npz",
    "mobilenet_v1_050": "imagenet/mobilenet_v1_0.5_160_quant.npz",
    "mobilenet_v1_075": "imagenet/mobilenet_v1_0.75_192_quant.npz",
    "mobilenet_v1_100": "imagenet/mobilenet_v1_1.0_224_quant_embedding_extractor.npz",
    "mobilenet_v2": "imagenet/mobilenet_v2_1.0_224_quant.npz",
    "squeezenet": "imagenet/squeezenet_v1.0_pruned.npz",
    "shufflenet_v2": "imagenet/shufflenetv2_fastestdet_backbone.pth",
    "deeplabv3_mobilenet_v2": "segmentation/deeplabv3_mnv2_dm05_pascal_quant.npz",
    "fastestdet": "detection/fastestdet_coco.pth",
    "resnet20_cifar": "cifar10/resnet20-12fca82f.th",
    "resnet32_cifar": "cifar10/resnet32-d509ac18.th",
}


def pretrained(shared_data: Path, name: str) -> Network:
    return create(name, weights=shared_data / "weights" / FILES[name]).eval()


def first_frame(path: Path) -> Tensor:
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24")
    return torch.from_numpy(frame).permute(2, 0, 1)


def prepared(network: Network, frames: Tensor) -> Tensor:
    resized = F.interpolate(frames.float(), size=network.spec.input_size, mode="bilinear", antialias=True)
    return network.spec.normalise(resized)


@pytest.fixture(scope="module")
def pictures(shared_data: Path) -> dict[str, Tensor]:
    folder = shared_data / "weights/imagenet/check_images"
    return {path.stem: first_frame(path) for path in sorted(folder.glob("*.png"))}


@pytest.fixture(scope="module")
def labels(shared_data: Path) -> list[str]:
    return (shared_data / "weights/imagenet/imagenet_labels_1001.txt").read_text().splitlines()


def is_right(picture: str, label: str) -> bool:
    """Pictures are named after the first of a class's names."""
    return picture.replace("_", " ") == label.lower().split(",")[0]


@pytest.mark.parametrize(
    ("name", "right"),
    [("mobilenet_v2", 8), ("mobilenet_v1_075", 7), ("mobilenet_v1_050", 5), ("mobilenet_v1_025", 4)],
)
@torch.no_grad()
def test_mobilenets_on_the_check_pictures(
    shared_data: Path, pictures: dict[str, Tensor], labels: list[str], name: str, right: int
) -> None:
    network = pretrained(shared_data, name)
    assert network.spec.num_classes == 1001
    answers = network(prepared(network, torch.stack(list(pictures.values())))).argmax(1)
    assert sum(is_right(name, labels[i]) for name, i in zip(pictures, answers, strict=True)) == right


@torch.no_grad()
def test_int8_answers_as_float32_does(shared_data: Path, pictures: dict[str, Tensor]) -> None:
    """MobileNetV2 with weights and values of one byte, ranges from the pictures alone (no labels)."""
    network = pretrained(shared_data, "mobilenet_v2")
    frames = prepared(network, torch.stack(list(pictures.values())))
    expected = network(frames).softmax(1)
    plan = sparsetime.compile(network, frames[0], steps=list(frames), codec="hold", precision="int8")
    stream = plan.stream()
    answers = []
    for frame in frames:
        stream.reset()
        answers.append(stream(frame).softmax(1))
    found = torch.cat(answers)
    distance = 0.5 * (found - expected).abs().sum(1)
    print(f"total variation: mean {distance.mean():.3f}, largest {distance.max():.3f}")
    assert found.argmax(1).tolist() == expected.argmax(1).tolist()
    assert 0 < distance.mean() < 0.1  # 0.058 when this was written
    weights = sum(p.numel() for p in network.parameters()) * 4
    assert plan.weight_bytes <= 0.3 * weights


@torch.no_grad()
def test_squeezenet_on_the_check_pictures(shared_data: Path, pictures: dict[str, Tensor], labels: list[str]) -> None:
    network = pretrained(shared_data, "squeezenet")
    weights = torch.cat([p.flatten() for key, p in network.named_parameters() if key.endswith("weight")])
    assert (weights != 0).float().mean().item() == pytest.approx(0.334, abs=0.0005)
    answers = network(prepared(network, torch.stack(list(pictures.values())))).argmax(1)
    wrong = {
        name: labels[i + 1] for name, i in zip(pictures, answers, strict=True) if not is_right(name, labels[i + 1])
    }
    assert wrong == {"military_uniform": "bow tie, bow-tie, bowtie"}


@torch.no_grad()
def test_embeddings_of_a_mirrored_picture_are_the_nearest(shared_data: Path, pictures: dict[str, Tensor]) -> None:
    network = pretrained(shared_data, "mobilenet_v1_100")
    assert network.spec.num_classes == 0
    frames = torch.stack(list(pictures.values()))
    a, b = (F.normalize(network(prepared(network, x)), dim=1) for x in (frames, frames.flip(-1)))
    assert a.shape == (8, 1024)
    assert (a @ b.T).argmax(1).tolist() == list(range(8))


def test_embedding_weights_take_a_fresh_classifier(shared_data: Path) -> None:
    path = shared_data / "weights" / FILES["mobilenet_v1_100"]
    network = create("mobilenet_v1_100", weights=path, num_classes=7)
    assert network.classifier.weight.shape == (7, 1024)


def test_backbone_of_the_detector(shared_data: Path) -> None:
    network = pretrained(shared_data, "shufflenet_v2")
    assert network.spec.num_classes == 0
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 192)


def interpret(path: Path, x: Tensor) -> Tensor:
    """What comes out of a converted TFLite graph, operation by operation, before softmax or arg max."""
    with np.load(path, allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    graph = json.loads(arrays["graph_json"].tobytes())
    values = {graph["input_id"]: x}
    for op in graph["ops"]:
        inputs = [values[i] for i in op["inputs"]]
        if op["op"] in ("conv_2d", "depthwise_conv_2d"):
            codes, scale, zero, bias = (
                torch.from_numpy(np.asarray(arrays[f"{op['id']:03d}.{key}"])).to(x.dtype)
                for key in ("weight_q", "weight_scale", "weight_zero", "bias")
            )
            weight = (codes - zero) * scale
            assert op["padding"] == "same"
            rows, columns = (
                same_padding(inputs[0].shape[axis], weight.shape[axis], op["stride"], op["dilation"]) for axis in (2, 3)
            )
            padded = F.pad(inputs[0], (*columns, *rows))
            y = F.conv2d(padded, weight, bias, op["stride"], 0, op["dilation"], op["groups"])
            y = {"none": lambda v: v, "relu": F.relu, "relu6": F.relu6}[op["act"]](y)
        elif op["op"] == "add":
            y = inputs[0] + inputs[1]
        elif op["op"] == "average_pool_2d":
            y = inputs[0].mean((2, 3), keepdim=True)
        elif op["op"] == "reshape":
            y = inputs[0].flatten(1)
        elif op["op"] == "concatenation":
            y = torch.cat(inputs, 1)
        elif op["op"] == "resize_bilinear":
            y = F.interpolate(inputs[0], size=op["size"], mode="bilinear", align_corners=True)
        elif op["op"] == "quantize":
            y = inputs[0]
        else:
            assert op["op"] in ("softmax", "arg_max")
            return inputs[0]
        values[op["output"]] = y
    return y.flatten(1)


@pytest.mark.parametrize("name", ["mobilenet_v1_025", "mobilenet_v1_100", "mobilenet_v2", "deeplabv3_mobilenet_v2"])
@torch.no_grad()
def test_network_is_the_graph_in_the_file(shared_data: Path, pictures: dict[str, Tensor], name: str) -> None:
    network = pretrained(shared_data, name).double()
    x = prepared(network, pictures["macaw"][None]).double()
    # Weights are float32 in the network: (code - zero) * scale rounds once.
    expected = interpret(shared_data / "weights" / FILES[name], x)
    error = (network(x) - expected).norm() / expected.norm()
    assert error < 1e-6


@torch.no_grad()
def test_segmentation_finds_what_the_pictures_show(shared_data: Path, pictures: dict[str, Tensor]) -> None:
    network = pretrained(shared_data, "deeplabv3_mobilenet_v2")
    classes = (shared_data / "weights/segmentation/pascal_voc_labels.txt").read_text().splitlines()
    shown = {"macaw": "bird", "soft-coated_wheaten_terrier": "dog", "military_uniform": "person"}
    masks = network(prepared(network, torch.stack([pictures[name] for name in shown]))).argmax(1)
    assert masks.shape == (3, 513, 513)
    for mask, (name, label) in zip(masks, shown.items(), strict=True):
        share = torch.bincount(mask.flatten(), minlength=21) / mask.numel()
        assert share[classes.index(label)] > 0.15, name
        # Nothing but the object and the background.
        assert share[[0, classes.index(label)]].sum() > 0.99, name


@torch.no_grad()
def test_detector_finds_the_people_and_the_cars(shared_data: Path) -> None:
    network = pretrained(shared_data, "fastestdet")
    classes = (shared_data / "weights/detection/coco80.names").read_text().splitlines()
    frame = first_frame(shared_data / "static_videos/pedestrians_vtest.avi")
    (boxes,) = decode_boxes(network(prepared(network, frame[None])))
    # Three people and the white van, read off the first frame of 480 x 360 by eye.
    scale = torch.tensor([480.0, 360.0, 480.0, 360.0])
    seen = {"person": [(160, 138, 177, 192), (312, 97, 331, 145), (404, 151, 426, 200)], "car": [(407, 28, 450, 59)]}
    for label, corners in seen.items():
        found = boxes.corners[boxes.label == classes.index(label)]
        overlap = box_iou(torch.tensor(corners) / scale, found)
        assert overlap.max(1).values.min() > 0.5, label


@pytest.mark.parametrize(("name", "accuracy", "every"), [("resnet20_cifar", 0.810, 1), ("resnet32_cifar", 0.826, 3)])
@torch.no_grad()
def test_residual_networks_on_cifar(shared_data: Path, name: str, accuracy: float, every: int) -> None:
    network = pretrained(shared_data, name)
    with np.load(shared_data / "cifar10_jpeg/test_images.npz", allow_pickle=False) as archive:
        frames, answers = (torch.from_numpy(archive[key][::every]) for key in ("x", "y"))
    right = (network(network.spec.normalise(frames.permute(0, 3, 1, 2))).argmax(1) == answers).float().mean().item()
    # At most 1500 of the 10,000 images that the figure is about: two standard errors.
    assert right == pytest.approx(accuracy, abs=2 * (0.81 * 0.19 / len(answers)) ** 0.5)
