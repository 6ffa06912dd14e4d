"""Find the files that lie beside the package: launch and config."""

from pathlib import Path


def resource_file(name: str) -> Path:
    """Return a file such as 'config/tracker.yaml' of a checkout, a wheel or a ROS workspace.

    All three put the package below the prefix that has `share`. Raises FileNotFoundError.
    """
    here = Path(__file__).resolve()
    places = [here.parents[2], *(p / 'share' / 'cotracker_ros' for p in here.parents)]
    for place in places:
        if (place / name).is_file():
            return place / name
    raise FileNotFoundError(f'{name} is neither in {here.parents[2]} nor in a share folder above')
