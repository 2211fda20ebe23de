"""Modules become plans that compute the same: every operation, every folding, outputs of every shape."""

import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_modules import Function, clip, error
from torch import Tensor, nn

from sparsetime.convert.compile import CompileError, compile
from sparsetime.convert.sparsify import sparsify
from sparsetime.engine import Plan


def check(module: nn.Module, frames=None, **options) -> Plan:
    """Compile without codecs' effect (thresholds of 0), run a clip on both backends, compare with the module."""
    torch.manual_seed(0)
    frames = clip() if frames is None else frames
    module = module.eval()
    plan = compile(module, frames[0], codec="hold", steps=0.0, **options)
    streams = [plan.stream(backend=backend) for backend in ("reference", "cpu")]
    with torch.no_grad():
        for frame in frames:
            expected = module(frame)
            exact = module.double()(frame.double())
            module.float()
            for stream in streams:
                error(stream(frame), expected, exact)
    return plan


def test_the_comparison_can_fail():
    x = torch.ones(3)
    for wrong in (x * 1.01, x * 2, torch.tensor([1, 1, 1.0001]), torch.tensor([1, float("nan"), 1])):
        with pytest.raises(AssertionError):
            error(wrong, x, x.double())


def kinds(plan: Plan) -> list[str]:
    return [op.kind for op in plan.ops[1:]]


def affine_norm(channels: int) -> nn.LayerNorm:
    norm = nn.LayerNorm(channels)
    nn.init.uniform_(norm.weight, -1, 2)
    nn.init.normal_(norm.bias)
    return norm


def sloped(activation: nn.PReLU) -> nn.PReLU:
    nn.init.uniform_(activation.weight)
    return activation


def heads(m: nn.Module, x: Tensor, attention: Callable[..., Tensor]) -> Tensor:
    """Three heads of two channels over the places of a map."""
    q, k, v = m.qkv(x.flatten(2).transpose(1, 2)).reshape(1, 99, 3, 3, 2).permute(2, 0, 3, 1, 4)
    return attention(q, k, v).transpose(1, 2).reshape(1, 99, 6)


def affine_groups(norm: nn.Module) -> nn.Module:
    nn.init.uniform_(norm.weight, -1, 2) if norm.weight is not None else None
    nn.init.normal_(norm.bias) if norm.bias is not None else None
    return norm


def seen(norm: nn.InstanceNorm2d) -> nn.Module:
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return affine_groups(norm)


def written(y: Tensor, x: Tensor, where: slice = slice(1, 3)) -> Tensor:
    y[:, where] = -x[:, :2]
    return y


