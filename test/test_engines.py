"""Every installed engine over one contract, and every way a model file can be wrong."""

import contextlib
import json
import subprocess
import sys
import types

import numpy as np
import onnx
import pytest
import stand_in_step

from cotracker_ros import engines
from cotracker_ros.engines import EngineError, base, load, metadata, spec
from cotracker_ros.engines.openvino_engine import has_bf16

INSTALLED = ['onnxruntime', 'openvino', 'openvino:bf16']
# Largest difference from the same arithmetic in numpy, pixels: the stand-in's sums are exact in
# float32, in which openvino:bf16 must find positions too.
EXACT = 1e-5


@pytest.fixture
def path(tmp_path):
    return stand_in_step.write(tmp_path / 'stand_in.onnx')


def inputs(cameras, slots, rng, **replaced):
    values = {
        'image': rng.integers(0, 255, (cameras, 32, 48, 3), np.uint8),
        'query_xy': rng.uniform(0, 30, (cameras, slots, 2)).astype(np.float32),
        'query': rng.random((cameras, slots)) < 0.3,
        'query_age': rng.integers(0, 4, (cameras, slots), np.int32),
        'live': rng.random((cameras, slots)) < 0.7,
    }
    return values | replaced


def available(name):
    if name.startswith('openvino'):
        pytest.importorskip('openvino')
    if name == 'openvino:bf16' and not has_bf16():
        pytest.skip('this CPU has no bf16')
    return name


@pytest.mark.parametrize('name', INSTALLED)
@pytest.mark.parametrize('cameras, slots', [(1, 1), (1, 5), (2, 3)])
def test_contract(name, cameras, slots, path):
    engine = load(path, available(name), cameras, slots, threads=1)
    assert (engine.name, engine.cameras, engine.slots) == (name.partition(':')[0], cameras, slots)
    assert engine.metadata.model == 'stand_in' and engine.metadata.image_size == (32, 48)
    assert name in f'{engine.name}:{engine.precision}' and 'stand_in on' in str(engine)
    rng = np.random.default_rng(1)
    for _ in range(2):  # the second time after a reset, which must give the same as at first
        anchor, age = np.zeros((cameras, slots, 2)), np.zeros((cameras, slots))
        kept, means = [], [np.zeros(cameras)] * 2
        for _ in range(8):
            given = inputs(cameras, slots, rng)
            out = engine.step(given)
            anchor = np.where(given['query'][..., None], given['query_xy'], anchor)
            age = np.where(given['query'], given['query_age'], age + 1)
            want = (anchor + age[..., None] * [1, 0]) * given['live'][..., None]
            np.testing.assert_allclose(out['xy'], want, atol=EXACT)
            np.testing.assert_array_equal(out['visibility'], given['live'])
            means.append(given['image'].mean((1, 2, 3)) / 255)
            shown = np.where(given['query'], means[-3][:, None], means[-1][:, None])
            shown = np.where(given['query'] & (given['query_age'] == 0), 1, shown)
            np.testing.assert_allclose(out['confidence'], shown * given['live'], atol=5e-3)
            assert all(v.dtype == np.float32 for v in out.values())
            kept.append((out['xy'], out['xy'].copy()))
        for array, copy in kept:  # what was handed out is not written again
            np.testing.assert_array_equal(array, copy)
        engine.reset()
    engine.close()


@pytest.mark.parametrize('name', INSTALLED[:2])
def test_wrong_inputs_are_named(name, path):
    engine = load(path, available(name), 1, 4, threads=1)
    good = inputs(1, 4, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r'image must be uint8 of shape \(1, 32, 48, 3\), not'):
        engine.step(good | {'image': good['image'][:, :30]})
    with pytest.raises(ValueError, match=r'query_xy must be float32 .* not float64'):
        engine.step(good | {'query_xy': good['query_xy'].astype(float)})


def refused(message, *args, **kwargs):
    with pytest.raises(EngineError, match=message) as caught:
        load(*args, **kwargs)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('name', ['auto', *INSTALLED[:2]])
