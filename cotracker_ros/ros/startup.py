"""Begin and end a process of ROS: logs without a home, arguments that ROS refuses, signals."""

import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import rclpy
from rclpy.exceptions import (
    InvalidParameterTypeException,
    NameValidationException,
    ParameterException,
)
from rclpy.executors import ExternalShutdownException
from rclpy.utilities import remove_ros_args

Result = TypeVar('Result')


class StartError(RuntimeError):
    """ROS does not start; the text is one line for its user."""


def run(
    program: str,
    work: Callable[[], object],
    args: list[str] | None = None,
    failures: tuple[type[Exception], ...] = (),
) -> int:
    """Start ROS, do `work` until it ends or SIGINT or SIGTERM comes, and end ROS.

    Returns the exit status: 0; 1 after one of `failures`; 2 for arguments, parameters or names of
    topics that are refused. Of both the user gets one line.
    """

    def start_and_work() -> None:
        init(args)
        work()

    try:
        until_interrupted(start_and_work)
        return 0
    except failures as error:
        print(f'{program}: {error}', file=sys.stderr)
        return 1
    except (StartError, ParameterException, NameValidationException) as error:
        print(f'{program}: {in_one_line(error)}', file=sys.stderr)
        return 2
    finally:
        shutdown()


def in_one_line(error: Exception) -> str:
    """Return what an error says; of rclpy's, which point at characters in lines above, without
    these lines.
    """
    if not isinstance(error, (ParameterException, NameValidationException)):
        return str(error)
    what, *quoted = (line.strip() for line in str(error).splitlines())
    text = f'{what} {quoted[0]}' if quoted and quoted[0] else what
    if isinstance(error, InvalidParameterTypeException) and "expecting type 'DOUBLE'" in text:
        text += '; a number is written with its decimal point, such as 5.0'
    return text


def init(args: list[str] | None = None, **options) -> None:
    """rclpy.init, with a folder for logs in any case; raises StartError for bad arguments."""
    provide_log_folder()
    try:
        rclpy.init(args=args, **options)
    except RuntimeError as error:  # of several classes, which rclpy does not export
        text = str(error).removeprefix('failed to initialize rcl: ')
        raise StartError(re.sub(r', at [^ ]+:\d+', '', text).strip()) from None


def own_arguments(arguments: list[str]) -> list[str]:
    """Return the arguments of a program that are not for ROS, without its name."""
    try:
        return remove_ros_args(arguments)[1:]
    except RuntimeError:  # some for ROS are wrong: `init` will say which
        return []


def provide_log_folder() -> None:
    """Let ROS log to the folder for temporary files where it cannot write to its own.

    That is $ROS_LOG_DIR, $ROS_HOME/log or $HOME/.ros/log; without it ROS does not start.
    """
    home = os.environ.get('HOME')
    ros_home = os.environ.get('ROS_HOME') or (home and f'{home}/.ros')
    wanted = os.environ.get('ROS_LOG_DIR') or (ros_home and f'{ros_home}/log')
    if wanted and _is_writable(Path(wanted).expanduser()):
        return
    ours = Path(tempfile.gettempdir()) / f'cotracker_ros-{os.getuid()}' / 'log'
    if not _is_writable(ours):
        ours = Path(tempfile.mkdtemp(prefix='cotracker_ros-'))
    why = f'{wanted} cannot be written' if wanted else 'HOME is not set'
    print(f'logs go to {ours}: {why}', file=sys.stderr)
    os.environ['ROS_LOG_DIR'] = str(ours)


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def until_interrupted(work: Callable[[], Result]) -> Result | None:
    """Return what `work`, which starts ROS, returns; None where SIGINT or SIGTERM ended it.

    Once it has ended, signals do nothing any more: launch and impatient people send several, and
    the next one would cut the clean end short.
    """
    interrupted = threading.Event()
    try:
        try:
            interrupt_once(interrupted)
            result = work()
        finally:
            ignore_interrupts()
        return None if interrupted.is_set() else result
    # Out here, so that a signal is no error either where work ends by itself in that moment.
    except (KeyboardInterrupt, ExternalShutdownException):
        return None
    except StartError:
        raise
    # rclpy raises this and that where a signal comes in mid-call: it ends the context, or
    # pybind11 drops the KeyboardInterrupt for an error of its own.
    except Exception:
        if rclpy.ok() and not interrupted.is_set():
            raise
        return None


def interrupt_once(interrupted: threading.Event) -> None:
    """Set `interrupted` and raise KeyboardInterrupt for the first SIGINT or SIGTERM, and ignore
    those that follow.

    To be called before `init`, whose handlers end the context and call these.
    """

    def interrupt(number, frame):
        ignore_interrupts()
        interrupted.set()
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)


def ignore_interrupts() -> None:
    """Let nothing interrupt the end of the process, which must therefore be near."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # Python complains of a signal between SIG_IGN and rclpy's putting its own handler back.
        signal.signal(number, lambda number, frame: None)


def shutdown() -> None:
    """End ROS's part of the process; nothing interrupts it any more."""
    ignore_interrupts()
    rclpy.try_shutdown()
    rclpy.get_default_context().destroy()  # or files stay behind in /dev/shm
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # Python's end puts others back to SIG_DFL