def windowed(m: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """In three windows, a bias by head and a mask by window."""
    q, k, v = (t.reshape(3, 3, 33, 2).transpose(0, 1) for t in (q, k, v))
    scores = (q @ k.transpose(-2, -1)) * 0.5 + m.bias
    scores = (scores.view(1, 3, 3, 33, 33) + m.mask.unsqueeze(1).unsqueeze(0)).view(3, 3, 33, 33)
    return (scores.softmax(-1) @ v).transpose(0, 1).reshape(1, 3, 99, 2)


ATTENTION = ["gather", "linear", "gather", "gather", "gather", "attention"]

OPERATIONS = {
    "conv": (nn.Conv2d(6, 4, 3, padding=1), ["conv2d"]),
    "conv_strided": (nn.Conv2d(6, 4, (3, 2), stride=(2, 3), padding=(0, 1), dilation=(2, 1), bias=False), ["conv2d"]),
    "conv_grouped": (nn.Conv2d(6, 4, 3, groups=2), ["conv2d"]),
    "conv_same": (nn.Conv2d(6, 4, 4, padding="same"), ["conv2d"]),
    "depthwise": (nn.Conv2d(6, 12, 3, groups=6, padding=1), ["conv2d"]),
    "conv_transpose": (nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1), ["conv_transpose2d"]),
    "conv_transpose_grouped": (nn.ConvTranspose2d(6, 4, (2, 3), (1, 2), groups=2, dilation=2), ["conv_transpose2d"]),
    "linear_map": (nn.Linear(11, 5), ["gather", "conv2d", "gather"]),
    "linear_pixels": (Function(lambda m, x: m.fc(x.movedim(1, 3)).relu(), fc=nn.Linear(6, 5)), ["conv2d", "gather"]),
    "scale_pixels": (Function(lambda m, x: x.permute(0, 2, 3, 1) * torch.arange(6.0)), ["affine", "gather"]),
    "linear_windows": (Function(lambda m, x: m.fc(x.reshape(3, 2, 9, 11)), fc=nn.Linear(11, 5)), ["reshape", "linear"]),
    "linear_flat": (nn.Sequential(nn.Flatten(), nn.Linear(6 * 9 * 11, 5)), ["reshape", "linear"]),
    "batch_norm": (nn.BatchNorm2d(6), ["affine"]),
    "add_number": (Function(lambda m, x: x + 3), ["affine"]),
    "sub_from": (Function(lambda m, x: 3 - x), ["affine"]),
    "mul_number": (Function(lambda m, x: x * 0.3), ["affine"]),
    "div_number": (Function(lambda m, x: x / 0.3), ["affine"]),
    "neg": (Function(lambda m, x: -x), ["affine"]),
    "add_tensor": (Function(lambda m, x: x + torch.arange(11.0)), ["affine"]),
    "mul_channels": (Function(lambda m, x: x * torch.arange(6.0).view(6, 1, 1)), ["affine"]),
    "add_self": (Function(lambda m, x: x + x), ["add"]),
    "sub_streams": (Function(lambda m, x: x - 2 * x.flip(1)), ["affine", "channels", "add"]),
    "add_alpha": (Function(lambda m, x: torch.add(x, x.flip(3), alpha=0.5)), ["gather", "add"]),
    "add_broadcast": (Function(lambda m, x: x + x.mean((2, 3), keepdim=True)), ["avg_pool2d", "gather", "add"]),
    "cat": (Function(lambda m, x: torch.cat([x, x[:, :2]], 1)), ["channels", "cat"]),
    "cat_rows": (Function(lambda m, x: torch.cat([x, x[:, :, :2]], 2)), ["gather", "cat"]),
    "stack": (Function(lambda m, x: torch.stack([x, x], 2)), ["cat", "gather"]),
    "split": (Function(lambda m, x: x.split(4, 1)[1]), ["channels"]),
    "chunk": (Function(lambda m, x: x.chunk(2, 1)[1]), ["channels"]),
    "slice": (Function(lambda m, x: x[:, 1::2, 2:, ::3]), ["gather"]),
    "shuffle": (nn.ChannelShuffle(3), ["channels"]),
    "shuffle_by_hand": (Function(lambda m, x: x.view(1, 2, 3, 9, 11).transpose(1, 2).reshape_as(x)), ["channels"]),
    "pixel_unshuffle": (Function(lambda m, x: F.pixel_unshuffle(x[..., :8, :10], 2)), ["gather"]),
    "permute": (Function(lambda m, x: x.permute(0, 2, 3, 1)), ["gather"]),
    "moves_that_cancel": (Function(lambda m, x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2).contiguous()), []),
    "pad_zero": (nn.ZeroPad2d((1, 2, 0, 3)), ["pad"]),
    "pad_value": (nn.ConstantPad2d((1, 2, 0, 3), 1.5), ["pad"]),
    "pad_crop": (Function(lambda m, x: F.pad(x, (-1, -2, 0, 3))), ["gather"]),
    "pad_channels": (Function(lambda m, x: F.pad(x, (0, 0, 0, 0, 1, 2))), ["channels"]),
    "pad_reflect": (nn.ReflectionPad2d(2), ["gather"]),
    "pad_replicate": (nn.ReplicationPad2d((1, 0, 2, 3)), ["gather"]),
    "avg_pool": (nn.AvgPool2d(3, 2, 1), ["avg_pool2d"]),
    "avg_pool_inside": (nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), ["avg_pool2d"]),
    "avg_pool_ceil": (nn.AvgPool2d(2, 3, 1, ceil_mode=True), ["avg_pool2d"]),
    "avg_pool_divisor": (nn.AvgPool2d(2, divisor_override=3), ["avg_pool2d"]),
    "adaptive_avg": (nn.AdaptiveAvgPool2d((2, 5)), ["avg_pool2d"]),
    "max_pool": (nn.MaxPool2d(3, 2, 1), ["max_pool2d"]),
    "max_pool_dilated": (nn.MaxPool2d(2, 3, 1, dilation=2, ceil_mode=True), ["max_pool2d"]),
    "adaptive_max": (nn.AdaptiveMaxPool2d(3), ["max_pool2d"]),
    "nearest": (nn.Upsample(scale_factor=2), ["resize2d"]),
    "nearest_size": (nn.Upsample(size=(5, 17)), ["resize2d"]),
    "nearest_exact": (nn.Upsample(size=(5, 17), mode="nearest-exact"), ["resize2d"]),
    "bilinear": (nn.Upsample(scale_factor=(2, 1.7), mode="bilinear"), ["resize2d"]),
    "bilinear_corners": (nn.Upsample(size=(20, 6), mode="bilinear", align_corners=True), ["resize2d"]),
    "bicubic": (nn.Upsample(scale_factor=2, mode="bicubic"), ["resize2d"]),
    "mean_maps": (Function(lambda m, x: x.mean((2, 3))), ["avg_pool2d", "reshape"]),
    "mean_channels": (Function(lambda m, x: x.mean(1, keepdim=True)), ["conv2d"]),
    "mean_rows": (Function(lambda m, x: x.mean(2)), ["avg_pool2d", "reshape"]),
    "mean_all": (Function(lambda m, x: x.mean((1, 2, 3))), ["avg_pool2d", "reshape", "avg_pool2d", "reshape"]),
    "sum_of_channels_and_rows": (Function(lambda m, x: x.sum((1, 2))), ["avg_pool2d", "conv2d", "reshape"]),
    "sum_of_stacked": (Function(lambda m, x: torch.stack([x, 2 * x, -x], 1).sum(1)), ["affine", "affine", "add", "add"]),  # noqa: E501
    "mean_of_stacked": (Function(lambda m, x: torch.stack([x, x.flip(1)]).mean(0)), ["channels", "add"]),
    "stacked_windows": (Function(lambda m, x: torch.stack([x.view(3, 2, 9, 11)] * 2, 2)), ["reshape", "cat", "gather"]),
    "stacked_and_taken_apart": (Function(lambda m, x: torch.stack([x * 2, x, -x], 2)[:, :, 0]), ["affine"]),
    "mean_of_groups": (Function(lambda m, x: x.view(1, 2, 3, 9, 11).mean(2)), ["channels", "channels", "channels", "add", "add"]),  # noqa: E501
    "sum_of_large_groups": (Function(lambda m, x: x.repeat(1, 4, 1, 1).view(1, 12, 2, 9, 11).sum(1)), ["channels", "conv2d"]),  # noqa: E501
    "mean_of_windows": (Function(lambda m, x: x.view(1, 6, 3, 3, 11).mean(3)), ["reshape", "avg_pool2d", "reshape"]),
    "mean_of_pixels": (Function(lambda m, x: x.movedim(1, -1).mean(-1, keepdim=True)), ["conv2d", "reshape"]),
    "mean_of_tokens": (Function(lambda m, x: x.flatten(2).transpose(1, 2).mean(1)), ["reshape", "avg_pool2d", "reshape"]),  # noqa: E501
    "sum_in_tokens": (Function(lambda m, x: x.flatten(2).transpose(1, 2).sum(2)), ["reshape", "conv2d", "reshape"]),
    "products_of_pixels": (Function(lambda m, x: x.movedim(1, -1) * torch.sigmoid(2 * x).movedim(1, -1)), ["affine", "mul", "gather"]),  # noqa: E501
    "gates_of_pixels": (Function(lambda m, x: x.movedim(1, -1) * torch.sigmoid(x.movedim(1, -1).mean((1, 2), keepdim=True))), ["avg_pool2d", "mul", "gather"]),  # noqa: E501
    "selective_kernels": (Function(lambda m, x: (torch.stack([x, -x], 1) * torch.stack([x, x + 1], 1).mean((3, 4), keepdim=True)).sum(1)), ["affine", "cat", "affine", "cat", "avg_pool2d", "mul", "channels", "channels", "add"]),  # noqa: E501
    "sum_maps": (Function(lambda m, x: x.sum((2, 3), keepdim=True)), ["avg_pool2d"]),
    "relu": (nn.ReLU(), ["identity"]),
    "relu_inplace": (Function(lambda m, x: F.relu(x * 2, inplace=True)), ["affine"]),
    "relu6": (nn.ReLU6(), ["identity"]),
    "leaky_relu": (nn.LeakyReLU(0.2), ["identity"]),
    "prelu": (nn.PReLU(), ["identity"]),
    "prelu_of_channels": (sloped(nn.PReLU(6)), ["identity", "identity", "affine", "add"]),
    "prelu_of_sequences": (nn.Sequential(nn.Flatten(2), nn.Conv1d(6, 6, 3), sloped(nn.PReLU(6)), nn.Conv1d(6, 2, 1)), ["reshape", "conv2d", "identity", "identity", "affine", "add", "conv2d", "reshape"]),  # noqa: E501
    "elu": (nn.ELU(0.7), ["identity"]),
    "selu": (nn.SELU(), ["identity", "affine"]),
    "celu": (nn.CELU(), ["identity"]),
    "celu_of_another_slope": (nn.CELU(0.5), ["affine", "affine"]),
    "mish": (nn.Mish(inplace=True), ["identity"]),
    "hardswish": (nn.Hardswish(), ["identity"]),
    "hardswish_by_hand": (Function(lambda m, x: x * F.relu6(x + 3) / 6), ["identity"]),
    "hardswish_in_other_words": (Function(lambda m, x: x * (F.relu6(x + 3) / 6)), ["identity"]),
    "hardsigmoid": (nn.Hardsigmoid(), ["identity"]),
    "silu": (nn.SiLU(), ["identity"]),
    "silu_by_hand": (Function(lambda m, x: x * torch.sigmoid(x)), ["identity"]),
    "gelu": (nn.GELU(), ["identity"]),
    "gelu_tanh": (nn.GELU("tanh"), ["identity"]),
    "sigmoid": (nn.Sigmoid(), ["identity"]),
    "tanh": (nn.Tanh(), ["identity"]),
    "clamp": (Function(lambda m, x: x.clamp(-1, 2)), ["identity"]),
    "clamp_min": (Function(lambda m, x: x.clamp(min=-1)), ["identity"]),
    "hardtanh": (nn.Hardtanh(), ["identity"]),
    "product": (Function(lambda m, x: x * x.flip(1)), ["channels", "mul"]),
    "gate": (Function(lambda m, x: torch.sigmoid(x.mean((2, 3), keepdim=True)) * x), ["avg_pool2d", "mul"]),
    "spatial_gate": (Function(lambda m, x: x * torch.sigmoid(x[:, :1])), ["channels", "channels", "mul"]),
    "dropout": (nn.Dropout(0.5), []),
    "layer_norm": (Function(lambda m, x: m.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), norm=affine_norm(6)), ["layer_norm"]),  # noqa: E501
    "layer_norm_of_rows": (nn.LayerNorm(11, elementwise_affine=False), ["gather", "layer_norm", "gather"]),
    "conv1d": (Function(lambda m, x: torch.sigmoid(m.conv(x.mean((2, 3)).unsqueeze(1))), conv=nn.Conv1d(1, 1, 3, padding=1)), ["avg_pool2d", "reshape", "conv2d", "reshape"]),  # noqa: E501
    "conv1d_same": (Function(lambda m, x: m.conv(x.flatten(2)), conv=nn.Conv1d(6, 4, 4, padding="same", dilation=2, groups=2)), ["reshape", "conv2d", "reshape"]),  # noqa: E501
    "conv1d_strided": (Function(lambda m, x: m.conv(x.flatten(2)), conv=nn.Conv1d(6, 4, 3, stride=2)), ["reshape", "conv2d", "reshape"]),  # noqa: E501
    "conv1d_residual": (Function(lambda m, x: m.b((x.flatten(2) + F.relu(m.a(x.flatten(2)))).relu()), a=nn.Conv1d(6, 6, 3, padding=1), b=nn.Conv1d(6, 2, 3)), ["reshape", "conv2d", "add", "conv2d", "reshape"]),  # noqa: E501
    "conv1d_joined": (Function(lambda m, x: m.b(torch.cat([m.a(x.flatten(2))[:, :2].relu(), x.flatten(2)], 1)), a=nn.Conv1d(6, 6, 1), b=nn.Conv1d(8, 2, 3)), ["reshape", "conv2d", "channels", "cat", "conv2d", "reshape"]),  # noqa: E501
    "conv1d_gate": (Function(lambda m, x: F.glu(m.a(x.flatten(2)), 1) * torch.sigmoid(m.a(x.flatten(2)).mean(2, keepdim=True)[:, :3]), a=nn.Conv1d(6, 6, 1)), ["reshape", "conv2d", "channels", "channels", "mul", "conv2d", "avg_pool2d", "channels", "mul", "reshape"]),  # noqa: E501
    "glu": (nn.GLU(1), ["channels", "channels", "mul"]),
    "conv_transpose1d": (nn.Sequential(nn.Flatten(2), nn.ConvTranspose1d(6, 4, 3, stride=2, padding=1, output_padding=1, dilation=2, groups=2)), ["reshape", "conv_transpose2d", "reshape"]),  # noqa: E501
    "max_pool1d": (nn.Sequential(nn.Flatten(2), nn.MaxPool1d(3, 2, 1, dilation=2, ceil_mode=True)), ["reshape", "max_pool2d", "reshape"]),  # noqa: E501
    "avg_pool1d": (nn.Sequential(nn.Flatten(2), nn.AvgPool1d(3, padding=1, ceil_mode=True)), ["reshape", "avg_pool2d", "reshape"]),  # noqa: E501
    "avg_pool1d_inside": (nn.Sequential(nn.Flatten(2), nn.AvgPool1d(4, 3, 1, count_include_pad=False)), ["reshape", "avg_pool2d", "reshape"]),  # noqa: E501
    "adaptive_avg1d": (nn.Sequential(nn.Flatten(2), nn.AdaptiveAvgPool1d(7)), ["reshape", "avg_pool2d", "reshape"]),
    "adaptive_max1d": (nn.Sequential(nn.Flatten(2), nn.AdaptiveMaxPool1d(7)), ["reshape", "max_pool2d", "reshape"]),
    "nearest1d": (nn.Sequential(nn.Flatten(2), nn.Upsample(scale_factor=1.7)), ["reshape", "resize2d", "reshape"]),
    "nearest1d_size": (nn.Sequential(nn.Flatten(2), nn.Upsample(size=130)), ["reshape", "resize2d", "reshape"]),
    "nearest_exact1d": (nn.Sequential(nn.Flatten(2), nn.Upsample(size=61, mode="nearest-exact")), ["reshape", "resize2d", "reshape"]),  # noqa: E501
    "linear1d": (nn.Sequential(nn.Flatten(2), nn.Upsample(scale_factor=2, mode="linear")), ["reshape", "resize2d", "reshape"]),  # noqa: E501
    "linear1d_corners": (nn.Sequential(nn.Flatten(2), nn.Upsample(size=70, mode="linear", align_corners=True)), ["reshape", "resize2d", "reshape"]),  # noqa: E501
    "unet1d": (nn.Sequential(nn.Flatten(2), nn.Conv1d(6, 4, 3), nn.MaxPool1d(2), nn.ReLU(), nn.ConvTranspose1d(4, 2, 2, 2)), ["reshape", "conv2d", "max_pool2d", "conv_transpose2d", "reshape"]),  # noqa: E501
    "attention": (Function(lambda m, x: heads(m, x, F.scaled_dot_product_attention), qkv=nn.Linear(6, 18)), ATTENTION),
    "attention_with_masks": (Function(lambda m, x: heads(m, x, partial(F.scaled_dot_product_attention, attn_mask=m.mask)), qkv=nn.Linear(6, 18), mask=nn.Buffer(torch.rand(99, 99) < 0.5)), ATTENTION),  # noqa: E501
    "attention_to_what_came_before": (Function(lambda m, x: heads(m, x, partial(F.scaled_dot_product_attention, is_causal=True, scale=0.7)), qkv=nn.Linear(6, 18)), ATTENTION),  # noqa: E501
    "attention_in_one_head": (Function(lambda m, x: m.norm(x.flatten(2).transpose(1, 2)) + F.scaled_dot_product_attention(*m.qkv(x.flatten(2).transpose(1, 2)).chunk(3, -1)), qkv=nn.Linear(6, 18), norm=affine_norm(6)), ["gather", "layer_norm", "linear", "gather", "gather", "gather", "attention", "add"]),  # noqa: E501
    "attention_by_hand": (Function(lambda m, x: heads(m, x, lambda q, k, v: F.dropout(torch.softmax((q @ k.transpose(-2, -1)) / 3, -1), 0.5, m.training) @ v), qkv=nn.Linear(6, 18)), ATTENTION),  # noqa: E501
    "attention_with_bias": (Function(lambda m, x: heads(m, x, lambda q, k, v: ((q @ k.mT) * 0.5 + m.bias).softmax(3) @ v), qkv=nn.Linear(6, 18), bias=nn.Buffer(torch.randn(3, 1, 99))), ATTENTION),  # noqa: E501
    "attention_turned": (Function(lambda m, x: heads(m, x, lambda q, k, v: (v.transpose(2, 3) @ torch.softmax(q @ k.transpose(2, 3) * 0.6, -1).transpose(-2, -1)).transpose(2, 3)), qkv=nn.Linear(6, 18)), ATTENTION),  # noqa: E501
    "attention_of_torch": (Function(lambda m, x: m.a(*(x.flatten(2).transpose(1, 2),) * 3, need_weights=False)[0], a=nn.MultiheadAttention(6, 3, batch_first=True)), ["gather", "linear", "gather", "gather", "gather", "attention", "reshape", "linear", "reshape"]),  # noqa: E501
    "attention_of_torch_with_weights": (Function(lambda m, x: m.a(*(x.flatten(2).transpose(1, 2),) * 3)[0], a=nn.MultiheadAttention(6, 3, batch_first=True)), ["gather", "linear", "gather", "affine", "gather", "gather", "gather", "attention", "reshape", "linear", "reshape"]),  # noqa: E501
    "attention_in_shifted_windows": (Function(lambda m, x: heads(m, x, lambda q, k, v: windowed(m, q, k, v)), qkv=nn.Linear(6, 18), bias=nn.Buffer(torch.randn(3, 33, 33)), mask=nn.Buffer(torch.randn(3, 33, 33))), ATTENTION),  # noqa: E501
    "attention_in_letters": (Function(lambda m, x: heads(m, x, lambda q, k, v: torch.einsum("bhij,bhjd->bhid", torch.einsum("b h i d, b h j d -> b h i j", q, k).softmax(-1), v)), qkv=nn.Linear(6, 18)), ATTENTION),  # noqa: E501
    "attention_behind_a_change_in_place": (Function(lambda m, x: heads(m, x.clone().add_(1), lambda q, k, v: F.scaled_dot_product_attention(q, k, v)), qkv=nn.Linear(6, 18)), ["affine", *ATTENTION]),  # noqa: E501
    "softmax": (nn.Softmax(1), ["softmax"]),
    "softmax_of_pixels": (Function(lambda m, x: x.permute(0, 2, 3, 1).softmax(-1).permute(0, 3, 1, 2)), ["softmax"]),
    "softmax_of_rows": (nn.Softmax(3), ["gather", "softmax", "gather"]),
    "softmax_of_places": (Function(lambda m, x: x.flatten(2).softmax(2)), ["reshape", "softmax"]),
    "distribution_of_distances": (Function(lambda m, x: m.mean(x.view(1, 2, 3, 99).transpose(2, 1).softmax(1)).view(1, 2, 99), mean=nn.Conv2d(3, 1, 1, bias=False)), ["gather", "softmax", "conv2d", "reshape"]),  # noqa: E501
    "group_norm": (affine_groups(nn.GroupNorm(3, 6)), ["group_norm"]),
    "group_norm_of_sequences": (Function(lambda m, x: m.norm(x.flatten(2)), norm=affine_groups(nn.GroupNorm(2, 6))), ["reshape", "group_norm", "reshape"]),  # noqa: E501
    "instance_norm": (nn.InstanceNorm2d(6), ["group_norm"]),
    "instance_norm_with_scale": (affine_groups(nn.InstanceNorm2d(6, affine=True)), ["group_norm"]),
    "instance_norm_of_what_was_seen": (seen(nn.InstanceNorm2d(6, affine=True, track_running_stats=True)), ["affine"]),
    "layer_norm_of_maps": (affine_groups(nn.LayerNorm((6, 9, 11))), ["group_norm", "affine"]),
    "padded_below_all": (Function(lambda m, x: F.max_pool2d(F.pad(x, (0, 1, 1, 1), value=-math.inf), 3, 2)), ["pad", "max_pool2d"]),  # noqa: E501
    "constants_like_the_frame": (Function(lambda m, x: torch.cat([x * 2, torch.full_like(x[:, :1], 0.5), x.new_zeros(1, 2, 9, 11)], 1)), ["affine", "channels", "affine"]),  # noqa: E501
    "written_into": (Function(lambda m, x: written(x * 2, x)), ["affine", "channels", "affine", "channels", "channels", "cat"]),  # noqa: E501
    "written_into_by_steps": (Function(lambda m, x: written(x * 2, x, slice(1, None, 3))), ["affine", "channels", "affine", "cat", "channels"]),  # noqa: E501
    "masked": (Function(lambda m, x: x.masked_fill(m.mask, 0.5), mask=nn.Buffer(torch.rand(9, 11) < 0.4)), ["affine"]),
    "masked_softmax": (Function(lambda m, x: x.masked_fill(m.mask, -math.inf).softmax(3), mask=nn.Buffer(torch.rand(9, 11) < 0.4)), ["affine", "gather", "softmax", "gather"]),  # noqa: E501
    "one_of_two": (Function(lambda m, x: torch.where(m.mask, x * 2, x.flip(1)), mask=nn.Buffer(torch.rand(6, 1, 1) < 0.4)), ["channels", "affine", "affine", "add"]),  # noqa: E501
    "one_or_a_constant": (Function(lambda m, x: torch.where(m.mask, m.other, x), mask=nn.Buffer(torch.rand(9, 11) < 0.4), other=nn.Buffer(torch.randn(1, 6, 9, 11))), ["affine"]),  # noqa: E501
    "index_by_list": (Function(lambda m, x: x[:, [4, 0, 4]]), ["channels"]),
    "square": (Function(lambda m, x: x**2), ["mul"]),
    "abs": (Function(lambda m, x: x.abs()), ["identity"]),
    "amax_of_maps": (Function(lambda m, x: x.amax((2, 3), keepdim=True)), ["max_pool2d"]),
    "amax_of_columns": (Function(lambda m, x: x.amax(3)), ["max_pool2d", "reshape"]),
    "cat_of_a_constant": (Function(lambda m, x: m.a(torch.cat([m.token.expand(1, 1, 6), x.flatten(2).transpose(1, 2)], 1)), a=nn.Linear(6, 4), token=nn.Buffer(torch.randn(1, 1, 6))), ["gather", "affine", "linear"]),  # noqa: E501
    "cat_of_constants_and_maps": (Function(lambda m, x: torch.cat([x, m.b, x * 2, m.b + 1], 1), b=nn.Buffer(torch.randn(1, 2, 9, 11))), ["affine", "cat", "channels", "affine"]),  # noqa: E501
    "cat_of_one": (Function(lambda m, x: torch.cat([x], 1)), []),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation(name):
    module, expected = OPERATIONS[name]
    plan = check(module)
    assert kinds(plan) == expected
    assert not plan.islands