def test_files_that_are_no_model(name, tmp_path, path):
    refused('gone.onnx: no such model file', tmp_path / 'gone.onnx', name)
    refused('no such model file', tmp_path, name)
    refused("no model 'nonsense': neither a file nor a shipped model", 'nonsense', name)
    data = path.read_bytes()
    bad = tmp_path / 'bad.onnx'
    for size in (1, 5, 30, len(data) // 2, len(data) - 1):
        bad.write_bytes(data[:size])
        refused(r'bad\.onnx: (the ONNX file is truncated|not an ONNX file)', bad, name)
    for content in (
        b'',
        b'hello, this is text\n' * 50,
        b'\x89PNG\r\n\x1a\n' + bytes(500),
        np.random.default_rng(0).bytes(4000),
    ):
        bad.write_bytes(content)
        refused(r'bad\.onnx: (not an ONNX file|the ONNX file is truncated)', bad, name)
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, bad)
    refused('bad.onnx: not a cotracker_ros model', bad, name)
    stand_in_step.write(bad, format=4)
    refused('its format 4 is newer than this package, which reads up to 3', bad, name)
    stand_in_step.write(bad, window='four')
    refused('its metadata lacks a valid window', bad, name)
    onnx.helper.set_model_props(model, {'cotracker_ros': '{broken'})
    onnx.save(model, bad)
    refused('metadata cannot be read', bad, name)
    other = tmp_path / 'model.tflite'
    other.write_bytes(data)
    refused('a model file ends in one of .onnx', other, name)


@pytest.mark.parametrize('name', INSTALLED[:2])
def test_a_graph_that_is_no_step(name, tmp_path, path):
    model = onnx.load(path)
    model.graph.output.pop()
    onnx.save(model, tmp_path / 'cut.onnx')
    refused('are not those of a tracker step', tmp_path / 'cut.onnx', available(name))
    stand_in_step.write(path, image_scale=2)
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {'cotracker_ros': json.dumps(stand_in_step.METADATA)})
    onnx.save(model, path)
    refused(
        r'image is uint8 of shape \(1, 64, 96, 3\), not uint8 of shape \(1, 32, 48, 3\)',
        path,
        name,
    )


@pytest.mark.parametrize('name', INSTALLED[:2])
def test_a_graph_with_another_type_of_input(name, path):
    model = onnx.load(path)
    late = next(n for n in model.graph.node if n.op_type == 'Cast' and 'query_age' in n.input)
    next(i for i in model.graph.input if i.name == 'query_age').type.tensor_type.elem_type = 7
    assert late.input[0] == 'query_age'
    onnx.save(model, path)
    refused(r'query_age is int64 of shape \(1, 64\), not int32', path, available(name))


@pytest.mark.parametrize('name', INSTALLED[:2])
def test_a_keypoint_is_an_input_that_nobody_need_know(name, path, tmp_path):
    plain = load(path, available(name), 1, 4, threads=1)
    knows = load(stand_in_step.write(tmp_path / 'k.onnx', keypoints=True), name, 1, 4, threads=1)
    given = inputs(
        1, 4, np.random.default_rng(0), query=np.ones((1, 4), bool), live=np.ones((1, 4), bool)
    )
    want, number = plain.step(given)['xy'], np.array([[-1, 0, 16, -1]], np.int32)
    np.testing.assert_array_equal(knows.step(given)['xy'], want)  # -1 where none is given
    got = knows.step(given | {'keypoint': number})['xy']
    np.testing.assert_allclose(got - want, [[[0, 0], [0, 1], [0, 17], [0, 0]]], atol=1e-5)
    np.testing.assert_array_equal(plain.step(given | {'keypoint': number})['xy'], want)
    for engine in (plain, knows):
        with pytest.raises(ValueError, match=r'keypoint must be int32 .* not int64'):
            engine.step(given | {'keypoint': number.astype(np.int64)})
        with pytest.raises(ValueError, match='no step takes keypoints'):
            engine.step(given | {'keypoints': number})
        with pytest.raises(ValueError, match='the input live is missing'):
            engine.step({k: v for k, v in given.items() if k != 'live'})


@pytest.mark.parametrize('name', INSTALLED[:2])
@pytest.mark.parametrize('form', [1, 2])
def test_older_files_run(name, form, path):
    model = onnx.load(path)
    new = ('image_scale', 'resize', 'visible')
    old = {k: v for k, v in stand_in_step.METADATA.items() if k not in new}
    onnx.helper.set_model_props(model, {'cotracker_ros': json.dumps(old | {'format': form})})
    onnx.save(model, path)
    engine = load(path, available(name), threads=1)
    assert engine.metadata.image_scale == 1 and engine.metadata.picture_size == (32, 48)
    onnx.helper.set_model_props(model, {'cotracker_ros': json.dumps(old | {'format': 3})})
    onnx.save(model, path)
    refused('its metadata lacks a valid image_scale, resize, visible', path, name)


