"""Grey patches are found again to a small part of a pixel, whatever the light; what does not fit
says so.
"""

import numpy as np
import pytest

torch = pytest.importorskip('torch')
cv2 = pytest.importorskip('cv2')

from cotracker_ros.model.subpixel import AlignmentConfig, PatchAligner  # noqa: E402

SIZE, SCALE = (96, 128), 2


def texture(seed=0):
    """A smooth picture (384, 512, 3) float of twice the resolution that it is shown at."""
    rng = np.random.default_rng(seed)
    noise = sum(
        cv2.GaussianBlur(rng.normal(size=(384, 512)), (0, 0), s) * s for s in (2.5, 5, 10, 20)
    )
    return 128 + 45 * noise / noise.std()


def shown(scene, matrix=((1, 0, 0), (0, 1, 0)), gain=1.0, offset=0.0):
    """The scene moved by a matrix in model pixels, as a picture (1, 192, 256, 3) uint8."""
    (a, b, x), (c, d, y) = matrix
    # Model px m is px 4 m + 1.5 of the scene.
    centre = np.array([1.5, 1.5])
    linear = np.array([[a, b], [c, d]])
    move = 4 * np.array([x, y]) + centre - linear @ centre
    full = np.column_stack([linear, move])
    grey = cv2.warpAffine(
        scene, full, (512, 384), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT
    )
    grey = cv2.resize(grey, (256, 192), interpolation=cv2.INTER_AREA) * gain + offset
    image = np.repeat(np.clip(grey, 0, 255)[..., None], 3, -1).round().astype(np.uint8)
    return torch.from_numpy(image)[None]


@pytest.fixture(scope='module')
def aligner():
    return PatchAligner(AlignmentConfig(), SIZE, SCALE).requires_grad_(False)


@pytest.fixture(scope='module')
def scene():
    return texture()


POINTS = torch.tensor([[[40.0, 30.0], [64.3, 48.7], [90.0, 60.2]]])
UNITY = torch.eye(2).expand(1, 3, 2, 2)


def templates_of(aligner, pictures):
    return aligner.prepare(aligner.cut(pictures.colour, POINTS))


def align(aligner, pictures, template, xy, warp):
    """One place for each template."""
    found = aligner.align(pictures, template, xy[:, :, None], warp)
    return found._make(x[:, :, 0] for x in found)


def error(found, truth):
    return (found - torch.as_tensor(truth, dtype=torch.float32)).norm(dim=-1).max().item()


def test_a_shift_is_found_to_a_twentieth_of_a_pixel(aligner, scene):
    template = templates_of(aligner, aligner.pictures(shown(scene)))
    for x, y in ((0.3, -0.2), (1.7, 0.9), (-2.4, 1.3)):
        pictures = aligner.pictures(shown(scene, ((1, 0, x), (0, 1, y))))
        found = align(aligner, pictures, template, POINTS, UNITY)
        assert error(found.xy, POINTS + torch.tensor([x, y])) < 0.05
        assert found.fit.min() > 0.95


def test_a_still_picture_stays_still(aligner, scene):
    pictures = aligner.pictures(shown(scene))
    template = templates_of(aligner, pictures)
    assert error(align(aligner, pictures, template, POINTS, UNITY).xy, POINTS) < 5e-3


def test_brightness_and_contrast_move_nothing(aligner, scene):
    template = templates_of(aligner, aligner.pictures(shown(scene)))
    pictures = aligner.pictures(shown(scene, ((1, 0, 0.8), (0, 1, 0.4)), gain=0.6, offset=40))
    found = align(aligner, pictures, template, POINTS, UNITY)
    assert error(found.xy, POINTS + torch.tensor([0.8, 0.4])) < 0.03


def test_a_surface_that_turns_is_followed_by_its_first_template(aligner, scene):
    template = templates_of(aligner, aligner.pictures(shown(scene)))
    xy, warp = POINTS, UNITY
    plain = POINTS
    for degrees in range(2, 41, 2):
        angle = np.radians(degrees)
        c, s = np.cos(angle), np.sin(angle)
        turn = np.array([[c, -s], [s, c]])
        middle = np.array([64.0, 48.0])
        move = middle - turn @ middle
        pictures = aligner.pictures(shown(scene, np.column_stack([turn, move])))
        truth = (POINTS[0].numpy() - middle) @ turn.T + middle
        found = align(aligner, pictures, template, xy, warp)
        xy, warp = found.xy, aligner.deform(pictures, template, found.xy, warp)
        plain = align(aligner, pictures, template, plain, UNITY).xy
    assert error(xy[0], truth) < 0.1
    assert np.allclose(warp[0].numpy(), turn, atol=0.05)
    assert error(plain[0], truth) > 0.3  # without the warp the template no longer fits


