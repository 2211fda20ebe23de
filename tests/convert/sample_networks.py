"""Small networks in the manners of the usual model zoos, written for these tests."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ManyUses(nn.Module):
    """One ReLU object at three places, a functional one, a method, one convolution used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.same = nn.Conv2d(6, 6, 3, padding=1)
        self.last = nn.Conv2d(6, 4, 1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        x = self.act(self.same(x))
        x = self.act(self.same(x))
        x = F.relu(self.last(x)).mean((2, 3))
        return self.fc(x.relu())


class ConvNormAct(nn.Sequential):
    """Convolution, batch norm, activation, as a sequence of its own class."""

    def __init__(self, i: int, o: int, k: int = 3, s: int = 1, g: int = 1, act: type[nn.Module] | None = nn.ReLU6):
        parts: list[nn.Module] = [nn.Conv2d(i, o, k, s, (k - 1) // 2, groups=g, bias=False), nn.BatchNorm2d(o)]
        super().__init__(*parts, *([act(inplace=True)] if act else []))  # type: ignore[call-arg]


class InvertedResidual(nn.Module):
    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.use_res_connect = stride == 1 and i == o
        hidden = 2 * i
        self.conv = nn.Sequential(
            ConvNormAct(i, hidden, 1),
            ConvNormAct(hidden, hidden, 3, stride, hidden),
            nn.Conv2d(hidden, o, 1, bias=False),
            nn.BatchNorm2d(o),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.use_res_connect:
            return x + self.conv(x)
        return self.conv(x)


class MobileNetLike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            ConvNormAct(3, 8, 3, 2), InvertedResidual(8, 8, 1), InvertedResidual(8, 8, 1), InvertedResidual(8, 12, 2)
        )
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(12, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = F.adaptive_avg_pool2d(x, (1, 1))
        return self.classifier(torch.flatten(x, 1))


class BasicBlock(nn.Module):
    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(i, o, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(o)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(o, o, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(o)
        self.downsample = None
        if stride > 1 or i != o:
            self.downsample = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNetLike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(BasicBlock(6, 6, 1), BasicBlock(6, 8, 2))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.avgpool(self.layer1(x))
        return self.fc(torch.flatten(x, 1))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, 4, 1)
        self.fc2 = nn.Conv2d(4, channels, 1)
        self.activation = nn.ReLU()
        self.scale_activation = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale_activation(self.fc2(self.activation(self.fc1(self.avgpool(x)))))
        return scale * x


class MobileNetV3Like(nn.Module):
    """Gating, activations that are no clamp and work in place, dropout in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNormAct(3, 8, 3, 2, act=nn.Hardswish)
        self.expand = ConvNormAct(8, 16, 1, act=nn.Hardswish)
        self.depth = ConvNormAct(16, 16, 5, 1, 16, act=nn.Hardswish)
        self.se = SqueezeExcite(16)
        self.project = ConvNormAct(16, 8, 1, act=None)
        self.head = nn.Sequential(
            nn.Linear(8, 10), nn.Hardswish(inplace=True), nn.Dropout(0.5, inplace=True), nn.Linear(10, 5)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.project(self.se(self.depth(self.expand(x))))
        return self.head(x.mean(dim=[2, 3]))


class DenseLike(nn.Module):
    """Concatenations, read by batch norm and by convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.grow1 = nn.Conv2d(4, 4, 3, padding=1)
        self.grow2 = nn.Conv2d(8, 4, 3, padding=1)
        self.squeeze = nn.Conv2d(12, 6, 1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.stem(x))
        b = F.relu(self.grow1(a))
        c = F.relu(self.grow2(F.relu(self.norm(torch.cat([a, b], 1)))))
        x = self.squeeze(torch.cat((a, b, c), dim=1))
        return self.fc(F.avg_pool2d(F.relu(x), x.shape[-1]).flatten(1))


class ShuffleUnit(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch2 = nn.Sequential(
            nn.Conv2d(half, half, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
            nn.Conv2d(half, half, 3, 1, 1, groups=half, bias=False),
            nn.BatchNorm2d(half),
            nn.Conv2d(half, half, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = x.chunk(2, dim=1)
        out = torch.cat((x1, self.branch2(x2)), dim=1)
        n, c, h, w = out.size()
        out = out.view(n, 2, c // 2, h, w)
        return torch.transpose(out, 1, 2).contiguous().view(n, c, h, w)


class ShuffleNetLike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.stage = nn.Sequential(ShuffleUnit(8), ShuffleUnit(8))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage(self.maxpool(self.conv1(x)))
        return self.fc(x.mean([2, 3]))


class BatchNormAct2d(nn.BatchNorm2d):
    """Batch norm by function with an activation behind it, as one module."""

    def __init__(self, channels: int, act_layer: Callable[..., nn.Module] | None = nn.ReLU) -> None:
        super().__init__(channels)
        self.drop = nn.Identity()
        self.act = act_layer(inplace=True) if act_layer else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        factor = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        bn_training = True if self.training else (self.running_mean is None) and (self.running_var is None)
        x = F.batch_norm(
            x,
            self.running_mean if not self.training or self.track_running_stats else None,
            self.running_var if not self.training or self.track_running_stats else None,
            self.weight,
            self.bias,
            bn_training,
            factor,
            self.eps,
        )
        return self.act(self.drop(x))


class DropPath(nn.Module):
    """Stochastic depth with control flow on the mode and arithmetic on shapes."""

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep_prob = 1 - self.drop_prob
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        random_tensor = x.new_empty(shape).bernoulli_(keep_prob)
        random_tensor.div_(keep_prob)
        return x * random_tensor


class SelectAdaptivePool2d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.flatten(self.pool(x))


class EfficientBlock(nn.Module):
    def __init__(self, channels: int, drop_path: float, act: Callable[..., nn.Module], augmented: bool) -> None:
        super().__init__()
        self.conv_pw = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.bn1 = BatchNormAct2d(2 * channels, act)
        self.conv_dw = nn.Conv2d(2 * channels, 2 * channels, 3, 1, 1, groups=2 * channels, bias=False)
        self.bn2 = BatchNormAct2d(2 * channels, act)
        self.conv_pwl = nn.Conv2d(2 * channels, channels, 1, bias=False)
        self.bn3 = BatchNormAct2d(channels, None)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.augmented = augmented

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.bn2(self.conv_dw(self.bn1(self.conv_pw(x))))
        x = self.bn3(self.conv_pwl(x))
        if self.augmented:
            x = self.drop_path(x)
            x += shortcut
            return x
        return self.drop_path(x) + shortcut


class EfficientNetLike(nn.Module):
    def __init__(self, drop_path: float = 0.0, act: Callable[..., nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.conv_stem = nn.Conv2d(3, 6, 3, 2, 1, bias=False)
        self.bn1 = BatchNormAct2d(6, act)
        self.blocks = nn.Sequential(EfficientBlock(6, drop_path, act, True), EfficientBlock(6, drop_path, act, False))
        self.conv_head = nn.Conv2d(6, 10, 1, bias=False)
        self.bn2 = BatchNormAct2d(10, act)
        self.global_pool = SelectAdaptivePool2d()
        self.drop_rate = 0.0
        self.classifier = nn.Linear(10, 5)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.blocks(self.bn1(self.conv_stem(x)))
        return self.bn2(self.conv_head(x))

    def forward_head(self, x: Tensor) -> Tensor:
        x = self.global_pool(x)
        if self.drop_rate > 0.0:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        return self.classifier(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


class ConvNeXtBlock(nn.Module):
    def __init__(self, dim: int, drop_path: float) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), 0.5))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.conv_dw(x)
        x = x.permute(0, 2, 3, 1)
        x = self.fc2(self.act(self.fc1(self.norm(x))))
        x = x.mul(self.gamma)
        x = x.permute(0, 3, 1, 2)
        return self.drop_path(x) + shortcut


class ConvNeXtLike(nn.Module):
    def __init__(self, drop_path: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 4, 4)
        self.blocks = nn.Sequential(ConvNeXtBlock(6, drop_path), ConvNeXtBlock(6, drop_path))
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        return self.head(self.norm(x.mean([-2, -1])))


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=0.0)
        return self.proj(x.transpose(1, 2).reshape(b, n, c))


class TorchAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(dim, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.mha(x, x, x, need_weights=False)[0]


class ViTBlock(nn.Module):
    def __init__(self, dim: int, attention: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attention(dim, 2)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViTLike(nn.Module):
    def __init__(self, attention: Callable[[int, int], nn.Module] = Attention) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 8))
        self.pos_embed = nn.Parameter(torch.randn(1, 17, 8))
        self.block = ViTBlock(8, attention)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        x = self.norm(self.block(x + self.pos_embed))
        return self.head(x[:, 0])


class UNetLike(nn.Module):
    """Down, up by a transposed convolution and by interpolation, padding, skip connections; a map comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.inc = nn.Conv2d(3, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.mix = nn.Conv2d(8, 4, 3)
        self.coarse = nn.Conv2d(12, 4, 1)
        self.outc = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        a = F.relu(self.inc(x))
        b = F.relu(self.down(F.max_pool2d(a, 1)))
        up = F.relu(self.up(b))
        mixed = F.relu(self.mix(F.pad(torch.cat([a, up], 1), (1, 1, 1, 1))))
        wide = torch.cat([mixed, F.interpolate(b, scale_factor=2.0, mode="nearest")], 1)
        return {"out": self.outc(torch.sigmoid(self.coarse(wide))), "aux": b}


class FrozenNorm(nn.Module):
    """Arithmetic on buffers, as detection networks have it for batch norm that never trains."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("running_var", torch.rand(4) + 0.5)
        self.register_buffer("running_mean", torch.rand(4))
        self.fc = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = (self.running_var + 1e-5).rsqrt().reshape(1, -1, 1, 1)
        bias = -self.running_mean.reshape(1, -1, 1, 1) * scale
        return self.fc(F.relu(self.conv(x) * scale + bias))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "many_uses": ManyUses,
    "mobilenet": MobileNetLike,
    "resnet": ResNetLike,
    "mobilenet_v3": MobileNetV3Like,
    "dense": DenseLike,
    "shufflenet": ShuffleNetLike,
    "efficientnet": EfficientNetLike,
    "efficientnet_silu": partial(EfficientNetLike, act=nn.SiLU),
    "efficientnet_drop_path": partial(EfficientNetLike, drop_path=0.5),
    "convnext": ConvNeXtLike,
    "convnext_drop_path": partial(ConvNeXtLike, drop_path=0.5),
    "vit": ViTLike,
    "vit_torch": partial(ViTLike, attention=TorchAttention),
    "unet": UNetLike,
    "frozen_norm": FrozenNorm,
}


def build(name: str) -> nn.Module:
    """The network with parameters and statistics in which a mistake would show."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.1)
    return network.eval()
