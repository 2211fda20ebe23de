"""Networks of other packages: do they compile, what is left to PyTorch, are the answers theirs?

    pip install timm ultralytics segmentation-models-pytorch transformers      # any of them
    python benchmarks/compatibility.py --json runs/compatibility.json --markdown runs/compatibility.md

Random weights, batch norm as on noise. The plan has codecs that keep nothing back (`hold`, thresholds of 0), so that
its answers are the network's but for rounding: of four frames, two of which change a part of the one before, the
largest difference to PyTorch in float64, over the largest answer; beside it that of PyTorch in float32. Families that
are not installed are left out. It goes on where it stopped.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import sparsetime
from sparsetime.bench.machine import machine
from sparsetime.files import write_json

TIMM = (
    *("resnet26d", "seresnet50", "res2net50_26w_4s", "resnest14d", "skresnet18", "resnext50_32x4d", "densenet121"),
    *("regnety_004", "nf_regnet_b0", "repvgg_a0", "cspdarknet53", "dla34", "hrnet_w18_small", "ese_vovnet19b_dw"),
    *("mobilenetv3_large_100", "mobilenetv4_conv_small", "efficientnet_b0", "ghostnet_100", "mixnet_s", "lcnet_050"),
    *("tinynet_e", "hardcorenas_a", "rexnet_100", "fasternet_t0", "inception_v3", "xception41", "convnext_atto"),
    *("starnet_s1", "repvit_m0_9", "fastvit_t8", "poolformer_s12", "gcresnet33ts", "botnet26t_256"),
    *(
        "mobilevit_xxs",
        "edgenext_xx_small",
        "efficientvit_b0",
        "nextvit_small",
        "tiny_vit_5m_224",
        "coatnet_pico_rw_224",
    ),
    *("swin_tiny_patch4_window7_224", "levit_128s", "vit_tiny_patch16_224", "visformer_tiny", "shvit_s1"),
)
YOLO = ("yolov5n", "yolov6n", "yolov8n", "yolov8n-seg", "yolov8n-pose", "yolov9t", "yolov10n", "yolo11n", "yolo12n")
SEGMENTATION = ("Unet", "FPN", "DeepLabV3Plus", "PSPNet", "MAnet", "Linknet", "Segformer")
TRANSFORMERS = ("Segformer", "MobileViT", "ViT", "Dinov2", "DepthAnything", "ConvNextV2", "Detr")


class Fields(nn.Module):
    """Named parts of what a network returns."""

    def __init__(self, network: nn.Module, *names: str) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, x: Tensor) -> list[Tensor]:
        answer = self.network(pixel_values=x)
        return [answer[name] for name in self.names]


def _timm(name: str) -> tuple[nn.Module, tuple[int, int]]:
    import timm

    module = timm.create_model(name, pretrained=False)
    return module, tuple(module.default_cfg["input_size"][1:])


def _yolo(name: str) -> tuple[nn.Module, tuple[int, int]]:
    from ultralytics.nn import tasks

    kinds = {"seg": tasks.SegmentationModel, "pose": tasks.PoseModel}
    module = kinds.get(name.partition("-")[2], tasks.DetectionModel)(f"{name}.yaml", verbose=False)
    for part in module.modules():
        if hasattr(part, "export"):
            part.export, part.format = True, "onnx"
    return module, (128, 160)


def _segmentation(name: str) -> tuple[nn.Module, tuple[int, int]]:
    import segmentation_models_pytorch as smp

    return getattr(smp, name)(encoder_name="mobilenet_v2", encoder_weights=None, classes=4), (128, 160)


def _transformers(name: str) -> tuple[nn.Module, tuple[int, int]]:
    import transformers as t

    small = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 384}
    resnet = {"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]}
    size, fields = (128, 160), ("logits",)
    if name == "Segformer":
        module = t.SegformerForSemanticSegmentation(t.SegformerConfig(num_labels=5))
    elif name == "MobileViT":
        size, module = (128, 128), t.MobileViTForImageClassification(t.MobileViTConfig(image_size=128))
    elif name == "ViT":
        size, module = (128, 128), t.ViTForImageClassification(t.ViTConfig(image_size=128, **small))
    elif name == "Dinov2":
        size, module = (
            (126, 126),
            t.Dinov2ForImageClassification(t.Dinov2Config(image_size=126, patch_size=14, **small)),
        )
    elif name == "DepthAnything":
        stages = [f"stage{k}" for k in range(1, 5)]
        backbone = t.Dinov2Config(
            image_size=126, patch_size=14, out_features=stages, reshape_hidden_states=False, **small
        )
        options = {"neck_hidden_sizes": [24, 48, 96, 96], "fusion_hidden_size": 32, "head_hidden_size": 16}
        config = t.DepthAnythingConfig(backbone_config=backbone, reassemble_hidden_size=192, patch_size=14, **options)
        size, fields, module = (126, 126), ("predicted_depth",), t.DepthAnythingForDepthEstimation(config)
        nn.init.ones_(module.head.conv3.bias)  # its last activation would give zeros
    elif name == "ConvNextV2":
        module = t.ConvNextV2ForImageClassification(t.ConvNextV2Config(hidden_sizes=[40, 80, 160, 320]))
    else:
        options = {"encoder_layers": 2, "decoder_layers": 2, "num_queries": 20, "use_timm_backbone": False}
        backbone = t.ResNetConfig(out_features=["stage4"], **resnet)
        fields = ("logits", "pred_boxes")
        module = t.DetrForObjectDetection(t.DetrConfig(backbone_config=backbone, backbone=None, **options))
    return Fields(module, *fields), size


FAMILIES: dict[str, tuple[Callable[[str], tuple[nn.Module, tuple[int, int]]], tuple[str, ...]]] = {
    "timm": (_timm, TIMM),
    "ultralytics": (_yolo, YOLO),
    "segmentation_models_pytorch": (_segmentation, SEGMENTATION),
    "transformers": (_transformers, TRANSFORMERS),
}


def _clip(size: tuple[int, int]) -> list[Tensor]:
    """Two scenes of two frames each, a part of which changes."""
    frames = []
    for _ in range(2):
        frame = torch.randn(1, 3, *size)
        moved = frame.clone()
        moved[..., : size[0] // 4, size[1] // 3 : size[1] // 2] += 1
        frames += [frame, moved]
    return frames


def _apart(answers: Any, exact: Any) -> float:
    """The largest difference over the largest answer, of the output where that is most."""
    pairs = zip(pytree.tree_leaves(answers), pytree.tree_leaves(exact), strict=True)
    shares = [
        float((torch.as_tensor(x).double() - y).abs().max() / y.abs().max())
        for x, y in pairs
        if isinstance(y, Tensor) and y.is_floating_point()
    ]
    return max(shares)


def measured(family: str, name: str) -> dict[str, Any]:
    """One row."""
    torch.manual_seed(0)
    module, size = FAMILIES[family][0](name)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.momentum = None  # means over all calls, of which there is one
    clip = _clip(size)
    with torch.no_grad():
        for part in module.eval().modules():
            part.training = isinstance(part, nn.modules.batchnorm._BatchNorm)
        module(torch.cat(clip))
        module.eval()
        double = copy.deepcopy(module).double()
        exact = [double(frame.double()) for frame in clip]
        own = max(_apart(module(frame), y) for frame, y in zip(clip, exact, strict=True))
    begin = time.perf_counter()
    plan = sparsetime.compile(module, clip[0], codec="hold", steps=0.0)
    seconds = time.perf_counter() - begin
    stream = plan.stream()
    return {
        "family": family,
        "compile_s": seconds,
        "operations": len(plan.ops),
        "islands": Counter(op.attributes["target"].split(".")[1] for op in plan.islands),
        "error": max(_apart(stream(frame), y) for frame, y in zip(clip, exact, strict=True)),
        "pytorch_error": own,
    }


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as a table."""
    lines = [
        "| family | network | operations | left to PyTorch | error | PyTorch's | compile, s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in rows.items():
        left = ", ".join(f"{n} {target}" for target, n in sorted(row["islands"].items())) or "-"
        cells = [row["family"], name.partition(" ")[2], str(row["operations"]), left]
        cells += [f"{row['error']:.0e}", f"{row['pytorch_error']:.0e}", f"{row['compile_s']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("runs/compatibility.json"))
    parser.add_argument("--markdown", type=Path, default=Path("runs/compatibility.md"))
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for path in (options.json, options.markdown):
        path.parent.mkdir(parents=True, exist_ok=True)
    record = json.loads(options.json.read_text()) if options.json.exists() else {"machine": machine(), "rows": {}}
    rows = record["rows"]
    for family in options.only:
        for name in FAMILIES[family][1]:
            if f"{family} {name}" in rows:
                continue
            try:
                row = rows[f"{family} {name}"] = measured(family, name)
            except ImportError as error:
                print(f"{family} is left out: {error}")
                break
            print(name, row, flush=True)
            write_json(options.json, record)
            options.markdown.write_text(markdown(rows))


if __name__ == "__main__":
    main()
