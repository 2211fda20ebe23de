"""The page and its frames over HTTP. All that is served is in this package or in memory: no path reaches a file.

Who may see it: on a loopback address whoever is on this machine; on any other address whoever has the token, which
comes once in the address of the page and stays in a cookie. Against pages of other sites in the same browser the host
that was asked for is checked (a name that an attacker points here is none of ours), and the origin of what opens the
socket.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import secrets
import signal
import socket
import threading
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from sparsetime.live.player import Player, parse_command

try:
    from aiohttp import WSMsgType, web
except ImportError as error:
    raise ImportError(
        "sparsetime watch needs aiohttp, which is not installed: pip install 'sparsetime[watch]'"
    ) from error

__all__ = ["Hub", "Server", "is_loopback", "serve"]

_FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_MOST_VIEWERS = 8
_MOST_BYTES = 1024  # of a command
_HEARTBEAT_S = 15.0  # a phone that went to sleep is noticed within this

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def is_loopback(host: str) -> bool:
    """Whether a host to listen on can be reached from this machine only."""
    if host == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())


class Hub:
    """The newest message, for any number of viewers. A viewer who is slow misses some; nothing piles up."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._newest: bytes | None = None
        self._told = False
        self._waiting: set[asyncio.Event] = set()

    def publish(self, message: bytes) -> None:
        """From any thread: this is the newest one."""
        with self._lock:
            self._newest = message
            if self._told:
                return
            self._told = True
        with suppress(RuntimeError):  # the loop is closed: nobody is there any more
            self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        with self._lock:
            self._told = False
        for event in self._waiting:
            event.set()

    async def send(self, viewer: web.WebSocketResponse) -> None:
        """Send what there is and what comes, until the viewer is gone."""
        changed = asyncio.Event()
        changed.set()
        self._waiting.add(changed)
        sent: bytes | None = None
        try:
            while not viewer.closed:
                await changed.wait()
                changed.clear()
                newest = self._newest
                if newest is not None and newest is not sent:
                    await viewer.send_bytes(newest)
                    sent = newest
        except ConnectionError:
            pass  # gone while it was being sent
        finally:
            self._waiting.discard(changed)


