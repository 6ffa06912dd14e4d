"""The TensorRT engine up to the vendor's calls, which stand_in_tensorrt.py stands in for."""

import dataclasses
import math
import sys

import numpy as np
import pytest
import stand_in_step
import stand_in_tensorrt
from test_engines import inputs

from cotracker_ros.engines import EngineError, compare, cuda, load, read_metadata, sidecar


@pytest.fixture
def vendor(monkeypatch):
    runtime = stand_in_tensorrt.CudaRuntime()
    monkeypatch.setattr(stand_in_tensorrt.Runtime, 'cuda', runtime)
    monkeypatch.setattr(cuda, 'runtime', lambda: runtime)
    monkeypatch.setitem(sys.modules, 'tensorrt', stand_in_tensorrt)
    return runtime


def difference(xy):
    values = {'xy': xy, 'visibility': 0.0, 'confidence': 0.0}
    return compare.Difference(values, values)


@pytest.fixture
def plan(tmp_path):
    onnx = stand_in_step.write(tmp_path / 'm.onnx')
    path = onnx.rename(tmp_path / 'm.engine')
    sidecar.Sidecar(
        read_metadata(path),
        'tensorrt',
        stand_in_tensorrt.VERSION,
        stand_in_tensorrt.GPU,
        (1, 1, 2),
        (1, 4, 8),
        '0' * 64,
        sidecar.sha256(path),
        'f32',
        difference(0.001),
    ).write(path)
    return path


@pytest.mark.parametrize('can_capture', [True, False])
@pytest.mark.parametrize('cameras, slots', [(1, 8), (2, 3)])
def test_as_onnxruntime(vendor, plan, tmp_path, cameras, slots, can_capture, caplog):
    vendor.can_capture = can_capture
    engine = load(plan, 'auto', cameras, slots)
    reference = load(stand_in_step.write(tmp_path / 'r.onnx'), 'onnxruntime', cameras, slots)
    assert (engine.name, engine.device, engine.precision) == ('tensorrt', 'cuda:0', 'f32')
    assert ('no CUDA graph' in caplog.text) is not can_capture
    rng = np.random.default_rng(0)
    for _ in range(2):
        for _ in range(5):
            given = inputs(cameras, slots, rng)
            got, want = engine.step(given), reference.step(given)
            for name in want:
                np.testing.assert_array_equal(got[name], want[name])
        engine.reset()
        reference.reset()
    assert vendor.launched == (10 if can_capture else 0)
    engine.close()
    assert not vendor.memory


def changed(plan, **values):
    found = dataclasses.replace(sidecar.read(plan), **values)
    found.write(plan)
    return plan


def test_stale_engines_are_refused(vendor, plan):
    with pytest.raises(EngineError, match='max_points from 1 to 8, not 9'):
        load(plan, slots=9)
    with pytest.raises(EngineError, match='cameras from 1 to 2, not 3'):
        load(plan, cameras=3, slots=8)
    with pytest.raises(EngineError, match=r'built by tensorrt 10\.3\.0, but 10\.13\.3\.9 is inst'):
        load(changed(plan, version='10.3.0'), slots=8)
    changed(plan, version=stand_in_tensorrt.VERSION)
    with pytest.raises(EngineError, match=r'built for Orin, but this is Stand-in \(sm_87\)'):
        load(changed(plan, gpu='Orin'), slots=8)


@pytest.mark.parametrize(
    'found, message',
    [
        (None, 'never compared with ONNX Runtime'),
        (difference(math.nan), 'xy nan'),
        (difference(0.3), r'largest difference: xy 3\.00e-01 \(allowed 2\.50e-01\)'),
    ],
)
def test_engines_that_were_not_right_are_refused(vendor, plan, found, message):
    with pytest.raises(EngineError, match=message):
        load(changed(plan, difference=found), slots=8)


def test_broken_engines_are_refused(vendor, plan, tmp_path):
    data = plan.read_bytes()
    plan.write_bytes(data[:-1])
    with pytest.raises(EngineError, match=r'not the file that its m\.engine\.json was written'):
        load(plan, slots=8)
    plan.write_bytes(data)
    found = sidecar.read(plan)
    plan.write_bytes(b'nothing')
    dataclasses.replace(found, engine_sha256=sidecar.sha256(plan)).write(plan)
    with pytest.raises(EngineError, match='refuses it'):
        load(plan, slots=8)
    sidecar.path_of(plan).write_text('{}')
    with pytest.raises(EngineError, match='not a sidecar'):
        load(plan, slots=8)
    sidecar.path_of(plan).unlink()
    with pytest.raises(EngineError, match=r'm\.engine\.json is missing'):
        load(plan, slots=8)
    with pytest.raises(EngineError, match='no such model file'):
        load(tmp_path / 'gone.engine', slots=8)


def test_a_missing_library_is_named(plan, monkeypatch):
    monkeypatch.setitem(sys.modules, 'tensorrt', None)
    with pytest.raises(EngineError, match='cannot import tensorrt'):
        load(plan, slots=8)
    monkeypatch.setitem(sys.modules, 'tensorrt', stand_in_tensorrt)
    monkeypatch.setitem(sys.modules, 'cuda', None)
    monkeypatch.setitem(sys.modules, 'cuda.bindings', None)
    with pytest.raises(EngineError, match='pip install cuda-python'):
        load(plan, slots=8)


def test_a_failing_call_names_itself():
    runtime = stand_in_tensorrt.CudaRuntime()
    runtime.cudaMalloc = lambda size: (2, None)
    with pytest.raises(EngineError, match='cudaMalloc failed: 2'):
        cuda.Cuda(runtime).allocate(8)
