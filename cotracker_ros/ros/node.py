"""The tracker node: images in, tracks out; a managed node that starts by itself."""

import ctypes
import functools
import gc
import os
import sys
import threading
import traceback
from dataclasses import replace

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from std_srvs.srv import SetBool, Trigger

from cotracker_ros.engines import EngineError
from cotracker_ros.ros import parameters
from cotracker_ros.ros.camera_tracker import CameraTracker
from cotracker_ros.ros.mailbox import Mailbox
from cotracker_ros.ros.publishing import send
from cotracker_ros.ros.startup import (
    StartError,
    in_one_line,
    init,
    shutdown,
    until_interrupted,
)
from cotracker_ros.streaming import StreamingTracker

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE
SLOTS = 64  # where max_points is 0, or more if more points are wanted
STOP_SECONDS = 1.0  # for the step in progress when the node must stop


def _transition(method):
    """Log why a transition fails; rclpy drops the exception without a word."""

    @functools.wraps(method)
    def guarded(self, state):
        try:
            method(self)
            return getattr(super(TrackerNode, self), method.__name__)(state)
        except (EngineError, ValueError, ParameterException) as error:
            self.get_logger().error(f'{method.__name__}: {in_one_line(error)}')
        except Exception:
            self.get_logger().error(f'{method.__name__}:\n{traceback.format_exc()}')
        return FAILURE

    return guarded


class TrackerNode(LifecycleNode):
    """Tracks points on each image, in a worker thread, as soon as the last one is done.

    unconfigured: parameters only; inactive: the model is loaded; active: it tracks.

    Each camera has a model and a step of its own. One step over the newest images of all cameras,
    which the exported file can do, is no faster: 0.97 to 1.04 times as fast with two cameras
    (ONNX Runtime on two cores, 16 to 256 points). And its state counts frames for all cameras at
    once, so a slow camera would have to wait, or repeat images.
    """

    def __init__(self) -> None:
        super().__init__('tracker')
        parameters.declare(self)
        self.parameters = parameters.values(self)
        self.enabled = True
        self._cameras: list[CameraTracker] = []
        self._mailbox: Mailbox | None = None
        self._worker: threading.Thread | None = None
        self._entities = []
        if hasattr(self, 'add_pre_set_parameters_callback'):  # not on Humble
            self.add_pre_set_parameters_callback(parameters.typed)
        self.add_on_set_parameters_callback(self._on_set_parameters)
        # Humble has no callback for values that were accepted.
        self._tells_what_was_set = hasattr(self, 'add_post_set_parameters_callback')
        if self._tells_what_was_set:
            self.add_post_set_parameters_callback(self._on_parameters_set)
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 1)

    # Transitions

    @_transition
    def on_configure(self) -> None:
        """Load the model."""
        p = self.parameters
        slots = p.max_points or max(SLOTS, _points_wanted(p))
        _check_points(p, slots)
        try:
            for name in p.cameras or ('',):
                tracker = StreamingTracker(p.model, slots, p.engine, p.threads)
                self._cameras.append(CameraTracker(self, tracker, name))
                self._cameras[-1].points.set_query_points(p.query_points)
        except Exception:
            self.release()
            raise
        self.get_logger().info(f'loaded {len(self._cameras)} x {tracker.engine}')

    @_transition
    def on_activate(self) -> None:
        """Subscribe and start the worker."""
        self._mailbox = Mailbox()
        self._worker = threading.Thread(target=self._work, args=(self._mailbox,), daemon=True)
        self._worker.start()
        for camera in self._cameras:
            camera.open(self._mailbox)
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # simulated time may stand still
        self._entities = [
            self.create_timer(1.0, self._report, clock=steady),
            self.create_timer(0.5, self._match_publishers, clock=steady),
            self.create_service(Trigger, '~/reset', self._on_reset),
            self.create_service(Trigger, '~/clear', self._on_clear),
            self.create_service(Trigger, '~/resample', self._on_resample),
            self.create_service(SetBool, '~/enable', self._on_enable),
        ]
        topics = ', '.join(camera.image_topic for camera in self._cameras)
        self.get_logger().info(f'tracking {topics}')

    @_transition
    def on_deactivate(self) -> None:
        """Stop the worker and unsubscribe; model and points stay."""
        self._deactivate()

    @_transition
    def on_cleanup(self) -> None:
        """Give the model back."""
        self.release()

    @_transition
    def on_shutdown(self) -> None:
        """Stop from any state."""
        self._deactivate()
        self.release()

    def on_error(self, state) -> TransitionCallbackReturn:
        """Return to unconfigured."""
        self._deactivate()
        self.release()
        return super().on_error(state)

    def _deactivate(self) -> None:
        for entity in self._entities:
            destroy = self.destroy_timer if hasattr(entity, 'is_ready') else self.destroy_service
            destroy(entity)
        self._entities = []
        for camera in self._cameras:
            camera.close()
        if not self.stop_worker(timeout=None):
            raise RuntimeError('the worker did not stop')

    def release(self, models: bool = True) -> None:
        """Give all topics back and, unless a step still runs in them, the models."""
        end = CameraTracker.destroy if models else CameraTracker.withdraw
        while self._cameras:
            end(self._cameras.pop())  # a variable would keep the last one beyond the next lines
        gc.collect()  # callbacks tie a camera to its subscriptions; its memory is wanted back now
        _trim_heap()

    def stop_worker(self, timeout: float | None) -> bool:
        """End the worker after its step; returns whether it ended within `timeout` seconds."""
        if self._worker is None:
            return True
        self._mailbox.close()
        self._worker.join(timeout)
        if self._worker.is_alive():
            return False
        self._worker = None
        return True

    # Work

    def _work(self, mailbox: Mailbox) -> None:
        while (item := mailbox.take()) is not None:
            camera, msg = item
            try:
                camera.process(msg)
            except Exception:  # a bug, or the middleware that has shut down: go on, but say so
                if self.context.ok():
                    camera.statistics.note('internal error; see the log', failed=1)
                    self.get_logger().error(traceback.format_exc(), throttle_duration_sec=5.0)
            del item, msg  # an image is large: do not keep it until the next one comes

    def _report(self) -> None:
        own = self.get_name(), self.get_namespace()
        if self.get_node_names_and_namespaces().count(own) > 1:
            name = self.get_fully_qualified_name()
            for camera in self._cameras:
                camera.statistics.note(f'another node is named {name} too')
        array = DiagnosticArray(status=[camera.report() for camera in self._cameras])
        array.header.stamp = self.get_clock().now().to_msg()
        send(self._diagnostics, array)  # or the next one, in a second

    def _match_publishers(self) -> None:
        for camera in self._cameras:
            camera.match_publishers()

    # Requests

    def _on_set_parameters(self, changes) -> SetParametersResult:
        """Say whether these values may be set; changes nothing."""
        try:
            changed = parameters.checked(changes)
            if self._cameras:
                _check_points(replace(self.parameters, **changed), self._cameras[0].slots)
                for camera in self._cameras if 'query_points' in changed else ():
                    camera.points.check_query_points(changed['query_points'])
        except ValueError as error:
            return SetParametersResult(successful=False, reason=str(error))
        if not self._tells_what_was_set:
            self._on_parameters_set(changes)
        return SetParametersResult(successful=True)

    def _on_parameters_set(self, changes) -> None:
        """Take over values that were set: as a whole, so that a step sees all of them or none."""
        changed = parameters.checked(changes)
        self.parameters = replace(self.parameters, **changed)
        for camera in self._cameras if 'query_points' in changed else ():
            camera.points.set_query_points(changed['query_points'])

    def _on_reset(self, request, response):
        count = sum(c.points.reset() for c in self._cameras)
        return _answer(response, f'dropped {count} points and all frames')

    def _on_clear(self, request, response):
        count = sum(c.points.clear() for c in self._cameras)
        return _answer(response, f'dropped {count} points')

    def _on_resample(self, request, response):
        count = sum(c.points.resample() for c in self._cameras)
        return _answer(response, f'replaced {count} points by the initial ones')

    def _on_enable(self, request, response):
        self.enabled = request.data
        return _answer(response, 'tracking' if self.enabled else 'paused')


