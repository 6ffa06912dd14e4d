"""The live view: its server with a client of ours, and all of it in a real browser."""
# ruff: noqa: E402

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from array import array

import cv2
import numpy as np
import pytest
from conftest import PATIENCE, texture

pytest.importorskip('rclpy', reason='needs ROS 2')
aiohttp = pytest.importorskip('aiohttp', reason='needs aiohttp')

from aiohttp import web
from sensor_msgs.msg import CompressedImage, Image, PointCloud2
from std_msgs.msg import Header
from std_srvs.srv import SetBool, Trigger

from cotracker_ros.live import server as live_server
from cotracker_ros.live.__main__ import main
from cotracker_ros.live.frames import MAX_WIDTH, Frame, pack
from cotracker_ros.live.node import NotAvailable
from cotracker_ros.live.server import LiveServer, host_allowed
from cotracker_ros.ros.messages import QUERY, TRACK, array_to_image, rows_to_cloud
from cotracker_ros.skeleton import NUMBER
from cotracker_ros.visualise import LEFT_COLOUR, RIGHT_COLOUR, id_colours


def rows(*places):
    """Rows of /tracks, ids from 1."""
    made = np.zeros(len(places), TRACK)
    for n, (x, y) in enumerate(places):
        made[n] = (x, y, 0, n + 1, 0.9, 0.8, 1, 7)
    return made


def frame(number: int, tracks=None, picture=None, stamp=(5, 6)) -> Frame:
    header = Header()
    header.stamp.sec, header.stamp.nanosec = stamp
    picture = texture() if picture is None else picture
    return Frame(number, array_to_image(picture, header), tracks, 0.02)


def unpacked(message: bytes) -> tuple[dict, np.ndarray, np.ndarray, bytes]:
    """As the docstring of `pack` says, apart from its code."""
    length = int.from_bytes(message[:4], 'little')
    header = json.loads(message[4 : 4 + length])
    at, count = 4 + length, header['points']
    assert at % 4 == 0
    tracks = np.frombuffer(message, TRACK, count, at)
    colours = np.frombuffer(message, '<u4', count, at + 32 * count)
    return header, tracks, colours, message[at + 36 * count :]


def test_a_frame_arrives_as_it_was():
    tracks = rows((10.5, 20), (300, 200))
    header, found, colours, jpeg = unpacked(pack(frame(3, tracks)))
    assert header['number'] == 3 and header['stamp'] == [5, 6] and header['size'] == [320, 240]
    assert header['tracked'] and found.tobytes() == tracks.tobytes()
    first = [int(c) for c in id_colours(np.array([1]))[0]]
    assert [colours[0] >> 16, colours[0] >> 8 & 255, colours[0] & 255] == first
    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.abs(picture.astype(int) - texture()).mean() < 15  # red and blue would differ by 80


def test_a_picture_of_12_bits_in_16_is_not_black():
    values = np.tile(np.linspace(0, 4095, 64).astype('<u2'), (48, 1))
    msg = Image(
        height=48, width=64, step=128, encoding='mono16', data=array('B', values.tobytes())
    )
    jpeg = unpacked(pack(Frame(1, msg, None, None)))[3]
    assert np.ptp(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)) > 150


def test_wide_pictures_are_reduced_and_compressed_ones_go_through():
    wide = np.zeros((400, 2 * MAX_WIDTH, 3), np.uint8)
    header, tracks, _, jpeg = unpacked(pack(frame(1, None, wide)))
    assert header['size'] == [2 * MAX_WIDTH, 400] and not header['tracked'] and not len(tracks)
    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (200, MAX_WIDTH, 3)
    sent = bytes(cv2.imencode('.png', wide)[1])
    header, _, _, received = unpacked(pack(Frame(1, CompressedImage(data=sent), None, None)))
    assert header['size'] is None and received == sent