def normed(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    nn.init.uniform_(norm.weight, -1, 2)
    nn.init.normal_(norm.bias)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm


FOLDED = {
    "conv_norm_relu": (nn.Sequential(nn.Conv2d(6, 4, 3), normed(4), nn.ReLU(inplace=True)), ["conv2d"]),
    "transposed_norm": (nn.Sequential(nn.ConvTranspose2d(6, 4, 3, groups=2, bias=False), normed(4)), ["conv_transpose2d"]),  # noqa: E501
    "norm_twice": (nn.Sequential(normed(6), normed(6)), ["affine"]),
    "norm_before_conv": (nn.Sequential(normed(6), nn.Conv2d(6, 4, 3, padding=1)), ["affine", "conv2d"]),
    "scale_before_conv": (Function(lambda m, x: m.conv(x * 0.5), conv=nn.Conv2d(6, 4, 3, groups=2)), ["conv2d"]),
    "pad_before_conv": (nn.Sequential(nn.ZeroPad2d((0, 1, 2, 3)), nn.Conv2d(6, 4, 3, 2)), ["conv2d"]),
    "border_of_ones": (nn.Sequential(nn.ConstantPad2d(1, 1.0), nn.Conv2d(6, 4, 3)), ["pad", "conv2d"]),
    "residual": (Function(lambda m, x: F.relu(m.conv(x) + x), conv=nn.Conv2d(6, 6, 3, padding=1)), ["conv2d"]),
    "residual_scaled": (Function(lambda m, x: x - 0.1 * m.conv(x), conv=nn.Conv2d(6, 6, 3, padding=1)), ["conv2d"]),
    "joined_norm_relu": (
        Function(lambda m, x: F.silu(m.n(torch.cat([m.a(x), m.b(x)], 1))), a=nn.Conv2d(6, 4, 1), b=nn.ConvTranspose2d(6, 6, 1, groups=2, bias=False), n=normed(10)),  # noqa: E501
        ["conv2d", "conv_transpose2d", "cat"],
    ),
    "joined_and_read_elsewhere": (
        Function(lambda m, x: (lambda y: F.relu(torch.cat([y, m.b(x)], 1))[:, 1:5] + y)(m.a(x)), a=nn.Conv2d(6, 4, 1), b=nn.Conv2d(6, 6, 1)),  # noqa: E501
        ["conv2d", "conv2d", "cat", "channels", "add"],
    ),
    "joined_twice": (
        Function(lambda m, x: (lambda y: torch.cat([y, y], 1) * 2 - 1)(m.a(x)), a=nn.Conv2d(6, 4, 1)),
        ["conv2d", "cat", "affine"],
    ),
    "two_branches": (
        Function(lambda m, x: F.relu(m.a(x) + m.b(x)), a=nn.Conv2d(6, 4, 1), b=nn.Conv2d(6, 4, 1, bias=False)),
        ["conv2d"],
    ),
    "branches_of_another_size": (
        Function(lambda m, x: m.a(x) - 0.5 * m.b(x) + m.c(x), a=nn.Conv2d(6, 4, 1, 2, bias=False), b=nn.Conv2d(6, 4, (5, 3), 2, (2, 1), groups=1), c=nn.Conv2d(6, 4, 3, 2, 1)),  # noqa: E501
        ["conv2d"],
    ),
    "repvgg": (
        Function(lambda m, x: F.relu(m.n(m.a(x)) + m.b(x) + m.i(x)), a=nn.Conv2d(6, 6, 3, 1, 1, groups=2, bias=False), n=normed(6), b=nn.Conv2d(6, 6, 1, groups=2), i=normed(6)),  # noqa: E501
        ["conv2d"],
    ),
    "mobileone": (
        Function(lambda m, x: F.relu(m.i(x) + m.s(m.c(x)) + m.a(m.k(x)) + m.b(m.l(x))), i=normed(6), s=normed(6), c=nn.Conv2d(6, 6, 1, groups=6, bias=False), a=normed(6), k=nn.Conv2d(6, 6, 3, 1, 1, groups=6, bias=False), b=normed(6), l=nn.Conv2d(6, 6, 3, 1, 1, groups=6, bias=False)),  # noqa: E501
        ["conv2d"],
    ),
    "branches_by_their_padding": (
        Function(lambda m, x: m.a(x) + m.b(x), a=nn.Conv2d(6, 4, 3, padding=0), b=nn.Conv2d(6, 4, 5, padding=1)),
        ["conv2d"],
    ),
    "branches_whose_taps_differ": (
        Function(lambda m, x: m.a(x) + m.b(x), a=nn.Conv2d(6, 4, (1, 3), padding=(0, 1)), b=nn.Conv2d(6, 4, (3, 1), padding=(1, 0))),  # noqa: E501
        ["conv2d", "conv2d"],
    ),
    "branches_of_another_dilation": (
        Function(lambda m, x: m.a(x) + m.b(x), a=nn.Conv2d(6, 4, 3, padding=1), b=nn.Conv2d(6, 4, 3, padding=2, dilation=2)),  # noqa: E501
        ["conv2d", "conv2d"],
    ),
    "branches_of_other_inputs": (
        Function(lambda m, x: m.a(x) + m.b(torch.sigmoid(x)), a=nn.Conv2d(6, 4, 1), b=nn.Conv2d(6, 4, 1)),
        ["conv2d", "identity", "conv2d"],
    ),
    "a_branch_with_an_activation": (
        Function(lambda m, x: F.relu(m.a(x)) + m.b(x), a=nn.Conv2d(6, 4, 1), b=nn.Conv2d(6, 4, 1)),
        ["conv2d", "conv2d"],
    ),
    "a_branch_that_is_read": (
        Function(lambda m, x: (lambda y: F.relu(m.a(x) + y) * y)(m.b(x)), a=nn.Conv2d(6, 4, 1), b=nn.Conv2d(6, 4, 1)),
        ["conv2d", "conv2d", "mul"],
    ),
    "value_used_twice": (
        Function(lambda m, x: (lambda y: F.relu(y) + y)(m.conv(x)), conv=nn.Conv2d(6, 6, 3)),
        ["conv2d", "identity", "add"],
    ),
    "layer_used_twice": (Function(lambda m, x: m.conv(m.conv(x)), conv=nn.Conv2d(6, 6, 3)), ["conv2d", "conv2d"]),
    "dead_code": (Function(lambda m, x: (m.conv(x), x + 1)[1], conv=nn.Conv2d(6, 6, 3)), ["affine"]),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDED)
def test_folding(name):
    module, expected = FOLDED[name]
    assert kinds(check(module)) == expected


def test_shared_weights_are_stored_once():
    plan = check(FOLDED["layer_used_twice"][0])
    assert len({op.tensors["weight"] for op in plan.ops[1:]}) == 1


def test_sequences_and_vectors():
    tokens = Function(lambda m, x: m.fc(x.flatten(2).transpose(1, 2)), fc=nn.Linear(6, 5))
    assert kinds(check(tokens)) == ["gather", "linear"]
    windows = Function(
        lambda m, x: m.norm(m.fc(x.permute(0, 2, 3, 1).reshape(-1, 6))), fc=nn.Linear(6, 5), norm=nn.BatchNorm1d(5)
    )
    assert kinds(check(windows)) == ["gather", "linear"]
    vector = nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3), nn.BatchNorm1d(3))
    assert kinds(check(vector, clip((1, 7)))) == ["linear", "linear"]


