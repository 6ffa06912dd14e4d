"""Run camera, tracker and live view until interrupted: `make demo LIVE=1`."""

import argparse
import json
import time

from cotracker_ros.demo.processes import Process, environments


def show(arguments: argparse.Namespace) -> None:
    """Start the three and say where to look; returns at an interrupt, raises DemoError."""
    everyone, with_profile = environments()
    camera = ['cotracker_ros.ros.camera', '--ros-args']
    if arguments.video is not None:  # as YAML, which ROS reads: a name may hold anything
        camera += ['-p', f'source:={json.dumps(arguments.video)}']
    if arguments.rate is not None:
        camera += ['-p', f'rate:={float(arguments.rate)}']
    tracker = ['cotracker_ros', '--ros-args', '-p', f'model:={arguments.model}']
    tracker += ['-p', f'engine:={arguments.engine}', '-p', f'initial_grid:={arguments.grid}']
    live = ['cotracker_ros.live', '--port', arguments.port]
    processes = []
    try:
        for name, command, environment in (
            ('live view', live, everyone),
            ('tracker', tracker, everyone),
            ('camera', camera, with_profile),
        ):
            log = arguments.output / f'{name.replace(" ", "_")}.log'
            processes.append(Process(name, command, environment, log))
        while True:
            for process in processes:
                process.check()
                while not process.lines.empty():
                    print(process.lines.get(), flush=True)
            time.sleep(0.2)
    except KeyboardInterrupt:
        print()
    finally:
        for process in processes:
            process.stop()
