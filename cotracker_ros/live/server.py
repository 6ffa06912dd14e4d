"""The web side of the live view: one page, one WebSocket, and who may use them."""

import asyncio
import contextlib
import hmac
import ipaddress
import json
import secrets
import socket
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import WSMsgType, web

from cotracker_ros.live.frames import Frame, pack
from cotracker_ros.live.node import NotAvailable
from cotracker_ros.ros.messages import MessageError
from cotracker_ros.skeleton import KEYPOINTS, LIMBS
from cotracker_ros.visualise import KEYPOINT_COLOURS, LIMB_COLOURS

PAGE = Path(__file__).parent / 'page'
FILES = {'/': 'index.html', '/live.css': 'live.css', '/live.js': 'live.js'}
COOKIE = 'cotracker_live'
MOST_VIEWERS = 16
REPORT_SECONDS = 1.0
HEADERS = {
    'Content-Security-Policy': "default-src 'self'; img-src 'self' blob: data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    'X-Frame-Options': 'DENY',
    'X-Content-Type-Options': 'nosniff',
    'Referrer-Policy': 'no-referrer',
    'Cache-Control': 'no-store',
}
SKELETON = {
    'keypoints': KEYPOINTS,
    'keypoint_colours': [f'#{bytes(colour).hex()}' for colour in KEYPOINT_COLOURS],
    'limbs': LIMBS,  # pairs of keypoints
    'limb_colours': [f'#{bytes(colour).hex()}' for colour in LIMB_COLOURS],
}


class Refused(ValueError):
    """A command of a browser that makes no sense or cannot be met."""


def is_loopback(address: str) -> bool:
    """Whether only programs of this machine can reach a server on this address."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == 'localhost'


def host_allowed(host: str, address: str) -> bool:
    """Whether a request to a server on `address` may carry this Host header.

    A page elsewhere can let its own name resolve to the robot (DNS rebinding) and is then, to the
    browser, of the same origin. Its Host is that name; so a Host must be an IP address or a name
    of this machine. The port may differ, as through `ssh -L`.
    """
    name = host.rsplit(':', 1)[0] if not host.endswith(']') else host
    name = name.strip('[]').lower()
    try:
        return ipaddress.ip_address(name).is_loopback or not is_loopback(address)
    except ValueError:
        pass
    own = {'localhost', address.lower()}
    if not is_loopback(address):
        machine = socket.gethostname().lower()
        own |= {machine, f'{machine.split(".")[0]}.local'}
    return name in own


class Viewer:
    """A browser; at most one frame is under way to it."""

    def __init__(self, socket_: web.WebSocketResponse) -> None:
        self.socket = socket_
        self.ready = asyncio.Event()
        self.ready.set()

    async def send(self, message: dict) -> None:
        """Send a text message, unless the browser has gone."""
        if not self.socket.closed:
            await self.socket.send_str(json.dumps(message))


class LiveServer:
    """Shows the newest frame to each browser that is ready for one; all others are dropped.

    A frame is packed once, and only when a browser waits for it. Everything here runs in one
    event loop, but for the packing, which has a thread.
    """

    def __init__(self, node, address: str, token: str | None) -> None:
        """`node`: a LiveNode. `token`: what a browser must know, None for anyone."""
        self._node, self._address, self._token = node, address, token
        self._viewers: set[Viewer] = set()
        self._newest: Frame | None = None
        self._arrived = asyncio.Event()
        self._packing = asyncio.Lock()
        self._packed = (0, b'')  # number of a frame and its message
        self._trouble = ''  # why the newest image cannot be shown

    def application(self) -> web.Application:
        """Return the aiohttp application."""
        app = web.Application(middlewares=[self._guard])
        app.router.add_get('/live', self._on_socket)
        for path in FILES:
            app.router.add_get(path, self._on_file)
        app.router.add_get('/skeleton.json', self._on_skeleton)
        app.cleanup_ctx.append(self._reporting)
        app.on_shutdown.append(self._on_shutdown)
        return app

    def offer(self, frame: Frame) -> None:
        """Take the newest frame; in the thread of the event loop."""
        self._newest = frame
        self._arrived.set()
        self._arrived = asyncio.Event()

    # Who may come in

    @web.middleware
    async def _guard(self, request: web.Request, handler) -> web.StreamResponse:
        """Refuse strange hosts, other origins and browsers without the token."""
        if not host_allowed(request.host, self._address):
            raise web.HTTPForbidden(text=f'this is not {request.host}\n')
        origin = request.headers.get('Origin')
        if origin is not None and urlsplit(origin).netloc != request.host:
            raise web.HTTPForbidden(text=f'pages of {origin} may not use this server\n')
        if self._token is not None:
            given = request.query.get('token')
            if given is not None and self._is_token(given):
                answer = web.HTTPFound(request.path)
                answer.set_cookie(COOKIE, self._token, httponly=True, samesite='Strict')
                raise answer
            if not self._is_token(request.cookies.get(COOKIE, '')):
                raise web.HTTPUnauthorized(text='open the address with ?token=... at its end\n')
        answer = await handler(request)
        if not answer.prepared:
            answer.headers.update(HEADERS)
        return answer

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), (self._token or '').encode())

    # Handlers

    async def _on_file(self, request: web.Request) -> web.FileResponse:
        return web.FileResponse(PAGE / FILES[request.path])

    async def _on_skeleton(self, request: web.Request) -> web.Response:
        return web.json_response(SKELETON)

    async def _on_socket(self, request: web.Request) -> web.WebSocketResponse:
        if 'Origin' not in request.headers:  # which every browser sends
            raise web.HTTPForbidden(text='a WebSocket needs the header Origin\n')
        if len(self._viewers) >= MOST_VIEWERS:
            raise web.HTTPServiceUnavailable(text=f'{MOST_VIEWERS} browsers are watching\n')
        channel = web.WebSocketResponse(heartbeat=10.0, max_msg_size=4096)
        await channel.prepare(request)
        viewer = Viewer(channel)
        self._viewers.add(viewer)
        self._node.watched = True
        showing = asyncio.create_task(self._show(viewer))
        try:
            async for message in channel:
                if message.type == WSMsgType.TEXT:
                    await self._obey(viewer, message.data)
        finally:
            showing.cancel()
            await asyncio.gather(showing, return_exceptions=True)
            self._viewers.discard(viewer)
            self._node.watched = bool(self._viewers)
        return channel

    async def _show(self, viewer: Viewer) -> None:
        """Send the newest frame whenever the browser has shown the last one."""
        shown = 0
        while not viewer.socket.closed:
            await viewer.ready.wait()
            try:
                shown, message = await self._message_after(shown)
                viewer.ready.clear()
                await viewer.socket.send_bytes(message)
            except ConnectionError:
                return

    async def _message_after(self, number: int) -> tuple[int, bytes]:
        """Wait for a frame newer than `number`; returns the newest's number and message."""
        while True:
            while self._newest is None or self._newest.number <= number:
                await self._arrived.wait()
            async with self._packing:
                frame = self._newest
                if self._packed[0] != frame.number:
                    try:
                        loop = asyncio.get_running_loop()
                        message = await loop.run_in_executor(None, pack, frame)
                    except MessageError as error:
                        self._trouble, number = str(error), frame.number
                        continue
                    self._packed, self._trouble = (frame.number, message), ''
                return self._packed

    async def _obey(self, viewer: Viewer, text: str) -> None:
        """Do what a browser asks for, and answer it."""
        try:
            command = _parsed(text)
            if command['do'] == 'shown':
                viewer.ready.set()
            else:
                await viewer.send({'say': await self._do(command), 'bad': False})
        except (Refused, NotAvailable) as error:
            await viewer.send({'say': str(error), 'bad': True})

    async def _do(self, command: dict) -> str:
        if command['do'] == 'add':
            x, y = command['x'], command['y']
            self._node.add_point((x, y), tuple(command['stamp']))
            return f'asked for a point at {x:.1f}, {y:.1f}'
        if command['do'] == 'remove':
            self._node.remove_point(command['id'])
            return f'removed point {command["id"]}'
        answered = asyncio.get_running_loop().create_future()
        loop = asyncio.get_running_loop()

        def answer(done) -> None:
            loop.call_soon_threadsafe(
                lambda: answered.done() or answered.set_result(done.result())
            )

        self._node.call(command['do'], command.get('on')).add_done_callback(answer)
        try:
            response = await asyncio.wait_for(answered, 5.0)
        except asyncio.TimeoutError:  # its own class before Python 3.11
            raise Refused(f'the tracker did not answer {command["do"]}') from None
        return response.message

    # Reports

    async def _reporting(self, app: web.Application):
        task = asyncio.create_task(self._report())
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def _report(self) -> None:
        """Tell all browsers once a second how things are."""
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            report = {'report': self._node.report()}
            if self._trouble:
                report['report'].update(level='error', message=self._trouble)
            await asyncio.gather(*(_send_report(viewer, report) for viewer in self._viewers))

    async def _on_shutdown(self, app: web.Application) -> None:
        for viewer in tuple(self._viewers):
            await viewer.socket.close(code=1001, message=b'the server stops')