@pytest.mark.parametrize(
    ("network", "shape", "taken"),
    [
        (Function(lambda m, x: m.b(m.a(x).relu()).mean(1), a=nn.Linear(6, 8), b=nn.Linear(8, 4)), (1, 7, 6), (1, 7, 6)),
        (nn.Sequential(nn.Conv1d(7, 4, 3), nn.ReLU(), nn.Conv1d(4, 2, 3)), (1, 7, 9), (1, 7, 9)),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True)), (1, 7, 9), (1, 1, 7, 9)),
        (nn.Sequential(nn.BatchNorm2d(1), nn.Upsample(scale_factor=2)), (1, 7, 9), (1, 1, 7, 9)),
        (nn.Sequential(nn.Conv2d(5, 4, 3), nn.ReLU()), (5, 7, 9), (1, 5, 7, 9)),
        (sparsify(nn.Sequential(nn.Linear(6, 8), nn.ReLU()), torch.rand(1, 7, 6)), (1, 7, 6), (1, 7, 6)),
        (sparsify(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()), torch.rand(1, 1, 7, 9)), (1, 7, 9), (1, 1, 7, 9)),
    ],
)
def test_an_example_of_three_dimensions_is_what_the_network_takes_it_for(network, shape, taken):
    frames = [torch.rand(shape) for _ in range(3)]
    plan = compile(network.eval(), frames[0])
    assert plan.input_shape == taken
    stream = plan.stream()
    with torch.no_grad():
        for frame in frames:
            torch.testing.assert_close(stream(frame), network(frame.view(taken)), rtol=0, atol=0.2)  # codecs
    with pytest.raises(CompileError, match=r"(?s)Conv1d.*got input of size.*As a sequence \(1, 5, 9\):.*7 channels"):
        compile(nn.Conv1d(7, 4, 3), torch.rand(1, 5, 9))


