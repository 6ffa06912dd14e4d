"""People in three dimensions, with exact tracks of COCO's 17 keypoints.

A person is a skeleton of rigid bones covered in ellipsoids (see bodies.py): limbs, trunk,
neck, head and hair. All people of a clip and the furniture among them are one `Body`, so that one
depth decides what hides what. Joints lie inside the flesh, the face's keypoints on it; a keypoint
is visible where what lies before it is no thicker than the flesh it belongs to, which is how
people who mark pictures use the word: a shoulder is seen through its sleeve, the far one of a
person in profile is not.

A person's own axes: x forward, y down, z to the person's left. Its unit is the person's height.
Letters as in bodies.py; J keypoints.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cotracker_ros.skeleton import KEYPOINTS
from train.data.synthetic.bodies import COVERED, Body, Parts, axis_rotation, transform
from train.data.synthetic.random_source import RandomSource

ACTIONS = ('walk', 'turn', 'sit', 'wave', 'sign', 'jump')
# What may lie before a keypoint of each kind, in heights of the person.
FLESH = {
    'nose': 0.03, 'eye': 0.03, 'ear': 0.035, 'shoulder': 0.085, 'elbow': 0.06, 'wrist': 0.05,
    'hip': 0.115, 'knee': 0.08, 'ankle': 0.065,
}  # fmt: skip
SKIN, SHIRT, TROUSERS, SHOES, HAIR = range(5)  # materials, each with a texture of its own
THIGH, SHIN, SOLE = 0.24, 0.235, 0.06  # heights; the last: from the ankle down to the ground
GROUND = THIGH + SHIN + SOLE  # below the hips


class Figure(NamedTuple):
    """One person or piece of furniture: its parts, the material (K,) of each part, and its
    keypoints (T, 17, 3), none of furniture. In heights of the person, or px once placed.
    """

    parts: Parts
    material: list[int]
    joints: Tensor | None = None


class People(Body):
    """The people and the furniture of a clip, as one body with keypoints."""

    def __init__(self, figures: list[Figure], heights: list[float], **body):
        """figures in px; heights (people,) px; body: what `Body` takes."""
        joined = Parts(*(torch.cat(x, 1) for x in zip(*(f.parts for f in figures), strict=True)))
        super().__init__(parts=joined, **body)
        # Each figure's largest part takes as much of its texture as an animal's does.
        size = [f.parts.axes.norm(dim=-2)[0] for f in figures]
        self.span = torch.cat([s[:, :2] / s.amax() / COVERED for s in size])
        people = [f.joints for f in figures if f.joints is not None]
        self.joints = torch.cat(people, 1)  # (T, J, 3) px
        device, count = self.joints.device, len(people)
        self.keypoint = torch.arange(len(KEYPOINTS), device=device).repeat(count)  # (J,)
        self.instance = torch.arange(count, device=device).repeat_interleave(len(KEYPOINTS))
        kinds = [name.rpartition('_')[2] for name in KEYPOINTS]
        flesh = torch.tensor([FLESH[kind] for kind in kinds], device=device)
        self.flesh = torch.cat([flesh * height for height in heights])  # (J,) px

    def keypoints(self) -> tuple[Tensor, Tensor]:
        """Where the keypoints are, image px (T, J, 2), and which are hidden, (T, J)."""
        xy = transform(self.camera, self.joints[..., :2])
        return xy, self.joints[..., 2] - self.look(xy)[1] > self.flesh


class Bones:
    """Ellipsoids and keypoints of one person, as they are added."""

    def __init__(self, times: Tensor):
        self.frames, self.device = len(times), times.device
        self.axes, self.centres, self.material = [], [], []
        self.joints: dict[str, Tensor] = {}

    def part(
        self, rotation: Tensor, centre: Tensor, half: tuple[float, float, float], material: int
    ):
        """An ellipsoid with half axes along a bone's down, back and left."""
        frame = torch.stack([rotation[..., 1], -rotation[..., 0], rotation[..., 2]], -1)
        self.axes.append(frame * torch.tensor(half, device=self.device))
        self.centres.append(centre)
        self.material.append(material)

    def bone(
        self,
        start: Tensor,
        rotation: Tensor,
        length: float,
        thick: float,
        wide: float,
        material: int,
    ) -> Tensor:
        """A part that hangs from its start (T, 3); returns its end."""
        way = rotation[..., 1] * length
        self.part(rotation, start + way / 2, (0.5 * length + 0.5 * thick, thick, wide), material)
        return start + way

    def figure(self) -> Figure:
        """What was added."""
        joints = torch.stack([self.joints[name] for name in KEYPOINTS], 1)
        return Figure(
            Parts(torch.stack(self.axes, 1), torch.stack(self.centres, 1)), self.material, joints
        )