def test_a_change_of_warp_grows_with_what_it_gains_and_does_not_jump(aligner, scene):
    """As a surface comes nearer, step by step: else rounding decides where it begins."""
    template = templates_of(aligner, aligner.pictures(shown(scene)))
    middle, warps = torch.tensor([64.0, 48.0]), []
    for nearer in np.linspace(0, 0.03, 61):
        move = -nearer * middle
        matrix = ((1 + nearer, 0, move[0]), (0, 1 + nearer, move[1]))
        pictures = aligner.pictures(shown(scene, matrix))
        truth = POINTS + nearer * (POINTS - middle)
        found = align(aligner, pictures, template, truth, UNITY)
        warps.append(aligner.deform(pictures, template, found.xy, UNITY))
    change = (torch.stack(warps) - UNITY).flatten(-2).norm(dim=-1)
    assert torch.all(change[0] == 0) and torch.all(change[-1] > 0.02)
    assert change.diff(dim=0).abs().max() < 0.01


def test_another_texture_does_not_fit(aligner, scene):
    template = templates_of(aligner, aligner.pictures(shown(scene)))
    found = align(aligner, aligner.pictures(shown(texture(1))), template, POINTS, UNITY)
    assert found.fit.max() < 0.75


def test_a_flat_picture_gives_finite_answers_and_no_fit(aligner):
    flat = torch.full((1, 192, 256, 3), 90, dtype=torch.uint8)
    pictures = aligner.pictures(flat)
    found = align(aligner, pictures, templates_of(aligner, pictures), POINTS, UNITY)
    assert torch.isfinite(found.xy).all() and error(found.xy, POINTS) < 1e-3
    assert found.fit.abs().max() < 0.1


def test_a_template_may_be_looked_for_at_two_places(aligner, scene):
    pictures = aligner.pictures(shown(scene))
    template = templates_of(aligner, pictures)
    places = torch.stack([POINTS, POINTS + torch.tensor([1.0, -1.0])], 2)
    both = aligner.align(pictures, template, places, UNITY)
    assert both.xy.shape == (1, 3, 2, 2)
    assert error(both.xy, POINTS[:, :, None]) < 0.02


def test_untrained_weights_fall_off_from_the_centre_alone(aligner, scene):
    templates = templates_of(aligner, aligner.pictures(shown(scene)))
    away = aligner.inner.norm(dim=-1)
    expected = torch.exp(-0.5 * (away / (0.6 * aligner.config.radius)) ** 2)
    for weight in (templates.place[..., -1, :], templates.warp[..., -1, :]):
        assert torch.allclose(weight, (expected / expected.sum()).expand_as(weight), atol=1e-6)


@pytest.mark.parametrize('side', [-1, 1])
def test_the_surface_whose_cells_count_is_followed(scene, side, monkeypatch):
    # Two surfaces that meet at the point and go apart; what their patches hold does not tell them
    # apart, so which cells count is given.
    aligner = PatchAligner(AlignmentConfig(), SIZE, SCALE).requires_grad_(False)
    shares = (aligner.inner[:, 0] * side > 0).float()
    monkeypatch.setattr(aligner.weights, 'forward', lambda x: shares.expand(*x.shape[:3], -1))
    point, move = POINTS[:, 1:2], 1.4
    first = shown(scene)
    templates = aligner.prepare(aligner.cut(aligner.pictures(first).colour, point))
    parts = [shown(scene, ((1, 0, way), (0, 1, 0))) for way in (-move, move)]
    left = torch.arange(first.shape[2])[:, None] < SCALE * (point[0, 0, 0] + 0.5)
    second = torch.where(left, *parts)
    found = align(aligner, aligner.pictures(second), templates, point, UNITY[:, :1])
    assert error(found.xy, point + torch.tensor([side * move, 0.0])) < 0.3
    assert found.fit.min() > 0.9


@pytest.mark.parametrize('unknowns', [2, 6])
def test_normal_equations_are_inverted(aligner, unknowns):
    rng = np.random.default_rng(0)
    basis = (
        torch.from_numpy(rng.normal(size=(1, 4, 6, 169))).float()
        * torch.tensor([9.0, 30, 5, 7, 20, 11])[:, None]
    )[..., :unknowns, :]
    normal = basis @ basis.transpose(-1, -2) / 169
    diagonal = torch.diagonal(normal, dim1=-2, dim2=-1)
    damped = normal + torch.diag_embed(diagonal * 0.01)
    assert torch.allclose(
        aligner.invert(normal, unknowns), torch.linalg.inv(damped), rtol=2e-2, atol=2e-4
    )
