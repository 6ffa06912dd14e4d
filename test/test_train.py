"""Training: configuration, exact resume, what is published; a step lowers the loss."""

import dataclasses
import math

import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('tensorboard')

from safetensors import safe_open  # noqa: E402

from cotracker_ros.model.realtime import Estimate, RealtimeConfig  # noqa: E402
from train.losses import LossConfig, balanced_bce, tracking_loss  # noqa: E402
from train.procedural import SceneConfig  # noqa: E402
from train.stream import ClipStream, StreamConfig  # noqa: E402
from train.train import Run, TrainConfig, intercept, read_config  # noqa: E402

CONFIG = TrainConfig(
    steps=4,
    warmup=2,
    iterations=2,
    workers=0,
    save=1,
    calibration=1,
    scene=SceneConfig(size=(64, 96), frames=4, objects=(1, 2)),
    stream=StreamConfig(clips=1, points=6, bank=2),
    model=RealtimeConfig(
        stem=16,
        stages=(16, 16, 16, 16),
        blocks=(1, 1, 1, 1),
        features=8,
        width=16,
        heads=2,
        virtual=2,
    ),
)


def test_a_config_is_read_by_its_names():
    config = read_config(
        {'lr': 1e-3, 'scene': {'frames': 7, 'objects': [1, 2]}, 'encoder': 'e.pt'}
    )
    assert (config.lr, config.scene.frames, config.scene.objects) == (1e-3, 7, (1, 2))
    assert config.loss == LossConfig()


@pytest.mark.parametrize(
    ('values', 'key'), [({'stepz': 3}, 'stepz'), ({'scene': {'frame': 3}}, r'scene\.frame')]
)
def test_a_key_that_does_not_exist_is_named(values, key):
    with pytest.raises(ValueError, match=f'unknown key {key}'):
        read_config(values)


def weights(run):
    """All numbers that training changes."""
    return {**run.model.state_dict(), **run.average.state_dict()}


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path):
    whole = Run(CONFIG, tmp_path / 'whole', 'cpu')
    whole.train(math.inf)
    first = Run(CONFIG, tmp_path / 'parts', 'cpu')
    first.train(0)  # no time at all: only a checkpoint
    assert first.step == 0
    half = Run(dataclasses.replace(CONFIG), tmp_path / 'parts', 'cpu')
    clips = iter(ClipStream(CONFIG.scene, CONFIG.stream, CONFIG.seed))
    for _ in range(2):
        half.update(next(clips))
        half.step += 1
    half.save()
    (tmp_path / 'parts' / 'checkpoint.part').write_bytes(b'half a checkpoint of a killed run')
    rest = Run(CONFIG, tmp_path / 'parts', 'cpu')
    assert rest.step == 2
    rest.train(math.inf)
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(rest)[name]), name


def test_another_model_is_not_resumed(tmp_path):
    Run(CONFIG, tmp_path, 'cpu').save()
    other = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, features=16))
    with pytest.raises(ValueError, match='another model'):
        Run(other, tmp_path, 'cpu')


def test_published_weights_are_the_averaged_ones_and_say_where_they_come_from(tmp_path):
    run = Run(CONFIG, tmp_path, 'cpu')
    run.train(math.inf)
    with safe_open(tmp_path / 'realtime.safetensors', 'pt') as file:
        assert 'procedural' in file.metadata()['provenance']
        kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    run.model.load_state_dict(kept)  # strict
    average = run.average.module.state_dict()
    assert torch.equal(kept['refiner.embed.0.weight'], average['embed.0.weight'])
    assert kept['calibration'].abs().min() > 0
    further = dataclasses.replace(CONFIG, start=str(tmp_path / 'realtime.safetensors'))
    begun = Run(further, tmp_path / 'further', 'cpu').model.state_dict()
    assert all(torch.equal(begun[name], value) for name, value in kept.items())


def test_training_on_one_batch_lowers_its_loss(tmp_path):
    run = Run(dataclasses.replace(CONFIG, lr=3e-3), tmp_path, 'cpu')
    clips = next(iter(ClipStream(CONFIG.scene, CONFIG.stream, 1)))
    # Step 0 starts every search near the truth with the same errors: the same task each time.
    losses = [run.update(clips)['total'] for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]


def test_loss_by_hand():
    tracks = torch.zeros(1, 1, 3, 2)
    xy = torch.tensor([[[[3.0, 0.0], [0.5, 0.0], [50.0, 0.0]]]])
    visible = torch.tensor([[[True, False, True]]])
    counted = torch.tensor([[[True, True, False]]])
    zeros = torch.zeros(1, 1, 3)
    config = LossConfig(gamma=0.5)
    two = [Estimate(xy, zeros, zeros), Estimate(tracks, zeros, zeros)]
    losses = tracking_loss(two, tracks, visible, counted, tracks, config)
    # Huber of 3 px is 2.5, of half a pixel 0.125 and counts a fifth; the first of two iterations
    # half.
    assert losses['track'].item() == pytest.approx(0.5 * (2.5 + 0.2 * 0.125) / 1.2)
    assert losses['visibility'].item() == pytest.approx(1.5 * math.log(2))
    far = tracking_loss(two, tracks, visible, counted, tracks + 1000, config)
    assert far['track'] == 0


def test_balanced_cross_entropy_weighs_both_classes_alike():
    logits = torch.tensor([2.0, 2.0, 2.0, 2.0])
    target = torch.tensor([True, True, True, False])
    everyone = torch.ones(4, dtype=torch.bool)
    yes, no = math.log1p(math.exp(-2)), math.log1p(math.exp(2))
    assert balanced_bce(logits, target, everyone).item() == pytest.approx(0.5 * (yes + no))


def test_the_intercept_makes_probabilities_right():
    logits = torch.randn(4000, generator=torch.Generator().manual_seed(0)) * 2
    target = torch.arange(4000) < 3000
    shift = intercept(logits, target)
    assert (logits + shift).sigmoid().mean().item() == pytest.approx(0.75, abs=1e-4)
