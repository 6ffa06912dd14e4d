"""build_trt up to the vendor's calls (stand_in_tensorrt.py); check_trt.sh has the real ones."""

import json
import sys

import onnx
import pytest
import stand_in_step
import stand_in_tensorrt as trt
from test_compare import faulty

from cotracker_ros.engines import EngineError, cuda, load, sidecar
from export import build_trt


@pytest.fixture
def model(tmp_path, monkeypatch):
    runtime = trt.CudaRuntime()
    monkeypatch.setattr(trt.Runtime, 'cuda', runtime)
    monkeypatch.setattr(cuda, 'runtime', lambda: runtime)
    monkeypatch.setattr(trt, '__name__', 'tensorrt')
    monkeypatch.setitem(sys.modules, 'tensorrt', trt)
    return stand_in_step.write(tmp_path / 'm.onnx')


def build(model, *options):
    output = model.with_suffix('.engine')
    return build_trt.main([str(model), '--output', str(output), *options]), output


def test_an_engine_with_its_sidecar(model, capsys):
    status, output = build(model, '--points', '1', '4', '8')
    assert status == 0 and 'difference from ONNX Runtime:\n' in capsys.readouterr().out
    found = sidecar.read(output)
    assert found.precision == 'f32'
    assert found.difference.largest == {'xy': 0, 'visibility': 0, 'confidence': 0}
    assert (found.version, found.gpu, found.points) == (trt.VERSION, trt.GPU, (1, 4, 8))
    assert found.metadata.model == 'stand_in' and found.onnx_sha256 == sidecar.sha256(model)
    assert trt.Builder.config.cleared == {trt.BuilderFlag.TF32}
    assert trt.Builder.config.profile['query_xy'] == ((1, 1, 2), (1, 4, 2), (1, 8, 2))
    assert trt.Builder.config.profile['state.count'] == ((1, 1),) * 3
    load(output, slots=5).close()


def test_build_only_does_not_compare(model, capsys):
    status, output = build(model, '--build-only', '--tf32')
    assert status == 0 and 'not compared' in capsys.readouterr().out
    values = json.loads(sidecar.path_of(output).read_text())
    assert values['difference'] is None and values['precision'] == 'tf32'
    assert trt.Builder.config.cleared == set()


@pytest.mark.parametrize(
    'fault, message',
    [
        ('nan', 'values of xy that are not finite'),
        ('constant', 'past the tolerance; largest diff'),
        ('slightly wrong', 'past the tolerance; largest difference: xy'),
    ],
)
@pytest.mark.parametrize('earlier', [False, True])
def test_a_wrong_engine_is_not_kept(model, monkeypatch, capsys, fault, message, earlier):
    if earlier:  # a good one of an earlier build stays, and goes on to load
        assert build(model)[0] == 0
    wrong = faulty(onnx.load(model), fault).SerializeToString()
    monkeypatch.setattr(trt.Builder, 'build_serialized_network', lambda *_: memoryview(wrong))
    status, output = build(model)
    assert status == 1 and message in capsys.readouterr().err
    assert output.exists() == sidecar.path_of(output).exists() == earlier
    assert not list(output.parent.glob('*.part'))
    if earlier:
        load(output, slots=5).close()


def test_an_engine_built_elsewhere_is_compared_before_it_is_loaded(model, monkeypatch, capsys):
    good, output = trt.Builder.build_serialized_network, model.with_suffix('.engine')
    wrong = faulty(onnx.load(model), 'slightly wrong').SerializeToString()
    for plan, status in ((lambda *_: memoryview(wrong), 1), (good, 0)):
        monkeypatch.setattr(trt.Builder, 'build_serialized_network', plan)
        assert build(model, '--build-only')[0] == 0
        with pytest.raises(EngineError, match=r'never compared .* --compare-only'):
            load(output, slots=5)
        assert build(model, '--compare-only')[0] == status
    load(output, slots=5).close()
    other = stand_in_step.write(model.with_name('other.onnx'), provenance='another')
    assert build_trt.main([str(other), '--output', str(output), '--compare-only']) == 1
    assert 'was not built from' in capsys.readouterr().err


def test_the_timing_cache_is_kept(model, tmp_path):
    cache = tmp_path / 'cache'
    for content in (b'+', b'++'):
        assert build(model, '--build-only', '--timing-cache', str(cache))[0] == 0
        assert cache.read_bytes() == content


@pytest.mark.parametrize(
    'owner, name, value, message',
    [
        (trt.OnnxParser, 'errors', ('node 4: no', 'node 7: no'), 'node 4: no\nnode 7: no'),
        (trt.Builder, 'sampling', trt.InterpolationMode.NEAREST, 'not as linear'),
        (trt.Builder, 'profile_index', -1, 'are refused'),
        (trt.Builder, 'gives_plan', False, 'could not build it'),
    ],
)
def test_failures_are_told_and_leave_no_engine(
    model, monkeypatch, capsys, owner, name, value, message
):
    monkeypatch.setattr(owner, name, value)
    status, output = build(model)
    assert status == 1 and message in capsys.readouterr().err
    assert not output.exists() and not sidecar.path_of(output).exists()


def test_bad_arguments(model, monkeypatch, capsys):
    assert build(model, '--points', '9', '4', '8')[0] == 1
    assert 'sizes must rise' in capsys.readouterr().err
    assert build(model, '--compute-capability', 'SM1')[0] == 1
    assert 'cannot build for SM1' in capsys.readouterr().err
    assert build(model.with_name('gone.onnx'))[0] == 1
    assert 'no such model file' in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, 'tensorrt_rtx', None)
    assert build(model, '--rtx')[0] == 1
    assert 'cannot import tensorrt_rtx' in capsys.readouterr().err
