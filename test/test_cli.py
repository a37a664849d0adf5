"""The command line finds its commands without importing them and reports bad input in one line."""

from __future__ import annotations

import re
import subprocess
import sys
import types

import pytest

import foundationpose_trt
from foundationpose_trt.tools import cli


def run(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, '-m', 'foundationpose_trt', *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_help_lists_every_command_without_importing_torch():
    script = (
        'import sys\nfrom foundationpose_trt.tools import cli\n'
        "try:\n    cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print('torch loaded:', 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert 'torch loaded: False' in result.stdout, result.stderr
    for command in cli.COMMANDS:
        assert re.search(rf'^    {command}\s', result.stdout, re.MULTILINE)


@pytest.mark.parametrize('command', cli.COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([command, '--help'])
    assert ended.value.code == 0
    assert f'foundationpose-trt {command}' in capsys.readouterr().out


def test_version_is_the_packages():
    result = run('--version')
    assert result.returncode == 0
    assert result.stdout.split() == ['foundationpose-trt', foundationpose_trt.__version__]


def test_a_missing_scene_is_one_line_and_status_2():
    result = run('replay', '/nowhere/scene', '--object', '1')
    assert result.returncode == cli.BAD_INPUT
    assert result.stderr.startswith('foundationpose-trt: error: ')
    assert '/nowhere/scene' in result.stderr and result.stderr.count('\n') == 1


def test_debug_shows_the_traceback():
    result = run('replay', '/nowhere/scene', '--object', '1', '--debug')
    assert result.returncode == 1 and 'Traceback' in result.stderr


def command_raising(error):
    def run(options):
        raise error

    return types.SimpleNamespace(add_arguments=lambda parser: None, run=run)


@pytest.mark.parametrize(
    ('error', 'line'),
    [
        (ValueError('mask is 3x3,\n must be 4x4'), 'mask is 3x3, must be 4x4'),
        (ModuleNotFoundError("No module named 'torch'", name='torch'), "pip install '.[gpu]'"),
    ],
)
def test_errors_become_one_line(error, line, monkeypatch, capsys):
    monkeypatch.setattr(cli.importlib, 'import_module', lambda name: command_raising(error))
    assert cli.main(['demo']) == cli.BAD_INPUT
    captured = capsys.readouterr()
    assert line in captured.err and captured.err.count('\n') == 1 and not captured.out


@pytest.mark.parametrize('error', [RuntimeError('bug'), ModuleNotFoundError('x', name='x')])
def test_bugs_are_not_dressed_as_bad_input(error, monkeypatch):
    monkeypatch.setattr(cli.importlib, 'import_module', lambda name: command_raising(error))
    with pytest.raises(type(error)):
        cli.main(['demo'])


def test_ctrl_c_ends_quietly(monkeypatch, capsys):
    monkeypatch.setattr(
        cli.importlib, 'import_module', lambda name: command_raising(KeyboardInterrupt())
    )
    assert cli.main(['train']) == cli.INTERRUPTED
    assert not capsys.readouterr().err
