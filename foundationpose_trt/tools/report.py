"""Tables on the terminal, JSON files and plots of what replay and evaluate measured."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from ..datatypes import require
from ..scenes.metrics import AUC_MAX_M

INK = {'add': '#c1502e', 'add_s': '#2a6f97', 'rotation': '#7a4fa3', 'grid': '#d9d9d9'}
TOTAL_LABELS = {
    'frames': 'frames',
    'without_pose': 'frames without a pose',
    'lost': 'lost',
    'registrations': 'registrations',
    'add_s_auc': 'ADD-S AUC (0..10 cm), %',
    'add_s_auc_with_pose': 'the same, frames with a pose only, %',
    'add_auc': 'ADD AUC (0..10 cm), %',
    'recall_0_1d': 'ADD < 0.1 diameter, %',
    'recall_s_0_1d': 'ADD-S < 0.1 diameter, %',
    'recall_sym_0_1d': 'ADD(-S) < 0.1 diameter, %',
    'add_s_mm_median': 'ADD-S, median, mm',
    'add_mm_median': 'ADD, median, mm',
    'rotation_deg_median': 'rotation error, median, degrees',
    'rotation_deg_max': 'rotation error, largest, degrees',
    'translation_mm_median': 'translation error, median, mm',
    'translation_mm_max': 'translation error, largest, mm',
    'tracks': 'tracks',
    'tracks_lost': 'tracks lost',
    'lost_percent': 'tracks lost, %',
}


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; numbers are aligned right and shortened, None becomes a dash."""
    table = Table(title=title, title_justify='left', title_style='bold')
    for index, column in enumerate(columns):
        table.add_column(column, justify='left' if index == 0 else 'right')
    for row in rows:
        table.add_row(*[_cell(value) for value in row])
    Console().print(table)


def _cell(value: object) -> str:
    if value is None:
        return '-'
    if isinstance(value, float):
        return f'{value:.2f}' if abs(value) < 100 else f'{value:.1f}'
    return str(value)


def print_totals(title: str, groups: Mapping[str, Mapping[str, Any]]) -> None:
    """Print totals side by side, one column per group, one row per figure."""
    keys = [key for key in TOTAL_LABELS if any(key in totals for totals in groups.values())]
    rows = [[TOTAL_LABELS[key], *[t.get(key) for t in groups.values()]] for key in keys]
    print_table(title, ['', *groups], rows)


def print_latency(latency_ms: Mapping[str, Mapping[str, float]], warm_up_ms: float) -> None:
    """Print p50, p95 and max of every stage in milliseconds, the warm-up apart."""
    rows: list[list[object]] = [
        [stage, values['p50'], values['p95'], values['max']]
        for stage, values in latency_ms.items()
        if values
    ]
    rows.append(['warm-up (once, not in the above)', None, None, warm_up_ms])
    print_table('latency, ms', ['stage', 'p50', 'p95', 'max'], rows)


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write strict JSON: numpy numbers become plain, infinities and NaN become null."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_plain(content), indent=1, allow_nan=False) + '\n')


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def check_plot(path: Path) -> None:
    """Refuse a file of a kind that matplotlib does not write."""
    kinds = sorted(FigureCanvasBase.get_supported_filetypes())
    require(
        path.suffix[1:].lower() in kinds,
        f"--plot: {path} ends in '{path.suffix}', must be one of .{', .'.join(kinds)}",
    )


def save_plot(path: str | Path, figure: Figure) -> None:
    """Write the figure as its file's ending says; no window, no global state."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({'svg.hashsalt': 'foundationpose_trt'}):
        figure.savefig(path, dpi=150)


def new_axes(count: int, title: str) -> tuple[Figure, list[Axes]]:
    """Return a figure with `count` plots side by side."""
    figure = Figure(figsize=(5.2 * count, 4.0), layout='constrained')
    figure.suptitle(title)
    axes = [figure.add_subplot(1, count, 1 + k) for k in range(count)]
    for axis in axes:
        axis.grid(color=INK['grid'], linewidth=0.6)
        axis.spines[['top', 'right']].set_visible(False)
    return figure, axes


def draw_accuracy(axis: Axes, errors_m: Mapping[str, Sequence[float]]) -> None:
    """Draw accuracy over threshold, 0..10 cm: the curve whose area is the AUC."""
    thresholds = np.linspace(0, AUC_MAX_M, 201)
    for name, color in (('ADD', INK['add']), ('ADD-S', INK['add_s'])):
        errors = np.asarray(errors_m[name])
        share = 100 * (errors[:, None] <= thresholds).mean(axis=0)
        axis.plot(1e3 * thresholds, share, color=color, label=name)
    axis.set(xlabel='threshold, mm', ylabel='frames within, %', xlim=(0, 100), ylim=(0, 101))
    axis.legend(loc='lower right', frameon=False)


def draw_error_over_time(axis: Axes, tracks_mm: np.ndarray, shaded: tuple[float, float]) -> None:
    """Draw median and 90th percentile of (tracks, frames) errors; a lost frame is infinite.

    shaded: first and last frame of the occlusion.
    """
    frames = np.arange(tracks_mm.shape[1])
    limit = 50.0  # a lost track would flatten all the others
    for share, color, label in ((50, INK['add_s'], 'median'), (90, INK['add'], '90 %')):
        values = higher_percentile(tracks_mm, share)
        axis.plot(frames, np.minimum(values, limit), color=color, label=label)
    axis.axvspan(*shaded, color=INK['grid'], alpha=0.5, label='occluder passes')
    axis.set(xlabel='frame', ylabel='ADD-S, mm', ylim=(0, None), xlim=(0, len(frames) - 1))
    axis.legend(loc='upper left', frameon=False)


def higher_percentile(values: np.ndarray, share: int) -> np.ndarray:
    """Return the percentile along the first axis, the higher value where it is between two.

    Never interpolates towards an infinity: as np.percentile(method='higher'), which the numpy of
    Ubuntu 22.04 (1.21) does not know by that name.
    """
    at = -(-share * (len(values) - 1) // 100)
    return np.sort(values, axis=0)[at]


def draw_series(
    axis: Axes, frame_ids: Sequence[int], series: Mapping[str, Sequence[float | None]]
) -> None:
    """Draw one line per series over the frame ids; None leaves a gap."""
    for name, values in series.items():
        numbers = [math.nan if value is None else value for value in values]
        axis.plot(frame_ids, numbers, marker='.', markersize=3, linewidth=1, label=name)
    axis.set(xlabel='frame', ylim=(0, None))
    axis.legend(loc='best', frameon=False)