def test_a_number_is_scaled():
    plan = check(Function(lambda m, x: x.sum() * 0.1))
    assert kinds(plan) == ["avg_pool2d", "reshape", "avg_pool2d", "affine", "reshape"]


def test_a_list_of_numbers_is_scaled():
    check(Function(lambda m, x: torch.cat([x.sum((0, 1, 2, 3)).view(1), x[0, 0, 0, :3]]) * torch.arange(4.0)))


def test_a_norm_over_several_axes_or_without_eps_is_an_island():
    for norm in (nn.LayerNorm((9, 11)), nn.LayerNorm(11, eps=0)):
        assert [op.attributes["target"] for op in check(norm).islands] == ["aten.layer_norm.default"]


def by_hand(m, x, axis=1):
    u = x.mean(axis, keepdim=True)
    s = (x - u).pow(2).mean(axis, keepdim=True)
    return (x - u) / torch.sqrt(s + 1e-6)


def by_hand_once(m, x):
    d = x - x.mean(1, keepdim=True)
    return d * torch.rsqrt((d * d).mean((1,), True) + 1e-3)


NORMS = {
    "convnext": lambda m, x: m.w[:, None, None] * by_hand(m, x) + m.w[:, None, None],
    "pixels": lambda m, x: by_hand(m, x.permute(0, 2, 3, 1), -1) * m.w,
    "sequence": lambda m, x: by_hand(m, x.flatten(2)),
    "tokens": lambda m, x: by_hand(m, x.flatten(2).transpose(1, 2), 2),
    "once": by_hand_once,
    "square": lambda m, x: (x - x.mean(1, True)) / (1e-5 + (x - x.mean(1, True)).square().mean(1, True)) ** 0.5,
    "power": lambda m, x: ((x - x.mean(-3, True)).square().mean(1, True) + 1e-5) ** -0.5 * (x - x.mean(1, True)),
    "var": lambda m, x: (x - x.mean(1, True)) / torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 1e-5),
    "correction": lambda m, x: (x - x.mean(1, True)) * torch.rsqrt(x.var(1, correction=0, keepdim=True) + 1e-5),
    "inplace": lambda m, x: (x - x.mean(1, True)).div_(torch.sqrt(x.var(1, False, True) + 1e-5)).mul_(2),
}


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_by_hand_is_an_operation(name):
    module = Function(NORMS[name])
    module.w = nn.Parameter(torch.arange(1.0, 7))
    plan = check(module, strict=True)
    assert "layer_norm" in kinds(plan)
    assert not {"add", "avg_pool2d", "conv2d", "affine"} & set(kinds(plan))


