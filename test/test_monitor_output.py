"""monitor's table, CSV record, plot and child process; no ROS."""

from __future__ import annotations

import csv
import io
import math
import subprocess
import sys
import time

import numpy as np
import pytest
from monitor_rig import DETECTOR, TRACKER, array, stage, status, summary_graph
from PIL import Image
from rich.console import Console

from foundationpose_trt.tools import monitor_process, monitor_table
from foundationpose_trt.tools.monitor_model import Board, node_reports
from foundationpose_trt.tools.monitor_process import Listener
from foundationpose_trt.tools.monitor_record import CsvRecord, History, Records

HEADER = 'time_s,node,stage,p50_ms,p95_ms,p99_ms,max_ms,count,budget_ms,level'
GREY, RED, YELLOW = '\x1b[90m', '\x1b[1;31m', '\x1b[33m'


def drawn(board, now_s, colour=False):
    """Draw as on a wide terminal."""
    sheet = io.StringIO()
    kind = 'standard' if colour else None
    console = Console(file=sheet, width=160, force_terminal=colour, color_system=kind)
    console.print(monitor_table.board(board.views(now_s), 'heading'))
    return sheet.getvalue()


def board_of(*lines):
    board = Board()
    for line in lines:
        board.take(line, 0.0)
    return board


def line_with(word, text):
    (found,) = [line for line in text.splitlines() if word in line]
    return found


def test_the_table_shows_every_figure():
    text = drawn(
        board_of(
            array(
                stage(),
                stage(name='register_ms', p99_ms='nan', level=2, message='p50 is over'),
                status(
                    f'{TRACKER}: flow', rate_hz='14.8', handled='120', dropped_busy='3',
                    dropped_invalid='0', outcome_OK='118',
                ),
                status(
                    f'{TRACKER}: runtime', backend='tensorrt', graph_hits='7', graph_misses='2',
                    graph_size='3', graph_capacity='4', gpu_memory_mb='811.6',
                ),
                status(f'{TRACKER}: object drill', 1, 'm', state='LOST', reason='hidden'),
                status(f'{TRACKER}: weather', sun='yes'),
            )
        ),
        0.0,
    )  # fmt: skip
    assert line_with('track ', text).split() == [
        'track', '12.50', '20.25', '30.00', '44.12', '150', '33.00', 'OK',
    ]  # fmt: skip
    assert line_with('register', text).split()[3:] == [
        '-', '44.12', '150', '33.00', 'ERROR:', 'p50', 'is', 'over',
    ]  # fmt: skip
    flow = line_with('flow', text)
    assert '14.80 Hz; handled 120; dropped busy 3, invalid 0; outcomes OK 118' in flow
    runtime = line_with('runtime', text)
    assert 'tensorrt; CUDA graphs 3 of 4; hits 7, misses 2; GPU 812 MB' in runtime
    assert 'object drill: LOST: hidden' in text and 'weather: sun=yes' in text


def test_levels_have_colours():
    text = drawn(
        board_of(
            array(
                stage(name='fine_ms'),
                stage(name='slow_ms', level=1),
                stage(name='late_ms', level=2),
                status(f'{TRACKER}: object cup', 2, state='LOST'),
            )
        ),
        0.0,
        colour=True,
    )
    for stage_name, colour in (('slow', YELLOW), ('late', RED)):
        figures, _, level = line_with(stage_name, text).rpartition('33.00')
        assert colour in figures and colour in level
    assert RED in line_with('cup', text)
    assert not [code for code in (YELLOW, RED) if code in line_with('fine', text)]


def test_a_silent_node_is_grey_and_says_so():
    board = board_of(summary_graph(TRACKER), array(stage(level=2)))
    assert 'silent' not in drawn(board, 3.0) and RED in drawn(board, 3.0, colour=True)
    text = drawn(board, 4.0, colour=True)
    assert 'silent for 4 s' in text and GREY in text and RED not in text
    board.take(summary_graph(), 4.0)
    assert 'silent for 5 s, no longer on the graph' in drawn(board, 5.0)


def test_an_announced_node_is_shown_before_it_speaks():
    text = drawn(board_of(summary_graph(DETECTOR)), 2.0)
    assert f'{DETECTOR}  announced, nothing heard for 2 s' in text


def test_what_nodes_send_is_neither_markup_nor_control_codes():
    text = drawn(
        board_of(array(stage(name='[red]x[/red]_ms', level=1, message='\x1b[2J[/b] \x07end'))), 0.0
    )
    assert '[red]x[/red]' in text and '[/b]' in text and 'end' in text
    assert '\x1b' not in text and '\x07' not in text


def test_a_breach_is_told_with_its_figures():
    board = board_of(array(stage(level=1, p95_ms='44.1')), array(stage(level=1, p95_ms='40')))
    (line,) = [monitor_table.breach_line(b).plain for b in board.breaches.values()]
    assert line == (
        '/tracker_node track_ms: WARN, 2 times, at worst p50 12.50, p95 44.10, budget 33.00'
    )


def test_the_record_has_a_row_per_stage_and_array(tmp_path):
    path = tmp_path / 'new' / 'run.csv'
    record = CsvRecord(path)
    lines = [
        array(stage(), stage(name='age_ms', level=3, p95_ms='nan', budget_ms=''), stamp_s=7.0),
        array(stage('/b,"c', level=1), status('/b,"c: flow', rate_hz='1'), stamp_s=1e9 + 0.25),
    ]
    for line in lines:
        for report in node_reports(line, ''):
            record.add(report)
    written = path.read_text()  # complete before it is closed
    record.close()
    assert written.splitlines()[:3] == [
        HEADER,
        '7.000,/tracker_node,track_ms,12.5,20.25,30.0,44.125,150,33.0,OK',
        '7.000,/tracker_node,age_ms,12.5,,30.0,44.125,150,,STALE',
    ]
    rows = list(csv.DictReader(io.StringIO(written)))
    assert len(rows) == 3
    assert (rows[2]['time_s'], rows[2]['node'], rows[2]['level']) == (
        '1000000000.250', '/b,"c', 'WARN',
    )  # fmt: skip


