"""The export: its lint, its rewrites, and whole exports of small networks proven against torch."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import stand_in_step
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper

from cotracker_ros.engines import Metadata, compare, load, read_metadata
from cotracker_ros.engines.branches import always_taken
from cotracker_ros.engines.openvino_engine import has_bf16
from cotracker_ros.engines.scripted_stream import scripted_stream

torch = pytest.importorskip('torch')
from export import benchmark, export_onnx, graph, precision, verify  # noqa: E402 - needs torch


def model(nodes, inputs, outputs, constants=(), opset=18):
    made = h.make_graph(
        nodes,
        'g',
        [h.make_tensor_value_info(*i) for i in inputs],
        [h.make_tensor_value_info(*o) for o in outputs],
        [onnx.numpy_helper.from_array(v, k) for k, v in dict(constants).items()],
    )
    return h.make_model(made, opset_imports=[h.make_opsetid('', opset)], ir_version=10)


def run(made, **inputs):
    session = ort.InferenceSession(made.SerializeToString(), providers=['CPUExecutionProvider'])
    return session.run(None, inputs)


def sampling(rank=4, opset=18):
    n = [2] * (rank - 2)
    return model(
        [h.make_node('GridSample', ['x', 'grid'], ['y'], name='gs')],
        [('x', T.FLOAT, [1, 1, *n]), ('grid', T.FLOAT, [1, *n, rank - 2])],
        [('y', T.FLOAT, [1, 1, *n])],
        opset=opset,
    )


@pytest.mark.parametrize(
    'made, message',
    [
        (sampling(opset=20), 'gs: GridSample of opset 20, not 16 to 19'),
        (sampling(rank=5, opset=20), 'gs: GridSample of rank 5'),
        (
            model(
                [h.make_node('ScatterND', ['x', 'i', 'u'], ['y'], name='s', reduction='add')],
                [('x', T.FLOAT, [4]), ('u', T.FLOAT, [1])],
                [('y', T.FLOAT, [4])],
                {'i': np.array([[1]])},
            ),
            's: ScatterND with reduction add',
        ),
        (
            model(
                [h.make_node('Neg', ['x'], ['y'])], [('x', T.DOUBLE, [1])], [('y', T.DOUBLE, [1])]
            ),
            'float64: ',
        ),
        (
            model(
                [h.make_node('Transpose', ['x'], ['y'], name='t', perm=[1, 0])],
                [('x', T.UINT8, [1, 2])],
                [('y', T.UINT8, [2, 1])],
            ),
            't: Transpose of uint8',
        ),
    ],
)
def test_lint_refuses(made, message):
    with pytest.raises(graph.ExportError, match=message):
        graph.lint(made)


def test_lint_passes_and_remarks():
    assert graph.lint(sampling()) == []
    made = model(
        [h.make_node('Einsum', ['x', 'x'], ['y'], equation='ij,kj->ik')],
        [('x', T.FLOAT, [2, 2])],
        [('y', T.FLOAT, [2, 2])],
    )
    assert graph.lint(made) == ['1 Einsum']


def test_an_image_is_cast_before_it_is_transposed():
    made = model(
        [
            h.make_node('Transpose', ['image'], ['t'], perm=[0, 2, 1]),
            h.make_node('Cast', ['t'], ['c'], to=T.FLOAT),
            h.make_node('Add', ['c', 'c'], ['y']),
        ],
        [('image', T.UINT8, [1, 2, 3])],
        [('y', T.FLOAT, [1, 3, 2])],
    )
    image = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
    want = run(made, image=image)
    graph.cast_first(made)
    onnx.checker.check_model(made, full_check=True)
    assert [n.op_type for n in made.graph.node] == ['Cast', 'Transpose', 'Add']
    np.testing.assert_array_equal(run(made, image=image), want)
    graph.lint(made)


@pytest.mark.parametrize('approximate', ['tanh', 'none'])
def test_lean_keeps_the_numbers_and_lets_gelu_be_fused(approximate, tmp_path):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(8, 8)

        def forward(self, x):
            x = torch.nn.functional.gelu(self.inner(x), approximate=approximate)
            return torch.nn.functional.pad(x, [0, 0]) ** 2

    x = torch.randn(5, 8)
    net = Net().eval()
    made = export_onnx.to_graph(net, (x,), input_names=['x'])
    onnx.checker.check_model(made, full_check=True)
    want = net(x).detach().numpy()[None]
    np.testing.assert_allclose(run(made, x=x.numpy()), want, rtol=1e-5, atol=1e-6)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / 'o.onnx')
    options.log_severity_level = 3
    ort.InferenceSession(made.SerializeToString(), options, providers=['CPUExecutionProvider'])
    fused = {n.op_type for n in onnx.load(options.optimized_model_filepath).graph.node}
    assert fused & {'Gelu', 'FastGelu', 'BiasGelu'}
    assert not fused & {'Pow', 'Erf', 'Tanh', 'Pad'}


def conditional():
    """y = x where nothing is asked, else x with what is asked doubled: a branch for each."""
    x, asked = (
        h.make_tensor_value_info(name, kind, ['n'])
        for name, kind in (('x', T.FLOAT), ('asked', T.BOOL))
    )
    y, made, same = (
        h.make_tensor_value_info(name, T.FLOAT, ['n']) for name in ('y', 'made', 'same')
    )
    two = numpy_helper.from_array(np.float32([2]), 'two')
    doubled = [
        h.make_node('Mul', ['x', 'two'], ['double']),
        h.make_node('Where', ['asked', 'double', 'x'], ['made']),
    ]
    branches = {
        'then_branch': h.make_graph(doubled, 'then', [], [made], [two]),
        'else_branch': h.make_graph(
            [h.make_node('Identity', ['x'], ['same'])], 'else', [], [same]
        ),
    }
    nodes = [
        h.make_node('Cast', ['asked'], ['number'], to=T.INT32),
        h.make_node('ReduceMax', ['number'], ['most'], keepdims=0),
        h.make_node('Cast', ['most'], ['any'], to=T.BOOL),
        h.make_node('If', ['any'], ['y'], **branches),
    ]
    graph = h.make_graph(nodes, 'conditional', [x, asked], [y])
    return h.make_model(graph, opset_imports=[h.make_opsetid('', 18)], ir_version=8)


def test_a_graph_without_its_condition_gives_the_same():
    model = conditional()
    flat = always_taken(model)
    onnx.checker.check_model(flat, full_check=True)
    assert 'If' not in [node.op_type for node in flat.graph.node]
    assert 'If' in [node.op_type for node in model.graph.node]
    one, other = (ort.InferenceSession(m.SerializeToString()) for m in (model, flat))
    x = np.float32([1, 2, 3])
    for asked, expected in (([0, 0, 0], [1, 2, 3]), ([0, 1, 0], [1, 4, 3])):
        given = {'x': x, 'asked': np.array(asked, bool)}
        for session in (one, other):
            assert np.array_equal(session.run(None, given)[0], expected)


def test_cleaning_and_checks_reach_into_branches():
    model = conditional()
    graph.simplify(model)  # the constant of the branch stays
    onnx.checker.check_model(model, full_check=True)
    branch = next(a.g for a in model.graph.node[-1].attribute if a.name == 'then_branch')
    branch.initializer[0].CopyFrom(numpy_helper.from_array(np.float64([2]), 'two'))
    with pytest.raises(graph.ExportError, match='float64'):
        graph.lint(model)
    branch.node[0].doc_string = '/home/somebody'
    graph.strip(model)
    assert not branch.node[0].doc_string


def test_a_condition_comes_after_what_its_branches_read():
    model = conditional()
    # What a branch reads is made by a node that stands after the condition.
    model.graph.node.append(h.make_node('Neg', ['x'], ['minus']))
    branch = next(a.g for a in model.graph.node[3].attribute if a.name == 'else_branch')
    branch.node[0].input[0] = 'minus'
    with pytest.raises(onnx.checker.ValidationError, match='sorted'):
        onnx.checker.check_model(model, full_check=True)
    graph.sort(model)
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize('form, relu', [('mixed', T.FLOAT), ('fp16', T.FLOAT16)])
def test_half_precision_keeps_out_of_coordinates_and_sampling(form, relu):
    made = model(
        [
            h.make_node('MatMul', ['x', 'w'], ['a']),
            h.make_node('Relu', ['a'], ['b']),
            h.make_node('Add', ['xy', 'b'], ['c']),
            h.make_node('Mul', ['c', 'k'], ['d']),
            h.make_node('Softmax', ['b'], ['e']),
            h.make_node('Add', ['d', 'e'], ['y']),
        ],
        [('x', T.FLOAT, [2, 4]), ('xy', T.FLOAT, [2, 2])],
        [('y', T.FLOAT, [2, 2])],
        {'w': np.eye(4, 2, dtype=np.float32), 'k': np.array(3, np.float32)},
    )
    inputs = {'x': np.full((2, 4), 0.1, np.float32), 'xy': np.full((2, 2), 511.3, np.float32)}
    want = run(made, **inputs)
    half = precision.convert(made, form)
    onnx.checker.check_model(half, full_check=True)
    kinds = {
        v.name: v.type.tensor_type.elem_type
        for v in onnx.shape_inference.infer_shapes(half).graph.value_info
    }
    assert kinds['a_half'] == T.FLOAT16 and kinds['c'] == kinds['d'] == kinds['e'] == T.FLOAT
    assert kinds['b_half' if relu == T.FLOAT16 else 'b'] == relu
    np.testing.assert_allclose(run(half, **inputs), want, rtol=1e-5)


def test_an_exported_file(exported):
    meta = read_metadata(exported)
    assert (meta.model, meta.image_size, meta.window) == ('realtime', (64, 96), 8)
    assert (meta.iterations, meta.precision, meta.licence) == (1, 'fp32', 'Apache-2.0')
    assert len(meta.weights_sha256) == 64 and meta.provenance == 'a test'
    made = onnx.load(exported)
    assert [o.version for o in made.opset_import] == [18] and made.ir_version == 8
    dims = {
        i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim]
        for i in made.graph.input
    }
    assert dims['image'] == ['cameras', *meta.picture_size, 3] and dims['query_xy'] == [
        'cameras',
        'points',
        2,
    ]
    text = json.dumps([str(p) for p in made.metadata_props]) + made.graph.doc_string
    assert '/' not in text.replace('cotracker_ros/', '')  # no path of the exporting machine
    assert not any(n.metadata_props for n in made.graph.node)


@pytest.mark.parametrize('name', ['onnxruntime', 'openvino'])
@pytest.mark.parametrize('cameras, slots', [(1, 1), (2, 5)])
def test_engines_agree_with_torch(exported, small_checkpoint, name, cameras, slots):
    """The shared tolerance table of the export holds for every engine, cameras and points."""
    from cotracker_ros.engines.metadata import Metadata
    from cotracker_ros.engines.torch_engine import TorchEngine, step_metadata
    from cotracker_ros.model import load_checkpoint
    from cotracker_ros.model.registry import build_step

    network = load_checkpoint(small_checkpoint, (64, 96))
    step = build_step(network.eval(), 1)
    meta = step_metadata(network, step, provenance='a test')
    assert meta == read_metadata(exported).__dict__
    reference = TorchEngine(step, Metadata(**meta), 'cpu', cameras, slots, 1)
    engine = load(exported, name, cameras, slots, threads=1)
    found = compare.difference(compare.record(engine, 20), compare.record(reference, 20), name)
    for output, tolerance in compare.TOLERANCE['f32'].items():  # with no slack
        assert found.largest[output] <= tolerance


def test_bf16_moves_points_by_hundredths_of_a_pixel():
    """Only the features are in bf16: with patches and places in it too, points of the shipped
    model would be off by half a pixel.
    """
    pytest.importorskip('openvino')
    if not has_bf16():
        pytest.skip('this CPU has no bf16')
    ours, reference = (
        compare.record(load('realtime', f'openvino{variant}', 1, 16, threads=1), 12)
        for variant in (':bf16', '')
    )
    found = compare.difference(ours, reference, 'openvino:bf16')
    assert 0 < found.mean['xy'] < 0.02
    assert found.mean['visibility'] < 2e-3 and found.mean['confidence'] < 2e-3


def test_past_the_tolerance_nothing_is_written(exported, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(export_onnx, 'export', lambda *what: shutil.copy(exported, what[2]))
    monkeypatch.setitem(compare.TOLERANCE['f32'], 'xy', -1)
    assert (
        export_onnx.main(
            [
                '--model',
                'realtime',
                '--output',
                str(tmp_path / 'm.onnx'),
                '--iterations',
                '1',
                '--resolution',
                '64x96',
                '--points',
                '2',
                '--frames',
                '2',
            ]
        )
        == 1
    )
    assert 'm.onnx is past the tolerance; largest difference: xy' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--model', 'cotracker1'], 'cotracker1 cannot be streamed'),
        (['--model', 'cotracker3_offline'], 'use cotracker3_online'),
        (['--model', 'cotracker9'], "unknown model 'cotracker9'"),
        (['--checkpoint', 'gone.pth'], 'gone.pth'),
    ],
)
def test_what_cannot_be_exported(arguments, message, tmp_path, capsys):
    assert export_onnx.main([*arguments, '--output', str(tmp_path / 'm.onnx')]) == 1
    assert message in capsys.readouterr().err


def test_the_stream_has_what_it_promises():
    values = {**stand_in_step.METADATA, 'height': 64, 'width': 96, 'window': 8}
    stream = list(scripted_stream(30, Metadata(**values), 2, 40))
    live = np.stack([s['live'] for s in stream])
    queried = np.stack([s['query'] for s in stream])
    ages = np.stack([s['query_age'] for s in stream])
    assert live.any((1, 2)).all() and (queried <= live).all()
    assert ages.max() == 7 and (ages[~queried] == 0).all()
    assert (queried.sum(0) == 2).any() and (live[-1] < live[15]).any()


def test_verify_compares_every_engine_here(exported, small_checkpoint, capsys):
    options = ['--checkpoint', str(small_checkpoint), '--points', '4', '--frames', '6']
    assert verify.main([str(exported), *options]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[2:]}
    assert lines['onnxruntime'].endswith('ok') and lines['openvino'].endswith('ok')
    assert 'not here: this onnxruntime has no CUDA' in lines['onnxruntime:cuda']


def test_verify_wants_the_weights_of_the_file(exported, small_checkpoint, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    from cotracker_ros.model.checkpoint import read_metadata

    weights, other = load_file(small_checkpoint), tmp_path / 'other.safetensors'
    about = read_metadata(small_checkpoint)
    save_file({k: v + 1 for k, v in weights.items()}, other, about)
    assert verify.main([str(exported), '--checkpoint', str(other)]) == 1
    assert 'was not exported from the weights in' in capsys.readouterr().err


def test_peak_memory_is_that_of_the_process_alone():
    held = np.ones(50_000_000)  # 400 MB here, which the others must not count
    code = """import sys; from export.reporting import peak_memory
