"""Many videos: the same answers as one by one, and nobody waits for somebody who is slow or gone."""

import itertools
import json
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from square_video import save_square
from typer.testing import CliRunner

import sparsetime
from sparsetime.cli.watching import register
from sparsetime.engine import Plan, PlanError
from sparsetime.many import Backoff, Feed, Runner, run_many
from sparsetime.many.figures import Figures
from sparsetime.run.sources import Source, SourceError

from .fake import FakeVideo, attempts


@pytest.fixture
def plan(small_plan: Path) -> Plan:
    return Plan.load(small_plan)


def greys(count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 256, count).tolist()


@pytest.mark.parametrize("threads", [1, 3])
def test_each_stream_gives_what_it_gives_alone(plan: Plan, threads: int) -> None:
    videos = [greys(30 + 5 * k, k) for k in range(5)]
    got: dict[int, list[tuple[int, bytes]]] = defaultdict(list)
    feeds = [Feed(lambda v=v: FakeVideo(v)) for v in videos]
    with Runner(
        plan, feeds, threads=threads, on_output=lambda k, number, y: got[k].append((number, y.tobytes()))
    ) as runner:
        assert runner.wait(60)
    for k, video in enumerate(videos):
        alone = plan.stream()
        expected = [alone(shot.picture).tobytes() for shot in FakeVideo(video)]
        assert got[k] == list(enumerate(expected))
        figures = runner.statistics()[k]
        assert (figures["frames"], figures["read"], figures["dropped"], figures["state"]) == (
            *(len(video), len(video), 0),
            "ended",
        )


def test_each_stream_is_flushed_by_itself(plan: Plan) -> None:
    # Greys that jump ask for a dense frame's operations every few frames, a still one never does.
    videos = [greys(30, 0), [90] * 30, greys(30, 2)]
    got: dict[int, list[bytes]] = defaultdict(list)
    feeds = [Feed(lambda v=v: FakeVideo(v)) for v in videos]
    with Runner(plan, feeds, threads=2, flush=1.0, on_output=lambda k, number, y: got[k].append(y.tobytes())) as runner:
        assert runner.wait(60)
    flushes = []
    for k, video in enumerate(videos):
        alone, never, macs = plan.stream(flush=1.0), plan.stream(), 0
        outputs, kept = [], []
        flushes.append(0)
        for shot in FakeVideo(video):
            outputs.append(alone(shot.picture).tobytes())
            kept.append(never(shot.picture).tobytes())
            flushes[-1] += alone.flushed
            macs += sum(entry.macs for entry in alone.stats.values())
        assert got[k] == outputs
        assert (outputs == kept) == (flushes[-1] == 1)
        density = runner.statistics()[k]["op_density_with_first_frame"]
        assert density == pytest.approx(macs / (30 * plan.dense_macs))
    assert flushes[1] == 1
    assert min(flushes[0], flushes[2]) > 3


def test_a_slow_one_and_a_dead_one_hold_nobody_up(plan: Plan) -> None:
    hang, go = threading.Event(), threading.Event()
    dead = FakeVideo([1, hang.wait], live=True, name="hangs")
    refused = attempts([SourceError("refused")])
    slow = FakeVideo([1, go.wait, 2], name="slow")
    quick = [FakeVideo(greys(40, k), name=f"quick {k}") for k in range(2)]
    feeds = [Feed(lambda v=v: v) for v in (dead, slow, *quick)]
    feeds.append(Feed(refused, backoff=Backoff(1000, 1000)))
    finished = threading.Event()
    count = itertools.count(1)

    def see(index: int, number: int, outputs: Any) -> None:
        if index in (2, 3) and next(count) == 80:
            finished.set()

    with Runner(plan, feeds, threads=1, on_output=see) as runner:
        assert finished.wait(60)  # one thread, and the two quick ones are through
        assert not runner.wait(0.01)
        before = runner.statistics()
        go.set()
        deadline = time.monotonic() + 60
        while runner.statistics()[1]["state"] != "ended" and time.monotonic() < deadline:
            time.sleep(0.001)
        hang.set()
    assert [entry["frames"] for entry in before[2:4]] == [40, 40]
    assert [entry["frames"] for entry in before] == [1, 1, 40, 40, 0]
    assert [entry["state"] for entry in before] == ["running", "running", "ended", "ended", "waiting"]
    assert before[4]["error"] == "refused"


@pytest.mark.parametrize("policy", ["drop-oldest", "drop-newest"])
def test_who_waits_for_the_end_takes_no_wake_up_call(plan: Plan, policy: str) -> None:
    turn = threading.Semaphore(0)
    script: list[Any] = []
    for grey in range(40):  # each frame comes when the one before was computed and the pool waits again
        script += [grey, lambda: turn.acquire(timeout=60), lambda: time.sleep(0.002)]
    feed = Feed(lambda: FakeVideo(script, live=True), size=1, policy=policy, retries=0)  # type: ignore[arg-type]
    runner = Runner(plan, [feed], threads=2, on_output=lambda *_: turn.release())
    waiting = [threading.Thread(target=runner.wait, args=(60,)) for _ in range(4)]
    for thread in waiting:
        thread.start()
    with runner:
        assert runner.wait(60)
    for thread in waiting:
        thread.join()
    figures = runner.statistics()[0]
    assert (figures["frames"], figures["dropped"]) == (40, 0)


