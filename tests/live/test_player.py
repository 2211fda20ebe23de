"""What is told of each frame, and what the commands do."""

import io
import json
import queue
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pytest
from square_video import moving_square
from tiny_plan import tiny

from sparsetime.engine import Plan, PlanError
from sparsetime.live.layers import layers_of
from sparsetime.live.picture import jpeg
from sparsetime.live.player import Player, parse_command
from sparsetime.run.dense import native_dense
from sparsetime.run.sources import SourceError
from sparsetime.video import read_frames


class Message(NamedTuple):
    header: dict[str, Any]
    map: np.ndarray | None
    picture: bytes


def parse(message: bytes) -> Message:
    (length,) = struct.unpack_from(">I", message)
    header = json.loads(message[4 : 4 + length])
    rest = message[4 + length :]
    if header["map"] is None:
        return Message(header, None, rest)
    cells = header["map"][0] * header["map"][1]
    return Message(header, np.frombuffer(rest[:cells], np.uint8).reshape(header["map"]), rest[cells:])


def decoded(picture: bytes) -> np.ndarray:
    with av.open(io.BytesIO(picture), format="mjpeg") as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


class Played:
    """A player whose messages are waited for."""

    def __init__(self, player: Player) -> None:
        self.player = player
        self._messages: queue.Queue[bytes] = queue.Queue()
        player.on_message = self._messages.put
        player.start()

    def send(self, what: str, layer: int = 0) -> None:
        self.player.send((what, layer))  # type: ignore[arg-type]

    def next(self) -> Message:
        return parse(self._messages.get(timeout=60))

    def step(self) -> Message:
        """The message of the next frame; the one before it answers the command."""
        self.send("step")
        before = self.next().header["frames"]
        message = self.next()
        assert message.header["frames"] == before + 1
        return message

    def until(self, key: str, value: Any) -> Message:
        while (message := self.next()).header[key] != value:
            pass
        return message


def quick(plan: Path, video: Path, **options: Any) -> Player:
    """A player that does not try several runtimes for the dense network."""
    return Player(plan, str(video), find_dense=lambda plan, frame, threads: native_dense(plan, threads), **options)


@pytest.fixture
def played(small_plan: Path, short: Path) -> Iterator[Played]:
    player = quick(small_plan, short)
    yield Played(player)
    player.stop()
    assert not player._thread.is_alive()


def test_each_step_is_the_next_frame_with_the_streams_figures(played: Played, small_plan: Path, short: Path) -> None:
    plan = Plan.load(small_plan)
    stream = plan.stream()
    before: np.ndarray | None = None
    macs = 0
    for number, frame in enumerate(read_frames(short, size=(24, 32)), 1):
        message = played.step()
        stream(frame)
        stats = stream.stats
        macs += sum(entry.macs for entry in stats.values())
        header = message.header
        assert header["frames"] == number
        assert header["density"] == pytest.approx(stream.op_density)
        assert header["saved"] == pytest.approx(1 - macs / (number * plan.dense_macs))
        layers = layers_of(plan)
        assert header["layers"] == pytest.approx([stats[x.op.name].macs / x.macs for x in layers], abs=1e-4)
        assert (header["paused"], header["error"], header["damage"]) == (True, "", [])
        # The layer with most operations among the fine ones is the second convolution, on 12x16 places.
        source = layers[header["layer"]].source
        assert header["map"] == [12, 16]
        value = stream.snapshot()[f"{[op.output for op in plan.ops].index(source)}.value"][0]
        changed = np.ones(value.shape, bool) if before is None else value != before
        expected = np.ceil(255 * changed.mean(axis=0, dtype=np.float32))
        np.testing.assert_array_equal(message.map, expected.astype(np.uint8))
        before = value
        picture = decoded(message.picture)
        assert np.abs(picture.astype(int) - moving_square(number)[-1]).mean() < 6
    assert (message.map > 0).any()
    assert (message.map == 0).any()


def test_a_flush_is_seen(small_plan: Path, short: Path) -> None:
    played = Played(quick(small_plan, short, flush=0.1))
    stream = Plan.load(small_plan).stream(flush=0.1)
    flushed = []
    for frame in read_frames(short, size=(24, 32)):
        message = played.step()
        stream(frame)
        flushed.append(stream.flushed)
        assert message.header["density"] == pytest.approx(stream.op_density)
        assert (message.map == 255).all() == stream.flushed
    played.player.stop()
    assert flushed[0]
    assert any(flushed[1:])
    assert not all(flushed)
    assert played.player.figures()["flush"] == played.player.about()["flush"] == 0.1
    assert quick(small_plan, short).about()["flush"] == 1  # where nothing is said


