"""Rendered people: rigid bones, the right side, and keypoints where the picture shows them."""

import math

import pytest

torch = pytest.importorskip('torch')

from cotracker_ros.skeleton import KEYPOINTS, NUMBER  # noqa: E402
from train.data.synthetic.bodies import Parts  # noqa: E402
from train.data.synthetic.people import (  # noqa: E402
    GROUND,
    POSES,
    SHIN,
    TEXTURES,
    THIGH,
    Figure,
    People,
    Place,
    hips_down,
    person,
    place_figure,
    random_people,
)
from train.data.synthetic.procedural import ProceduralVideo, SceneConfig  # noqa: E402
from train.data.synthetic.random_source import RandomSource  # noqa: E402

TIMES = torch.arange(24.0) - 11.5


@pytest.fixture
def random():
    """Seeded random numbers."""
    return RandomSource(torch.Generator().manual_seed(5))


def stand(random, heading, action='walk', away=0.0, times=TIMES):
    """A person of 200 px on the spot, seen straight on in 240 x 240 px."""
    pose = POSES[action](random, times)
    pose['drop'] = hips_down(pose)
    place = Place(
        torch.full_like(times, heading), torch.zeros_like(times), torch.full_like(times, away)
    )
    figure = person(random, pose)
    return place_figure(figure, place, torch.eye(3), 200, 200, torch.tensor([120.0, 120, 0]))


def as_people(figures, white=()):
    """Figures as a body without light, some parts white and the others black."""
    count = sum(len(f.material) for f in figures)
    texture = [torch.full((3, 4, 4), float(k in white)) for k in range(count)]
    return People(
        figures,
        [200.0 for f in figures if f.joints is not None],
        camera=torch.eye(3).expand(len(TIMES), 3, 3),
        texture=texture,
        offset=torch.zeros(count, 2),
        shade=torch.ones(count),
        sun=torch.zeros(3),
    )


@pytest.mark.parametrize('action', POSES)
def test_bones_are_rigid_and_feet_are_on_the_ground(random, action):
    pose = POSES[action](random, TIMES)
    pose['drop'] = hips_down(pose)
    joints = person(random, pose).joints

    def length(one, other):
        return (joints[:, NUMBER[one]] - joints[:, NUMBER[other]]).norm(dim=-1)

    for side in ('left', 'right'):
        for one, other in (('shoulder', 'elbow'), ('elbow', 'wrist'), ('hip', 'knee')):
            bone = length(f'{side}_{one}', f'{side}_{other}')
            assert bone.std() < 1e-5 and bone.mean() > 0.1
        assert torch.allclose(
            length(f'{side}_hip', f'{side}_knee'), torch.tensor(THIGH), atol=1e-5
        )
        assert torch.allclose(
            length(f'{side}_knee', f'{side}_ankle'), torch.tensor(SHIN), atol=1e-5
        )
    assert length('nose', 'left_ear').std() < 1e-5
    # Legs apart stand a little higher than legs that hang.
    lowest = torch.maximum(*(joints[:, NUMBER[f'{s}_ankle'], 1] for s in ('left', 'right')))
    assert ((lowest + pose['rise'] - (THIGH + SHIN)).abs() < 0.02).all()
    assert joints.std(0).norm(dim=-1).max() > 0.005


def test_a_walker_goes_as_fast_as_the_standing_foot_goes_back(random):
    times = torch.arange(400.0)
    pose = POSES['walk'](random, times)
    pose['drop'] = hips_down(pose)
    ankles = person(random, pose).joints[:, [NUMBER['left_ankle'], NUMBER['right_ankle']]]
    standing = ankles[..., 1].argmax(1, keepdim=True)
    forward = ankles[..., 0].gather(1, standing)[:, 0]
    same = standing[1:, 0] == standing[:-1, 0]
    back = -forward.diff()[same].mean()
    speed = pose['gone'].diff().mean()
    assert float(back) == pytest.approx(float(speed), rel=0.25)


def test_left_and_right_are_the_persons_own(random):
    left, right = NUMBER['left_shoulder'], NUMBER['right_shoulder']
    front = stand(random, math.pi / 2).joints  # faces the viewer
    assert (front[:, left, 0] > front[:, right, 0] + 20).all()
    nose, ear = front[:, NUMBER['nose'], 2], front[:, NUMBER['left_ear'], 2]
    assert (nose < ear).all()
    behind = stand(random, -math.pi / 2).joints
    assert (behind[:, left, 0] < behind[:, right, 0] - 20).all()


def test_keypoints_are_where_the_picture_shows_their_parts(random):
    figure = stand(random, 0.4, 'turn')
    # Drawn one part at a time: the nose's own ellipsoid and each hand.
    joints = figure.joints
    for name, part in (('nose', 6), ('left_wrist', 9), ('right_wrist', 15)):
        body = as_people([figure], white=(part,))
        image = torch.zeros(len(TIMES), 3, 240, 240)
        body.draw(image)
        xy = body.keypoints()[0]
        compared = 0
        for t in range(len(TIMES)):
            rows, columns = torch.nonzero(image[t, 0] > 0.5, as_tuple=True)
            if len(rows) < 4:
                continue
            middle = torch.stack([columns.float().mean(), rows.float().mean()])
            reach = 4 if name == 'nose' else 17  # a hand's middle is 0.04 heights off the wrist
            assert (middle - xy[t, NUMBER[name]]).norm() < reach
            compared += 1
        assert compared > 5
        assert torch.equal(xy, joints[..., :2])