def swing(forward: Tensor) -> Tensor:
    """Rotations (T, 3, 3) of what hangs down, forward by angles (T,)."""
    return axis_rotation(2, -forward)


def person(random: RandomSource, pose: dict[str, Tensor]) -> Figure:
    """A person in a pose (see `standing`), the hips' middle at the origin when it stands.
    Proportions after Drillis and Contini (1966), varied.
    """
    bones = Bones(pose['twist'])
    vary = torch.exp(0.06 * random.normal(6)).tolist()
    upper, fore, hips, shoulders = (
        n * v for n, v in zip((0.175, 0.15, 0.085, 0.125), vary, strict=False)
    )
    build = vary[4] ** 2
    sleeve = SKIN if random.number() < 0.5 else SHIRT
    trouser = SKIN if random.number() < 0.25 else TROUSERS
    origin = torch.zeros(bones.frames, 3, device=bones.device)
    lift = torch.tensor([0.0, 1.0, 0.0], device=bones.device)

    def along(rotation: Tensor, x: float, y: float, z: float) -> Tensor:
        return rotation @ torch.tensor([x, y, z], device=bones.device)

    pelvis = axis_rotation(1, pose['twist'])
    root = origin + lift * pose['drop'][:, None]
    trunk = pelvis @ swing(-pose['lean'])  # the trunk stands: its top goes forward
    chest = trunk @ axis_rotation(1, pose['shoulders'])
    bones.part(
        pelvis, root - along(pelvis, 0, 0.02, 0), (0.085, 0.075 * build, 0.105 * build), TROUSERS
    )
    belly, ribs, top = (root - along(trunk, 0, y, 0) for y in (0.11, 0.21, 0.285))
    bones.part(trunk, belly, (0.11, 0.072 * build, 0.095 * build), SHIRT)
    bones.part(chest, ribs, (0.105, 0.078 * build, shoulders * 1.02), SHIRT)
    head = chest @ axis_rotation(1, pose['look']) @ swing(-pose['nod'])
    skull = top - along(head, -0.012, 0.125, 0)
    bones.bone(skull, chest, 0.12, 0.032, 0.034, SKIN)
    bones.part(head, skull, (0.072, 0.058, 0.05), SKIN)
    bones.part(head, skull - along(head, 0.014, 0.018, 0), (0.064, 0.056, 0.054), HAIR)
    for name, place in (
        ('nose', (0.92, 0.18, 0.0)), ('left_eye', (0.84, -0.12, 0.42)),
        ('right_eye', (0.84, -0.12, -0.42)), ('left_ear', (-0.1, 0.0, 0.98)),
        ('right_ear', (-0.1, 0.0, -0.98)),
    ):  # fmt: skip
        bones.joints[name] = skull + along(
            head, 0.058 * place[0], 0.072 * place[1], 0.05 * place[2]
        )
    nose = bones.joints['nose'] - along(head, 0.008, 0, 0)
    bones.part(head, nose, (0.016, 0.014, 0.009), SKIN)

    for side, sign in (('left', 1.0), ('right', -1.0)):
        raised, out, bent, turned = (pose[f'{side}_{n}'] for n in ('arm', 'out', 'elbow', 'roll'))
        shoulder = top + along(chest, 0, 0.015, sign * shoulders)
        arm = (
            chest @ axis_rotation(0, sign * out) @ swing(raised) @ axis_rotation(1, sign * turned)
        )
        elbow = bones.bone(shoulder, arm, upper, 0.04 * build, 0.037 * build, SHIRT)
        forearm = arm @ swing(bent)
        wrist = bones.bone(elbow, forearm, fore, 0.028 * build, 0.027 * build, sleeve)
        bones.bone(wrist, forearm @ swing(0.2 * bent), 0.085, 0.015, 0.026, SKIN)
        hip = root + along(pelvis, 0, 0.0, sign * hips)
        leg = pelvis @ axis_rotation(0, sign * pose['apart']) @ swing(pose[f'{side}_leg'])
        knee = bones.bone(hip, leg, THIGH, 0.066 * build, 0.06 * build, TROUSERS)
        lower = leg @ swing(-pose[f'{side}_knee'])
        ankle = bones.bone(knee, lower, SHIN, 0.042 * build, 0.038 * build, trouser)
        foot = lower @ swing(1.45 + pose[f'{side}_foot'])
        bones.bone(ankle + along(lower, -0.025, 0.02, 0), foot, 0.115, 0.022, 0.03, SHOES)
        for name, joint in (
            ('shoulder', shoulder), ('elbow', elbow), ('wrist', wrist), ('hip', hip),
            ('knee', knee), ('ankle', ankle),
        ):  # fmt: skip
            bones.joints[f'{side}_{name}'] = joint
    return bones.figure()


