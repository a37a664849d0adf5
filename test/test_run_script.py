"""./run names what the machine lacks; the machine here is a folder of chosen programs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = ('bash', 'cat', 'dirname', 'du', 'getconf', 'head', 'readlink', 'sed', 'sha256sum', 'sort')
ARM = '#!/bin/sh\n[ "$1" = -m ] && echo aarch64 || echo Linux'
TOO_NEW = '#!/bin/sh\n[ "$1" = --version ] && echo Python 3.14.0'
NO_VENV = """#!/bin/sh
case "$2" in
  *ensurepip*) exit 1 ;;
  *print*) echo python3.11 ;;
esac
"""


@pytest.fixture
def machine(tmp_path):
    """A checkout without .venv, and a bin folder with the basic tools but no Python."""
    (tmp_path / 'resource').mkdir()
    for name in ('run', 'setup.py', 'resource/pins.txt'):
        shutil.copy(ROOT / name, tmp_path / name)
    programs = tmp_path / 'bin'
    programs.mkdir()
    for name in (*TOOLS, 'uname'):
        (programs / name).symlink_to(shutil.which(name))
    return tmp_path


def install(machine: Path, name: str, script: str) -> None:
    program = machine / 'bin' / name
    program.unlink(missing_ok=True)
    program.write_text(script)
    program.chmod(0o755)


def run(machine: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [shutil.which('bash'), str(machine / 'run'), *words],
        env={'PATH': str(machine / 'bin')},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=30,
    )


@pytest.mark.parametrize(
    ('name', 'script', 'message'),
    [
        ('uname', ARM, 'this is Linux aarch64'),
        (
            'getconf',
            '#!/bin/sh\necho glibc 2.27',
            '2.28 or newer, this system has glibc 2.27',
        ),
        ('getconf', '#!/bin/sh\nexit 1', 'this system has another C library'),
        ('python3', TOO_NEW, 'no Python 3.10 to 3.13 found (python3 is Python 3.14.0): sudo apt'),
        ('python3', NO_VENV, 'sudo apt install python3-venv (or python3.11-venv)'),
    ],
    ids=['aarch64', 'old glibc', 'no glibc', 'other python', 'no venv module'],
)
def test_what_is_lacking_is_named(machine, name, script, message):
    install(machine, name, script)
    result = run(machine, 'demo')
    assert result.returncode == 2
    assert message in result.stderr
    assert not (machine / '.venv').exists()


def test_without_arguments_it_shows_its_use(machine):
    result = run(machine)
    assert result.returncode == 2
    assert './run demo' in result.stdout and './run test' in result.stdout


def test_an_environment_with_the_same_requirements_is_used_again(machine):
    """A stand-in .venv whose stamp ./run wrote itself: the second call must not set up again."""
    fake = f"""#!/bin/sh
case "$*" in
  '-m venv'*) mkdir -p {machine}/.venv/bin && cp "$0" {machine}/.venv/bin/python ;;
  '-m pip'*) printf '#!/bin/sh\\necho ran "$@"\\n' > {machine}/.venv/bin/foundationpose-trt
             chmod +x {machine}/.venv/bin/foundationpose-trt ;;
esac
"""
    for name in ('mkdir', 'cp', 'chmod'):
        (machine / 'bin' / name).symlink_to(shutil.which(name))
    install(machine, 'python3', fake)
    first, second = run(machine, 'replay', 'x'), run(machine, 'replay', 'x')
    assert 'Setting up' in first.stderr and 'Setting up' not in second.stderr
    assert first.stdout == second.stdout == 'ran replay x\n'
    (machine / 'resource/pins.txt').write_text('numpy==2.2.6\n')
    assert 'Setting up' in run(machine, 'replay', 'x').stderr


def test_it_is_executable_and_short():
    assert (ROOT / 'run').stat().st_mode & 0o111
    assert (ROOT / 'run').read_text().count('\n') < 80