@pytest.mark.parametrize(
    'host, address, allowed',
    [
        ('127.0.0.1:8080', '127.0.0.1', True),
        ('localhost:9000', '127.0.0.1', True),  # through ssh -L 9000:localhost:8080
        ('[::1]:8080', '127.0.0.1', True),
        ('evil.example:8080', '127.0.0.1', False),  # a name that resolves to 127.0.0.1
        ('192.168.1.5:8080', '127.0.0.1', False),
        ('localhost.evil.example', '127.0.0.1', False),
        ('', '127.0.0.1', False),
        ('192.168.1.5:8080', '0.0.0.0', True),
        ('evil.example:8080', '0.0.0.0', False),
        ('robot7', 'robot7', True),
    ],
)
def test_hosts(host, address, allowed):
    assert host_allowed(host, address) is allowed


class Node:
    """Stands in for LiveNode: remembers what it was asked for."""

    def __init__(self):
        self.watched, self.asked, self.absent = False, [], False

    def add_point(self, xy, stamp):
        if self.absent:
            raise NotAvailable('no tracker listens')
        self.asked.append(('add', xy, stamp))

    def remove_point(self, point_id):
        self.asked.append(('remove', point_id))

    def call(self, service, on=None):
        self.asked.append((service, on))
        future = rclpy_future()
        answer = Trigger.Response(success=True, message=f'{service} done')
        threading.Timer(0, future.set_result, [answer]).start()  # as the executor's thread does
        return future

    def report(self):
        return {'rate': 30.0, 'level': 'ok', 'message': 'tracking', 'values': {}, 'paused': False}


def rclpy_future():
    from rclpy.task import Future

    return Future()


@contextlib.asynccontextmanager
async def served(address='127.0.0.1', token=None):
    """A server with a stand-in node: yields the server, the node, a session and the URL."""
    node = Node()
    server = LiveServer(node, address, token)
    runner = web.AppRunner(server.application(), access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.TCPSite(runner, '127.0.0.1', 0).start()
        url = f'http://127.0.0.1:{runner.addresses[0][1]}'
        jar = aiohttp.CookieJar(unsafe=True)  # cookies of an IP address
        async with aiohttp.ClientSession(cookie_jar=jar) as session:
            yield server, node, session, url
    finally:
        await runner.cleanup()


async def status(session, url, **headers) -> int:
    async with session.get(url, headers=headers) as answer:
        return answer.status


def connected(session, url):
    """The WebSocket of a page of this server."""
    return session.ws_connect(f'{url}/live', headers={'Origin': url})


async def said(channel) -> dict:
    """The next answer to a command."""
    while True:
        message = await asyncio.wait_for(channel.receive(), PATIENCE)
        if message.type == aiohttp.WSMsgType.TEXT and 'say' in json.loads(message.data):
            return json.loads(message.data)
        assert message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY)


def test_pages_elsewhere_cannot_use_the_server():
    async def run():
        async with served() as (_, node, session, url):
            for path in ('/', '/live.js', '/live.css', '/skeleton.json'):
                assert await status(session, url + path) == 200
            async with session.get(url) as answer:
                assert "frame-ancestors 'none'" in answer.headers['Content-Security-Policy']
            assert await status(session, url, Host='evil.example') == 403
            assert await status(session, url, Origin='http://evil.example') == 403
            assert await status(session, f'{url}/../server.py') == 404
            for origin in ('http://evil.example', 'null', url.replace('http', 'x', 1) + '0', None):
                headers = {} if origin is None else {'Origin': origin}
                with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                    await session.ws_connect(f'{url}/live', headers=headers)
                assert refused.value.status == 403
            assert not node.watched
            async with connected(session, url):
                assert node.watched

    asyncio.run(run())