# poses ------------------------------------------------------------------------------------------


def standing(random: RandomSource, times: Tensor) -> dict[str, Tensor]:
    """A person who stands and moves a little, at times (T,): angles in radians, (T,) each.

    twist, shoulders, look: turns of the hips, of the chest on them and of the head on it; lean,
    nod: of trunk and head, forward; apart: legs; per side leg, arm: forward, knee, elbow: bent,
    out: arm, sideways, roll: arm about itself, inwards, foot: toes up. heading: where the person
    faces, 0 to the image's right, pi/2 to the viewer. Lengths in heights: rise, of the hips above
    where legs as bent stand on the ground; gone, forward from where it is at time 0.
    """

    def about(middle: float, speed: float, limit: float) -> Tensor:
        return middle + random.path((), times, speed).clamp(-limit, limit)

    still = torch.zeros_like(times)
    pose = {
        'twist': about(0, 0.01, 0.2),
        'shoulders': about(0, 0.015, 0.4),
        'look': about(0, 0.03, 0.9),
        'lean': about(random.number(-0.03, 0.12), 0.006, 0.2),
        'nod': about(random.number(-0.1, 0.3), 0.02, 0.4),
        'apart': still + random.number(0.0, 0.15),
        'heading': math.pi / 2 + 0.9 * random.normal(1) + random.path((), times, 0.01),
        'rise': still,
        'gone': still,
    }
    for side in ('left', 'right'):
        pose |= {
            f'{side}_arm': about(random.number(-0.1, 0.3), 0.02, 0.5),
            f'{side}_out': about(random.number(0.08, 0.3), 0.012, 0.3).clamp_min(0.05),
            f'{side}_elbow': about(random.number(0.1, 0.8), 0.03, 0.6).clamp_min(0.02),
            f'{side}_roll': about(random.number(-0.2, 0.8), 0.02, 0.5),
            f'{side}_leg': about(0.02, 0.004, 0.1),
            f'{side}_knee': about(0.08, 0.004, 0.1).clamp_min(0.0),
            f'{side}_foot': still,
        }
    return pose


def walk(random: RandomSource, times: Tensor) -> dict[str, Tensor]:
    """Hips and knees swing as sines, arms against the legs; as fast as the feet carry."""
    pose = standing(random, times)
    beat, stride = random.number(0.1, 0.4), random.number(0.25, 0.55)
    bend = random.number(0.6, 1.1)
    start = random.number(high=2 * math.pi)
    for side, half in (('left', 0.0), ('right', math.pi)):
        phase = beat * times + start + half
        pose[f'{side}_leg'] = 0.06 + stride * phase.sin()
        pose[f'{side}_knee'] = 0.1 + bend * (phase + 0.4).cos().clamp_min(0)
        pose[f'{side}_foot'] = 0.25 * phase.sin()
        pose[f'{side}_arm'] = pose[f'{side}_arm'] - 0.8 * stride * phase.sin()
    phase = beat * times + start
    pose['twist'], pose['shoulders'] = 0.1 * phase.sin(), -0.2 * phase.sin()
    # A cycle is two steps, each as long as the feet are apart when both are on the ground.
    pose['gone'] = 4 * (THIGH + SHIN) * math.sin(stride) * beat / (2 * math.pi) * times
    return pose