async def _send_report(viewer: Viewer, report: dict) -> None:
    """Send a report; of a browser that reads nothing, give up when the next one is due."""
    with contextlib.suppress(ConnectionError, asyncio.TimeoutError):
        await asyncio.wait_for(viewer.send(report), REPORT_SECONDS)


def _parsed(text: str) -> dict:
    """Return a command whose values have the right types; raises Refused."""
    try:
        command = json.loads(text)
    except (ValueError, RecursionError):
        raise Refused('commands are JSON') from None
    checks = {
        'shown': {},
        'add': {'x': _is_number, 'y': _is_number, 'stamp': _is_stamp},
        'remove': {'id': lambda v: _is_whole(v, 1, 2**32)},
        'clear': {},
        'resample': {},
        'enable': {'on': lambda v: isinstance(v, bool)},
    }
    name = command.get('do') if isinstance(command, dict) else None
    if not isinstance(name, str) or name not in checks:
        raise Refused(f'a command is an object whose "do" is one of {", ".join(checks)}')
    needed = checks[name]
    if command.keys() != {'do', *needed}:
        raise Refused(f'{name} needs {", ".join(needed) or "nothing"} and no more')
    for key, is_right in needed.items():
        if not is_right(command[key]):
            raise Refused(f'{name}: {key} cannot be {command[key]!r}')
    return command


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6


def _is_whole(value: object, low: int, end: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value < end


def _is_stamp(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and _is_whole(value[0], -(2**31), 2**31)
        and _is_whole(value[1], 0, 10**9)
    )


def new_token() -> str:
    """Return a random token."""
    return secrets.token_urlsafe(18)
