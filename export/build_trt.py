r"""Build a TensorRT engine of an exported model, on the computer that will run it.

    python export/build_trt.py realtime.onnx --output realtime.engine

The command line of cotracker_ros.engines.tensorrt_build, which says more.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script: the folder above holds both packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from cotracker_ros.engines.tensorrt_build import main

if __name__ == '__main__':
    sys.exit(main())