def test_a_token_is_asked_for_and_becomes_a_cookie():
    async def run():
        async with served(token='s3cret') as (_, _, session, url):
            for path in (
                '/',
                '/live.js',
                '/skeleton.json',
                '/live',
                '/?token=',
                '/?token=s3cre',
                '/?token=ü',
            ):
                assert await status(session, url + path, Origin=url) == 401, path
            async with session.get(f'{url}/?token=s3cret', allow_redirects=False) as answer:
                assert answer.status == 302 and answer.headers['Location'] == '/'
                cookie = answer.headers['Set-Cookie']
                assert 'HttpOnly' in cookie and 'SameSite=Strict' in cookie
            assert await status(session, url) == 200
            async with connected(session, url) as channel:
                await channel.send_str('{"do": "clear"}')
                assert (await said(channel))['say'] == 'clear done'

    asyncio.run(run())


@pytest.mark.parametrize(
    'text',
    [
        'x', '[]', '{}', '[' * 4000, '{"do": "reboot"}', '{"do": ["add"]}',
        '{"do": "clear", "now": 1}',
        '{"do": "add", "x": 1, "y": 2}',
        '{"do": "add", "x": NaN, "y": 2, "stamp": [1, 2]}',
        '{"do": "add", "x": 1, "y": true, "stamp": [1, 2]}',
        '{"do": "add", "x": 1, "y": 2, "stamp": [1, 1000000000]}',
        '{"do": "add", "x": 1, "y": 2, "stamp": [2147483648, 0]}',
        '{"do": "remove", "id": 0}', '{"do": "remove", "id": 4294967296}',
        '{"do": "remove", "id": 1.5}', '{"do": "enable", "on": 1}',
    ],
)  # fmt: skip
def test_wrong_commands_are_answered_and_change_nothing(text):
    async def run():
        async with served() as (_, node, session, url), connected(session, url) as channel:
            await channel.send_str(text)
            assert (await said(channel))['bad'] and not node.asked
            await channel.send_str('{"do": "remove", "id": 4294967295}')
            assert not (await said(channel))['bad']
            assert node.asked == [('remove', 2**32 - 1)]

    asyncio.run(run())


def test_commands_reach_the_node_and_its_refusals_the_browser():
    async def run():
        async with served() as (_, node, session, url), connected(session, url) as channel:
            await channel.send_str('{"do": "add", "x": 1.5, "y": 2, "stamp": [3, 4]}')
            assert not (await said(channel))['bad']
            await channel.send_str('{"do": "enable", "on": false}')
            assert (await said(channel))['say'] == 'enable done'
            assert node.asked == [('add', (1.5, 2), (3, 4)), ('enable', False)]
            node.absent = True
            await channel.send_str('{"do": "add", "x": 1.5, "y": 2, "stamp": [3, 4]}')
            assert await said(channel) == {'say': 'no tracker listens', 'bad': True}

    asyncio.run(run())


def test_a_slow_browser_delays_nobody_and_gets_the_newest_frame(monkeypatch):
    packed = []
    monkeypatch.setattr(live_server, 'pack', lambda f: packed.append(f.number) or pack(f))

    async def frame_of(channel) -> dict:
        while True:
            message = await asyncio.wait_for(channel.receive(), PATIENCE)
            assert message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY)
            if message.type == aiohttp.WSMsgType.BINARY:
                return unpacked(message.data)[0]

    async def run():
        async with (
            served() as (server, _, session, url),
            connected(session, url) as fast,
            connected(session, url) as slow,
        ):
            for number in range(1, 31):
                server.offer(frame(number, rows((number, 1))))
                assert (await frame_of(fast))['number'] == number
                await fast.send_str('{"do": "shown"}')
            assert (await frame_of(slow))['number'] == 1
            assert packed == list(range(1, 31))  # once each, for both
            await fast.close()
            for number in range(31, 41):  # nobody is ready: nothing is packed
                server.offer(frame(number))
                await asyncio.sleep(0)
            assert packed[-1] == 30
            await slow.send_str('{"do": "shown"}')
            assert (await frame_of(slow))['number'] == 40
            assert packed[30:] == [40]

    asyncio.run(run())


