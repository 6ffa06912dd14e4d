"""The slim encoders: how they begin from the one they stand for, and how they learn from it."""

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('tensorboard')

from safetensors.torch import save_file  # noqa: E402
from test_train import CONFIG, in_two_processes  # noqa: E402

from cotracker_ros.model import build_model, load_checkpoint, pyramid  # noqa: E402
from cotracker_ros.model.checkpoint import checkpoint_metadata  # noqa: E402
from cotracker_ros.model.config import Origin  # noqa: E402
from cotracker_ros.model.pyramid import PyramidEncoder, SlimEncoder, TuckerEncoder  # noqa: E402
from train.objectives.distillation import begin_like, main_inputs  # noqa: E402
from train.objectives.realtime import folded  # noqa: E402
from train.train import Run  # noqa: E402


@pytest.fixture(autouse=True, scope='module')
def one_thread():
    """These networks are too small for two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trained(encoder):
    """The encoder with statistics of batch norm in which nothing is neutral."""
    for part in encoder.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            for x in (part.weight, part.running_var):
                torch.nn.init.uniform_(x, 0.5, 1.5)
            for x in (part.bias, part.running_mean):
                torch.nn.init.normal_(x, std=0.3)
    return encoder.eval()


@pytest.fixture(scope='module')
def teacher():
    torch.manual_seed(0)
    return trained(PyramidEncoder(16))


@pytest.fixture(scope='module')
def image():
    noise = torch.rand(2, 3, 12, 16, generator=torch.Generator().manual_seed(1)) * 255
    return torch.nn.functional.interpolate(noise, (96, 128), mode='bicubic').clamp(0, 255)


def off(encoder, teacher, image):
    """How far cosines of their features are from 1, at every stride."""
    with torch.no_grad():
        pairs = zip(encoder(image), teacher(image), strict=True)
        return [(1 - (a * b).sum(1)).mean().item() for a, b in pairs]


def test_with_all_directions_it_begins_as_its_teacher(teacher, image, monkeypatch):
    monkeypatch.setattr(pyramid, 'SLIM_STEM', pyramid.STEM)
    monkeypatch.setattr(pyramid, 'SLIM_RANKS', pyramid.STAGES)
    encoder = SlimEncoder(16)
    begin_like(encoder, folded(teacher), image)
    assert max(off(encoder, teacher, image)) < 1e-5


@pytest.mark.parametrize('kind', [SlimEncoder, TuckerEncoder])
def test_with_the_main_directions_it_begins_near_its_teacher(kind, teacher, image, monkeypatch):
    monkeypatch.setattr(pyramid, 'SLIM_SUMS', (12, 14, 16))
    encoder = kind(16)
    fresh = off(encoder, teacher, image)
    begin_like(encoder, folded(teacher), image)
    assert all(a < 0.2 * b for a, b in zip(off(encoder, teacher, image), fresh, strict=True))


def test_a_convolution_of_inputs_with_few_directions_needs_mixtures_of_these_alone():
    rng = torch.Generator().manual_seed(3)
    few = torch.randn(2, 3, 8, 9, generator=rng, dtype=torch.float64)
    x = torch.einsum('ik,bkhw->bihw', torch.randn(10, 3, generator=rng).double(), few)
    weight = torch.randn(5, 10, 3, 3, generator=rng, dtype=torch.float64)
    mix, of_these = main_inputs(x, weight, 3)
    assert mix.shape == (3, 10) and of_these.shape == (5, 3, 3, 3)
    mixed = torch.nn.functional.conv2d(x, mix[..., None, None])
    found = torch.nn.functional.conv2d(mixed, of_these)
    exact = torch.nn.functional.conv2d(x, weight)
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-4)


@pytest.fixture
def config(tmp_path):
    """Distillation from a small network with random weights."""
    shape = CONFIG.shape | {'encoder': 'pyramid', 'features': 16}
    torch.manual_seed(2)
    model = build_model('realtime', CONFIG.scene.size, **shape)
    trained(model.encoder)
    path = tmp_path / 'teacher.safetensors'
    origin = Origin('Apache-2.0', 'a teacher')
    save_file(model.state_dict(), path, metadata=checkpoint_metadata(model, origin))
    return dataclasses.replace(
        CONFIG, objective='distillation', encoder='tucker', start=str(path), shape={}, lr=1e-3
    )


def test_the_encoder_learns_from_its_teacher_and_the_rest_stays(config, tmp_path):
    run = Run(config, tmp_path / 'run', 'cpu')
    run.step = 1  # after the start, so that steps alone bring it nearer
    clips = run.source.batch(0)
    losses = [run.update(clips) for _ in range(20)]
    assert losses[-1]['total'] < 0.8 * losses[0]['total']
    assert losses[-1]['total'] == pytest.approx(
        sum(losses[-1][f'off at stride {s}'] for s in (4, 8, 16)), rel=1e-5
    )
    given = load_checkpoint(config.start, config.scene.size)
    published = load_checkpoint(run.publish(), config.scene.size)
    assert published.config == dataclasses.replace(given.config, encoder='tucker')
    for name, x in given.state_dict().items():
        if not name.startswith('encoder.'):
            assert torch.equal(x, published.state_dict()[name]), name
    assert 'a teacher' in published.origin.provenance


def test_it_goes_on_as_if_it_had_not_been_stopped(config, tmp_path):
    whole = Run(config, tmp_path / 'whole', 'cpu')
    parts = Run(config, tmp_path / 'parts', 'cpu')
    for step in range(2):
        for run in (whole, parts):
            run.update(run.source.batch(step))
            run.step += 1
        parts.save()
        parts = Run(config, tmp_path / 'parts', 'cpu')
    # Adam makes steps of gradients whatever their size, and those near zero are never twice the
    # same: most weights must be.
    for name, x in whole.model.state_dict().items():
        assert (x - parts.model.state_dict()[name]).abs().mean() < 0.1 * config.lr, name


def test_two_processes_begin_and_go_on_with_the_same_weights(config, tmp_path):
    """Each has its own pictures."""
    (_, _, first), (_, _, second) = in_two_processes(config, tmp_path / 'both')
    for name, x in first.items():
        np.testing.assert_allclose(x, second[name], atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [({'encoder': 'lite0'}, '`slim` or `tucker`'), ({'start': ''}, '`start`, which is not set')],
)
def test_what_cannot_be_distilled_is_refused(config, changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Run(dataclasses.replace(config, **changes), tmp_path / 'run', 'cpu')
