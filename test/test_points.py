import numpy as np

from cotracker_ros.points import corners, grid, support_grid
from cotracker_ros.ros.point_manager import InvisibleFrames
from cotracker_ros.streaming import VISIBLE, Tracks

BOARD = np.zeros((120, 160, 3), np.uint8)
BOARD[40:80, 60:110] = 255  # four corners


def test_grid_takes_the_cell_centres():
    np.testing.assert_allclose(
        grid(2, (40, 80)), [[19.5, 9.5], [59.5, 9.5], [19.5, 29.5], [59.5, 29.5]]
    )
    assert grid(0, (40, 80)).shape == (0, 2)


def test_grid_on_a_mask():
    mask = np.zeros((40, 80), np.uint8)
    mask[10:20, 30:40] = 1
    np.testing.assert_allclose(grid(1, (40, 80), mask), [[34.5, 14.5]])
    mask[10:20, 30:36] = 0
    mask[5, 5] = 1
    assert all(mask[round(y), round(x)] for x, y in grid(6, (40, 80), mask))
    assert grid(3, (40, 80), np.zeros((40, 80), np.uint8)).shape == (0, 2)


def test_support_points_lie_within_the_published_margin_row_by_row():
    xy = support_grid(3, (384, 512))
    assert xy[:4].tolist() == [[8, 8], [256, 8], [504, 8], [8, 192]]
    assert xy[8].tolist() == [504, 376]
    assert support_grid(1, (384, 512)).tolist() == [[256, 192]]
    local = support_grid(8, (50, 50), (100.0, 60.0))
    np.testing.assert_allclose(local.mean(0), [100, 60])
    assert np.ptp(local[:, 0]) == 50 - 2 * 50 / 64


def test_corners_of_a_square():
    found = corners(BOARD, 10, np.zeros((0, 2)))
    expected = np.array([[60, 40], [109, 40], [60, 79], [109, 79]])
    distance = np.linalg.norm(found[:, None] - expected, axis=-1)
    assert len(found) == 4 and distance.min(0).max() < 2


def test_corners_keep_away_from_points_and_lie_on_the_mask():
    found = corners(BOARD, 10, np.array([[61.0, 41.0], [1e9, -1e9]]))
    assert len(found) == 3 and np.linalg.norm(found - [60, 40], axis=1).min() > 4
    mask = np.zeros((120, 160), np.uint8)
    mask[:, 90:] = 255
    assert (corners(BOARD, 10, np.zeros((0, 2)), mask)[:, 0] >= 89).all()
    assert len(corners(BOARD, 0, np.zeros((0, 2)))) == 0
    assert len(corners(np.zeros_like(BOARD), 5, np.zeros((0, 2)))) == 0


def tracks(ids: list, visible: list) -> Tracks:
    count = len(ids)
    flags = np.where(visible, VISIBLE, 0).astype(np.uint32)
    zero = np.zeros(count, np.float32)
    xy = np.zeros((count, 2), np.float32)
    return Tracks(0.0, np.array(ids, np.uint32), xy, zero, zero, zero, flags)


def test_consecutive_invisible_frames_are_counted():
    invisible = InvisibleFrames()
    told = [
        invisible.update(tracks(*state), 2).tolist()
        for state in (
            ([1, 2], [False, True]),
            ([1, 2], [True, False]),  # 1 came back
            ([1, 2, 3], [False, False, True]),
            ([2, 3], [False, False]),
            ([3], [False]),
        )
    ]
    assert told == [[], [], [2], [2], [3]]
    assert invisible.update(tracks([3], [False]), 0).tolist() == []


def test_invisible_of_no_points():
    assert InvisibleFrames().update(tracks([], []), 1).tolist() == []
