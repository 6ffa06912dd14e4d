"""Curves of the experiments of train/experiments.py, and the page that shows them.

Published figures stand beside the measured ones in tables of their own, each with its source; no
published figure was measured here.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from export.reporting import markdown
from train.evaluate import COLUMNS

# Query-first, in percent, as their sources print them; hardware and input sizes differ.
PUBLISHED_ACCURACY = (
    # model, when a frame's result is there, AJ, delta, OA on TAP-Vid DAVIS, source
    ('CoTracker3 online, 15k real videos', '8 to 15 frames late', 63.8, 76.3, 90.2, '2410.11831'),
    ('CoTracker3 offline, 15k real videos', 'after the clip', 64.4, 76.9, 91.2, '2410.11831'),
    ('CoTracker2', '4 to 7 frames late', 61.8, 76.1, 88.3, '2410.11831'),
    ('LiteTracker (CoTracker3, per frame)', 'in the frame', 62.0, 74.6, 88.4, '2504.09904'),
    ('TAPNext-B', 'in the frame', 65.2, 78.5, 91.2, 'tapnet README'),
    ('Track-On-R', 'in the frame', 68.1, 80.3, 92.5, '2603.12217'),
    ('BootsTAPIR, causal', 'in the frame', 59.7, None, None, 'tapnet README'),
    ('TAPIR, online', 'in the frame', 56.2, None, None, 'tapnet README'),
    ('TAPIR', 'after the clip', 56.2, 70.0, 86.5, '2410.11831'),
    ('BootsTAPIR', 'after the clip', 61.4, 73.6, 88.7, '2410.11831'),
    ('LocoTrack-B', 'after the clip', 62.9, 75.3, 87.2, '2410.11831'),
)
LATE = ('in the frame', '4 to 7 frames late', '8 to 15 frames late', 'after the clip')
PUBLISHED_BADJA = 'PIPs, published: 91.6 on camel and 87.7 on cows within 0.2 sqrt(area), 89.7 in '
PUBLISHED_BADJA += 'the mean (arXiv 2204.04153).'
PUBLISHED_SPEED = (
    # model, figure, hardware, source
    ('CoTracker3 online', '405 us per frame and point', 'not stated', 'arXiv 2410.11831'),
    ('CoTracker3 offline', '209 us per frame and point', 'not stated', 'arXiv 2410.11831'),
    ('CoTracker2', '472 us per frame and point', 'not stated', 'arXiv 2410.11831'),
    ('LocoTrack-B', '290 us per frame and point', 'not stated', 'arXiv 2410.11831'),
    ('CoTracker3 online, 1024 points', '201.0 ms a step (p95)', 'RTX 3090', 'arXiv 2504.09904'),
    ('LiteTracker, 1024 points', '29.7 ms a step (p95)', 'RTX 3090', 'arXiv 2504.09904'),
)
PUBLISHED_HIDDEN = (
    # model, delta of visible and of hidden points on Dynamic Replica
    ('CoTracker3 online, trained on Kubric', 72.9, 41.0),
    ('the same without attention between tracks', 71.3, 35.9),
    ('CoTracker3 online, 15k real videos', 73.3, 40.1),
    ('CoTracker2', 68.9, 37.6),
    ('LocoTrack', 71.4, 29.8),
    ('BootsTAPIR', 69.0, 28.0),
)
TITLES = {
    'table': 'Accuracy',
    'scaling': 'Time and memory against the number of points',
    'latency': 'Iterations and latency',
    'window': 'Window',
    'support': 'Support points',
    'occlusion': 'Occlusions of half a second to two seconds',
    'pictures': 'Pictures',
}
AXES = {
    'support': 'support points',
    'latency': 'iterations',
    'window': 'window, frames',
    'occlusion': 'seconds occluded, at 30 frames/s',
    'scaling': 'points',
}
HEADLINE = ('badja_segment', 'badja_3px', 'average_jaccard', 'occlusion_accuracy')
TABLE = (
    'badja_segment', 'badja_3px', 'average_jaccard', 'position_accuracy', 'occlusion_accuracy',
    'position_accuracy_hidden', 'survival', 'redetection_recovered',
)  # fmt: skip
MEASURES = {
    **COLUMNS,
    'badja_segment': 'within 0.2 sqrt(area)',
    'badja_3px': 'within 3 px',
    'redetection_recovered': 'recovered',
    'redetection_reported': 'recovered and visible by the tracker',
}
NO_PUBLISHED_WEIGHTS = (
    'Published weights of CoTracker 1 to 3 may not be shipped and were not at hand: the figures '
    'show the real-time model alone, and no network with random weights stands in for them. With '
    'the files, `--checkpoint scaled_online.pth ...` adds their curves.'
)
NOTES = {
    'latency': 'The real-time model answers in the frame itself whatever its iterations, so its '
    'only trade is time (ms of PyTorch here; the exported file is faster). A sliding network can '
    'be read frame by frame, at the first estimate of a frame (half a window late) or at its last '
    '(a window late).',
    'window': 'Trained with its full window; a shorter one is the same weights, remembering less.',
    'occlusion': 'Published, another set and measure: position accuracy on Dynamic Replica '
    '(arXiv 2410.11831).',
    'pictures': 'Tails are coloured by point; a hollow ring is a point that the tracker calls '
    'hidden. In the last column a disc is the track and a ring the true place, green where they '
    'agree and red from 8 px (of 256) on.',
}


def draw(name: str, results: Mapping, folder: Path) -> None:
    """Draw the curves of one experiment into NAME.png; of those that have no curves, nothing."""
    if name not in AXES:
        return
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    rows = [(AXES[name], _curves(results, lambda row: row['x']))]
    if name == 'latency':
        rows.append(
            ('ms per frame; beside each point: iterations', _curves(results, _milliseconds))
        )
        if _latenesses(results):
            rows.append(('frames late, at most', _by_lateness(results)))
        _draw_published(plt, folder / 'latency_published.png')
    titles = list(rows[0][1])
    size = 3.1 * max(2, len(titles)), 2.9 * len(rows) + 0.5
    figure, axes = plt.subplots(
        len(rows), len(titles), figsize=size, squeeze=False, layout='constrained'
    )
    for (label, curves), line in zip(rows, axes, strict=True):
        for axis, title in zip(line, titles, strict=True):
            for i, (legend, points) in enumerate(curves[title].items()):
                style = f'{"osD^v"[i % 5]}-'
                axis.plot(*zip(*points, strict=True), style, label=legend, ms=4, lw=1.5)
                if label.startswith('ms per frame;'):
                    _annotate(axis, points, curves_x=rows[0][1][title][legend])
            _fitted(axis, title, results)
            _dress(axis, title, label, log=name == 'scaling')
    legends = {
        text: handle
        for axis in axes[:, 0]
        for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        legends.values(), legends.keys(), loc='outside lower center', ncols=min(4, len(legends)),
        fontsize=8, frameon=False,
    )  # fmt: skip
    figure.savefig(folder / f'{name}.png', dpi=110)
    plt.close(figure)


def _dress(axis, title: str, label: str, log: bool) -> None:
    axis.set_title(title, fontsize=9)
    axis.set_xlabel(label, fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.spines[['top', 'right']].set_visible(False)
    if log:
        axis.set(xscale='log', yscale='log')
        for line in (axis.xaxis, axis.yaxis):
            line.set_major_formatter('{x:g}')
            line.set_minor_formatter(lambda x, _: f'{x:g}' if f'{x:g}'[0] in '25' else '')
        axis.tick_params(which='minor', axis='x', labelbottom=False)
        axis.tick_params(which='minor', labelsize=8)
    else:
        _leave_room(axis)


def _annotate(axis, points: list, curves_x: list) -> None:
    """Write beside each point the x that it has in another curve of the same line."""
    for point, (x, _) in zip(points, curves_x, strict=True):
        axis.annotate(f'{x:g}', point, (4, 3), textcoords='offset points', fontsize=7)


def _draw_published(plt, path: Path) -> None:
    """Draw the published accuracy on DAVIS against when a result is there."""
    figure, axis = plt.subplots(figsize=(7.5, 3.6), layout='constrained')
    for model, late, jaccard, *_ in PUBLISHED_ACCURACY:
        x = LATE.index(late)
        axis.plot(x, jaccard, 's', color='0.45', markersize=5)
        name = model.partition(' (')[0].partition(', 15k')[0]
        axis.annotate(name, (x, jaccard), (6, -3), textcoords='offset points', fontsize=7)
    axis.set_xticks(range(len(LATE)), LATE, fontsize=8)
    axis.set_xlim(-0.2, len(LATE) - 0.4)
    axis.set_title('Published, not measured here: TAP-Vid DAVIS, AJ, %', fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.spines[['top', 'right']].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _latenesses(results: Mapping) -> bool:
    """Tell whether any model was measured at more than one latency."""
    found = {(m, row['frames_late']) for m, rows in results.items() for row in rows}
    return len(found) > len({model for model, _ in found})


def _by_lateness(results: Mapping) -> dict[str, dict[str, list]]:
    """Return accuracy against frames of latency, by model and number of iterations."""
    lines: dict[str, list] = {}
    for model, rows in results.items():
        for row in rows:
            plain = {key: value for key, value in row.items() if key != 'mode'}
            lines.setdefault(f'{model}, {row["x"]} iterations', []).append(plain)
    return _curves(lines, lambda row: row['frames_late'])


def _milliseconds(row: Mapping) -> float:
    return float(np.mean([s['ms_per_frame'] for s in row.values() if isinstance(s, Mapping)]))


def _curves(results: Mapping, place: Callable[[Mapping], float]) -> dict[str, dict[str, list]]:
    """Return by measure, then by line, the points (x, y)."""
    curves: dict[str, dict[str, list]] = {}
    for label, rows in results.items():
        for row in rows if isinstance(rows, list) else ():
            late = f', {row["mode"]}' if 'mode' in row else ''
            for title, value in _measured(row):
                line = curves.setdefault(title, {}).setdefault(label + late, [])
                line.append((place(row), value))
    return curves


def _measured(row: Mapping) -> Iterable[tuple[str, float]]:
    if 'ms' in row:
        yield 'ms per frame', row['ms']
        yield 'peak memory, MiB', row['mib']
    for data, scores in row.items():
        if not isinstance(scores, Mapping):
            continue
        occluded = data == 'occlusions'
        for key in ('redetection_recovered', 'redetection_reported') if occluded else HEADLINE:
            if np.isfinite(scores.get(key, np.nan)):
                title = MEASURES[key] + ', %'
                yield (title if occluded else f'{data}: {title}'), scores[key]


def _fitted(axis, title: str, results: Mapping) -> None:
    """Draw the linear fits of time and memory."""
    start, growth = {
        'ms per frame': ('ms', 'us_per_point'),
        'peak memory, MiB': ('mib', 'kib_per_point'),
    }.get(title, ('', ''))
    for label, fit in results.items():
        if start and label.endswith(', fit'):
            x = np.geomspace(10, 10_000, 50)
            unit = 1000 if start == 'ms' else 1024
            axis.plot(x, fit[start] + x * fit[growth] / unit, 'k:', linewidth=1, label=label)


def _leave_room(axis) -> None:
    """Show at least ten points of percent, so that noise does not look like an effect."""
    low, high = axis.get_ylim()
    if high - low < 10:
        middle = (low + high) / 2
        low, high = middle - 5, middle + 5
    axis.set_ylim(max(low, -2), min(max(high, low + 10), 102))


def page(folder: Path, experiments: Mapping[str, Callable]) -> str:
    """Return the page over all results in a folder, in the order of the experiments."""
    lines = [
        '# Results', '',
        'Written by `train/experiments.py` (`make paper`); do not edit. Figures are percent '
        'unless said. BADJA (camel, cows) is measured at 320 x 512; the procedural set is '
        'rendered with photographs that training never sees; `docs/evaluation.md` says what the '
        'columns mean. Each point has one query; the streaming runtime sees no future frames.', '',
        NO_PUBLISHED_WEIGHTS, '',
    ]  # fmt: skip
    for name, experiment in experiments.items():
        path = folder / f'{name}.json'
        if not path.is_file():
            continue
        content = json.loads(path.read_text())
        results, about = content['results'], content['about']
        lines += [f'## {TITLES[name]}', '', _summary(experiment), '']
        if name == 'table':
            lines += [*_accuracy(results), '']
        else:
            lines += [f'![{TITLES[name]}]({name}.png)', '']
        lines += _beside(name, results)
        lines += [
            f'Measured on {about["machine"]}, {about["date"]}, in {about["seconds"]} s: '
            f'`{about["command"]}`', '',
        ]  # fmt: skip
    return '\n'.join(lines)


def _summary(experiment: Callable) -> str:
    """Return the docstring's first lines, up to a blank one, and its second paragraph if short."""
    text = (experiment.__doc__ or '').split('\n\n')
    return ' '.join(' '.join(text[:2]).split())


