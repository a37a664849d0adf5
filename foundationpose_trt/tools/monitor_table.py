"""The monitor on a terminal: a section per node, as rich draws it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .monitor_model import (
    Breach,
    Flow,
    NodeReport,
    NodeView,
    ObjectState,
    OtherStatus,
    Runtime,
    Stage,
)

COLOURS = {'OK': 'green', 'WARN': 'yellow', 'ERROR': 'bold red'}
SILENT = 'bright_black'
FIGURES = ('p50', 'p95', 'p99', 'max', 'count', 'budget')


def board(views: Sequence[NodeView], heading: str) -> Group:
    """Return the whole picture: a heading and a section per node."""
    return Group(styled(heading, 'dim'), *(part for view in views for part in section(view)))


def section(view: NodeView) -> Iterator[RenderableType]:
    """Draw one node; all grey while it is silent."""
    grey = SILENT if view.silent or view.report is None else ''
    yield Text()
    yield Text.assemble(
        styled(view.name, grey or 'bold'), styled(_absence(view), f'italic {grey}'.strip())
    )
    if view.report is None:
        return
    if view.report.stages:
        yield stage_table(view.report.stages, grey)
    for line in _lines(view.report):
        if grey:
            line = styled(line.plain, grey)
        yield Padding(line, (0, 0, 0, 1), expand=False)


def stage_table(stages: Iterable[Stage], grey: str = '') -> Table:
    """Draw the stages of a node, coloured by level, all in one colour if that is given."""
    table = Table(box=None, pad_edge=True, header_style=grey or 'dim')
    table.add_column('stage, ms', no_wrap=True)
    for name in FIGURES:
        table.add_column(name, justify='right', no_wrap=True)
    table.add_column('level', overflow='fold')
    for stage in stages:
        row = [styled(stage.name.removesuffix('_ms')), *map(Text, stage_figures(stage))]
        level = _with_message(stage.level, stage.message if stage.broken else '')
        colour = COLOURS.get(stage.level, SILENT)
        table.add_row(
            *row, styled(level, grey or colour), style=grey or (colour if stage.broken else '')
        )
    return table


def stage_figures(stage: Stage) -> list[str]:
    """Return a stage's figures as text, a dash where there is none."""
    times = [stage.p50_ms, stage.p95_ms, stage.p99_ms, stage.max_ms]
    return [*map(shown, times), shown(stage.count), shown(stage.budget_ms)]


def flow_line(flow: Flow) -> Text:
    """Say how fast frames pass, and what became of the others."""
    words = [f'{shown(flow.rate_hz)} Hz', f'handled {shown(flow.handled)}']
    words += [f'dropped {_counts(flow.dropped)}'] if flow.dropped else []
    words += [f'outcomes {_counts(flow.outcomes)}'] if flow.outcomes else []
    return _line('flow', '; '.join(words), flow.level, flow.message)


def runtime_line(runtime: Runtime) -> Text:
    """Say what the networks run on; what the node leaves out is left out."""
    words = [runtime.backend] if runtime.backend else []
    if runtime.graph_size is not None:
        words.append(f'CUDA graphs {runtime.graph_size} of {shown(runtime.graph_capacity)}')
    if runtime.graph_hits is not None or runtime.graph_misses is not None:
        words.append(f'hits {shown(runtime.graph_hits)}, misses {shown(runtime.graph_misses)}')
    if runtime.gpu_memory_mb is not None:
        words.append(f'GPU {runtime.gpu_memory_mb:.0f} MB')
    return _line('runtime', '; '.join(words), runtime.level, runtime.message)


def object_line(item: ObjectState) -> Text:
    """Say an object's state and why it is so, coloured by level."""
    reason = item.reason or item.message
    text = f'object {item.name}: {_with_message(item.state or item.level, reason)}'
    return styled(text, COLOURS.get(item.level, SILENT))


def other_line(other: OtherStatus) -> Text:
    """Show a status of an unknown kind as it came."""
    values = ' '.join(f'{key}={value}' for key, value in other.values.items())
    return _line(other.name, values, other.level, other.message)


def breach_line(breach: Breach) -> Text:
    """Say which budget was not held, how often and how far."""
    worst = breach.worst
    far = f'p50 {shown(worst.p50_ms)}, p95 {shown(worst.p95_ms)}, budget {shown(worst.budget_ms)}'
    text = f'{breach.node} {worst.name}: {worst.level}, {breach.times} times, at worst {far}'
    return styled(text, COLOURS.get(worst.level, ''))


def print_all(parts: Iterable[RenderableType]) -> None:
    """Print to stdout."""
    console = Console()
    for part in parts:
        console.print(part)


def shown(value: float | int | None) -> str:
    """Return a number for a cell: counts whole, small ones with two digits, None as a dash."""
    if value is None:
        return '-'
    if isinstance(value, int):
        return str(value)
    return f'{value:.2f}' if abs(value) < 100 else f'{value:.1f}'


def styled(text: str, style: str = '') -> Text:
    """Return text as it is: no markup, and no control codes that would reach the terminal."""
    return Text(''.join(c if c.isprintable() else ' ' for c in text), style)


def _absence(view: NodeView) -> str:
    if view.report is None:
        return f'  announced, nothing heard for {view.silent_s:.0f} s'
    if not view.silent:
        return ''
    gone = '' if view.on_graph else ', no longer on the graph'
    return f'  silent for {view.silent_s:.0f} s{gone}'


def _lines(report: NodeReport) -> list[Text]:
    lines = [flow_line(report.flow)] if report.flow else []
    lines += [runtime_line(report.runtime)] if report.runtime else []
    lines += [object_line(item) for item in report.objects]
    return lines + [other_line(item) for item in report.others]


def _line(name: str, text: str, level: str, message: str) -> Text:
    if level == 'OK':
        return styled(f'{name}: {text}')
    words = f'{name}: {text}; {_with_message(level, message)}'
    return styled(words, COLOURS.get(level, SILENT))


def _with_message(level: str, message: str) -> str:
    return f'{level}: {message}' if message else level


def _counts(counts: Mapping[str, int | None]) -> str:
    return ', '.join(f'{name} {shown(count)}' for name, count in counts.items())
