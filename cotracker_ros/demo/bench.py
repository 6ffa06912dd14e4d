"""Measure the node under a camera: rate, age, CPU and memory; `make bench-node`."""

import argparse
import math
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import PointCloud2

from cotracker_ros.demo.processes import DemoError, Process, environments
from cotracker_ros.signals import end_at_sigterm

WARM_UP = 5.0  # seconds that do not count


def usage(pid: int) -> tuple[float, float]:
    """Return the CPU seconds and the resident megabytes of a process."""
    fields = Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()
    seconds = (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')
    return seconds, int(fields[21]) * os.sysconf('SC_PAGE_SIZE') / 1e6


def measure(arguments: argparse.Namespace, folder: Path) -> str:
    """Run camera and node for a time; returns the line of figures. DemoError without tracks."""
    everyone, with_profile = environments()
    side = round(arguments.points**0.5)
    node = ['cotracker_ros', '--ros-args', '-p', f'initial_grid:={side}']
    node += ['-p', f'max_points:={side**2}', '-p', f'model:={arguments.model}']
    node += ['-p', f'engine:={arguments.engine}']
    camera = ['cotracker_ros.demo.camera', '--repeat', '--subscribers', 1]
    camera += ['--rate', arguments.rate, '--seconds', arguments.seconds + WARM_UP + 60]
    ages, samples = [], []

    def on_tracks(msg: PointCloud2) -> None:
        stamp = msg.header.stamp.sec * 10**9 + msg.header.stamp.nanosec
        ages.append((time.time_ns() - stamp) * 1e-6)

    context = rclpy.Context()
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    rclpy.init(context=context, domain_id=int(everyone['ROS_DOMAIN_ID']))
    peer = rclpy.create_node('bench', context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(peer)
    peer.create_subscription(PointCloud2, 'tracks', on_tracks, 100)
    processes = []
    try:
        processes.append(Process('tracker', node, everyone, folder / 'tracker.log'))
        processes.append(Process('camera', camera, with_profile, folder / 'camera.log'))

        def spin(seconds: float) -> None:
            end = time.monotonic() + seconds
            while (left := end - time.monotonic()) > 0:
                executor.spin_once(timeout_sec=left)
            for process in processes:
                process.check()

        begin = time.monotonic()
        while not ages:
            spin(0.2)
            if time.monotonic() - begin > 60:
                raise DemoError('no tracks came in 60 s')
        spin(WARM_UP)
        ages.clear()
        cpu = usage(processes[0].pid)[0]
        begin = time.monotonic()
        while time.monotonic() - begin < arguments.seconds:
            spin(1.0)
            samples.append((time.monotonic() - begin, usage(processes[0].pid)[1]))
        elapsed = time.monotonic() - begin
        cpu = (usage(processes[0].pid)[0] - cpu) / elapsed
    finally:
        for process in processes:
            process.close_input()
            process.stop()
        executor.shutdown()
        peer.destroy_node()
        context.try_shutdown()
    p50, p95, p99 = np.percentile(ages, (50, 95, 99))
    at, megabytes = np.array(samples[len(samples) // 2 :]).T  # the first half still fills queues
    slope = np.polyfit(at, megabytes, 1)[0] * 60 if len(at) > 2 else 0.0
    return (
        f'{arguments.rate:g} images/s, {side**2} points, {elapsed:.0f} s: '
        f'{len(ages) / elapsed:.1f} tracks messages/s, age at the subscriber p50 {p50:.1f} '
        f'p95 {p95:.1f} p99 {p99:.1f} ms, {cpu:.2f} cores, {megabytes[-1]:.0f} MB, '
        f'{slope:+.2f} MB/min'
    )


def main() -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--seconds', type=float, default=60)
    parser.add_argument('--rate', type=float, default=30, help='images a second')
    parser.add_argument('--points', type=int, default=64, help='a square number')
    parser.add_argument('--model', default='realtime')
    parser.add_argument('--engine', default='auto')
    arguments = parser.parse_args()
    if arguments.points < 1 or math.isqrt(arguments.points) ** 2 != arguments.points:
        parser.error(f'--points must be a square number such as 64, not {arguments.points}')
    end_at_sigterm()
    with tempfile.TemporaryDirectory() as folder:
        try:
            print(measure(arguments, Path(folder)))
        except DemoError as error:
            print(f'bench: {error}', file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
