"""What the monitor keeps of a run: a CSV row per report of a stage, and their plot over time."""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .monitor_model import SILENT_S, NodeReport, Stage

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = (
    'time_s', 'node', 'stage', 'p50_ms', 'p95_ms', 'p99_ms', 'max_ms', 'count', 'budget_ms',
    'level',
)  # fmt: skip
PLOTS_ABREAST = 3
INK = {'p50_ms': '#2a6f97', 'p95_ms': '#c1502e', 'budget': '#7f7f7f', 'grid': '#d9d9d9'}


class CsvRecord:
    """Appends to a CSV file, complete after every array; time_s is the node's ROS clock.

    Raises ValueError when the file is there and is not such a record.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[str] = path.open('a+', newline='', encoding='utf-8')
        self._writer = csv.writer(self._file)
        self._file.seek(0)
        first = self._file.readline()
        header = next(csv.reader([first]), [])
        if not first:
            self._writer.writerow(COLUMNS)
            self._file.flush()
        elif tuple(header) != COLUMNS:
            self._file.close()
            raise ValueError(
                f'--record: {path} begins with {first.strip()[:60]!r}, a record begins with'
                f' {",".join(COLUMNS)!r}: rows are only appended to such a file, name another'
            )

    def add(self, report: NodeReport) -> None:
        """Append a row per stage; what is missing stays empty."""
        self._writer.writerows(csv_row(report, stage) for stage in report.stages)
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def csv_row(report: NodeReport, stage: Stage) -> list[Any]:
    """Return one row in the order of COLUMNS."""
    figures = [getattr(stage, name) for name in COLUMNS[3:9]]
    return [f'{report.stamp_s:.3f}', report.node, stage.name, *figures, stage.level]


@dataclass
class Series:
    """The figures of one stage of one node over time; packed, a run may take days."""

    time_s: array[float] = field(default_factory=lambda: array('d'))
    p50_ms: array[float] = field(default_factory=lambda: array('d'))
    p95_ms: array[float] = field(default_factory=lambda: array('d'))
    budget_ms: array[float] = field(default_factory=lambda: array('d'))

    def add(self, now_s: float, stage: Stage) -> None:
        """Add a point; after a silence a NaN goes before it, so that no line bridges the gap."""
        if self.time_s and now_s - self.time_s[-1] > SILENT_S:
            self._append(now_s, [None, None, None])
        self._append(now_s, [stage.p50_ms, stage.p95_ms, stage.budget_ms])

    def _append(self, now_s: float, figures: Sequence[float | None]) -> None:
        values = [now_s, *(math.nan if figure is None else figure for figure in figures)]
        for column, value in zip(fields(self), values, strict=True):
            getattr(self, column.name).append(value)


class History:
    """Collects what the plot shows.

    Raises ModuleNotFoundError or ValueError at once where the plot could not be written at last.
    """

    def __init__(self, path: Path) -> None:
        from .report import check_plot  # it imports matplotlib

        check_plot(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.series: dict[tuple[str, str], Series] = {}

    def add(self, report: NodeReport, now_s: float) -> None:
        """Take what a report says of its stages; it came now."""
        for stage in report.stages:
            self.series.setdefault((report.node, stage.name), Series()).add(now_s, stage)

    def save(self, began_s: float) -> None:
        """Draw p50 and p95 of each stage over the seconds since began_s, one plot for each."""
        from matplotlib.figure import Figure

        across = min(PLOTS_ABREAST, len(self.series))
        down = math.ceil(len(self.series) / across)
        figure = Figure(figsize=(5.2 * across, 0.6 + 2.8 * down), layout='constrained')
        figure.suptitle('latency of each stage as its node reported it')
        for place, (key, series) in enumerate(sorted(self.series.items()), start=1):
            draw_series(figure.add_subplot(down, across, place), key, series, began_s)
        figure.savefig(self.path, dpi=120)


def draw_series(axis: Axes, key: tuple[str, str], series: Series, began_s: float) -> None:
    """Draw one stage of one node, its budget dashed."""
    time_s = [moment - began_s for moment in series.time_s]
    for name in ('p50_ms', 'p95_ms'):
        values = getattr(series, name)
        label = name.removesuffix('_ms')
        axis.plot(time_s, values, color=INK[name], marker='.', markersize=3, label=label)
    if not all(map(math.isnan, series.budget_ms)):
        axis.plot(time_s, series.budget_ms, color=INK['budget'], linestyle='--', label='budget')
    axis.axhline(0.0, color=INK['grid'])  # so that the scale has both 0 and air above the highest
    axis.set(xlabel='seconds of the run', ylabel='ms', xlim=(0, None), ylim=(0, None))
    # a name with a dollar sign would be set as mathematics
    axis.set_title(' '.join(key).replace('$', r'\$'), fontsize='medium')
    axis.grid(color=INK['grid'], linewidth=0.6)
    axis.spines[['top', 'right']].set_visible(False)
    axis.legend(loc='best', frameon=False)


class Records:
    """Whatever of --record and --plot was asked for; closed with `close`."""

    def __init__(self, record: Path | None, plot: Path | None) -> None:
        self._history = History(plot) if plot is not None else None
        self._csv = CsvRecord(record) if record is not None else None

    def add(self, reports: Sequence[NodeReport], now_s: float) -> None:
        """Take the reports of one array that came now."""
        for report in reports:
            if self._csv is not None:
                self._csv.add(report)
            if self._history is not None:
                self._history.add(report, now_s)

    def close(self, began_s: float) -> list[Path]:
        """Close the record and draw the plot; return the plot's file, none if nothing was seen."""
        if self._csv is not None:
            self._csv.close()
        if self._history is None or not self._history.series:
            return []
        self._history.save(began_s)
        return [self._history.path]
