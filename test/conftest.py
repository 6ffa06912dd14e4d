"""Fixtures for tests over real DDS; nothing is imported where the ROS packages are missing."""

import contextlib
import ctypes
import fcntl
import functools
import gc
import importlib.util
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

# Set before any process joins a network: tests must not meet robots, nor each other.
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
_DOMAINS = itertools.count(random.SystemRandom().randrange(100))
if 'PYTEST_XDIST_WORKER' in os.environ:  # beside others: not all cores for the threads of each
    os.environ.setdefault('OMP_NUM_THREADS', '1')
# Packages that running does not need. A file of tests that imports one which is missing is
# skipped, as it is where `rosdep install` brought what package.xml names and no more.
OPTIONAL = (
    'aiohttp', 'av', 'fsspec', 'hypothesis', 'matplotlib', 'onnx', 'rosbags', 'safetensors',
    'scipy', 'skimage', 'torch', 'tqdm', 'yaml',
)  # fmt: skip
PATIENCE = 600.0  # seconds to wait for anything; a loaded machine is slow, not wrong
RESEND = 20.0  # seconds without an answer after which a service is called again

rng = np.random.default_rng(11)
# Large blobs of colour: something that can be tracked.
TEXTURE = np.kron(rng.integers(0, 256, (30, 40, 3), np.uint8), np.ones((16, 16, 1), np.uint8))
STEP_NS = 40_000_000  # between stamps


def texture(shift: int = 0) -> np.ndarray:
    """Return a picture (240, 320, 3) that moves `shift` pixels to the left."""
    return np.ascontiguousarray(TEXTURE[60:300, 100 + shift : 420 + shift])


def pytest_addoption(parser):
    if importlib.util.find_spec('pytest_timeout') is None:  # or pyproject.toml's is unknown
        parser.addini('timeout', 'seconds for a test; without pytest-timeout there is no limit')


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector):
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        missing = re.search(r"ModuleNotFoundError: No module named '(\w+)", str(report.longrepr))
        if missing and missing[1] in OPTIONAL:
            report.outcome = 'skipped'
            report.longrepr = (str(collector.fspath), 0, f'Skipped: needs {missing[1]}')


@pytest.fixture(scope='module', autouse=True)
def _freed_memory_goes_back():
    """Otherwise a worker keeps a gigabyte of networks that it is done with."""
    yield
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)


