"""`foundationpose-trt compare`: is one evaluation better than another, or is it chance?"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from ..datatypes import require
from ..scenes.metrics import RECALL_DIAMETER_SHARE, auc
from . import report

HELP = 'compare two results of evaluate view by view: what differs beyond chance'
RESAMPLES = 4999
CONFIDENCE = 0.95
FEWEST_OBJECTS = 10  # of which a spread can be told
# turns that no image can tell are errors to ADD: it is shown and decides nothing
BLIND_TO_SYMMETRY = ('ADD-S', 'ADD(-S)')
KINDS = {'register': 'frames', 'track': 'tracks'}
Interval = tuple[float, float]


@dataclass(frozen=True)
class Scored:
    """Points of every view, 0..100, by measure, and which object each view shows.

    views: what tells a view from another; the same in both evaluations, or they are not the same
    views.
    """

    views: list[tuple[Any, ...]]
    objects: np.ndarray
    points: dict[str, np.ndarray]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument('before', type=Path, help='what `evaluate --json` wrote')
    parser.add_argument('after', type=Path, help='the same of other settings, of the same views')
    parser.add_argument('--json', type=Path, metavar='FILE')


def run(options: argparse.Namespace) -> int:
    """Compare and print; 1 where something is worse beyond chance."""
    before, after = (read_evaluation(path) for path in (options.before, options.after))
    kinds = [kind for kind in KINDS if kind in before and kind in after]
    require(
        len(kinds) > 0,
        f'{options.before} and {options.after} have nothing in common: one has'
        f' {sorted(before)}, the other {sorted(after)}',
    )
    content = {kind: compared(before[kind], after[kind]) for kind in kinds}
    if options.json:
        report.write_json(options.json, content)
    worse = [f'{kind}: {name}' for kind in kinds for name in _print(kind, content[kind])]
    print(
        f'worse beyond chance: {", ".join(worse) or "nothing"} (by ADD-S and ADD(-S), which takes'
        ' ADD-S for objects found symmetric; ADD counts their turns, which no image tells)'
    )
    return 1 if worse else 0


def read_evaluation(path: Path) -> dict[str, Scored]:
    """Read what `evaluate --json` wrote: its registrations and tracks, those that are there.

    Raises ValueError for any other file.
    """
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        return {
            kind: scored(content[kind][rows]) for kind, rows in KINDS.items() if kind in content
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f'{path} is not what `foundationpose-trt evaluate --json` writes ({error!r})'
        ) from error


def scored(rows: Sequence[Mapping[str, Any]]) -> Scored:
    """Score the views of registrations, or of whole tracks, each frame of which is a view."""
    views, objects, errors = [], [], []
    for row in rows:
        own = row.get('errors', [row])  # of a registered view, the row itself
        for number, error in enumerate(own):
            views.append((row['seed'], row['diameter_mm'], row.get('motion'), number))
            objects.append(row['seed'])
            errors.append((_mm(error['add_mm']), _mm(error['add_s_mm']), row['symmetric']))
    add, add_s, symmetric = (np.array(column) for column in zip(*errors, strict=True))
    limits = RECALL_DIAMETER_SHARE * np.array([view[1] for view in views])
    either = np.where(symmetric.astype(bool), add_s, add)
    points = {
        'ADD-S AUC': _auc_points(add_s),
        'ADD AUC': _auc_points(add),
        'ADD(-S) AUC': _auc_points(either),
        'ADD-S < 0.1 diameter': 100.0 * (add_s < limits),
        'ADD < 0.1 diameter': 100.0 * (add < limits),
        'ADD(-S) < 0.1 diameter': 100.0 * (either < limits),
    }
    return Scored(views, np.array(objects), points)


def _mm(value: float | None) -> float:
    return np.inf if value is None else float(value)  # no pose was found


def _auc_points(errors_mm: np.ndarray) -> np.ndarray:
    return np.array([100 * auc([error / 1e3]) for error in errors_mm])


def compared(before: Scored, after: Scored) -> dict[str, dict[str, Any]]:
    """Means before and after, their difference and its interval, in points, by measure.

    interval: 95 %, by the bootstrap (BCa) over objects, since views of one object are alike; None
    of fewer than FEWEST_OBJECTS. Raises ValueError where the views are not the same.
    """
    require(
        before.views == after.views,
        f'the two evaluations are not of the same views ({len(before.views)} and'
        f' {len(after.views)}): give both the same --objects, --frames-per-object, --tracks and'
        ' --track-length',
    )
    found = {}
    for name, points in after.points.items():
        change = points - before.points[name]
        found[name] = {
            'before': float(before.points[name].mean()), 'after': float(points.mean()),
            'difference': float(change.mean()),
            'interval': interval_of_mean(change, before.objects),
        }  # fmt: skip
    return found


def interval_of_mean(values: np.ndarray, groups: np.ndarray) -> Interval | None:
    """Return the confidence interval of a mean of values (N,), whole groups (N,) resampled."""
    _, place = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(place, values), np.bincount(place)
    if len(counts) < FEWEST_OBJECTS:
        return None
    means = sums / counts
    if np.ptp(means) == 0:  # no spread to resample
        return float(means[0]), float(means[0])

    def mean(sums: np.ndarray, of: np.ndarray, axis: int) -> np.ndarray:
        return np.asarray(sums.sum(axis) / of.sum(axis))

    found = bootstrap(
        (sums, counts), mean, paired=True, vectorized=True,
        n_resamples=RESAMPLES, confidence_level=CONFIDENCE, random_state=0,
    ).confidence_interval  # fmt: skip
    return float(found.low), float(found.high)


def _print(kind: str, rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Print one table; returns the measures that decide and got worse beyond chance."""
    columns = ['', 'before', 'after', 'difference', f'{CONFIDENCE:.0%} from', 'to']
    lines = [
        [name, row['before'], row['after'], row['difference'], *(row['interval'] or (None, None))]
        for name, row in rows.items()
    ]
    report.print_table(f'{kind}, % and points', columns, lines)
    return [
        name
        for name, row in rows.items()
        if name.startswith(BLIND_TO_SYMMETRY) and row['interval'] and row['interval'][1] < 0
    ]