def test_one_that_comes_back_goes_on_from_its_state(plan: Plan) -> None:
    feed = Feed(attempts([1, 2, OSError("lost")], [3, 4]), size=9, backoff=Backoff(0.01, 0.01), frames=4)
    got = []
    with Runner(plan, [feed], on_output=lambda k, number, y: got.append(y.tobytes())) as runner:
        assert runner.wait(60)
    alone = plan.stream()
    assert got == [alone(shot.picture).tobytes() for shot in FakeVideo([1, 2, 3, 4])]
    figures = runner.statistics()[0]
    assert (figures["frames"], figures["reconnects"], figures["state"]) == (4, 1, "ended")


@pytest.mark.parametrize(
    ("policy", "computed"), [("drop-oldest", [0, 8, 9]), ("drop-newest", [0, 1, 2]), ("block", list(range(10)))]
)
def test_what_is_computed_when_frames_come_too_fast(plan: Plan, policy: str, computed: list[int]) -> None:
    through, first = threading.Event(), threading.Event()
    # The first frame is being computed while the nine others come; two have room.
    video = FakeVideo([0, first.wait, *range(1, 10), through.set], live=True)
    got: list[int] = []

    def see(index: int, number: int, outputs: Any) -> None:
        got.append(number)
        if number == 0:
            first.set()
            assert through.wait(0.3 if policy == "block" else 60) == (policy != "block")

    feed = Feed(lambda: video, size=2, policy=policy, retries=0)  # type: ignore[arg-type]
    with Runner(plan, [feed], on_output=see) as runner:
        assert runner.wait(60)
    assert got == computed
    figures = runner.statistics()[0]
    assert (figures["frames"], figures["dropped"], figures["read"]) == (len(computed), 10 - len(computed), 10)


def test_an_error_ends_its_stream_alone(plan: Plan) -> None:
    def see(index: int, number: int, outputs: Any) -> None:
        if (index, number) == (0, 3):
            raise KeyError("mine")

    feeds = [Feed(lambda: FakeVideo(greys(20, 1))), Feed(lambda: FakeVideo([7] * 3 + [8] * 5, size=(9, 9)))]
    feeds.append(Feed(lambda: FakeVideo(greys(20, 2))))
    with Runner(plan, feeds, threads=2, on_output=see) as runner:
        assert runner.wait(60)
    first, wrong, other = runner.statistics()
    assert (first["state"], first["error"], first["frames"]) == ("failed", "on_output: KeyError('mine')", 4)
    assert isinstance(runner.output_error, KeyError)
    assert (wrong["state"], wrong["frames"]) == ("failed", 0)
    assert "expected a frame of shape" in wrong["error"]
    assert (other["state"], other["error"], other["frames"]) == ("ended", "", 20)


def test_a_camera_that_is_away_when_all_ends_says_why(plan: Plan) -> None:
    away = Feed(attempts([1, SourceError("refused")]))
    with Runner(plan, [away]) as runner:
        while away.state != "waiting":
            time.sleep(0.001)
    (figures,) = runner.statistics()
    assert (figures["state"], figures["error"], figures["read"]) == ("ended", "refused", 1)


def test_a_camera_that_came_back_has_no_error(plan: Plan) -> None:
    gate = threading.Event()
    feed = Feed(attempts([SourceError("refused")], [1, gate.wait]), backoff=Backoff(0, 0))
    with Runner(plan, [feed]) as runner:
        while not feed.read:
            time.sleep(0.001)
        assert runner.statistics()[0]["error"] == ""
        gate.set()


def test_turns_are_taken(plan: Plan) -> None:
    """One thread, three streams with frames at hand: nobody is two frames ahead."""
    order: list[int] = []
    feeds = [Feed(lambda k=k: FakeVideo(greys(30, k)), size=30) for k in range(3)]
    runner = Runner(plan, feeds, on_output=lambda k, number, y: order.append(k))
    for feed in feeds:
        feed.on_change = lambda: None
        feed.start()
    while any(len(feed.inbox) < 30 for feed in feeds):
        time.sleep(0.001)
    for lane in runner._lanes:
        runner._list(lane)
    for thread in runner._threads:
        thread.start()
    assert runner.wait(60)
    runner.stop()
    assert order == [0, 1, 2] * 30


