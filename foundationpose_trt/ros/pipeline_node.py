"""Detector and tracker in one process, so that they share one CUDA context.

    pipeline_node --detector -p model:=FOLDER --tracker -p mesh_file_path:=FILE --ros-args ...

What follows --ros-args is for both nodes, as is usual; what follows --detector or --tracker,
written like arguments of ROS, for one of them, and wins.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from foundationpose_trt.ros.detector_node import DetectorNode
from foundationpose_trt.ros.detector_parameters import DetectorParameters
from foundationpose_trt.ros.running import run_nodes
from foundationpose_trt.ros.tracker_node import TrackerNode
from foundationpose_trt.ros.tracker_parameters import TrackerParameters

NAME = 'pipeline_node'
DETECTOR, TRACKER = '--detector', '--tracker'
ROS_ARGUMENTS = '--ros-args'


def arguments_of(part: str, arguments: Sequence[str]) -> list[str]:
    """Return the ROS arguments of one node: what follows part up to the next of such words."""
    found, inside = [ROS_ARGUMENTS], False
    for word in arguments:
        if word in (DETECTOR, TRACKER, ROS_ARGUMENTS):
            inside = word == part
        elif inside:
            found.append(word)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `ros2 run foundationpose_trt pipeline_node`."""
    words = sys.argv if arguments is None else arguments
    makers = (
        lambda: DetectorNode(siblings=[TrackerParameters], cli_args=arguments_of(DETECTOR, words)),
        lambda: TrackerNode(siblings=[DetectorParameters], cli_args=arguments_of(TRACKER, words)),
    )
    return run_nodes(NAME, makers, arguments)


if __name__ == '__main__':
    raise SystemExit(main())
