"""Models in half precision run, and the shipped one tracks as in full."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='needs the training packages')

from conftest import texture  # noqa: E402
from golden_rule import SMALL  # noqa: E402

from cotracker_ros.model import build_model, load_checkpoint  # noqa: E402

WEIGHTS = Path(__file__).parents[1] / 'cotracker_ros/weights/realtime.safetensors'
HALVES = [torch.float16, torch.bfloat16]
QUERIES = torch.tensor([[0, 20.0, 30.0], [2, 50.0, 60.0], [0, 90.0, 40.0]])


def moving(frames: int = 6) -> torch.Tensor:
    """A texture that moves two pixels a frame to the left, (T, 3, 96, 128)."""
    pictures = np.stack([texture(2 * t)[:96, :128] for t in range(frames)])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float()


@pytest.mark.parametrize('dtype', HALVES)
@pytest.mark.parametrize('name', ['cotracker1', 'cotracker2', 'cotracker3_online', 'realtime'])
def test_every_model_runs_in_half_precision(name, dtype):
    # Small, as most CPUs compute slowly in half precision.
    shape = {} if name == 'realtime' else SMALL
    model = build_model(name, (64, 96), **shape).eval().to(dtype)
    tracks = model.track(moving(4)[..., :64, :96], QUERIES, iterations=1)
    for values in (tracks.xy, tracks.visibility, tracks.confidence):
        assert torch.isfinite(values).all()


@pytest.mark.parametrize('dtype', HALVES)
def test_the_shipped_model_tracks_in_half_precision_as_in_full(dtype):
    full = load_checkpoint(WEIGHTS, image_size=(96, 128)).eval()
    half = load_checkpoint(WEIGHTS, image_size=(96, 128)).eval().to(dtype)
    assert next(half.encoder.parameters()).dtype == dtype
    assert next(half.refiner.parameters()).dtype == torch.float32
    expected, found = (model.track(moving(), QUERIES) for model in (full, half))
    assert found.xy.dtype == torch.float32
    assert (found.xy - expected.xy).abs().max() < (0.1 if dtype == torch.float16 else 0.8)
    again = half.float()
    assert next(again.encoder.parameters()).dtype == torch.float32


def test_other_precisions_are_of_the_whole_model():
    model = build_model('realtime', image_size=(96, 128)).double()
    assert {p.dtype for p in model.parameters()} == {torch.float64}