@pytest.mark.parametrize('name', INSTALLED[:2])
def test_a_picture_larger_than_the_model(name, tmp_path):
    path = stand_in_step.write(tmp_path / 'two.onnx', image_scale=2)
    engine = load(path, available(name), 2, 3, threads=1)
    assert (engine.metadata.image_size, engine.metadata.picture_size) == ((32, 48), (64, 96))
    rng = np.random.default_rng(0)
    given = inputs(2, 3, rng, image=rng.integers(0, 255, (2, 64, 96, 3), np.uint8))
    engine.step(given)
    with pytest.raises(ValueError, match=r'image must be uint8 of shape \(2, 64, 96, 3\)'):
        engine.step(inputs(2, 3, rng))


ENGINES_COME_AND_GO = """
import gc, os, signal, sys, threading
from cotracker_ros.engines import load
numbers = range(signal.SIGRTMIN, signal.SIGRTMAX)  # 30 of them
for number in numbers:
    signal.signal(number, lambda *given: None)
path, name = sys.argv[1:]
def several_at_once():
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    for number in numbers:
        os.kill(os.getpid(), number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
engines = [load(path, name, threads=1) for _ in range(3)]
several_at_once()
engines.pop(0), gc.collect()
engines.pop(0), gc.collect()
thread = threading.Thread(target=lambda: (engines.pop(), gc.collect()))
thread.start(), thread.join()
several_at_once()
print('alive')
"""


@pytest.mark.parametrize('name', INSTALLED)
def test_signals_are_harmless_while_engines_are_there_and_after(name, path):
    """OpenVINO gives its thread a small stack for signals, and unmaps it in the end."""
    words = [sys.executable, '-c', ENGINES_COME_AND_GO, str(path), available(name)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, 'alive\n'), done.stderr


def test_rings():
    assert spec.ring_length('m.onnx', 'a', [8, 2, 4], [1, 2, 4]) == 8
    for same in ([], [1], [2, 3, 2]):
        assert spec.ring_length('m.onnx', 'a', same, same) == 0
    for following in ([2, 4], [1, 5]):
        with pytest.raises(EngineError, match=r'm\.onnx: next\.a of shape .* is neither a state'):
            spec.ring_length('m.onnx', 'a', [8, 4], following)
    with pytest.raises(EngineError, match='not the same rank'):
        spec.ring_length('m.onnx', 'a', [8, 4], [4])
    lengths = ([], [0, 0], [0, 3], [8, 6])
    assert [base.binding_period(n) for n in lengths] == [2, 2, 6, 24]


def test_open_dimensions_without_names_are_cameras_then_points():
    assert spec.resolve('state.apart', (-1, -1, -1), 2, 5) == (2, 5, 5)


def test_auto_follows_its_order_and_says_why(path, monkeypatch):
    assert 'auto' not in str(load(path, 'onnxruntime', threads=1))
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    engine = load(path, threads=1)
    assert engine.name == 'onnxruntime' and 'openvino would be faster' in str(engine)
    monkeypatch.undo()
    available('openvino')
    for bf16, precision in ((True, 'bf16'), (False, 'f32')):
        if bf16 and not has_bf16():
            continue
        monkeypatch.setattr('cotracker_ros.engines.openvino_engine.has_bf16', lambda b=bf16: b)
        engine = load(path, threads=1)
        assert (engine.name, engine.precision) == ('openvino', precision)
        assert 'auto: the fastest on a CPU' in str(engine)
        assert ('that has bf16' in str(engine)) == bf16
    monkeypatch.undo()
    stand_in_step.write(path, precision='int8')
    assert load(path, threads=1).precision == 'int8'
    monkeypatch.setattr('importlib.util.find_spec', lambda name: object())
    monkeypatch.setitem(sys.modules, 'openvino', None)  # broken: what was chosen is not changed
    with pytest.raises(EngineError, match='engine openvino is not installed'):
        load(path, threads=1)


def test_bf16_needs_an_encoder_to_tell_from_the_rest(path, monkeypatch):
    available('openvino:bf16')
    monkeypatch.setattr(spec, 'ring_length', lambda *shapes: 0)
    refused('keeps no features of frames; use engine openvino', path, 'openvino:bf16')
    monkeypatch.undo()
    stand_in_step.write(path, format=1)
    assert load(path, threads=1).precision == 'f32'


def test_sizes_and_names(path):
    refused('max_points must be from 1 to 16384, not 0', path, slots=0)
    refused('max_points must be from 1 to 16384, not 1000000', path, slots=10**6)
    refused('cameras must be at least 1, not 0', path, cameras=0)
    refused('threads must be 0', path, threads=-1)
    refused("unknown engine 'tflite'; there are auto, onnxruntime", path, 'tflite')
    refused('the engine tensorrt runs .engine or .plan files', path, 'tensorrt')
    refused('the engine torch runs .safetensors or .pth files', path, 'torch')