def turn(random: RandomSource, times: Tensor) -> dict[str, Tensor]:
    """Round and round on the spot, with small steps."""
    pose = walk(random, times)
    for side in ('left', 'right'):
        pose[f'{side}_leg'] = 0.4 * pose[f'{side}_leg']
        pose[f'{side}_knee'] = 0.5 * pose[f'{side}_knee']
    speed = random.number(0.03, 0.16) * (1 if random.number() < 0.5 else -1)
    pose['heading'], pose['gone'] = pose['heading'] + speed * times, 0.1 * pose['gone']
    return pose


def sit(random: RandomSource, times: Tensor) -> dict[str, Tensor]:
    """Down onto a seat, or up from it; feet stay."""
    pose = standing(random, times)
    begun, lasts = random.number(-10, 2), random.number(8, 25)
    share = ((times - begun) / lasts).clamp(0, 1)
    share = share * share * (3 - 2 * share)
    if random.number() < 0.5:
        share = 1 - share
    for side in ('left', 'right'):
        pose[f'{side}_leg'] = pose[f'{side}_leg'] + 1.4 * share
        pose[f'{side}_knee'] = pose[f'{side}_knee'] + 1.45 * share
        pose[f'{side}_elbow'] = pose[f'{side}_elbow'] + 0.5 * share
        pose[f'{side}_arm'] = pose[f'{side}_arm'] + 0.35 * share
    pose['lean'] = pose['lean'] + 2.4 * share * (1 - share)
    bent = pose['left_leg'] - pose['left_knee']
    pose['gone'] = -(THIGH * pose['left_leg'].sin() + SHIN * bent.sin())
    return pose


def wave(random: RandomSource, times: Tensor) -> dict[str, Tensor]:
    """One hand beside the head, to and fro."""
    pose = standing(random, times)
    side, beat = ('left', 'right')[random.integer(2)], random.number(0.2, 0.8)
    phase = beat * times + random.number(high=2 * math.pi)
    pose[f'{side}_out'] = random.number(1.4, 2.3) + 0.1 * phase.sin()
    pose[f'{side}_roll'] = random.number(-1.7, -1.3) + 0.2 * phase.cos()
    pose[f'{side}_elbow'] = random.number(0.7, 1.3) + random.number(0.3, 0.6) * phase.sin()
    return pose


def sign(random: RandomSource, times: Tensor) -> dict[str, Tensor]:
    """Both hands before the chest, fast and apart from each other, as in sign language."""
    pose = standing(random, times)
    for side in ('left', 'right'):
        pose[f'{side}_arm'] = 0.5 + random.path((), times, 0.07).clamp(-0.6, 0.9)
        pose[f'{side}_out'] = (0.3 + random.path((), times, 0.04)).clamp(0.05, 1.0)
        pose[f'{side}_roll'] = 0.6 + random.path((), times, 0.08).clamp(-0.9, 0.6)
        pose[f'{side}_elbow'] = 1.7 + random.path((), times, 0.1).clamp(-1.0, 0.7)
    return pose


def jump(random: RandomSource, times: Tensor) -> dict[str, Tensor]:
    """Down on bent knees, up from the ground, again and again."""
    pose = standing(random, times)
    phase = random.number(0.15, 0.45) * times + random.number(high=2 * math.pi)
    up, down = phase.sin().clamp_min(0), (-phase.sin()).clamp_min(0)
    depth = random.number(0.4, 0.9)
    for side in ('left', 'right'):
        pose[f'{side}_leg'] = pose[f'{side}_leg'] + depth * down
        pose[f'{side}_knee'] = pose[f'{side}_knee'] + 2 * depth * down
        pose[f'{side}_foot'] = -0.6 * up
        pose[f'{side}_arm'] = pose[f'{side}_arm'] + 1.5 * up - 0.6 * down
    pose['lean'], pose['rise'] = pose['lean'] + 0.6 * depth * down, random.number(0.06, 0.3) * up
    return pose


POSES = {'walk': walk, 'turn': turn, 'sit': sit, 'wave': wave, 'sign': sign, 'jump': jump}


def hips_down(pose: dict[str, Tensor]) -> Tensor:
    """How far below their place in a standing person the hips are, (T,) heights, so that the
    lower foot is on the ground.
    """
    reach = [
        THIGH * pose[f'{side}_leg'].cos()
        + SHIN * (pose[f'{side}_leg'] - pose[f'{side}_knee']).cos()
        for side in ('left', 'right')
    ]
    return THIGH + SHIN - torch.maximum(*reach) - pose['rise']


