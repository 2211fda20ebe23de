"""Who may see the page, and that nothing else can be seen."""

import asyncio
import http.client
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from sparsetime.live.server import Hub, is_loopback

aiohttp = pytest.importorskip("aiohttp", reason="needs aiohttp")


def ask(address: str, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a GET whose path is sent as it is."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc.rpartition("@")[2], timeout=60)
    try:
        connection.putrequest("GET", path, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


@pytest.fixture(scope="module")
def here(watch: Callable[..., Any], small_plan: Path, square: Path) -> Any:
    return watch(small_plan, square)


@pytest.fixture(scope="module")
def everywhere(watch: Callable[..., Any], small_plan: Path, square: Path) -> Any:
    return watch(small_plan, square, "--host", "0.0.0.0")


def local(address: str) -> tuple[str, str]:
    """The address by the loopback name, and the token."""
    parts = urlsplit(address)
    return f"http://127.0.0.1:{parts.port}", parts.query.removeprefix("token=")


async def talk(address: str, commands: list[str], messages: int, **headers: str) -> list[Any]:
    """What comes over the socket."""
    origin = {"Origin": address}
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{address}/live", headers=origin | headers) as socket,
    ):
        for command in commands:
            await socket.send_str(command)
        return [await asyncio.wait_for(socket.receive(), 60) for _ in range(messages)]


def test_the_page_is_three_files_that_fetch_nothing_else(here: Any) -> None:
    for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
        status, headers, body = ask(here.address, path)
        assert (status, headers["Content-Type"]) == (200, f"{kind}; charset=utf-8")
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert b"//" not in re.sub(rb"\$\{[^}]*\}://", b"", body).replace(b"/* ", b"")  # no other address
    assert urlsplit(here.address).hostname == "127.0.0.1"


@pytest.mark.parametrize(
    "path",
    [
        "/../server.py",
        "/page/../server.py",
        "/..%2fserver.py",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/page.py",
        "/live/x",
    ],
)
def test_no_other_path_is_there(here: Any, path: str) -> None:
    status, _, body = ask(here.address, path)
    assert status == 404
    assert b"import" not in body
    assert b"root:" not in body


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "[", "10.0.0.1"]
)
def test_other_host_names_are_refused(here: Any, host: str) -> None:
    assert ask(here.address, "/", Host=host)[0] in (400, 421)
    assert ask(here.address, "/live", Host=host, Origin=f"http://{host}")[0] in (400, 421)


def test_loopback_names_are_known(here: Any) -> None:
    port = urlsplit(here.address).port
    for host in ("localhost", f"localhost:{port}", "127.0.0.1", f"[::1]:{port}"):
        assert ask(here.address, "/", Host=host)[0] == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "", "file://{host}", "http://{host}.evil.example"])
def test_other_pages_cannot_open_the_socket(here: Any, origin: str) -> None:
    origin = origin.format(host=urlsplit(here.address).netloc)
    with pytest.raises(aiohttp.WSServerHandshakeError) as error:
        asyncio.run(talk(here.address.rstrip("/"), [], 1, Origin=origin))
    assert error.value.status == 403


def test_the_socket_tells_and_obeys(here: Any) -> None:
    hello, *frames = asyncio.run(talk(here.address.rstrip("/"), ['{"do": "play"}'], 5))
    about = json.loads(hello.data)
    assert (about["input_size"], len(about["layers"])) == ([24, 32], 3)
    assert all(frame.type is aiohttp.WSMsgType.BINARY for frame in frames)


@pytest.mark.parametrize("text", ["nonsense", '{"do": "layer", "layer": 99}', "x" * 2000])
def test_what_is_no_command_ends_the_socket(here: Any, text: str) -> None:
    found = asyncio.run(talk(here.address.rstrip("/"), ['{"do": "pause"}', text], 8))
    closed = [each for each in found if each.type is aiohttp.WSMsgType.CLOSE]
    assert closed[0].data in (1008, 1009)
    assert ask(here.address, "/")[0] == 200