def test_figures_by_hand() -> None:
    class TenMacs:
        dense_macs = 10

    figures = Figures(TenMacs())  # type: ignore[arg-type]
    assert figures.summary()["op_density"] is None
    figures.add(10, 50.0, 1.0)
    figures.add(1, 4.0, 2.0)
    figures.add(4, 6.0, 8.0)
    assert figures.summary() == {
        "frames": 3,
        "op_density": 0.25,
        "op_density_with_first_frame": 0.5,
        "time_ms": {"first": 50.0, "median": 5.0, "p95": pytest.approx(5.9)},
        "wait_ms": {"median": 5.0, "p95": pytest.approx(7.7)},
    }
    for _ in range(5000):
        figures.add(1, 1.0, 1.0)
    assert len(figures._times_ms) == 1000


def test_files(small_plan: Path, square: Path) -> None:
    seen: dict[int, int] = defaultdict(int)
    said: list[Any] = []
    result = run_many(
        small_plan,
        [str(square)] * 3,
        threads=2,
        on_output=lambda k, number, y: seen.update({k: seen[k] + 1}),
        progress=said.append,
        every_s=0.0,
    )
    json.dumps(result, allow_nan=False)
    assert dict(seen) == {0: 10, 1: 10, 2: 10}
    assert (result["frames"], result["dropped"], result["stopped"]) == (30, 0, False)
    assert result["flush"] == 1  # where nothing is said
    one = sparsetime.run.run_file(small_plan, str(square))
    for stream in result["streams"]:
        assert stream["op_density"] == pytest.approx(one["op_density"])
        assert (stream["state"], stream["damage"], stream["video"]) == ("ended", [], str(square))
    plan = Plan.load(small_plan)
    assert (result["state_bytes"], result["weight_bytes"]) == (3 * plan.state_bytes, plan.weight_bytes)


def test_one_name_is_no_list_of_videos(small_plan: Path) -> None:
    with pytest.raises(TypeError, match=r"expected a sequence of videos, got one name: \['a\.avi'\]"):
        run_many(small_plan, "a.avi")


def test_files_flushed_at_every_change(small_plan: Path, square: Path) -> None:
    result = run_many(small_plan, [str(square)], flush=1e-9)
    assert result["flush"] == 1e-9
    one, never = (sparsetime.run.run_file(small_plan, str(square), flush=x)["op_density"] for x in (1e-9, 0.0))
    assert result["streams"][0]["op_density"] == pytest.approx(one)
    assert one > never + 0.3  # the square walks in every frame: every second one is a flush


def test_the_command_passes_flush_on(small_plan: Path, square: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    register(app)
    for given, flush in (([], 1), (["--flush", "0"], 0)):
        command = ["many", str(small_plan), str(square), *given, "--json", str(tmp_path / "figures.json")]
        assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
        assert json.loads((tmp_path / "figures.json").read_text())["flush"] == flush


def test_an_error_of_the_callers_is_raised_when_the_others_have_ended(small_plan: Path, square: Path) -> None:
    got: list[tuple[int, int]] = []

    def see(index: int, number: int, outputs: Any) -> None:
        got.append((index, number))
        if (index, number) == (1, 2):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught:
        run_many(small_plan, [str(square)] * 3, threads=2, on_output=see)
    assert caught.traceback[-1].name == "see"
    assert sorted(got) == [(0, k) for k in range(10)] + [(1, k) for k in range(3)] + [(2, k) for k in range(10)]


def test_stop_is_asked(small_plan: Path, tmp_path: Path) -> None:
    video = save_square(tmp_path / "long.mkv", 600)
    result = run_many(small_plan, [str(video)], policy="drop-newest", stop=lambda: True)
    assert result["stopped"]
    assert result["streams"][0]["state"] == "ended"
    assert result["frames"] < 600  # they come at 20 a second: half a minute


def test_arguments_are_checked(plan: Plan, tmp_path: Path, square: Path) -> None:
    from tiny_plan import tiny

    with pytest.raises(ValueError, match="at least one thread"):
        Runner(plan, [])
    tiny().save(tmp_path / "two.plan")
    with pytest.raises(PlanError, match="three channels"):
        run_many(tmp_path / "two.plan", [str(square)])


@pytest.mark.data
def test_three_real_videos_at_a_time(plan: Plan, small_plan: Path, shared_data: Path) -> None:
    files = [
        str(shared_data / "static_videos" / name)
        for name in ("corridor_shop.avi", "escalator.avi", "asl_gestures/bird.mkv")
    ]
    digests: dict[int, list[bytes]] = defaultdict(list)
    result = run_many(
        small_plan, files, threads=2, frames=40, on_output=lambda k, number, y: digests[k].append(y.tobytes())
    )
    for k, file in enumerate(files):
        alone = plan.stream(flush=1.0)
        expected = [alone(shot.picture).tobytes() for shot in itertools.islice(Source(file, (24, 32)), 40)]
        assert digests[k] == expected
        assert result["streams"][k]["frames"] == 40
    assert result["dropped"] == 0