# furniture --------------------------------------------------------------------------------------


def furniture(random: RandomSource, frames: int, kind: str) -> Figure:
    """A table, bench, plant, lamp or stool of some ellipsoids, in heights of a person, standing
    where the feet of a person at the origin would.
    """
    items: list[tuple[tuple[float, ...], tuple[float, ...]]] = []  # centre, half axes
    if kind in ('table', 'stool'):
        table = kind == 'table'
        wide, high = (random.number(0.22, 0.5), 0.43) if table else (0.14, 0.29)
        top = GROUND - high
        items.append(((0, top, 0), (wide, 0.025 if table else 0.04, wide * random.number(0.6, 1))))
        items.append(((0, top + high / 2, 0), (0.04, high / 2, 0.04)))
        items.append(((0, GROUND - 0.02, 0), (0.6 * wide, 0.02, 0.6 * wide)))
    elif kind == 'bench':
        wide = random.number(0.3, 0.6)
        items.append(((0, GROUND - 0.13, 0), (wide, 0.13, 0.16)))
        items.append(((0, GROUND - 0.3, 0.14), (wide, random.number(0.12, 0.2), 0.05)))
        items += [((x * wide, GROUND - 0.2, 0), (0.06, 0.14, 0.16)) for x in (-0.95, 0.95)]
    elif kind == 'plant':
        items.append(((0, GROUND - 0.1, 0), (0.1, 0.1, 0.1)))
        items.append(((0, GROUND - 0.3, 0), (0.02, 0.16, 0.02)))
        for _ in range(8):
            x, y, z = (0.09 * random.normal(3)).tolist()
            half = tuple(torch.exp(random.uniform(3, low=-3.3, high=-1.9)).tolist())
            items.append(((x, GROUND - 0.42 + y, z), half))
    else:  # lamp
        high = random.number(0.7, 1.1)
        items.append(((0, GROUND - high / 2, 0), (0.02, high / 2, 0.02)))
        items.append(((0, GROUND - high, 0), (0.12, random.number(0.06, 0.14), 0.12)))
        items.append(((0, GROUND - 0.015, 0), (0.12, 0.015, 0.12)))
    centre = torch.tensor([c for c, _ in items], device=random.device).expand(frames, -1, -1)
    axes = torch.diag_embed(torch.tensor([h for _, h in items], device=random.device))
    return Figure(Parts(axes.expand(frames, -1, -1, -1), centre), [0] * len(items))


# scenes -----------------------------------------------------------------------------------------


class Place(NamedTuple):
    """Where a figure stands: heading (T,), and on the ground right of the scene's middle and
    away from the viewer, (T,) heights each.
    """

    heading: Tensor
    right: Tensor
    away: Tensor


