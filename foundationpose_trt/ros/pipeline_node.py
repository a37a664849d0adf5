"""Detectors and trackers in one process, so that they share one CUDA context.

    pipeline_node --detector -p model:=FOLDER --tracker -p mesh_file_path:=FILE --ros-args ...

Each --detector and each --tracker is one node; what follows it, written like arguments of ROS,
is for that node and wins. What follows --ros-args is for all of them, as is usual. With neither
word there is one node of each kind. Several of a kind need namespaces: --tracker -r __ns:=/left.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from foundationpose_trt.ros.detector_node import DetectorNode
from foundationpose_trt.ros.detector_parameters import DetectorParameters
from foundationpose_trt.ros.running import RunnableNode, run_nodes
from foundationpose_trt.ros.tracker_node import TrackerNode
from foundationpose_trt.ros.tracker_parameters import TrackerParameters

NAME = 'pipeline_node'
DETECTOR, TRACKER = '--detector', '--tracker'
ROS_ARGUMENTS = '--ros-args'


def sections(arguments: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Return DETECTOR or TRACKER and its own ROS arguments for every node to start."""
    found: list[tuple[str, list[str]]] = []
    inside: list[str] | None = None
    for word in arguments:
        if word in (DETECTOR, TRACKER):
            inside = [ROS_ARGUMENTS]
            found.append((word, inside))
        elif word == ROS_ARGUMENTS:
            inside = None
        elif inside is not None:
            inside.append(word)
    return found or [(DETECTOR, [ROS_ARGUMENTS]), (TRACKER, [ROS_ARGUMENTS])]


def common(arguments: Sequence[str]) -> list[str]:
    """Return the words that are for all nodes; rcl takes name:=value anywhere for a remapping."""
    found: list[str] = []
    inside = False
    for word in arguments:
        inside = word in (DETECTOR, TRACKER) or (inside and word != ROS_ARGUMENTS)
        if not inside:
            found.append(word)
    return found


def maker(part: str, arguments: list[str]) -> Callable[[], RunnableNode]:
    """Return what makes one node; the parameters of the other kind are no misspellings."""
    if part == DETECTOR:
        return lambda: DetectorNode(siblings=[TrackerParameters], cli_args=arguments)
    return lambda: TrackerNode(siblings=[DetectorParameters], cli_args=arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `ros2 run foundationpose_trt pipeline_node`."""
    words = sys.argv if arguments is None else arguments
    return run_nodes(NAME, [maker(*section) for section in sections(words)], common(words))


if __name__ == '__main__':
    raise SystemExit(main())