def test_a_norm_whose_value_is_read_twice_keeps_it():
    twice = Function(lambda m, x: m.norm(x.flatten(2)) * 2 + m.norm(x.flatten(2)).flip(1), norm=affine_norm(99))
    assert "affine" not in kinds(check(twice))
    once = Function(lambda m, x: (y := m.norm(x)) * 2 - y, norm=affine_norm(11))
    assert "affine" in kinds(check(once))


@pytest.mark.parametrize(
    "almost",
    [
        lambda m, x: (x - x.mean(1, True)) / torch.sqrt(x.var(1, keepdim=True) + 1e-5),
        lambda m, x: (x - x.mean(1, True)) / torch.sqrt(x.var(2, unbiased=False, keepdim=True) + 1e-5),
        lambda m, x: (x - x.mean(1, True)) / torch.sqrt((x - x.mean(1, True)).pow(2).mean((1, 2), True) + 1e-5),
        lambda m, x: (x - x.mean(1, True)) / torch.sqrt((2 * x).var(1, unbiased=False, keepdim=True) + 1e-5),
        lambda m, x: (x - 2 * x.mean(1, True)) / torch.sqrt(x.var(1, unbiased=False, keepdim=True) + 1e-5),
        lambda m, x: torch.sqrt(x.var(1, unbiased=False, keepdim=True) + 1e-5) / (x - x.mean(1, True) + 30),
        lambda m, x: (x - x.mean(1, True)) * torch.sqrt(x.var(1, unbiased=False, keepdim=True) + 1e-5),
        lambda m, x: (x - x.mean(1, True)) / (x.std(1, unbiased=False, keepdim=True) + 1e-5),
        lambda m, x: torch.sub(x, x.mean(1, True), alpha=2) / torch.sqrt(x.var(1, False, True) + 1e-5),
        lambda m, x: (x - x.mean(1, True)) / torch.sqrt(x.var(1, False, True) + 1e-13),
        lambda m, x: (
            torch.div(x - x.mean(1, True), torch.sqrt(x.var(1, False, True) + 1e-5), rounding_mode="floor") * 0
        ),
    ],
)
def test_what_is_almost_a_norm_is_none(almost):
    assert "layer_norm" not in kinds(check(Function(almost)))


def in_blocks(m, x):
    y = m.a(x)
    with torch.enable_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=False):
            z = y * 2
        w = z.sin()
    with torch.autocast("cuda", enabled=False):
        z = z.clone()
        z.relu_()
        z[:, :1] += 1
    return m.b(z) + w - y.relu_()


def test_blocks_that_change_modes_are_part_of_the_network():
    plan = check(Function(in_blocks, a=nn.Conv2d(6, 4, 3), b=nn.Conv2d(4, 4, 1)))
    assert plan.islands[0].attributes["target"] == "aten.sin.default"
    low = Function(half_precision, a=nn.Conv2d(6, 4, 3))
    with pytest.raises(
        CompileError, match=r"torch\.autocast computes in torch\.bfloat16 on the CPU, and a plan in float32"
    ):
        compile(low, clip()[0])