class Server:
    """The application: three files of the page, and the socket.

    Args:
        player: started and stopped by whoever made it.
        hub: brings its messages.
        host: that is listened on; the Host of a request has to be it, a loopback name, the name of this machine, or,
            with a token, an address in numbers.
        token: that a viewer must have; None: none.
    """

    def __init__(self, player: Player, hub: Hub, host: str, token: str | None) -> None:
        # aiohttp keeps every application in a cache until the process ends; native streams must die before that.
        self._player: Player = weakref.proxy(player)
        self._hub = hub
        self._token = token
        name = socket.gethostname().lower()
        self._hosts = {"localhost", "127.0.0.1", "::1", host.lower()}
        if token is not None:
            self._hosts |= {name, f"{name}.local"}
        self._viewers: set[web.WebSocketResponse] = set()
        self._begun = False

    def application(self) -> web.Application:
        """To be run."""

        @web.middleware  # which marks functions, and cannot mark methods
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self._guard(request, handler)

        app = web.Application(middlewares=[guard], client_max_size=_MOST_BYTES)
        for path in _FILES:
            app.router.add_get(path, self._file)
        app.router.add_get("/live", self._live)
        app.on_shutdown.append(self._close)
        return app

    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not self._known(request.headers.get("Host", "")):
            return _refusal(421, "this host name is not one of this page's")
        cookie = f"sparsetime-{request.url.port or 80}"  # browsers share cookies between the ports of a host
        if self._token is not None:
            given = request.query.get("token")
            if request.path == "/" and given is not None and _same(given, self._token):
                # The token goes into a cookie and out of the address, which ends up in histories and on screens.
                moved = web.Response(status=303, headers=_HEADERS | {"Location": "/"})
                moved.set_cookie(cookie, self._token, httponly=True, samesite="Strict", path="/")
                return moved
            if not _same(request.cookies.get(cookie, ""), self._token):
                return _refusal(403, "open the address that `sparsetime watch` printed, with its token")
        try:
            response = await handler(request)
        except web.HTTPException as error:
            return _refusal(error.status, error.reason)
        if not response.prepared:
            response.headers.update(_HEADERS)
        return response

    def _known(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self._hosts:
            return True
        if self._token is None:
            return False
        # A name could be pointed here by somebody else; an address in numbers cannot.
        with suppress(ValueError):
            return bool(ipaddress.ip_address(name))
        return False

    async def _file(self, request: web.Request) -> web.Response:
        name, kind = _FILES[request.path]
        text = (files("sparsetime.live") / "page" / name).read_text(encoding="utf-8")
        return web.Response(text=text, content_type=kind, charset="utf-8")

    async def _live(self, request: web.Request) -> web.StreamResponse:
        origin = urlsplit(request.headers.get("Origin", ""))
        if origin.scheme not in ("http", "https") or origin.netloc != request.headers["Host"]:
            return _refusal(403, "the socket is for this page only")
        if len(self._viewers) >= _MOST_VIEWERS:
            return _refusal(503, f"{_MOST_VIEWERS} viewers are the most")
        viewer = web.WebSocketResponse(heartbeat=_HEARTBEAT_S, max_msg_size=_MOST_BYTES, compress=False)
        await viewer.prepare(request)
        self._viewers.add(viewer)
        sending: asyncio.Task[None] | None = None
        try:
            await viewer.send_json(self._player.about())
            sending = asyncio.create_task(self._hub.send(viewer))
            if not self._begun:  # nobody has seen the beginning yet
                self._begun = True
                self._player.send(("play", 0))
            async for message in viewer:
                command = (
                    parse_command(message.data, len(self._player.layers)) if message.type is WSMsgType.TEXT else None
                )
                if command is None:
                    await viewer.close(code=1008, message=b"expected a command")
                    break
                self._player.send(command)
        except ConnectionError:
            pass
        finally:
            self._viewers.discard(viewer)
            if sending is not None:
                sending.cancel()
        return viewer

    async def _close(self, app: web.Application) -> None:
        for viewer in list(self._viewers):
            with suppress(ConnectionError, asyncio.TimeoutError):
                await asyncio.wait_for(viewer.close(code=1001, message=b"ended"), 1.0)


def _refusal(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=f"{text}\n", headers=_HEADERS)


def serve(
    player: Player, *, host: str = "127.0.0.1", port: int = 8765, ready: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Serve the page until Ctrl-C or SIGTERM.

    Args:
        player: not yet started.
        host: to listen on. One that other machines can reach makes a token, which the address then has in it.
        port: 0: any that is free.
        ready: called with the address of the page.

    Returns:
        The player's figures.

    Raises:
        OSError: the port is taken, or the host is not this machine's.
    """
    token = None if is_loopback(host) else secrets.token_urlsafe(24)
    asyncio.run(_serve(player, host, port, token, ready))
    return player.figures()


async def _serve(player: Player, host: str, port: int, token: str | None, ready: Callable[[str], None] | None) -> None:
    loop = asyncio.get_running_loop()
    hub = Hub(loop)
    player.on_message = hub.publish
    runner = web.AppRunner(Server(player, hub, host, token).application(), access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            reason = error.strerror or str(error)
            raise OSError(f"cannot listen on {host}, port {port}: {reason}; name another --port, or --host") from error
        ended = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(NotImplementedError, ValueError):  # Windows, or another thread: Ctrl-C is an exception there
                loop.add_signal_handler(number, ended.set)
        player.start()
        if ready is not None:
            ready(_address(host, runner.addresses[0][1], token))
        with suppress(asyncio.CancelledError):
            await ended.wait()
        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(NotImplementedError, ValueError):
                loop.remove_signal_handler(number)  # a second Ctrl-C ends at once
        await loop.run_in_executor(None, player.stop)
    finally:
        await runner.cleanup()


def _address(host: str, port: int, token: str | None) -> str:
    if host in ("0.0.0.0", "::"):
        host = _own_address()
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/" + (f"?token={token}" if token else "")


def _own_address() -> str:
    """The address that this machine has towards others. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address for documentation: routed, never reached
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()