def random_people(
    random: RandomSource,
    times: Tensor,
    camera: Tensor,
    textures: Tensor,
    size: tuple[int, int],
    light: float,
) -> People:
    """One to three people, alone, passing each other or in a group, some behind furniture, at
    times (T,) in an image (height, width) px; camera as `Body`'s. textures (at least
    TEXTURES, 3, h, w) in [0, 1]. The strength of the light is drawn from 0 to `light`.
    """
    height, width = size
    figures, places, heights, own = [], [], [], []
    kind = random.number()
    count = 1 if kind < 0.45 else 2 if kind < 0.8 else 3
    passing = 0.45 <= kind < 0.65
    for n in range(count):
        action = 'walk' if passing else ACTIONS[random.integer(len(ACTIONS))]
        pose = POSES[action](random, times)
        heading, right, away = pose['heading'], 0.0, 0.0
        if passing:  # at time 0, the clip's middle, one is before the other
            heading = heading - heading.mean() + math.pi * n + random.number(-0.4, 0.4)
            right, away = random.number(-0.15, 0.15), 0.4 * n
        elif count > 1:
            right = (n - (count - 1) / 2) * random.number(0.3, 0.7)
            away = random.number(-0.4, 0.4)
        pose['drop'] = hips_down(pose)
        steps = F.pad(pose['gone'].diff(), (1, 0))
        steps = torch.stack([steps * heading.cos(), -steps * heading.sin()]).cumsum(1)
        steps = steps - steps[:, times.abs().argmin(), None]
        figures.append(person(random, pose))
        places.append(Place(heading, right + steps[0], away + steps[1]))
        heights.append(math.exp(0.06 * float(random.normal(1))))
        own.append(5 * n)
        if action == 'sit' and random.number() < 0.8:  # where the hips are when they are lowest
            low = int(pose['drop'].argmax())
            figures.append(furniture(random, len(times), 'stool'))
            still = torch.zeros_like(times)
            places.append(
                Place(heading, still + places[-1].right[low], still + places[-1].away[low])
            )
            heights.append(heights[-1])
            own.append(15 + random.integer(FURNITURE))
    for _ in range(random.integer(3)):
        figures.append(furniture(random, len(times), KINDS[random.integer(len(KINDS))]))
        still, before = torch.zeros_like(times), random.number() < 0.7
        places.append(
            Place(
                still + random.number(high=2 * math.pi),
                still + random.number(-0.6, 0.6),
                still + (-random.number(0.3, 0.5) if before else random.number(0.5, 0.8)),
            )
        )
        heights.append(1.0)
        own.append(15 + random.integer(FURNITURE))

    # Seen from somewhat above; whole people, or the upper half of a near one.
    scale = random.size(0.45, 1.5) * height
    x = (0.5 if count > 1 else random.number(0.25, 0.75)) * width
    y = random.number(0.45, 0.6) * height if scale < 0.85 * height else 0.4 * height + 0.25 * scale
    tilted = torch.tensor([random.number(-0.05, 0.35)], device=random.device)
    rolled = 0.05 * random.normal(1)
    view = (axis_rotation(2, rolled) @ axis_rotation(0, tilted))[0]
    middle = torch.tensor([x, y, 0.0], device=random.device)
    placed = [
        place_figure(figure, place, view, scale * tall, scale, middle)
        for figure, place, tall in zip(figures, places, heights, strict=True)
    ]
    material = [
        base + k for figure, base in zip(placed, own, strict=True) for k in figure.material
    ]
    people = [
        scale * tall for f, tall in zip(figures, heights, strict=True) if f.joints is not None
    ]
    sun = F.normalize(
        random.normal(3) - torch.tensor([0.0, 1.0, 0.7], device=random.device), dim=0
    )
    tinted = tint(random, textures)
    return People(
        placed,
        people,
        camera=camera,
        texture=[tinted[k] for k in material],
        offset=0.6 * (random.uniform(len(material), 2) - 0.5),
        shade=torch.exp(0.08 * random.normal(len(material))),
        sun=sun * random.number() * light,
    )


FURNITURE = 3  # materials of furniture
TEXTURES = 15 + FURNITURE
KINDS = ('table', 'bench', 'plant', 'lamp')


def place_figure(
    figure: Figure, place: Place, view: Tensor, size: float, scale: float, middle: Tensor
) -> Figure:
    """A figure of `size` px a height, in px, seen by a view (3, 3); the places' height is `scale`
    px and feet stand on one ground.
    """
    rotation = size * view @ axis_rotation(1, place.heading)
    stand = torch.stack([place.right, torch.full_like(place.right, GROUND), place.away], -1)
    origin = (scale * stand) @ view.T + middle
    origin = origin - rotation[..., 1] * GROUND

    def carry(x: Tensor) -> Tensor:
        return (rotation[:, None] @ x[..., None])[..., 0] + origin[:, None]

    axes, centre = figure.parts
    joints = None if figure.joints is None else carry(figure.joints)
    return Figure(Parts(rotation[:, None] @ axes, carry(centre)), figure.material, joints)


def tint(random: RandomSource, textures: Tensor) -> list[Tensor]:
    """Textures for three people and furniture, by material: skin has a skin's tones and little
    contrast, hair and shoes are dark, the rest stays as it is.
    """
    tinted = list(textures[:TEXTURES])
    for n in range(3):
        tone = torch.tensor([0.95, 0.75, 0.62], device=random.device) * random.number(0.35, 1.0)
        dark = 0.35 * random.uniform(3)
        for kind, ground, contrast in (
            (SKIN, tone, 0.25),
            (SHOES, dark.flip(0), 0.4),
            (HAIR, dark * torch.tensor([1.3, 1.0, 0.7], device=random.device), 0.3),
        ):
            detail = tinted[5 * n + kind] - tinted[5 * n + kind].mean((1, 2), keepdim=True)
            tinted[5 * n + kind] = (contrast * detail + ground[:, None, None]).clamp(0, 1)
    return tinted
