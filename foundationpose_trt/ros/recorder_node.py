"""ROS node: writes what tracker_node and player_node publish into a file of JSON lines.

Each line has topic, received_ns (this process' wall clock) and the content. Poses are row-major
4x4 matrices in metres. Ends by itself some time after the player's event 'finished'.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from std_msgs.msg import Float32, String

from foundationpose_trt.ros.conversions import pose_matrix, stamp_ns
from foundationpose_trt.ros.parameters import check_values, declare, parameter
from foundationpose_trt.ros.qos import LATCHED_QOS
from foundationpose_trt.ros.running import run_node
from foundationpose_trt.ros.tracker_outputs import LATENCIES

NODE_NAME = 'recorder_node'
RECORD_QOS = QoSProfile(
    depth=1000, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.VOLATILE
)


@dataclass(frozen=True)
class RecorderParameters:
    """Values in force for one run of recorder_node."""

    output: str = parameter('', 'JSON lines file to write; required')
    drain_s: float = parameter(
        3.0, 'how long to go on after the player has finished', 's', (0.0, 60.0)
    )

    def __post_init__(self) -> None:
        check_values(self)
        if not self.output:
            raise ValueError('output is empty: set it to the file to write, -p output:=FILE')


class RecorderNode(Node):
    """Subscribes every result topic and the player's truth; one JSON object per message."""

    def __init__(self, **options: Any) -> None:
        super().__init__(NODE_NAME, **options)
        self.parameters = declare(self, RecorderParameters)
        # line buffered: whoever follows the file sees each message when it arrives
        self._file = Path(self.parameters.output).open('w', buffering=1, encoding='utf-8')  # noqa: SIM115
        self._finished_s: float | None = None
        for topic in ('pose', 'ground_truth/pose'):
            self._record(PoseStamped, topic, RECORD_QOS)
        for topic in ('state', 'player/event'):
            self._record(String, topic, LATCHED_QOS)
        self._record(String, 'outcome', RECORD_QOS)
        for name in (*LATENCIES, 'detector_ms'):
            self._record(Float32, f'latency/{name}', RECORD_QOS)

    def finished(self) -> bool:
        """Tell whether the player finished and its last frames had time to come through."""
        return (
            self._finished_s is not None
            and time.monotonic() - self._finished_s >= self.parameters.drain_s
        )

    def close(self, timeout_s: float = 0.0) -> bool:
        """Close the file."""
        self._file.close()
        return True

    def _record(self, kind: type, topic: str, qos: QoSProfile) -> None:
        def write(message: Any) -> None:
            line = {'topic': topic, 'received_ns': time.time_ns(), **content(message)}
            self._file.write(json.dumps(line) + '\n')
            if topic == 'player/event' and message.data == 'finished':
                self._finished_s = time.monotonic()

        self.create_subscription(kind, topic, write, qos)


def content(message: Any) -> dict[str, Any]:
    """Return a message's fields for JSON: stamp_ns, frame_id and matrix of a pose, else data."""
    if isinstance(message, PoseStamped):
        return {
            'stamp_ns': stamp_ns(message.header.stamp),
            'frame_id': message.header.frame_id,
            'matrix': pose_matrix(message.pose).tolist(),
        }
    return {'data': message.data}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `python -m foundationpose_trt.ros.recorder_node`."""
    return run_node(NODE_NAME, RecorderNode, arguments)


if __name__ == '__main__':
    raise SystemExit(main())
