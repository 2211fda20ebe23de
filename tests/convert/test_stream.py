"""Delta inference frame by frame against the network on clips and on single frames."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsetime
from sparsetime.codec import StateError
from sparsetime.convert.stream import DeltaStream

from .sample_networks import NETWORKS, build

FRAMES = 8


def clip(n: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(n, 1, 3, 16, 16, generator=generator)
    return (base + 0.5 * torch.randn(n, FRAMES, 3, 16, 16, generator=generator)).to(dtype)


def leaves(output: Any) -> list[Tensor]:
    return list(output.values()) if isinstance(output, dict) else [output]


def sparse(name: str, **options: Any) -> nn.Module:
    model = sparsetime.sparsify(build(name), clip(dtype=torch.float32)[:, 0], **options)
    sparsetime.calibrate(model, clip(dtype=torch.float32), levels=256)
    return model


def streamed(stream: DeltaStream, x: Tensor) -> list[Tensor]:
    rows = [leaves(stream(frame)) for frame in x.unbind(1)]
    return [torch.stack(column, 1) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize(
    "options", [{}, {"include": "input"}, {"exclude": "input"}, {"codec": "hold"}, {"codec": "residual"}], ids=str
)
@pytest.mark.parametrize("name", list(NETWORKS))
def test_the_stream_gives_what_the_network_gives(name: str, options: dict[str, Any]) -> None:
    """In place, constants and all; partial use included."""
    model = sparse(name, **options).double()
    with torch.no_grad():
        expected = leaves(model(clip(2)))
    for one, two in zip(streamed(DeltaStream(model), clip(2)), expected, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-11)
        assert (two[:, 1:] != two[:, :-1]).any()


@pytest.mark.parametrize("name", ["resnet", "mobilenet"])
def test_frames_alone_give_what_the_stream_gives(name: str) -> None:
    """The dense quantised network, which knows of no time."""
    model = sparse(name).double()
    with torch.no_grad():
        alone = model(clip()[0])
    torch.testing.assert_close(streamed(DeltaStream(model), clip())[0][0], alone, rtol=0, atol=1e-11)


def test_it_takes_float32() -> None:
    model = sparse("resnet")
    with torch.no_grad():
        expected = model(clip(dtype=torch.float32))
    (got,) = streamed(DeltaStream(model), clip(dtype=torch.float32))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    assert model.get_parameter("fc.weight").dtype == torch.float32


def test_a_new_video() -> None:
    model = sparse("resnet").double()
    stream = DeltaStream(model)
    (first,) = streamed(stream, clip())
    (carried,) = streamed(stream, clip())
    stream.reset()
    (again,) = streamed(stream, clip())
    assert torch.equal(first, again)
    torch.testing.assert_close(first, carried, rtol=0, atol=1e-11)


def test_streams_do_not_touch_each_other_nor_the_model() -> None:
    model = sparse("resnet").double()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    one, two = DeltaStream(model), DeltaStream(model)
    other = clip().flip(1)
    alone = streamed(DeltaStream(model), clip())[0]
    for t in range(FRAMES):
        output = one(clip()[:, t])
        two(other[:, t])
        assert torch.equal(output, alone[:, t])
        output.fill_(99.0)  # outputs share no memory with the state
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_frame_may_be_used_again() -> None:
    model = sparse("resnet").double()
    stream, frame = DeltaStream(model), clip()[:, 0].clone()
    stream(frame)
    frame.copy_(clip()[:, 1])
    torch.testing.assert_close(stream(frame), streamed(DeltaStream(model), clip())[0][:, 1], rtol=0, atol=0)


@pytest.mark.parametrize(
    "other", [torch.zeros(2, 3, 16, 16).double(), torch.zeros(1, 3, 12, 16).double(), torch.zeros(1, 3, 16, 16)]
)
def test_other_frames_are_refused_and_change_nothing(other: Tensor) -> None:
    model = sparse("resnet").double()
    stream = DeltaStream(model)
    stream(clip()[:, 0])
    with pytest.raises(StateError, match=r"this stream is for frames .* A new video\? Call reset\(\)"):
        stream(other)
    bad = clip()[:, 1].clone()
    bad[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="holds NaN or infinite values; the stream stays as it was"):
        stream(bad)
    assert torch.equal(stream(clip()[:, 1]), streamed(DeltaStream(model), clip())[0][:, 1])


class Strongest(nn.Module):
    """The channel of the largest mean, which is another one from frame to frame: an index that varies."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y[torch.arange(y.shape[0]), y.mean((2, 3)).argmax(1)]


class Masked(nn.Module):
    """Booleans and integers between the layers and among the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.conv(x)
        flat = (y > 0).flatten(1)
        return {"map": y * (y > 0), "where": flat, "largest": y.flatten(1).argmax(1, keepdim=True)[:, 0]}


class Pair(nn.Module):
    """Two inputs, a third that may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.flow = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)

    def forward(self, image: Tensor, flow: Tensor, gain: float = 2.0) -> Tensor:
        return torch.relu(self.image(image) + self.flow(flow)) * gain


@pytest.mark.parametrize("make", [Strongest, Masked])
def test_what_is_picked_by_the_frame(make: type[nn.Module]) -> None:
    model = sparsetime.sparsify(make().eval(), clip(dtype=torch.float32)[:, 0]).double()
    stream = DeltaStream(model)
    for frame in clip(2).unbind(1):
        for got, expected in zip(leaves(stream(frame)), leaves(model(frame)), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-11)


def test_several_inputs() -> None:
    frames = clip(2).unbind(1)
    model = sparsetime.sparsify(Pair().eval(), [frames[0].float(), frames[1].float()]).double()
    stream = DeltaStream(model)
    for image, flow in zip(frames, frames[::-1], strict=True):
        torch.testing.assert_close(stream(image, flow), model(image, flow), rtol=0, atol=1e-11)
    for wrong in [(), frames[:1], frames[:4]]:
        with pytest.raises(
            TypeError, match=rf"expected one frame for each of .* \['image', 'flow', 'gain'\], .* got {len(wrong)}"
        ):
            stream(*wrong)


def test_what_cannot_be_streamed() -> None:
    with pytest.raises(TypeError, match=r"expected what sparsetime\.sparsify returned, got ResNetLike"):
        DeltaStream(build("resnet"))
    with pytest.raises(ValueError, match=r"training mode; call model\.eval\(\) first"):
        DeltaStream(sparse("resnet").train())