def half_precision(m, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = m.a(x)
    return y.float()


def test_islands_compute_the_same_and_are_listed():
    class Running(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.a, self.b = nn.LayerNorm(6), nn.Linear(6, 18), nn.Linear(18, 6)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(self.norm(x.flatten(2).transpose(1, 2)))
            return x.flatten(2).transpose(1, 2) + self.b(torch.cumsum(y, 1)).sin()

    plan = check(Running())
    assert [island.attributes["target"] for island in plan.islands] == ["aten.cumsum.default", "aten.sin.default"]
    assert all(island.source.startswith("test_compile.py:") for island in plan.islands)
    assert kinds(plan).count("layer_norm") == 1


@pytest.mark.parametrize("value", [1, 2, 3, 0.5])
def test_the_names_of_an_islands_keywords_are_no_values(value):
    """`value` is the name of a keyword, and of what stands for a value of the plan."""

    def scaled(m, x):
        y = m.norm(m.conv(F.pad(x, (1, 1, 1, 1))))  # the padding, value 1, goes into the convolution
        return torch.addcmul(y, y.flip(3), m.gate, value=value)

    gate = nn.Buffer(torch.randn(4, 1, 1))
    plan = check(Function(scaled, conv=nn.Conv2d(6, 4, 3), norm=normed(4), gate=gate))
    assert [island.attributes["target"] for island in plan.islands] == ["aten.addcmul.default"]


def test_weights_of_one_output_without_an_axis_are_an_island():
    plan = check(Function(lambda m, x: F.linear(x, m.weight), weight=nn.Buffer(torch.randn(11))))
    assert [island.attributes["target"] for island in plan.islands] == ["aten.linear.default"]


def test_views_of_what_lies_otherwise_in_a_plan():
    """In a graph that was made functional a reshape is a view, by PyTorch's strides, which are not those of numbers."""

    def strided(m, x):
        y = m.a(x.flatten(2).transpose(1, 2).clone().add_(1)).view(1, 99, 2, 3).transpose(1, 2)
        return F.scaled_dot_product_attention(y, y, y).transpose(1, 2).reshape(1, 99, 6)

    assert not check(Function(strided, a=nn.Linear(6, 6))).islands


def test_python_functions_of_constants_are_constants():
    def checked(m, x):
        y = m.a(x)
        size = torch.tensor([y.shape[2], y.shape[3]])
        torch._check(size.prod().item() == y.shape[2] * y.shape[3])
        return y

    assert kinds(check(Function(checked, a=nn.Conv2d(6, 4, 3)))) == ["conv2d"]


def test_what_cannot_be_compiled_is_said_once_and_with_what_mends_it(capfd):
    made_for_others = Function(
        lambda m, x: m.a(x) + m.positions, a=nn.Conv2d(6, 4, 3), positions=nn.Buffer(torch.zeros(4, 9, 9))
    )
    with pytest.raises(CompileError, match=r"(?s)broadcast.*--size HxW"):
        compile(made_for_others, clip()[0])
    with pytest.raises(CompileError, match=r"must not branch on the values") as caught:
        compile(Function(lambda m, x: x if x.sum() > 0 else -x), clip()[0])
    assert len(str(caught.value)) < 400
    assert capfd.readouterr() == ("", "")


def test_infinity_behind_a_mask_is_not_multiplied():
    """A quotient by a constant 0 is left to PyTorch, and so is what hides it."""
    depth = torch.ones(9, 11)
    depth[2, 3] = 0
    module = Function(lambda m, x: torch.where(m.depth > 0, x.abs() / m.depth, 0.5), depth=nn.Buffer(depth))
    assert [op.attributes["target"] for op in check(module).islands] == ["aten.div.Tensor", "aten.where.ScalarOther"]


def other_softmax(q, k, v):
    return torch.softmax(q @ k.transpose(2, 3), 2) @ v


def masked_by_the_frame(q, k, v):
    return torch.softmax(q @ k.transpose(2, 3) + q[..., :1], 3) @ v


def masked_before_the_factor(q, k, v):
    return torch.softmax((q @ k.transpose(2, 3) + 1) * 0.5, 3) @ v


def hidden(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=torch.zeros(99, 99, dtype=torch.bool)).nan_to_num(1)


@pytest.mark.parametrize("almost", [other_softmax, masked_by_the_frame, masked_before_the_factor, hidden])
def test_what_is_nearly_attention_is_not_taken_for_it(almost):
    plan = check(Function(lambda m, x: heads(m, x, almost), qkv=nn.Linear(6, 18)))
    assert "attention" not in kinds(plan)
    assert plan.islands


def test_strict_names_the_operation_and_its_line():
    class Running(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cumsum(x, 2)

    module = Running()
    assert [op.attributes["target"] for op in check(module).islands] == ["aten.cumsum.default"]
    with pytest.raises(CompileError, match=r"aten\.cumsum\.default.*test_compile\.py:\d+.*dense island"):
        compile(module, clip()[0], strict=True)


def test_islands_with_several_outputs_and_other_types():
    def top(m, x):
        values, places = x.flatten(1).topk(3)
        return values + places.float() * 0.5

    plan = check(Function(top))
    assert plan.islands[0].attributes["types"] == ["float32", "int64"]


def filled(index):
    def fill(m, x):
        y = m.conv(x)
        y[index] = 0
        return y

    return fill


def raised(m, x):
    y = m.conv(x)
    y[..., ::2] += 1
    return y


ASSIGNMENTS = {
    "channel": filled((slice(None), 0)),
    "element": filled((0, 0, 0, 0)),
    "channels_by_number": filled((slice(None), [0, 2])),
    "columns": raised,
    "index_put": lambda m, x: m.conv(x).index_put((torch.tensor([0]), torch.tensor([3])), x.new_tensor(2.0)),
    "masked_fill": lambda m, x: m.conv(x).masked_fill(x > 0, 2.0),
    "masked_fill_tensor": lambda m, x: m.conv(x).masked_fill(x > 0, torch.tensor(2.0)),
    "where_numbers": lambda m, x: torch.where(m.conv(x) > 0, 1.0, 0.0),
    "where_tensor": lambda m, x: torch.where(x > 0, m.conv(x), torch.tensor(3.0)),
}


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_assignments_and_constants_of_no_dimensions(name, tmp_path):
    module = Function(ASSIGNMENTS[name], conv=nn.Conv2d(6, 6, 1))
    plan = check(module)
    plan.save(tmp_path / "a.plan")
    again = Plan.load(tmp_path / "a.plan")
    assert {key: t.shape for key, t in again.tensors.items()} == {key: t.shape for key, t in plan.tensors.items()}
    assert torch.equal(again.stream()(clip()[0]), plan.stream()(clip()[0]))


def test_outputs_of_whole_numbers():
    plan = check(Function(lambda m, x: x.argmax(1)))
    frame, stream = clip()[0].numpy(), plan.stream()
    places = stream(frame)
    assert places.dtype == np.int64
    assert np.array_equal(places, frame.argmax(1))
    places[:] = 7  # the caller's own
    assert np.array_equal(stream(frame), frame.argmax(1))


def test_a_window_of_pixels_is_no_map():
    module = Function(lambda m, x: m.norm(m.conv(x).reshape(3, 2, 9, 11)), conv=nn.Conv2d(6, 6, 1), norm=normed(2))
    plan = check(module)
    assert [op.attributes["target"] for op in plan.islands] == ["aten.batch_norm.default"]


def test_outputs_keep_their_structure():
    module = Function(lambda m, x: {"a": [x * 2, (x + 1,)], "b": None}).eval()
    frame = clip()[0]
    result = compile(module, frame).stream(backend="reference")(frame)
    assert result["b"] is None
    torch.testing.assert_close(result["a"][1][0], frame + 1)


def test_keys_that_are_no_strings_are_refused():
    with pytest.raises(CompileError, match=r"returns a dictionary with the key 0; those of a plan's answers are strin"):
        compile(Function(lambda m, x: [x + 1, {"a": {0: x * 2}}]), clip()[0])


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Function(lambda m, x: x if x.sum() > 0 else -x), "must not branch on the values"),
        (Function(lambda m, x: x * int(x.argmax())), "must not branch on the values"),
        (Function(lambda m, x: x[x > 0].sum()), r"index \(aten.index.Tensor, .*: the size of its result depends on"),
        (nn.Conv2d(1, 2, 1), r"This network takes 1 channel, the frame has 6\.$"),
        (nn.Conv2d(6, 2, 1).half(), r"parameters float16: call model.float\(\) first"),
        (Function(lambda m, x: x + torch.randn(x.shape)), "draws random numbers"),
        (Function(lambda m, x: torch.ones(3)), "returns nothing that depends on its input"),
        (Function(lambda m, x: torch.ones(3).half()), r"as output, \w+\.py:\d+: a Tensor of torch.float16, which"),
        (
            Function(lambda m, x: {"y": x * 2, "box": [m.norm.running_var]}, norm=nn.BatchNorm2d(2).double()),
            r"returns a constant as output\['box'\]\[0\], 'norm.running_var': a Tensor of torch.float64, which",
        ),
        (Function(lambda m, x: (x * 2, math.inf)), r"as output\[1\], inf: a float, .* it knows finite numbers"),
        (Function(lambda m, x: x.half()), "works in float16"),
    ],
)
def test_what_cannot_be_a_plan_is_refused(module, message):
    with pytest.raises(CompileError, match=message):
        compile(module, clip()[0])