def test_an_image_that_cannot_be_shown_is_reported_and_the_next_one_is():
    async def run():
        async with served() as (server, _, session, url), connected(session, url) as channel:
            bad = Image(encoding='secret', width=2, height=2, step=2)
            server.offer(Frame(1, bad, None, None))
            while True:
                message = await asyncio.wait_for(channel.receive_str(), PATIENCE)
                report = json.loads(message)['report']
                if report['level'] == 'error':
                    break
            assert 'secret' in report['message']
            server.offer(frame(2))
            message = await asyncio.wait_for(channel.receive(), PATIENCE)
            assert unpacked(message.data)[0]['number'] == 2

    asyncio.run(run())


def test_without_aiohttp_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'aiohttp', None)
    assert main([]) == 1
    assert 'pip install aiohttp' in capsys.readouterr().err


# All of it


class Live:
    """A live view beside a tracker, and its URL."""

    def __init__(self, tracker, *options):
        environment = {**os.environ, 'ROS_DOMAIN_ID': str(tracker.domain)}
        command = [sys.executable, '-m', 'cotracker_ros.live', '--port', '0', *options]
        command += ['--ros-args', '-r', f'__ns:={tracker.node.get_namespace()}']
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.line = self.process.stdout.readline()
        self.url = self.line.split()[-1]

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self.process.stdout.close()


@pytest.fixture
def browser(tmp_path):
    """A Chromium without a screen, driven by Selenium."""
    webdriver = pytest.importorskip('selenium.webdriver', reason='needs selenium')
    names = ('chromium', 'chromium-browser', 'google-chrome')
    program = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which('chromedriver')
    if program is None or driver is None:
        pytest.skip('needs Chromium and its driver: apt install chromium chromium-driver')
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (
        '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
        '--disable-background-networking', '--disable-component-update', '--disable-sync',
        '--disable-dev-shm-usage', '--window-size=1000,860',
        f'--user-data-dir={tmp_path / "profile"}',
    ):  # fmt: skip
        options.add_argument(flag)
    service = webdriver.ChromeService(driver, log_output=str(tmp_path / 'driver.log'))
    chromium = webdriver.Chrome(options=options, service=service)
    try:
        yield chromium
    finally:
        chromium.quit()