def test_viewers_are_counted(here: Any) -> None:
    address = here.address.rstrip("/")

    async def crowd() -> int:
        async with aiohttp.ClientSession() as session:
            sockets = [await session.ws_connect(f"{address}/live", headers={"Origin": address}) for _ in range(8)]
            with pytest.raises(aiohttp.WSServerHandshakeError) as error:
                await session.ws_connect(f"{address}/live", headers={"Origin": address})
            for socket in sockets:
                await socket.close()
            return error.value.status

    assert asyncio.run(crowd()) == 503
    deadline = time.monotonic() + 60
    while True:  # there is room again
        try:
            assert asyncio.run(talk(address, [], 1))
            break
        except aiohttp.WSServerHandshakeError:
            assert time.monotonic() < deadline


def test_elsewhere_a_token_is_needed(everywhere: Any) -> None:
    address, token = local(everywhere.address)
    assert len(token) == 32
    for path in ("/", "/page.js", "/live", "/?token=", f"/?token={token[:-1]}", f"/?token={token}x", "/?token=%ff%00"):
        status, _, body = ask(address, path, Origin=address)
        assert status in (400, 403), path
        assert token.encode() not in body
    assert ask(address, f"/page.js?token={token}")[0] == 403  # only the page takes it
    status, headers, body = ask(address, f"/?token={token}")
    assert (status, headers["Location"], body) == (303, "/", b"")
    cookie = headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    given = cookie.split(";")[0]
    for path in ("/", "/page.js", "/page.css"):
        assert ask(address, path, Cookie=given)[0] == 200
    assert ask(address, "/", Cookie=given + "x")[0] == 403
    with pytest.raises(aiohttp.WSServerHandshakeError):
        asyncio.run(talk(address, [], 1))
    assert asyncio.run(talk(address, [], 2, Cookie=given))[1].type is aiohttp.WSMsgType.BINARY


def test_elsewhere_names_are_checked_too(everywhere: Any) -> None:
    address, token = local(everywhere.address)
    assert ask(address, f"/?token={token}", Host="evil.example")[0] == 421
    assert ask(address, f"/?token={token}", Host="192.168.1.20:8765")[0] == 303


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("192.168.1.2", False), ("localhost.example", False), ("", False)],
)  # fmt: skip
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_a_slow_viewer_gets_the_newest() -> None:
    async def run() -> list[bytes]:
        hub = Hub(asyncio.get_running_loop())
        sent: list[bytes] = []

        class Slow:
            closed = False

            async def send_bytes(self, message: bytes) -> None:
                sent.append(message)
                if message == b"0":
                    for number in range(1, 1000):
                        hub.publish(b"%d" % number)
                await asyncio.sleep(0.01)
                self.closed = message == b"999"

        hub.publish(b"0")
        await asyncio.wait_for(hub.send(Slow()), 60)  # type: ignore[arg-type]
        return sent

    assert asyncio.run(run()) == [b"0", b"999"]


def test_ctrl_c_ends_it(watch: Callable[..., Any], small_plan: Path, square: Path, tmp_path: Path) -> None:
    shown = watch(small_plan, square, "--flush", "2.5", "--json", tmp_path / "figures.json")
    address = shown.address.rstrip("/")

    async def look() -> Any:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{address}/live", headers={"Origin": address}) as socket,
        ):
            for _ in range(6):
                await socket.receive()
            ended = asyncio.get_running_loop().run_in_executor(None, shown.interrupt)
            while (message := await asyncio.wait_for(socket.receive(), 60)).type is aiohttp.WSMsgType.BINARY:
                pass
            return message, await ended

    message, (code, out, err) = asyncio.run(look())
    assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1001)
    assert (code, err) == (0, "")
    assert "of the operations saved" in out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["frames"] >= 4
    assert figures["flush"] == 2.5
    assert 0 < figures["saved"] < 1


def test_a_port_that_is_taken_is_one_line(here: Any, small_plan: Path, square: Path) -> None:
    import typer
    from typer.testing import CliRunner

    from sparsetime.cli import watching

    app = typer.Typer()
    watching.register(app)
    port = urlsplit(here.address).port
    result = CliRunner().invoke(app, ["watch", str(small_plan), str(square), "--port", str(port)])
    assert result.exit_code == 1
    says = rf"sparsetime: error: cannot listen on 127.0.0.1, port {port}: .*address already in use.*--port.*\n"
    assert re.fullmatch(says, result.stderr)