def test_the_face_is_seen_from_the_front_and_the_far_side_is_hidden(random):
    numbers = {name: [NUMBER[n] for n in names] for name, names in {
        'face': ('nose', 'left_eye', 'right_eye'),
        'trunk': ('left_shoulder', 'right_shoulder', 'left_hip', 'right_hip'),
    }.items()}  # fmt: skip
    front = as_people([stand(random, math.pi / 2)]).keypoints()[1].float().mean(0)
    assert (front[numbers['face']] < 0.2).all() and (front[numbers['trunk']] < 0.5).all()
    behind = as_people([stand(random, -math.pi / 2)]).keypoints()[1].float().mean(0)
    assert (behind[numbers['face']] > 0.9).all() and (behind[numbers['trunk']] < 0.5).all()
    # Facing right, the person's left is away from the viewer.
    side = as_people([stand(random, 0.0)]).keypoints()[1].float().mean(0)
    for name in ('shoulder', 'hip', 'ear'):
        assert side[NUMBER[f'left_{name}']] > 0.9 > 0.1 > side[NUMBER[f'right_{name}']]


def test_the_nearer_person_hides_the_other_and_furniture_hides_both(random):
    near, far = stand(random, math.pi / 2), stand(random, math.pi / 2, away=0.5)
    body = as_people([near, far])
    assert body.keypoint.tolist() == [*range(17), *range(17)]
    assert body.instance.tolist() == [0] * 17 + [1] * 17
    hidden = body.keypoints()[1].float().mean(0)
    alone = as_people([far]).keypoints()[1].float().mean(0)
    assert hidden[17:].mean() > alone.mean() + 0.3
    # A board before the legs, as one flat ellipsoid.
    board = Figure(
        Parts(
            torch.diag(torch.tensor([90.0, 45.0, 3.0])).expand(len(TIMES), 1, 3, 3),
            torch.tensor([120.0, 120 + 200 * (GROUND - 0.2), -100]).expand(len(TIMES), 1, 3),
        ),
        [0],
    )
    hidden = as_people([near, board]).keypoints()[1].float().mean(0)
    legs = [n for n, name in enumerate(KEYPOINTS) if name.endswith(('knee', 'ankle'))]
    assert (hidden[legs] == 1).all() and (hidden[NUMBER['nose']] < 0.2).all()


@pytest.mark.parametrize('seed', range(4))
def test_two_who_pass_each_other_cross_and_the_nearer_hides_the_other(seed, monkeypatch):
    random = RandomSource(torch.Generator().manual_seed(seed))
    monkeypatch.setattr(random, 'number', chosen_first(random.number, 0.5))  # two who pass
    times = torch.arange(61.0) - 30
    camera = torch.eye(3).expand(len(times), 3, 3)
    body = random_people(random, times, camera, torch.rand(TEXTURES, 3, 4, 4), (240, 320), 0.0)
    assert body.instance.unique().tolist() == [0, 1]
    hips = [NUMBER['left_hip'], NUMBER['right_hip']]
    place = body.joints.unflatten(1, (2, 17))[:, :, hips].mean(2)  # (T, 2, 3) px
    apart = place[:, 1] - place[:, 0]
    ways = place[-1, :, 0] - place[0, :, 0]
    assert ways[0] * ways[1] < 0  # they walk opposite ways, along the picture, and cross
    assert apart[0, 0] * apart[-1, 0] < 0 and apart[30, 0].abs() < apart[[0, -1], 0].abs().min()
    assert (apart[:, 2] > 0).all()  # the first is the nearer one
    hidden = body.keypoints()[1].unflatten(1, (2, 17)).float().mean(2)
    crossing = int(apart[:, 0].abs().argmin())
    assert hidden[crossing, 1] > hidden[[0, -1], 1].mean()


def chosen_first(draw, first):
    """The function, but for its first value."""
    waiting = [first]
    return lambda *args, **kwargs: waiting.pop() if waiting else draw(*args, **kwargs)


def test_clips_hold_keypoints_first_and_other_points_after_them():
    scene = SceneConfig(size=(96, 128), frames=8, people=1.0, objects=(0, 2), photometric=0.0)
    source = ProceduralVideo(scene, 3, bank=2)
    clips = source.clips(2, 60)
    for b in range(2):
        named = clips.keypoint[b] >= 0
        count = int(named.sum())
        assert count > 8 and named[:count].all() and count < 60
        assert torch.equal(named, clips.instance[b] >= 0)
        pairs = torch.stack([clips.instance[b, :count], clips.keypoint[b, :count]], 1)
        assert len(pairs.unique(dim=0)) == count
        at = clips.query_frame[b], torch.arange(60)
        assert clips.visible[b][at].all()
        # asked for where they are first seen
        first = clips.visible[b].int().argmax(0)
        assert torch.equal(first[named], clips.query_frame[b][named])
    again = ProceduralVideo(scene, 3, bank=2).clips(2, 60)
    assert torch.equal(clips.video, again.video) and torch.equal(clips.tracks, again.tracks)
    few = ProceduralVideo(scene, 3, bank=2).clips(1, 17)
    assert few.keypoint.shape == (1, 17) and (few.keypoint >= 0).sum() > 8


def test_clips_without_people_hold_plain_points():
    scene = SceneConfig(size=(64, 96), frames=3, objects=(1, 2), photometric=0.0)
    clips = ProceduralVideo(scene, 3, bank=2).clips(1, 8)
    assert (clips.keypoint == -1).all() and (clips.instance == -1).all()
