"""Bodies in three dimensions: closed-form sight agrees with geometry done another way."""

import math

import pytest

torch = pytest.importorskip('torch')

from train.data.synthetic.bodies import Body, Parts, animal, axis_rotation, random_body, transform  # noqa: E402
from train.data.synthetic.random_source import RandomSource  # noqa: E402


@pytest.fixture
def random():
    """Seeded random numbers."""
    return RandomSource(torch.Generator().manual_seed(4))


def plain(axes, centre):
    """A white body of ellipsoids (T, K, 3, 3) and (T, K, 3) px, the camera still, no light."""
    frames, count = axes.shape[:2]
    camera, texture = torch.eye(3).expand(frames, 3, 3), torch.ones(3, 8, 8)
    offset, shade = torch.zeros(count, 2), torch.ones(count)
    return Body(Parts(axes, centre), camera, [texture] * count, offset, shade, torch.zeros(3))


def test_a_line_of_sight_meets_the_nearest_surface(random):
    # Against the surfaces as clouds of points, projected.
    axes, centre = 9 * random.normal(3, 3, 3), 10 * random.normal(3, 3) + 40
    body = plain(axes[None], centre[None])
    xy = random.uniform(1, 60, 2, low=20, high=60)
    cover, depth, part, u = body.look(xy)
    ball = torch.nn.functional.normalize(random.normal(100_000, 3), dim=-1)
    clouds = torch.einsum('kij,nj->kni', axes, ball) + centre[:, None]
    compared = 0
    for n in range(60):
        near = (clouds[..., :2] - xy[0, n]).norm(dim=-1) < 0.3
        if cover[0, n] == 0:
            assert not near.any()
        if cover[0, n] == 1 and near.any():
            first = clouds[..., 2].where(near, math.inf)
            assert depth[0, n] == pytest.approx(float(first.min()), abs=1.5)
            compared += 1
            place = axes[part[0, n]] @ u[0, n] + centre[part[0, n]]
            assert torch.allclose(place[:2], xy[0, n], atol=1e-3)
            assert u[0, n].norm() == pytest.approx(1, abs=1e-3)
    assert compared > 15


def test_coverage_is_the_share_of_a_pixel_that_is_covered():
    # A disc of radius 10.3: coverage summed over pixels is its area.
    body = plain(10.3 * torch.eye(3)[None, None], torch.tensor([[[20.2, 19.6, 0.0]]]))
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(40.0), indexing='ij')
    cover = body.look(torch.stack([x, y], -1).view(1, -1, 2))[0]
    assert float(cover.sum()) == pytest.approx(math.pi * 10.3**2, rel=0.005)


def test_a_point_of_a_turning_ball_goes_round_and_is_hidden_behind():
    frames = 24
    angle = torch.arange(frames) * (2 * math.pi / frames)
    turn = axis_rotation(1, angle)[:, None]
    body = plain(10 * turn, torch.tensor([20.0, 20.0, 0.0]).expand(frames, 1, 3))
    track, hidden = body.follow(torch.tensor([[20.0, 20.0]]), torch.tensor([0]))
    assert torch.allclose(track[:, 0, 0], 20 - 10 * angle.sin(), atol=1e-3)
    assert torch.allclose(track[:, 0, 1], torch.full((frames,), 20.0), atol=1e-3)
    edge = angle.cos().abs() < 0.1
    assert torch.equal(hidden[~edge, 0], angle.cos()[~edge] < 0)


def test_the_camera_moves_tracks_and_pixels_alike(random):
    times = torch.arange(5.0)
    camera = torch.eye(3).repeat(5, 1, 1)
    camera[:, 0, 2], camera[:, 1, 1] = 3 * times, 1.1
    body = random_body(random, times, camera, random.uniform(3, 64, 64), (96, 128), 0.0)
    image = torch.zeros(5, 3, 96, 128)
    body.draw(image)
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(128.0), indexing='ij')
    cover = body.look(torch.stack([x, y], -1).view(1, -1, 2).expand(5, -1, -1))[0]
    drawn = image.amax(1).flatten(1) > 0.05
    assert (drawn == (cover > 0.5)).float().mean() > 0.98
    assert drawn.any(1).all()


def test_the_parts_of_an_animal_hang_together_and_its_legs_move(random):
    times = torch.arange(12.0)
    for _ in range(3):
        parts = animal(random, times)
        for leg in range(5, 17, 3):
            for k in (leg, leg + 1):  # the end of a bone is inside the next one
                end = parts.centre[:, k] + 0.85 * parts.axes[:, k, :, 0]
                local = torch.linalg.solve(parts.axes[:, k + 1], end - parts.centre[:, k + 1])
                assert (local.norm(dim=-1) < 1.6).all()
            assert parts.centre[:, leg + 2].std(0).norm() > 0.01
        assert parts.centre[:, 0].std(0).norm() == 0


def test_transform_is_the_homography(random):
    matrix, xy = torch.eye(3) + 0.01 * random.normal(4, 3, 3), random.uniform(4, 5, 6, 2)
    full = torch.cat([xy, torch.ones(4, 5, 6, 1)], -1) @ matrix.transpose(1, 2)[:, None]
    assert torch.allclose(transform(matrix, xy), full[..., :2] / full[..., 2:], atol=1e-5)
