"""What recorder_node wrote, put in order: poses, truth and latencies per played frame."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

NS_PER_S = 1e9
PER_POSE = ('publish_ms', 'age_ms')  # published once with every pose, in the same order
PER_FRAME = ('detector_ms', 'register_ms', 'track_ms')


class DemoFailed(RuntimeError):
    """The demo ran and did not get what it was to show; the message says why."""


class RecordingFollower:
    """Reads the lines of a growing JSON lines file as they come; a half-written line waits."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new_lines(self) -> list[dict[str, Any]]:
        """Return the lines added since the last call; none while the file is not there."""
        if not self._path.exists():
            return []
        with self._path.open('rb') as stream:
            stream.seek(self._offset)
            complete = stream.read().rpartition(b'\n')[0]
        self._offset += len(complete) + bool(complete)
        return [json.loads(line) for line in complete.splitlines()]


@dataclass(frozen=True)
class PoseRecord:
    """One published pose with what was published along with it."""

    stamp_ns: int
    received_ns: int
    camera_from_object: np.ndarray
    latency_ms: dict[str, float]


@dataclass
class Recording:
    """All messages of one demo run, by topic, in order of arrival."""

    messages: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def add(self, line: dict[str, Any]) -> None:
        """Take one line of the recorder."""
        self.messages.setdefault(line['topic'], []).append(line)

    def data(self, topic: str) -> list[Any]:
        """Return the values of a topic in order of arrival."""
        return [line['data'] for line in self.messages.get(topic, [])]

    def event(self, name: str) -> bool:
        """Tell whether the player said so."""
        return name in self.data('player/event')

    def poses(self) -> list[PoseRecord]:
        """Return every published pose."""
        lines = self.messages.get('pose', [])
        latencies = {name: self.data(f'latency/{name}') for name in PER_POSE}
        return [
            PoseRecord(
                line['stamp_ns'], line['received_ns'], np.array(line['matrix']),
                {name: values[k] for name, values in latencies.items() if k < len(values)},
            )
            for k, line in enumerate(lines)
        ]  # fmt: skip

    def truths(self, played: int) -> list[tuple[int, np.ndarray]]:
        """Return stamp and true pose of the last `played` images: before, the first one stood.

        Raises DemoFailed when fewer arrived.
        """
        lines = self.messages.get('ground_truth/pose', [])
        if len(lines) < played:
            raise DemoFailed(
                f'{len(lines)} of {played} true poses were recorded: has every frame of the scene'
                ' a pose of the object in scene_gt.json?'
            )
        return [(line['stamp_ns'], np.array(line['matrix'])) for line in lines[-played:]]

    def failures(self) -> int:
        """Return how many frames after the first pose ended without one."""
        outcomes = self.data('outcome')
        first = outcomes.index('OK') if 'OK' in outcomes else len(outcomes)
        return sum(outcome != 'OK' for outcome in outcomes[first:])

    def losses(self) -> int:
        """Return how often the tracker said LOST, but for the end of the images."""
        events = self.messages.get('player/event', [])
        ended_ns = [line['received_ns'] for line in events if line['data'] == 'finished']
        lost = [
            line for line in self.messages.get('state', []) if state_word(line['data']) == 'LOST'
        ]
        if not ended_ns:
            return len(lost)
        return sum(
            line['data'] != 'LOST: TIMEOUT' or line['received_ns'] < ended_ns[0] for line in lost
        )


def state_word(line: str) -> str:
    """Return the state of what topic `state` says, 'STATE: REASON'."""
    return line.partition(':')[0]
