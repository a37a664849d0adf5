"""Starts the demo's ROS nodes as processes of their own and never leaves one behind."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .demo_recording import DemoFailed

GRACE_S = 8.0  # after SIGINT: the tracker may end a frame first
DOMAINS = range(1, 102)  # above 101, DDS ports run into Linux' ephemeral ones
LAST_LINES = 15


class Nodes:
    """Running nodes by name; use `running_nodes`, which ends them whatever happens."""

    def __init__(self, log_folder: Path) -> None:
        self._log_folder = log_folder
        self._environment = private_environment(os.environ, log_folder)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        log_folder.mkdir(parents=True, exist_ok=True)

    def start(
        self, name: str, parameters: Mapping[str, Any], arguments: Sequence[str] = ()
    ) -> None:
        """Start foundationpose_trt.ros.<name> with ROS parameters, output into a log file.

        arguments: of its own, before those of ROS.
        """
        command = [*dying_with_parent(), sys.executable, '-m', f'foundationpose_trt.ros.{name}']
        command += [*arguments, '--ros-args']
        command += parameter_words(parameters)
        with self.log_path(name).open('wb') as log:
            self._processes[name] = subprocess.Popen(
                command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the demo alone, which ends them in order
            )

    def log_path(self, name: str) -> Path:
        """Return where a node's output goes."""
        return self._log_folder / f'{name}.log'

    def ended(self, name: str) -> bool:
        """Tell whether a node has ended; raises DemoFailed when it ended with an error."""
        status = self._processes[name].poll()
        if status not in (None, 0):
            raise DemoFailed(
                f'{name} ended with status {status}; the end of {self.log_path(name)}:\n'
                + self.last_lines(name)
            )
        return status is not None

    def last_lines(self, name: str) -> str:
        """Return the end of a node's log."""
        text = self.log_path(name).read_text(errors='replace')
        return '\n'.join(text.splitlines()[-LAST_LINES:])

    def stop(self, name: str) -> None:
        """Ask a node to end and wait; raises DemoFailed when it ends with an error."""
        process = self._processes[name]
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                raise DemoFailed(f'{name} did not end {GRACE_S:.0f} s after SIGINT') from None
        self.ended(name)

    def end_all(self) -> None:
        """End what still runs: SIGINT to all process groups, SIGKILL to those that remain."""
        for number, patience_s in ((signal.SIGINT, GRACE_S), (signal.SIGKILL, GRACE_S)):
            alive = [p for p in self._processes.values() if p.poll() is None]
            for process in alive:
                os.killpg(process.pid, number)
            end_s = time.monotonic() + patience_s
            while any(p.poll() is None for p in alive) and time.monotonic() < end_s:
                time.sleep(0.05)


@contextmanager
def running_nodes(log_folder: Path) -> Iterator[Nodes]:
    """Give a Nodes whose processes end with the block, on errors, Ctrl-C and SIGTERM alike."""
    nodes = Nodes(log_folder)

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield nodes
    finally:
        nodes.end_all()
        signal.signal(signal.SIGTERM, before)


def private_environment(environment: Mapping[str, str], log_folder: Path) -> dict[str, str]:
    """Return the environment of nodes that talk to each other only, on this host.

    The nodes themselves choose the Fast DDS profile.
    """
    private = {
        'GOMP_SPINCOUNT': '3000',  # idle threads that spin long take the cores from other nodes
        **environment,
        'ROS_DOMAIN_ID': str(random.SystemRandom().choice(DOMAINS)),
        'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST',
        'ROS_LOG_DIR': str(log_folder),
        'PYTHONUNBUFFERED': '1',
    }
    if environment.get('ROS_DISTRO') == 'humble':  # it knows only the older variable
        private['ROS_LOCALHOST_ONLY'] = '1'
    return private


def dying_with_parent() -> list[str]:
    """Return a command prefix that ends a child when this process is killed outright."""
    setpriv = shutil.which('setpriv')  # part of util-linux, on every Debian and Ubuntu
    return [setpriv, '--pdeathsig', 'KILL', '--'] if setpriv else []


def parameter_words(parameters: Mapping[str, Any]) -> list[str]:
    """Write parameters as arguments of ROS."""
    pairs = [('-p', f'{name}:={parameter_text(value)}') for name, value in parameters.items()]
    return [word for pair in pairs for word in pair]


def parameter_text(value: str | int | float | Sequence[str]) -> str:
    """Write a value for `-p name:=`; strings are quoted, or YAML would read 12 or on otherwise."""
    if isinstance(value, list | tuple):
        return f'[{", ".join(parameter_text(one) for one in value)}]'
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return repr(value).lower() if isinstance(value, bool) else repr(value)
