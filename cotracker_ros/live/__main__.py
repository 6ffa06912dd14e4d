"""Serve the live view of a tracker: its picture with tracks, points by click, buttons."""

import argparse
import asyncio
import os
import signal
import sys
import threading

import rclpy
from rclpy.exceptions import InvalidTopicNameException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions
from rclpy.validate_topic_name import validate_topic_name

from cotracker_ros.live.node import LiveNode
from cotracker_ros.ros.startup import StartError, init, own_arguments

TOKEN_VARIABLE = 'COTRACKER_LIVE_TOKEN'


def parsed(args: list[str]) -> argparse.Namespace:
    """Return the options; those after --ros-args are ROS's."""
    parser = argparse.ArgumentParser(
        prog='cotracker-live',
        description=__doc__,
        epilog=f'A token can also come from {TOKEN_VARIABLE}, which no list of processes shows. '
        'Topics are image and tracks; --ros-args -r image:=/camera/image_raw renames one.',
    )
    parser.add_argument(
        '--address',
        default='127.0.0.1',
        help='address to listen on; others than 127.0.0.1 ask browsers for a token',
    )
    parser.add_argument('--port', type=int, default=8080, help='0: any that is free')
    parser.add_argument('--token', help='what browsers must know; else one is made where needed')
    parser.add_argument('--tracker', default='tracker', help='name of the tracker node')
    parser.add_argument(
        '--camera', default='', help='one of the cameras of the tracker, if several'
    )
    parser.add_argument('--compressed', action='store_true', help='show image/compressed')
    options = parser.parse_args(args)
    if not 0 <= options.port < 65536:
        parser.error(f'--port must be 0 to 65535, not {options.port}')
    for name in filter(None, (options.tracker, options.camera)):
        try:
            validate_topic_name(name)
        except InvalidTopicNameException:
            parser.error(f'{name!r} is no name of a tracker or camera')
    options.token = options.token or os.environ.get(TOKEN_VARIABLE) or None
    return options


async def serve(options: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit status."""
    from aiohttp import web

    from cotracker_ros.live.server import LiveServer, is_loopback, new_token

    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    token = options.token or (None if is_loopback(options.address) else new_token())

    def offer(frame) -> None:
        loop.call_soon_threadsafe(server.offer, frame)

    node = LiveNode(
        offer,
        options.tracker,
        options.camera,
        options.compressed,
    )
    server = LiveServer(node, options.address, token)
    runner = web.AppRunner(server.application(), access_log=None, shutdown_timeout=2.0)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    spinning = threading.Thread(target=_spin, args=(executor, loop, stop), daemon=True)
    try:
        await runner.setup()
        await web.TCPSite(runner, options.address, options.port).start()
        spinning.start()
        port = runner.addresses[0][1]
        host = f'[{options.address}]' if ':' in options.address else options.address
        query = f'/?token={token}' if token else '/'
        print(
            f'live view of {node.resolve_topic_name("image")}: http://{host}:{port}{query}',
            flush=True,
        )
        await stop.wait()
    except OSError as error:
        print(
            f'cotracker-live: {options.address}:{options.port}: {error.strerror}', file=sys.stderr
        )
        return 1
    finally:
        await runner.cleanup()
        executor.shutdown(timeout_sec=1.0)
        if spinning.ident is not None:
            spinning.join(2.0)
        node.destroy_node()
    return 0


def _spin(executor, loop, stop) -> None:
    """Handle messages until the executor is shut down; stop serving if that fails."""
    try:
        executor.spin()
    except ExternalShutdownException:
        pass
    finally:
        if not loop.is_closed():
            loop.call_soon_threadsafe(stop.set)


def main(args: list[str] | None = None) -> int:
    """Run the live view; returns the exit status."""
    arguments = sys.argv if args is None else ['cotracker-live', *args]
    options = parsed(own_arguments(arguments))
    try:
        import aiohttp  # noqa: F401
    except ImportError:
        print(
            'cotracker-live needs aiohttp: apt install python3-aiohttp, or pip install aiohttp',
            file=sys.stderr,
        )
        return 1
    try:
        init(arguments, signal_handler_options=SignalHandlerOptions.NO)
        return asyncio.run(serve(options))
    except StartError as error:
        print(f'cotracker-live: {error}', file=sys.stderr)
        return 2
    finally:
        rclpy.try_shutdown()
        rclpy.get_default_context().destroy()  # or files stay behind in /dev/shm


if __name__ == '__main__':
    sys.exit(main())