@pytest.mark.parametrize(
    "draw",
    [
        *(lambda x: x + torch.rand_like(x), lambda x: torch.normal(x, 1.0), lambda x: torch.bernoulli(x.sigmoid())),
        *(lambda x: F.dropout(x, 0.5), lambda x: F.dropout2d(x, 0.5), lambda x: F.alpha_dropout(x, 0.5, True)),
        *(lambda x: F.rrelu(x, 0.1, 0.3, True), lambda x: x.clone().uniform_(), lambda x: F.gumbel_softmax(x, dim=1)),
        *(lambda x: torch.multinomial(x.sigmoid().flatten(1), 3), lambda x: x.bernoulli(0.3)),
        lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5),
    ],
)
def test_random_numbers_are_refused(draw):
    with pytest.raises(CompileError, match=r"draws random numbers.* needs training=self.training"):
        compile(Function(lambda m, x: draw(m.conv(x)), conv=nn.Conv2d(6, 4, 3)), clip()[0])


def test_what_draws_no_random_numbers_is_compiled():
    def idle(m, x):
        y = F.dropout2d(F.dropout(m.conv(x), 0.5, m.training), 0.0) + F.dropout(m.conv.bias[:1], 0.5, m.training)
        y = F.alpha_dropout(F.rrelu(y, 0.1, 0.3), 0.5)
        return F.scaled_dot_product_attention(y, y, y)

    check(Function(idle, conv=nn.Conv2d(6, 4, 3)))


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_what_does_not_depend_on_the_frame_is_returned_as_it_is(precision, tmp_path):
    def head(m, x):
        y = m.conv(x)
        return {"y": y, "rest": (m.norm.running_var, [torch.arange(3), y.new_tensor(2.0)], torch.ones(2) > 0), "n": 3}

    module = Function(head, conv=nn.Conv2d(6, 2, 1), norm=nn.BatchNorm2d(5)).eval()
    frame = clip()[0]
    plan = compile(module, frame, precision=precision)
    plan.save(tmp_path / "a.plan")
    again = Plan.load(tmp_path / "a.plan")
    assert plan.tensors.keys() == again.tensors.keys()
    with torch.no_grad():
        expected = module(frame)["rest"]
        module.norm.running_var.fill_(7)  # the plan has its own
    for each in (plan, again):
        stream = each.stream()
        for _ in range(2):
            answer = stream(frame)
            found = answer["rest"]
            assert answer["n"] == 3
            for one, two in zip(found[1], expected[1], strict=True):
                assert one.dtype == two.dtype
                assert torch.equal(one, two)
            assert torch.equal(found[2], expected[2])
            assert torch.equal(found[0], torch.ones(5))
            found[0].fill_(9), found[1][0].fill_(9)  # the caller's own
        assert isinstance(stream(frame.numpy())["rest"][0], np.ndarray)
        assert len(each.flat().stream()(frame)) == 1


def test_what_goes_wrong_while_tracing_is_told_with_its_line_and_no_other_cause():
    def broken(m, x):
        raise KeyError("no such head")

    with pytest.raises(CompileError, match=r"says at \S+test_compile.py:\d+: 'no such head'$"):
        compile(Function(broken), clip()[0])
    for channels, wanted in ((1, "1 channel, the frame has 3, .*: let the module make 1 of 3"), (4, "4 channels, the")):
        module = nn.Conv2d(channels, 2, 1)
        module.spec = SimpleNamespace(mean=[0.0] * channels, std=[255.0] * channels)
        with pytest.raises(CompileError, match=f"This network takes {wanted}") as caught:
            compile(module, torch.rand(1, 3, 8, 8))
        assert "must not branch" not in str(caught.value)


def test_a_network_without_data_is_refused():
    with pytest.raises(CompileError, match=r"weights, got one on the device meta, where 'weight' has none. Load them"):
        compile(nn.Conv2d(6, 2, 1).to("meta"), clip()[0])


def test_a_module_that_counts_is_refused():
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("n", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.n += 1
            return x * self.n

    with pytest.raises(CompileError, match="changes its own buffers"):
        compile(Counting(), clip()[0])


def difference_to_the_last(m, x):
    y = m.conv(x if m.last is None else x - m.last)
    m.last = x
    return y


def number_of_the_frame(m, x):
    m.count += 1
    return m.conv(x) * m.count


def mean_of_all(m, x):
    m.seen.append(x)
    return m.conv(sum(m.seen) / len(m.seen))


@pytest.mark.parametrize("function", [difference_to_the_last, number_of_the_frame, mean_of_all])
@pytest.mark.parametrize("last", [None, torch.zeros(1, 6, 9, 11)])
def test_a_module_that_remembers_in_python_is_refused(function, last):
    module = Function(function, conv=nn.Conv2d(6, 4, 3))
    module.last, module.count, module.seen = last, 0, []
    with pytest.raises(CompileError, match=r"Function gives another answer to a frame when another frame came before"):
        compile(module, torch.zeros(1, 6, 9, 11), steps=1.0)
    assert module.last is last
    assert (module.count, module.seen) == (0, [])


def test_what_is_assigned_and_not_read_is_no_memory():
    def cached(m, x):
        m.feature = y = m.conv(x)
        if m.shape != y.shape:
            m.shape, m.grid = y.shape, torch.linspace(0, 1, y.shape[-1])
        return y + m.grid

    module = Function(cached, conv=nn.Conv2d(6, 4, 3))
    module.shape = module.grid = None
    compile(module, clip()[0])
    assert (module.shape, module.grid, hasattr(module, "feature")) == (None, None, False)
    check(module)


def test_the_module_is_left_as_it_was():
    module = nn.Sequential(nn.Conv2d(6, 4, 3), normed(4), nn.ReLU(inplace=True), nn.Dropout())
    module[1].eval()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    compile(module, clip()[0])
    assert [m.training for m in module] == [True, False, True, True]
    assert module[2].inplace is True
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, before[name])


def test_a_plan_stays_what_it_is_when_the_module_is_trained_further():
    class Gathered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu = nn.Conv2d(6, 4, 3), nn.ReLU()
            self.scale = nn.Parameter(torch.rand(4, 7, 9))
            for name, buffer in (("start", torch.rand(1, 4, 7, 9)), ("places", torch.arange(252).reshape(1, 4, 7, 9))):
                self.register_buffer(name, buffer)

        def forward(self, x: Tensor) -> Tensor:
            return torch.lerp(self.start, self.relu(self.conv(x)) * self.scale, 0.5).take(self.places)

    module = Gathered()
    plan = compile(module, clip()[0])
    assert {str(plan.tensors[name].dtype) for op in plan.islands for name in op.tensors} == {"float32", "int64"}
    before = {name: tensor.copy() for name, tensor in plan.tensors.items()}
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.add_(1)
    for name, tensor in plan.tensors.items():
        np.testing.assert_array_equal(tensor, before[name], name)


def test_a_plan_stays_what_it_is_when_its_steps_are_changed_further():
    step = torch.full((4,), 0.25)
    module = nn.Sequential(nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    plan = compile(module, clip()[0], steps={"input": 0.5, "0": step})
    step.mul_(100)
    assert plan.step(plan.ops[1]).ravel().tolist() == [0.25] * 4


def test_frames_to_calibrate_on_of_another_size_are_refused():
    module = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU()).eval()
    with pytest.raises(ValueError, match=r"got \(3, 9, 12\)\. Frames in steps= are of the size of the example frame"):
        compile(module, torch.rand(1, 3, 9, 11), steps=torch.rand(2, 3, 9, 12))