def _trim_heap() -> None:
    """Hand freed memory to the system, where the C library is glibc.

    It keeps what lies below a block still in use: after a model was given back, 30 to 100 MB, more
    or less from one cycle to the next although all 21 MB in use were the same.
    """
    if sys.platform == 'linux':
        trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
        if trim is not None:
            trim(0)


def _answer(response, text: str):
    response.success, response.message = True, text
    return response


def _points_wanted(p) -> int:
    """Return for how many points there must be slots at the start."""
    return max(p.target_points, p.initial_grid**2 + p.initial_corners + len(p.query_points) // 2)


def _check_points(p, slots: int) -> None:
    """Raise ValueError unless the points that the parameters ask for fit the slots."""
    if _points_wanted(p) > slots:
        raise ValueError(
            f'initial_grid {p.initial_grid}, initial_corners {p.initial_corners}, '
            f'{len(p.query_points) // 2} query_points and target_points {p.target_points} need '
            f'{_points_wanted(p)} slots, but max_points is {slots}; start the '
            'node with max_points 0 to have as many as are needed'
        )


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; returns the exit status."""
    node, executor, status = None, None, 1

    def work() -> int:
        nonlocal node, executor
        init(args)
        node = TrackerNode()
        if node.get_parameter('autostart').value:
            started = node.trigger_configure() == SUCCESS and node.trigger_activate() == SUCCESS
            if not started:
                return 1 if rclpy.ok() else 0
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        executor.spin()
        return 0

    try:
        status = until_interrupted(work) or 0
    except (StartError, ParameterException, ValueError) as error:  # of the command line or a file
        print(f'tracker: {in_one_line(error)}', file=sys.stderr)
        status = 2
    finally:
        if node is not None:
            stopped = node.stop_worker(STOP_SECONDS)
            node.release(models=stopped)
            if executor is not None:
                executor.shutdown(timeout_sec=0)
            node.destroy_node()
            shutdown()
            if not stopped:
                # A step that takes seconds cannot be interrupted, and an ordinary exit would tear
                # its memory down under it. What the life cycle holds of the middleware, which
                # would leave files in /dev/shm, goes with the node's attributes.
                vars(node).clear()
                del executor
                gc.collect()
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
    return status


if __name__ == '__main__':
    sys.exit(main())
