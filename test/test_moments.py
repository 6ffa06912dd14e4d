"""Stamps that are times, and those that are not."""

import pytest

pytest.importorskip('rclpy', reason='the package of the node')

import itertools

from cotracker_ros.ros.moments import Moments


def of(moments: Moments, *pairs) -> list:
    return [moments.of(*pair) for pair in pairs]


def test_stamps_are_moments_where_they_are_times():
    moments = Moments()
    assert of(moments, (5.0, 100.0), (5.04, 100.1), (3.0, 100.2)) == [5.0, 5.04, 3.0]
    assert not moments.by_arrival
    assert moments.of_query(5.04, 100.3, 7.0) == 5.04 and moments.of_query(0, 100.3, 7.0) is None


def test_without_stamps_time_passes_by_arrival():
    moments = Moments()
    found = of(moments, *((0.0, 50 + k / 10) for k in range(12)))
    assert moments.by_arrival
    assert [b - a for a, b in itertools.pairwise(found)] == pytest.approx([0.1] * 11)
    assert moments.of_query(0.0, 51.2, 1e9) is None
    # A query stamped by the wall clock, 0.2 s ago: two images back.
    assert moments.of_query(1e9 - 0.2, 51.1, 1e9) == pytest.approx(found[-3])
    assert moments.of_query(1e9, 51.1, 0.0) is None


def test_a_stamp_that_stands_still_is_none_from_its_third_image_on():
    moments = Moments()
    found = of(moments, *((7.0, 20 + k / 10) for k in range(5)))
    assert found == pytest.approx([7.0, 7.0, 7.1, 7.2, 7.3])
    assert moments.by_arrival and moments.of_query(7.0, 20.5, 99.0) is None


@pytest.mark.parametrize('first', [0.0, 40.0])
def test_stamps_that_come_back_make_no_jump(first):
    moments = Moments()
    found = of(moments, *((first, 20 + k / 10) for k in range(5)))
    found += of(moments, (1000.0, 20.5), (1000.1, 20.6))
    assert [b - a for a, b in itertools.pairwise(found[2:])] == pytest.approx([0.1] * 4)
    assert not moments.by_arrival
    assert moments.of_query(1000.1, 20.7, 2000.0) == pytest.approx(found[-1])


def test_one_stamp_that_was_not_set_changes_nothing():
    moments = Moments()
    found = of(moments, (10.0, 1.0), (10.1, 1.11), (0.0, 1.2), (10.3, 1.31))
    assert found == pytest.approx([10.0, 10.1, 10.19, 10.3])