def test_in_a_browser(start_tracker, browser):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    tracker = start_tracker(initial_grid=2)
    live = Live(tracker)
    seen = []  # rows of the newest tracks message

    def pump(condition):
        """Let the camera run until a condition on the page or the tracks holds."""

        def step():
            flicker = np.uint8(tracker.images % 2)  # the very same pixels would count as frozen
            tracker.send(tracker.image(texture() ^ flicker))
            tracker.executor.spin_once(timeout_sec=0.1)
            if tracker.tracks:
                seen[:] = [np.frombuffer(tracker.tracks[-1].data, TRACK)]
            return condition()

        return tracker.until(step)

    def text(name) -> str:
        return browser.find_element(By.ID, name).text

    def points() -> int:
        return len(seen[0]) if seen else -1

    def mouse_at(x, y) -> ActionChains:
        """The mouse over a pixel of the camera image."""
        canvas = browser.find_element(By.ID, 'picture')
        size = canvas.size
        left = (x + 0.5) * size['width'] / 320 - size['width'] / 2
        top = (y + 0.5) * size['height'] / 240 - size['height'] / 2
        return ActionChains(browser).move_to_element_with_offset(canvas, round(left), round(top))

    def click_at(x, y):
        mouse_at(x, y).click().perform()

    def colour_at(x, y) -> tuple:
        """What the page shows at a pixel of the camera image."""
        shot = screenshot()
        height, width = shot.shape[:2]
        return tuple(shot[int((y + 0.5) * height / 240), int((x + 0.5) * width / 320)].tolist())

    def screenshot() -> np.ndarray:
        png = browser.find_element(By.ID, 'picture').screenshot_as_png
        return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]

    try:
        browser.get(live.url)
        pump(lambda: text('points') == '4 of 4 points seen')
        pump(lambda: text('level') and text('rate').endswith('/s') and text('age').endswith('ms'))

        # The picture on the page is the camera's, the right way round.
        small = cv2.resize(screenshot(), (320, 240), interpolation=cv2.INTER_AREA).astype(int)
        # Tracks are drawn on it; another picture differs by over 80.
        assert np.abs(small - texture()).mean() < 20

        # A click adds a point where it was made; another one there removes it.
        before = set(seen[0]['id'].tolist())
        click_at(200, 90)
        pump(lambda: points() == 5)
        (new,) = set(seen[0]['id'].tolist()) - before
        first = next(
            row
            for msg in tracker.tracks
            for row in np.frombuffer(msg.data, TRACK)
            if row['id'] == new
        )
        assert abs(first['x'] - 200) < 2 and abs(first['y'] - 90) < 2
        pump(lambda: text('points').endswith('of 5 points seen'))
        row = seen[0][seen[0]['id'] == new][0]
        click_at(row['x'], row['y'])
        pump(lambda: points() == 4)
        assert set(seen[0]['id'].tolist()) == before

        # A body's keypoints have limbs in the colours of their sides, and names.
        person = np.zeros(4, QUERY)
        person['x'], person['y'] = [60, 60, 260, 260], [60, 190, 60, 190]
        person['keypoint'] = [
            NUMBER[f'{s}_{n}'] for s in ('left', 'right') for n in ('hip', 'knee')
        ]
        person['instance'] = 7
        tracker.publisher(PointCloud2, 'tracker/queries').publish(rows_to_cloud(person, Header()))
        pump(lambda: points() == 8)
        pump(lambda: text('points') == '8 of 8 points seen')
        for side, colour in ((0, LEFT_COLOUR), (2, RIGHT_COLOUR)):
            hip, knee = seen[0][4 + side : 6 + side]
            assert colour_at((hip['x'] + knee['x']) / 2, (hip['y'] + knee['y']) / 2) == colour
        mouse_at(hip['x'], hip['y']).perform()
        pump(lambda: text('hover').startswith('right_hip of 7, point '))

        browser.find_element(By.ID, 'clear').click()
        pump(lambda: points() == 0)
        pump(lambda: 'dropped 8 points' in text('said'))
        browser.find_element(By.ID, 'resample').click()
        pump(lambda: points() == 4)

        pause = browser.find_element(By.ID, 'pause')
        pause.click()
        pump(lambda: text('said') == 'paused')
        pump(lambda: text('pause') == 'Go on')
        pump(lambda: text('points') == 'no tracks')  # the picture goes on without them
        pause.click()
        pump(lambda: text('points').endswith('of 4 points seen'))
        tracker.call(SetBool, '~/enable', SetBool.Request(data=False))  # someone else
        pump(lambda: text('pause') == 'Go on')
        assert browser.get_log('browser') == []
    finally:
        assert live.end() == 0


def test_an_open_address_makes_a_token(start_tracker):
    tracker = start_tracker(ready=False)
    live = Live(tracker, '--address', '0.0.0.0')
    try:
        assert len(live.url.partition('?token=')[2]) >= 20
    finally:
        assert live.end() == 0


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_demo_with_a_live_view(tmp_path, number):
    command = [sys.executable, '-m', 'cotracker_ros.demo', '--live', '--port', '0']
    command += ['--output', str(tmp_path), '--grid', '2', '--rate', '5']
    demo = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        url = next(line.split()[-1] for line in demo.stdout if 'http' in line)
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            assert b'cotracker_ros live' in answer.read()
    finally:
        demo.send_signal(number)
        _, errors = demo.communicate(timeout=PATIENCE)
    assert demo.returncode == 0, errors
    with pytest.raises(urllib.error.URLError):  # its processes are gone too
        urllib.request.urlopen(url, timeout=PATIENCE)