def test_a_record_is_continued_and_no_other_file_is_touched(tmp_path):
    path, other = tmp_path / 'run.csv', tmp_path / 'other.csv'
    (report,) = node_reports(array(stage()), '')
    for _ in range(2):
        record = CsvRecord(path)
        record.add(report)
        record.close()
    lines = path.read_text().splitlines()
    assert lines[0] == HEADER and len(lines) == 3 and lines[1] == lines[2]
    other.write_text('my,own\n1,2\n')
    with pytest.raises(ValueError, match=r'other\.csv begins with .my,own., a record begins with'):
        CsvRecord(other)
    assert other.read_text() == 'my,own\n1,2\n'


def test_a_silence_is_a_gap_in_the_plot(tmp_path):
    history = History(tmp_path / 'p.png')
    (report,) = node_reports(array(stage()), '')
    for moment in (10.0, 11.0, 14.5):
        history.add(report, moment)
    series = history.series[TRACKER, 'track_ms']
    assert list(series.time_s) == [10.0, 11.0, 14.5, 14.5]
    assert [math.isnan(value) for value in series.p50_ms] == [False, False, True, False]
    assert list(series.p95_ms[:2]) == [20.25, 20.25]


def test_the_plot_draws_both_percentiles_of_each_stage(tmp_path):
    records = Records(None, tmp_path / 'new' / 'p.png')
    for second in range(5):
        stages = [stage(name=f'{k}$_ms', p50_ms='nan' if k == 0 else '2') for k in range(4)]
        bare = status(f'{TRACKER}: latency bare_ms')
        records.add(node_reports(array(*stages, bare), ''), float(second))
    assert records.close(0.0) == [tmp_path / 'new' / 'p.png']
    pixels = np.asarray(Image.open(tmp_path / 'new' / 'p.png').convert('RGB')).astype(int)
    assert pixels.shape[1] > pixels.shape[0] > 500  # three abreast, two rows
    for ink in ((0x2A, 0x6F, 0x97), (0xC1, 0x50, 0x2E)):
        assert (np.abs(pixels - ink).max(axis=2) < 8).sum() > 200


def test_a_plot_of_nothing_is_not_written(tmp_path):
    assert Records(None, tmp_path / 'p.png').close(0.0) == []
    assert not (tmp_path / 'p.png').exists()


def test_a_plot_that_could_not_be_written_is_refused_at_the_start(tmp_path):
    with pytest.raises(
        ValueError, match=r"--plot: .*p\.xyz ends in '\.xyz', must be one of .*png"
    ):
        History(tmp_path / 'p.xyz')


WITHOUT = """
import sys
from foundationpose_trt.tools import cli, monitor

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)

sys.meta_path.insert(0, Refuse())
monitor.require_ros = lambda: None
sys.exit(cli.main(['monitor', *sys.argv[2:]]))
"""


@pytest.mark.parametrize(
    ('package', 'words'), [('rich', []), ('matplotlib', ['--once', '--json', '--plot', 'p.png'])]
)
def test_a_missing_library_is_named_with_its_remedy(package, words):
    result = subprocess.run(
        [sys.executable, '-c', WITHOUT, package, *words], capture_output=True, text=True
    )
    assert result.returncode == 2, result.stderr
    assert f'pip install {package}' in result.stderr and result.stderr.count('\n') == 1


def child(script):
    return Listener([sys.executable, '-uc', script])


def lines_of(listener):
    end_s = time.monotonic() + 20.0
    found = []
    while not found and time.monotonic() < end_s:
        found = listener.new_lines()
        time.sleep(0.01)
    return [line for _, line in found]


def test_lines_of_the_child_are_read_and_its_chatter_is_not():
    listener = child('print("hello")\nprint(\'{"graph": {}}\')\nimport time\ntime.sleep(60)')
    try:
        assert lines_of(listener) == [{'graph': {}}]
        assert listener.new_lines() == []
    finally:
        start_s = time.monotonic()
        listener.end()
    assert time.monotonic() - start_s < 3.0, 'SIGTERM is enough'


def test_a_child_that_fails_is_told_with_its_last_words():
    listener = child('import sys\nprint("noise", file=sys.stderr)\nimport rclpy_of_nowhere')
    with pytest.raises(ChildProcessError) as caught:
        lines_of(listener)
    said = str(caught.value)
    assert "status 1: ModuleNotFoundError: No module named 'rclpy_of_nowhere'" in said
    assert 'import rclpy' in said
    listener.end()


def test_a_child_that_does_not_listen_is_killed(monkeypatch):
    monkeypatch.setattr(monitor_process, 'GRACE_S', 0.3)
    listener = child(
        'import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint(1)\n'
        'time.sleep(60)'
    )
    assert lines_of(listener) == [1]
    listener.end()
    with pytest.raises(ChildProcessError, match='status -9'):
        listener.new_lines()


def test_the_command_is_found_without_importing_ros_rich_or_matplotlib():
    script = (
        'import sys\nimport foundationpose_trt.tools.monitor\n'
        "print([n for n in ('rclpy', 'rich', 'matplotlib', 'torch') if n in sys.modules])"
    )
    result = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert result.stdout.strip() == '[]', result.stderr