def test_it_plays_to_the_end_and_again(played: Played) -> None:
    played.send("play")
    end = played.until("ended", True)
    end = end if end.header["paused"] else played.until("paused", True)
    assert (end.header["frames"], end.header["paused"]) == (6, True)
    assert end.header["fps"] > 0
    played.send("play")
    assert played.next().header["frames"] == 0
    assert played.until("frames", 6)


def test_the_dense_network_is_measured_when_it_was_found(played: Played) -> None:
    played.step()
    assert played.step().header["fps_dense"] is None
    assert played.player._finding is not None
    played.player._finding.join(60)
    header = played.step().header
    assert header["fps_dense"] > 0
    assert header["dense_runtime"].startswith("sparsetime")
    assert not played.player._finding.is_alive()


def test_no_dense_network_is_told(small_plan: Path, short: Path) -> None:
    def find(*_: Any) -> Any:
        raise RuntimeError("nothing\nthere")

    played = Played(Player(small_plan, str(short), find_dense=find))
    played.send("play")
    end = played.until("paused", True)
    while not end.header["ended"]:
        end = played.next()
    played.player.stop()
    assert played.player._finding is not None
    played.player._finding.join(60)
    assert played.player.figures()["error"] == "no dense network to compare with: nothing there"
    assert played.player.figures()["frames"] == 6


def test_reset_begins_again(played: Played) -> None:
    first = played.step()
    for _ in range(3):
        played.step()
    played.send("reset")
    empty = played.next().header
    assert (empty["frames"], empty["saved"], empty["fps"], empty["map"], empty["layers"]) == (0, None, None, None, [])
    again = played.step()
    assert again.picture == first.picture
    assert again.header["density"] == first.header["density"] == 1
    assert (again.map == 255).all()


def test_another_layer_is_seen_from_the_next_frame_on(played: Played) -> None:
    played.step()
    played.send("layer", 0)
    told = played.next()
    assert (told.header["layer"], told.map) == (0, None)
    assert told.picture  # the frame stays
    message = played.step()
    assert message.map is not None
    assert message.map.shape == (24, 32)
    rows = np.flatnonzero((message.map > 0).any(axis=1))
    assert (rows.min(), rows.max()) == (1, 8)  # the square walks in rows 4 to 16 of 48, and resizing blurs
    played.send("layer", 2)  # the classifier has no places
    assert played.next().header["layer"] == 0


def test_many_commands_at_once_are_bounded(played: Played) -> None:
    for _ in range(10_000):
        played.send("pause")
    assert len(played.player._commands) <= 64
    played.send("step")
    assert played.until("frames", 1)


def test_stop_ends_it_while_it_plays(small_plan: Path, square: Path) -> None:
    played = Played(quick(small_plan, square))
    played.send("play")
    played.until("frames", 3)
    played.player.stop()
    assert not played.player._thread.is_alive()
    assert not [t for t in threading.enumerate() if t.name.startswith("reader")]
    figures = played.player.figures()
    assert 3 <= figures["frames"] < 300
    json.dumps(figures, allow_nan=False)


def test_damage_is_told(small_plan: Path, short: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(short.read_bytes()[: short.stat().st_size * 6 // 10])
    played = Played(quick(small_plan, cut))
    played.send("play")
    end = played.until("ended", True)
    while not end.header["damage"]:
        end = played.next()
    assert "cut off" in end.header["damage"][-1]
    played.player.stop()


def test_what_cannot_be_shown_is_refused(small_plan: Path, short: Path, tmp_path: Path) -> None:
    tiny().save(tmp_path / "two.plan")
    with pytest.raises(PlanError, match="three channels"):
        Player(tmp_path / "two.plan", str(short))
    with pytest.raises(SourceError, match="no such file"):
        Player(small_plan, str(tmp_path / "none.mkv"))


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ('{"do": "play"}', ("play", 0)),
        ('{"do": "layer", "layer": 2}', ("layer", 2)),
        ('{"do": "layer", "layer": 3}', None),
        ('{"do": "layer", "layer": -1}', None),
        ('{"do": "layer", "layer": true}', None),
        ('{"do": "layer", "layer": 1.0}', None),
        ('{"do": "open", "layer": 1}', None),
        ('{"do": ["play"]}', None),
        ("[]", None),
        ("nonsense", None),
        ("[" * 100_000, None),
    ],
)
def test_commands(text: str, command: tuple[str, int] | None) -> None:
    assert parse_command(text, 3) == command


@pytest.mark.parametrize(
    ("shape", "shown"), [((48, 64), (48, 64)), ((720, 1280), (360, 640)), ((1001, 333), (640, 212))]
)
def test_pictures_are_small_enough(shape: tuple[int, int], shown: tuple[int, int]) -> None:
    frame = np.full((*shape, 3), (200, 120, 40), np.uint8)
    picture = decoded(jpeg(frame))
    assert picture.shape == (*shown, 3)
    np.testing.assert_allclose(picture.reshape(-1, 3).mean(axis=0), (200, 120, 40), atol=4)