@pytest.mark.parametrize('name', ['onnxruntime', 'openvino'])
def test_a_missing_library(name, path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    refused(f'engine {name} is not installed: pip install', path, name)


def test_the_torch_engine_runs_a_checkpoint(tmp_path, monkeypatch):
    torch = pytest.importorskip('torch')
    from safetensors.torch import save_file

    from cotracker_ros.model import build_model

    path = tmp_path / 'own.safetensors'
    save_file(build_model('realtime').state_dict(), path)
    engine = load(path, 'auto', slots=2, threads=1)
    assert (engine.name, engine.device, engine.precision) == ('torch', 'cpu', 'f32')
    height, width = engine.metadata.picture_size
    given = inputs(
        1,
        2,
        np.random.default_rng(0),
        query=np.ones((1, 2), bool),
        query_age=np.zeros((1, 2), np.int32),
        live=np.array([[True, False]]),
        image=np.zeros((1, height, width, 3), np.uint8),
    )
    out = engine.step(given)
    np.testing.assert_array_equal(out['xy'], given['query_xy'] * given['live'][..., None])
    if not torch.cuda.is_available():
        for name in ('torch:cuda', 'torch:cuda-graph'):
            refused('torch sees no CUDA device', path, name)
    path.write_bytes(path.read_bytes()[:1000])
    refused(r'own\.safetensors', path)
    monkeypatch.setitem(sys.modules, 'torch', None)
    refused('engine torch is not installed: pip install', path)


class StandInCuda:
    """Of torch.cuda what recording calls; a graph does over again what was recorded."""

    Stream = staticmethod(lambda: StandInCuda())
    current_stream = Stream

    def __init__(self, engine=None, fails=False):
        self.engine, self.fails, self.replays = engine, fails, 0

    def wait_stream(self, other):
        pass

    def stream(self, other):
        return contextlib.nullcontext()

    graph = stream

    def CUDAGraph(self):
        if self.fails:
            raise RuntimeError('operation not permitted when stream is capturing')
        return self

    def replay(self):
        self.replays += 1
        for name, value in self.engine._work().items():
            self.engine._shown[name].copy_(value)


def test_a_recorded_torch_step_is_the_step():
    torch = pytest.importorskip('torch')
    from cotracker_ros.engines.torch_engine import TorchEngine, constants_made_once, step_metadata
    from cotracker_ros.model import build_model
    from cotracker_ros.model.registry import build_step

    torch.manual_seed(0)
    network = build_model('realtime', (64, 96)).eval()
    step = build_step(network, 1)
    meta = metadata.Metadata(**step_metadata(network, step))
    plain, recorded = (TorchEngine(step, meta, 'cpu', 1, 3, 1, r) for r in (False, True))
    cuda = StandInCuda(recorded)
    recorded._torch = types.SimpleNamespace(
        cuda=cuda, inference_mode=torch.inference_mode, tensor=torch.tensor
    )
    for engine in (plain, recorded):
        engine.warm_up()
    rng = np.random.default_rng(2)
    for _ in range(2):
        for _ in range(10):
            given = inputs(
                1, 3, rng, image=rng.integers(0, 255, (1, *meta.picture_size, 3), np.uint8)
            )
            got, want = recorded.step(given), plain.step(given)
            for name in want:
                np.testing.assert_array_equal(got[name], want[name])
        plain.reset()
        recorded.reset()
    assert cuda.replays == 20
    recorded._torch.cuda = StandInCuda(fails=True)
    with pytest.raises(EngineError, match=r'could not record .* use engine torch:cuda'):
        recorded.warm_up()
    with constants_made_once():
        x = torch.zeros(2)
        assert x.new_tensor([1, 2]) is x.new_tensor([1, 2])
        assert x.new_tensor([1, 2]) is not x.double().new_tensor([1, 2])
        assert torch.tensor([3], dtype=torch.int32) is not torch.tensor([3])


@pytest.mark.parametrize('variant', ['cuda', 'tensorrt'])
def test_a_missing_provider(variant, path):
    import onnxruntime

    if len(onnxruntime.get_available_providers()) > 2:
        pytest.skip('this onnxruntime has GPU providers')
    refused(
        'this onnxruntime has no (CUDA|Tensorrt)ExecutionProvider', path, f'onnxruntime:{variant}'
    )


def test_metadata_round_trip(path):
    read = metadata.read_metadata(path)
    assert json.loads(json.dumps(read.__dict__)) == stand_in_step.METADATA


def test_default_threads_leave_a_core(monkeypatch):
    for cores, threads in ((1, 1), (2, 2), (4, 3)):
        monkeypatch.setattr('os.sched_getaffinity', lambda _, n=cores: range(n), raising=False)
        assert engines.default_threads() == threads