before = peak_memory(); held = b'x' * int(sys.argv[1]); del held; print(before, peak_memory())"""
    root = Path(__file__).parents[1]
    (small, same), (before, after) = (
        map(float, subprocess.check_output([sys.executable, '-c', code, n], cwd=root).split())
        for n in ('1', str(200 << 20))
    )
    assert held.all() and small < 200 and same < small + 20
    assert 180 < after - before < 220


def bench_row(**values):
    row = {
        'model': 'm',
        'engine': 'e',
        'points': 4,
        'p50': 10.0,
        'p95': 11.0,
        'p99': 12.0,
        'least': 9.0,
        'cpu': 18.0,
        'steps': 50,
        'memory': 60.0,
        'threads': 2,
        'gflop': 1.0,
        'precision': 'f32',
        'device': 'cpu',
        'reference': 200.0,
        'peak': 90.0,
        'load': 1.0,
    }
    return row | values


def test_the_benchmark_keeps_what_others_wrote(exported, monkeypatch, tmp_path):
    pytest.importorskip('matplotlib')
    monkeypatch.setattr(benchmark, 'SECONDS', 0)
    row = benchmark.measure(exported, 'onnxruntime', 4)
    assert 0 < row['least'] <= row['p50'] <= row['p99'] and row['steps'] == 5
    work = benchmark.gflop(exported, 4)
    assert 0.05 < work < benchmark.gflop(exported, 64)
    row = bench_row(**row, gflop=work)
    page = tmp_path / 'b.md'
    page.write_text('# Mine\n')
    for _ in range(2):
        benchmark.write([row], page)
    text = page.read_text()
    assert text.startswith('# Mine') and text.count('| m | e | 4 |') == 1
    assert 'No GPU was at hand' in text and '200.0 ms in fp32' in text
    benchmark.plot([row], tmp_path / 'b.png')
    assert (tmp_path / 'b.png').stat().st_size > 1000


def test_the_benchmark_tells_which_engine_is_fastest():
    rows = [
        bench_row(engine='a', p50=5.0), bench_row(engine='b', p50=4.0),
        bench_row(engine='a', p50=8.0, points=9), bench_row(engine='b', p50=9.0, points=9),
        bench_row(engine='a', p50=3.0, model='n'),
    ]  # fmt: skip
    assert benchmark.fastest(rows) == [
        'm, 4 points: engine b, 4.0 ms',
        'n, 4 points: engine a, 3.0 ms',
        'm, 9 points: engine a, 8.0 ms',
    ]


def test_quantiles_want_steps_and_gpu_rows_a_table_of_their_own(tmp_path):
    few, many = (benchmark.table([bench_row(steps=n)]).splitlines()[-1] for n in (7, 100))
    assert few.startswith('| m | e | 4 | 10.0 |  |  | 9.0 | 0.050 | 100.0 |')
    assert many.startswith('| m | e | 4 | 10.0 | 11.0 | 12.0 | 9.0 |')
    benchmark.write([bench_row(), bench_row(engine='g', device='cuda:0')], tmp_path / 'b.md')
    cpu, gpu = (tmp_path / 'b.md').read_text().split('### On a GPU')
    assert '| m | g |' in gpu and '| m | g |' not in cpu and 'No GPU' not in gpu


@pytest.mark.parametrize(
    'cost, exponent', [(lambda n: 5 + 0.1 * n, 0.906), (lambda n: 0.01 * n**1.5, 1.5)]
)
def test_growth_with_points(cost, exponent):
    rows = [bench_row(points=n, p50=cost(n)) for n in benchmark.POINTS]
    (found,) = benchmark.growth(rows)
    assert found['exponent'] == pytest.approx(exponent, abs=0.03)
    if exponent < 1:
        assert found['fixed'] == pytest.approx(5) and found['slope'] == pytest.approx(0.1)
    assert benchmark.growth_table(rows).endswith('yes |' if exponent < 1 else '**no** |')
    assert benchmark.growth(rows[:2]) == []


def test_the_benchmark_of_nothing_is_refused(tmp_path, capsys):
    (tmp_path / 'text.onnx').write_text('no model')
    for files, message in (
        ([], 'nothing was measured'),
        (['gone.onnx'], 'no such model file'),
        (['gone.pth'], 'no such model file'),
        (['text.onnx'], 'not an ONNX'),
    ):
        options = ['--output', str(tmp_path / 'b.md')]
        assert benchmark.main([*(str(tmp_path / f) for f in files), *options]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / 'b.md').exists()
