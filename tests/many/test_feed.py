"""Readers: order, rate, reconnecting, ends."""

import threading
import time
from itertools import pairwise

import pytest

from sparsetime.many import Backoff, Feed
from sparsetime.run.sources import SourceError

from .fake import FakeVideo, HandClock, attempts


def drain(feed: Feed) -> list[tuple[int, int]]:
    """(number, grey) of every frame."""
    feed.start()
    found = []
    while not feed.inbox.finished:
        arrival = feed.inbox.take(60)
        if arrival is not None:
            found.append((arrival.number, int(arrival.shot.picture[0, 0, 0])))
    feed.stop()
    return found


def test_a_file_comes_whole_and_in_order() -> None:
    feed = Feed(lambda: FakeVideo(list(range(50))), size=2)
    assert drain(feed) == [(k, k) for k in range(50)]
    assert (feed.state, feed.read, feed.inbox.dropped, feed.policy) == ("ended", 50, 0, "block")


def test_as_many_frames_as_asked_for() -> None:
    feed = Feed(lambda: FakeVideo(list(range(50)), live=True), size=50, frames=7)
    assert [number for number, _ in drain(feed)] == list(range(7))
    assert (feed.state, feed.policy) == ("ended", "drop-oldest")


def test_a_file_that_breaks_has_failed() -> None:
    feed = Feed(lambda: FakeVideo([1, 2, SourceError("fake: cut off")]))
    assert drain(feed) == [(0, 1), (1, 2)]
    assert (feed.state, feed.error, feed.reconnects) == ("failed", "fake: cut off", 0)


def test_delays_double_up_to_the_most_and_begin_again_after_a_frame() -> None:
    lost, away = [SourceError("no route to host")], [OSError("gone")]
    clock = HandClock(stop_after=9)
    opened = attempts(lost, away, lost, lost, lost, [5, 6], lost, lost, lost)
    feed = Feed(opened, size=9, backoff=Backoff(1, 10), clock=clock)
    assert drain(feed) == [(0, 5), (1, 6)]
    assert clock.waits == [1, 2, 4, 8, 10, 1, 2, 4, 8]
    assert (feed.reconnects, feed.read, feed.state, feed.error) == (8, 2, "ended", "no route to host")


def test_a_camera_is_given_up_after_so_many_attempts_in_a_row() -> None:
    clock = HandClock()
    feed = Feed(attempts([1], [SourceError("refused")]), backoff=Backoff(0.5, 60), clock=clock, retries=3)
    assert drain(feed) == [(0, 1)]
    assert clock.waits == [0.5, 1, 2]
    assert (feed.state, feed.error, feed.reconnects) == ("failed", "refused", 3)


def test_a_camera_that_ends_says_why() -> None:
    feed = Feed(attempts([1]), clock=HandClock(stop_after=1))
    drain(feed)
    assert feed.error == "the stream ended"


def test_back_off_by_hand() -> None:
    assert [Backoff(2, 30)(k) for k in (0, 1, 3, 4, 1000)] == [2, 4, 16, 30, 30]


def test_a_file_that_may_be_dropped_comes_at_its_own_rate() -> None:
    clock = HandClock()
    feed = Feed(lambda: FakeVideo(list(range(5))), size=9, policy="drop-oldest", clock=clock)
    feed.start()
    arrivals = []
    while not feed.inbox.finished:
        arrivals.append(feed.inbox.take(60))
    times = [arrival.at_s for arrival in arrivals if arrival is not None]
    assert [b - a for a, b in pairwise(times)] == pytest.approx([0.05] * 4)  # 20 frames a second


def test_stop_ends_a_reader_that_waits_for_room_and_one_that_waits_to_reconnect() -> None:
    full = Feed(lambda: FakeVideo(list(range(50))), size=1)
    away = Feed(attempts([SourceError("refused")]), backoff=Backoff(1000, 1000))
    for feed in (full, away):
        feed.start()
    deadline = time.monotonic() + 60
    while not (full.read == 2 and away.state == "waiting") and time.monotonic() < deadline:
        time.sleep(0.001)
    for feed in (full, away):
        feed.stop()
        assert not feed._thread.is_alive()
        assert feed.state == "ended"


def test_stop_leaves_a_reader_that_hangs() -> None:
    never = threading.Event()
    feed = Feed(lambda: FakeVideo([1, never.wait], live=True))
    feed.start()
    start = time.monotonic()
    feed.stop(0.1)
    assert time.monotonic() - start < 5
    assert feed.inbox.finished
    never.set()


def test_errors_of_the_arguments_are_raised_at_once() -> None:
    def no_file() -> FakeVideo:
        raise SourceError("x.mp4: there is no such file")

    with pytest.raises(SourceError, match="no such file"):
        Feed(no_file)
