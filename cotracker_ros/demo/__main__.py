"""See `run`."""

import sys

from cotracker_ros.demo.run import main

sys.exit(main())
