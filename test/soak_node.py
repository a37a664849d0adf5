"""tracker_node on oracle networks and a small mesh: all of the node is real, and it is quick.

    python soak_node.py [--namespaces NAME ...] [--iterations N] --ros-args ...

One node per namespace, in one process. N refinements per registration: many make it last.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import soak_scene
import torch
from oracle_rig import OracleRefiner, oracle_networks

from foundationpose_trt.datatypes import CameraIntrinsics
from foundationpose_trt.pose.estimator import EstimatorSettings, PoseEstimator, RegisterStage
from foundationpose_trt.pose.object_group import ObjectGroup
from foundationpose_trt.ros.running import run_nodes
from foundationpose_trt.ros.tracker_factory import (
    BuiltTracker,
    NamedObject,
    estimator_settings,
    tracker_settings,
)
from foundationpose_trt.ros.tracker_node import NODE_NAME, TrackerNode
from foundationpose_trt.ros.tracker_parameters import TrackerParameters

CHUNK = 5
STRIDE = 2  # the pose is seen well enough in every second pixel of a crop


class QuickRefiner(OracleRefiner):
    """Looks at fewer pixels, and keeps no record that would grow for ever."""

    def __call__(self, rendered: torch.Tensor, observed: torch.Tensor) -> dict[str, torch.Tensor]:
        self.calls.clear()
        return super().__call__(
            rendered[..., ::STRIDE, ::STRIDE], observed[..., ::STRIDE, ::STRIDE]
        )


def settings_of(parameters: TrackerParameters, iterations: int) -> EstimatorSettings:
    """The node's settings, with a schedule and a chunk for a small mesh."""
    return replace(
        estimator_settings(parameters, {}, 'cpu')[0],
        schedule=(RegisterStage(iterations, 1),),
        symmetries=soak_scene.SYMMETRIES,
        chunk=CHUNK,
    )


def build(
    iterations: int, parameters: TrackerParameters, nested: Mapping[str, Any], report: Any
) -> BuiltTracker:
    """As tracker_factory.build_tracker, without files."""
    mesh = soak_scene.mesh()
    estimator = PoseEstimator(
        mesh, oracle_networks(refiner=QuickRefiner()), settings_of(parameters, iterations)
    )
    group = ObjectGroup(estimator, [tracker_settings(parameters)])

    def apply(changed: TrackerParameters) -> None:
        estimator.set_settings([settings_of(changed, iterations)])
        group.set_settings([tracker_settings(changed)])

    def warm_up(intrinsics: CameraIntrinsics) -> None:
        estimator.set_settings([settings_of(parameters, 1)])  # however long a registration is
        estimator.warm_up(intrinsics)
        estimator.set_settings([settings_of(parameters, iterations)])

    found = NamedObject(mesh.name, mesh.name, parameters.tf_frame_name, mesh=mesh)
    return BuiltTracker(group, (found,), warm_up, 'an oracle', apply)


def main(arguments: Sequence[str]) -> int:
    """Run the nodes to their end; return the status."""
    at = arguments.index('--ros-args')
    parser = argparse.ArgumentParser()
    parser.add_argument('--namespaces', nargs='+', default=[''])
    parser.add_argument('--iterations', type=int, default=2)
    words = parser.parse_args(arguments[:at])
    torch.set_num_threads(1)
    makers = [
        partial(TrackerNode, partial(build, words.iterations), namespace=namespace)
        for namespace in words.namespaces
    ]
    return run_nodes(NODE_NAME, makers, arguments[at:])


if __name__ == '__main__':
    raise SystemExit(main(sys.argv[1:]))