def _beside(name: str, results: Mapping) -> list[str]:
    """Return what is said and tabled below one experiment's figure."""
    lines = [NOTES[name], ''] if name in NOTES else []
    if name == 'table':
        head = ['**Published**, not measured here', 'latency', 'DAVIS AJ', 'delta', 'OA', 'source']
        rows = [
            [*('' if cell is None else str(cell) for cell in row[:5]), _source(row[5])]
            for row in PUBLISHED_ACCURACY
        ]
        lines += [*markdown(head, rows), '', PUBLISHED_BADJA, '']
    if name == 'latency':
        lines += ['![Published accuracy and latency](latency_published.png)', '']
    if name == 'scaling':
        head = ['linear fit', 'ms', 'us per point', 'MiB', 'KiB per point']
        fits = {label: fit for label, fit in results.items() if label.endswith(', fit')}
        keys = ('ms', 'us_per_point', 'mib', 'kib_per_point')
        rows = [
            [label.removesuffix(', fit'), *(f'{fit[key]:.1f}' for key in keys)]
            for label, fit in fits.items()
        ]
        lines += [*markdown(head, rows), '']
        head = ['**Published**, not measured here', 'time', 'hardware', 'source']
        lines += [*markdown(head, [list(row) for row in PUBLISHED_SPEED]), '']
    if name == 'occlusion':
        head = ['**Published**, not measured here', 'visible', 'hidden']
        rows = [[model, f'{seen}', f'{hidden}'] for model, seen, hidden in PUBLISHED_HIDDEN]
        counts = next(rows for rows in results.values() if isinstance(rows, list))
        episodes = ', '.join(f'{row["episodes"]:.0f} of {row["x"]:g} s' for row in counts)
        lines = [f'Occlusions counted: {episodes}.', '', *lines, *markdown(head, rows), '']
    return lines


def _source(name: str) -> str:
    return f'arXiv {name}' if name[0].isdigit() else name


def _accuracy(results: Mapping) -> list[str]:
    columns = [
        (data, key)
        for data in next(iter(results.values()))
        for key in TABLE
        if any(np.isfinite(row[data].get(key, np.nan)) for row in results.values())
    ]
    head = ['', *(f'{data}: {MEASURES[key]}' for data, key in columns), 'ms per frame']
    rows = [
        [
            label,
            *(f'{row[data].get(key, np.nan):.1f}' for data, key in columns),
            f'{_milliseconds(row):.1f}',
        ]
        for label, row in results.items()
    ]
    return markdown(head, rows)
