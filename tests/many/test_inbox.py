"""What a full queue does."""

import threading
import time

import pytest

from sparsetime.many import Inbox


@pytest.mark.parametrize(("policy", "kept", "dropped"), [("drop-oldest", [4, 5, 6], 4), ("drop-newest", [0, 1, 2], 4)])
def test_a_full_queue_drops(policy: str, kept: list[int], dropped: int) -> None:
    inbox: Inbox[int] = Inbox(3, policy)  # type: ignore[arg-type]
    for number in range(7):
        inbox.put(number)
    inbox.close()
    assert [inbox.take() for _ in range(4)] == [*kept, None]
    assert (inbox.dropped, inbox.finished, len(inbox)) == (dropped, True, 0)


def test_a_full_queue_blocks_until_there_is_room() -> None:
    inbox: Inbox[int] = Inbox(2, "block")
    put: list[int] = []

    def fill() -> None:
        for number in range(5):
            inbox.put(number)
            put.append(number)

    thread = threading.Thread(target=fill)
    thread.start()
    deadline = time.monotonic() + 60
    while len(put) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.05)
    assert put == [0, 1]
    assert [inbox.take(60) for _ in range(5)] == list(range(5))
    thread.join(60)
    assert inbox.dropped == 0


def test_close_ends_those_who_wait() -> None:
    inbox: Inbox[int] = Inbox(1, "block")
    inbox.put(1)
    putter = threading.Thread(target=inbox.put, args=(2,))
    putter.start()
    time.sleep(0.02)
    inbox.close(empty=True)
    putter.join(60)
    assert not putter.is_alive()
    assert inbox.take(10) is None  # at once, and without the item that came too late


def test_every_change_is_told() -> None:
    told: list[int] = []
    inbox: Inbox[int] = Inbox(2, "drop-newest", lambda: told.append(len(inbox)))
    for number in range(3):
        inbox.put(number)
    inbox.close()
    assert told == [1, 2, 2]  # a dropped one is no change


def test_arguments_are_checked() -> None:
    for size, policy in ((0, "block"), (1, "newest")):
        with pytest.raises(ValueError, match="at least 1 and a policy"):
            Inbox(size, policy)  # type: ignore[arg-type]