class Tracker:
    """A tracker process and, in this process, its camera and its clients on the same domain."""

    def __init__(self, domain: int, namespace: str, command: list, log) -> None:
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.qos import QoSProfile
        from sensor_msgs.msg import PointCloud2

        environment = {**os.environ, 'ROS_DOMAIN_ID': str(domain)}
        self.log, self.domain = log, domain
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = rclpy.create_node('peer', namespace=namespace, context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.tracks: list = []
        self.status: list = []
        self.stamp = time.time_ns()
        self.images = 0
        self._publishers: dict = {}
        self._clients: dict = {}
        self.node.create_subscription(
            PointCloud2, 'tracks', self.tracks.append, QoSProfile(depth=100)
        )
        self.node.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 10)
        with log.open('wb') as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)

    def _on_diagnostics(self, msg) -> None:
        """Keep what our tracker reports; others on the machine may be on the same domain."""
        own = f'{self.node.get_namespace()}/'
        self.status += [status for status in msg.status if status.name.startswith(own)]

    def close(self) -> None:
        self.end(signal.SIGINT)
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()

    def end(self, number: int, seconds: float = PATIENCE) -> int | None:
        """Send a signal and return the exit status, None if the process had to be killed."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return None

    def output(self) -> str:
        return self.log.read_text(errors='replace')

    def until(self, condition, seconds: float = PATIENCE):
        """Handle messages until the condition holds; returns its value."""
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < deadline, (
                f'waited in vain; the tracker said:\n{self.output()}'
            )
            assert self.process.poll() is None, f'the tracker ended and said:\n{self.output()}'
            self.executor.spin_once(timeout_sec=0.05)
        return value

    def publisher(self, kind, topic: str, qos=10):
        """Return a publisher that the tracker listens to."""
        if topic not in self._publishers:
            publisher = self.node.create_publisher(kind, topic, qos)
            publisher.publish = functools.partial(self._publish, publisher.publish)
            self._publishers[topic] = publisher
        publisher = self._publishers[topic]
        self.until(lambda: publisher.get_subscription_count())
        return publisher

    def _publish(self, publish, msg) -> None:
        """Publish, again and again if need be: on a busy machine the middleware may refuse."""
        from rclpy.impl.implementation_singleton import rclpy_implementation

        def taken() -> bool:
            try:
                publish(msg)
            except rclpy_implementation.RCLError:
                return False
            return True

        self.until(taken)

    def header(self):
        """Return the header of the next image."""
        from std_msgs.msg import Header

        self.stamp += STEP_NS
        header = Header(frame_id=f'optical_{self.stamp % 97}')
        header.stamp.sec, header.stamp.nanosec = divmod(self.stamp, 10**9)
        return header

    def image(self, picture: np.ndarray | None = None, **change):
        """Return the next image as a message, changed."""
        from cotracker_ros.ros.messages import array_to_image

        self.images += 1  # a camera that repeats itself counts as frozen
        picture = texture(self.images % 8) if picture is None else picture
        msg = array_to_image(picture, self.header())
        for name, value in change.items():
            setattr(msg, name, value)
        return msg

    def send(self, msg=None, topic: str = 'image'):
        """Publish an image and return it."""
        msg = self.image() if msg is None else msg
        self.publisher(type(msg), topic).publish(msg)
        return msg

    def track(self, picture: np.ndarray | None = None):
        """Publish an image; returns the rows of its tracks message."""
        from cotracker_ros.ros.messages import cloud_to_tracks

        msg = self.send(self.image(picture))
        wanted = msg.header
        answer = self.until(lambda: next((t for t in self.tracks if t.header == wanted), None))
        return cloud_to_tracks(answer)

    def warm_up(self) -> None:
        """Send images until one is answered: then all are connected. Then start anew."""
        from sensor_msgs.msg import Image
        from std_srvs.srv import Trigger

        publisher = self.publisher(Image, 'image')
        while not self.tracks:
            publisher.publish(self.image())
            deadline = time.monotonic() + 0.25
            self.until(lambda end=deadline: self.tracks or time.monotonic() > end)
        last = self.stamp
        sent = self.track()
        assert self.stamp > last and sent is not None
        self.call(Trigger, '~/reset')
        self.tracks.clear()

    def call(self, kind, service: str, request=None):
        """Call a service of the tracker and return the answer.

        The middleware drops the answer of a service that has known its client for less than
        0.1 s, as may be on a busy machine: then the call is repeated.
        """
        name = service.replace('~', 'tracker')
        if name not in self._clients:
            self._clients[name] = self.node.create_client(kind, name)
        client = self._clients[name]
        self.until(client.service_is_ready)
        request = request or kind.Request()
        futures, again = [], 0.0

        def answered():
            nonlocal again
            if time.monotonic() > again:
                again = time.monotonic() + RESEND
                futures.append(client.call_async(request))
            return next((future for future in futures if future.done()), None)

        return self.until(answered).result()

    def set(self, name: str, value):
        """Set a parameter; returns the result."""
        from rcl_interfaces.srv import SetParameters
        from rclpy.parameter import Parameter

        request = SetParameters.Request(
            parameters=[Parameter(name, value=value).to_parameter_msg()]
        )
        return self.call(SetParameters, '~/set_parameters', request).results[0]

    def said(self, text: str) -> bool:
        """Return whether a status since the last call of `diagnostic` had this text."""
        return any(text in status.message for status in self.status)

    def diagnostic(self, condition):
        """Wait for a later status that fulfils a condition on it and its values."""
        self.status.clear()

        def find():
            for status in self.status:
                if condition(status, {v.key: v.value for v in status.values}):
                    return status
            return None

        return self.until(find)


@pytest.fixture
def start_tracker(tmp_path):
    """Start trackers with parameters or another program in their place; ends them all.

    By ONNX Runtime unless told otherwise: OpenVINO compiles for two seconds of a core, and what
    engines compute is tested elsewhere.
    """
    pytest.importorskip('rclpy')
    started = []

    def start(program=('-m', 'cotracker_ros'), ready=True, extra=(), domain=None, **values):
        number = next(_DOMAINS)
        domain = domain or number % 100 + 1
        namespace = f'/test_{os.getpid()}_{number}'
        command = [sys.executable, *program, '--ros-args', *extra, '-r', f'__ns:={namespace}']
        for name, value in {'engine': 'onnxruntime', **values}.items():
            command += ['-p', f'{name}:={value}']
        log = tmp_path / f'tracker_{number}.log'
        tracker = Tracker(domain, namespace, command, log)
        started.append(tracker)
        if ready:
            tracker.warm_up()
        return tracker

    yield start
    for tracker in started:
        tracker.close()


@pytest.fixture(scope='session')
def small_checkpoint(tmp_path_factory):
    """A small real-time model that knows keypoints, with fresh weights."""
    torch = pytest.importorskip('torch')
    from safetensors.torch import save_file

    from cotracker_ros.model import build_model
    from cotracker_ros.model.checkpoint import checkpoint_metadata

    torch.manual_seed(0)
    plain = build_model('realtime', (64, 96)).state_dict()  # as the export draws them
    model = build_model('realtime', (64, 96), keypoints=17)
    model.load_state_dict(plain, strict=False)
    path = tmp_path_factory.mktemp('checkpoint') / 'small.safetensors'
    save_file(model.state_dict(), path, checkpoint_metadata(model))
    return path


@pytest.fixture(scope='session')
def exported(tmp_path_factory, small_checkpoint):
    """The step of `small_checkpoint`, exported once for all tests."""
    pytest.importorskip('onnxscript')
    from export import export_onnx

    folder = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:
        folder = folder.parent  # of all workers: the first one exports, the others wait
    path = folder / 'small.onnx'
    with (folder / 'small.lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            words = '--iterations 1 --resolution 64x96 --points 6 --frames 6'
            words = [*words.split(), '--checkpoint', str(small_checkpoint)]
            words += ['--output', str(path), '--provenance', 'a test']
            assert export_onnx.main(words) == 0
    return path
