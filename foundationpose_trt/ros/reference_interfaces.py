"""What the nodes have on the graph, read off real ones; what takes a GPU is stood in for."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import rclpy
from rclpy.logging import LoggingSeverity, set_logger_level
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

from foundationpose_trt.datatypes import CameraIntrinsics, Frame, TrackingState
from foundationpose_trt.ros.detector_factory import BuiltDetector
from foundationpose_trt.ros.detector_node import DetectorNode
from foundationpose_trt.ros.managed_node import ManagedNode
from foundationpose_trt.ros.player_node import PlayerNode
from foundationpose_trt.ros.tracker_factory import BuiltTracker, named_objects
from foundationpose_trt.ros.tracker_node import TrackerNode
from foundationpose_trt.scenes.bop import BopWriter

NAMESPACE = '/reference'  # tells names relative to it from absolute ones
SUBSCRIBES, PUBLISHES, SERVES = 'subscribes', 'publishes', 'serves'
OF_ROS = ('rcl_interfaces', 'lifecycle_msgs', 'type_description_interfaces')
RELIABILITY = {
    ReliabilityPolicy.RELIABLE: 'reliable',
    ReliabilityPolicy.BEST_EFFORT: 'best effort',
}
DURABILITY = {
    DurabilityPolicy.VOLATILE: 'volatile',
    DurabilityPolicy.TRANSIENT_LOCAL: 'transient local',
}
TETRAHEDRON = """v 0 0 0\nv .1 0 0\nv 0 .1 0\nv 0 0 .1\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n"""

Options = dict[str, Any]


@dataclass(frozen=True, order=True)
class Endpoint:
    """One topic or service of a node. role: SUBSCRIBES, PUBLISHES or SERVES.

    name: as in the node's code, before remapping. qos: reliability, durability and depth.
    """

    role: str
    name: str
    type: str
    qos: str = ''


def tracker_endpoints(objects: Sequence[str] = ()) -> list[Endpoint]:
    """Return what tracker_node has while it is active, for one object or for several."""
    with tempfile.TemporaryDirectory() as folder:
        mesh = Path(folder) / 'tetrahedron.obj'
        mesh.write_text(TETRAHEDRON)
        values: Options = {'mesh_file_path': str(mesh), 'warm_up_width': 0}
        values |= {f'{name}.mesh_file_path': str(mesh) for name in objects}
        values |= {'objects': list(objects)} if objects else {}
        return _endpoints(lambda **options: TrackerNode(_tracker, **options), values)


def detector_endpoints() -> list[Endpoint]:
    """Return what detector_node has while it is active, with a model without masks."""
    values = {'model': 'stand-in', 'warm_up_width': 0}
    return _endpoints(lambda **options: DetectorNode(_detector, **options), values)


def player_endpoints() -> list[Endpoint]:
    """Return what player_node has."""
    with tempfile.TemporaryDirectory() as folder:
        camera = CameraIntrinsics(2.0, 2.0, 0.5, 0.5, 2, 2)
        frame = Frame(np.zeros((2, 2, 3), np.uint8), np.ones((2, 2), np.float32), camera)
        with BopWriter(folder) as writer:
            writer.add_frame(0, frame, [(1, np.eye(4), None)])
        return _endpoints(PlayerNode, {'scene': folder})


def endpoints_of(node: Node) -> list[Endpoint]:
    """Return the topics and services that a node has of its own, not those of every ROS node."""
    subscriptions: list[Any] = list(node.subscriptions)
    publishers: list[Any] = list(node.publishers)
    found = [
        Endpoint(role, own_name(one.topic_name, node), type_name(one.msg_type), qos(one))
        for role, topics in ((SUBSCRIBES, subscriptions), (PUBLISHES, publishers))
        for one in topics
    ]
    services: list[Any] = list(node.services)
    found += [
        Endpoint(SERVES, own_name(one.srv_name, node), type_name(one.srv_type)) for one in services
    ]
    return sorted(one for one in found if not one.type.startswith(OF_ROS))


def own_name(name: str, node: Node) -> str:
    """Return a name as it stands in the node's code, from its resolved one."""
    private, relative = f'{NAMESPACE}/{node.get_name()}/', f'{NAMESPACE}/'
    if name.startswith(private):
        return '~/' + name.removeprefix(private)
    return name.removeprefix(relative)


def type_name(kind: type) -> str:
    """Return package/Name of the class of a message or service."""
    return f'{kind.__module__.partition(".")[0]}/{kind.__name__}'


def qos(endpoint: Any) -> str:
    """Return reliability, durability and depth of a publisher or subscription."""
    profile: QoSProfile = endpoint.qos_profile
    if profile.history != HistoryPolicy.KEEP_LAST:
        raise ValueError(f'{endpoint.topic_name} has history {profile.history}: describe it')
    return f'{RELIABILITY[profile.reliability]}, {DURABILITY[profile.durability]}, {profile.depth}'


def _endpoints(make: Callable[..., Node], values: Options) -> list[Endpoint]:
    with _running(make, values) as node:
        return endpoints_of(node)


@contextmanager
def _running(make: Callable[..., Any], values: Options) -> Iterator[Node]:
    """Run a node, configured and active if it has such states, apart from everything else."""
    overrides = [Parameter(name, value=value) for name, value in values.items()]
    set_logger_level(NAMESPACE.strip('/'), LoggingSeverity.ERROR)
    context = rclpy.Context()
    rclpy.init(args=[], context=context)
    try:
        node = make(
            context=context, namespace=NAMESPACE, parameter_overrides=overrides,
            use_global_arguments=False,
        )  # fmt: skip
        if isinstance(node, ManagedNode) and not node.start():
            raise RuntimeError(f'{node.get_name()} cannot be configured: {node.refusal}')
        try:
            yield node
        finally:
            node.close()
            node.destroy_node()
    finally:
        context.try_shutdown()


def _tracker(parameters: Any, nested: Any, report: Any) -> BuiltTracker:
    """Stand in for build_tracker: real objects, no networks."""
    objects = named_objects(parameters, nested)
    group = SimpleNamespace(
        states=[TrackingState.SEARCHING] * len(objects), reasons=['STARTED'] * len(objects)
    )
    return BuiltTracker(group, objects, lambda intrinsics: None, 'nothing')


def _detector(parameters: Any, report: Any) -> BuiltDetector:
    """Stand in for build_detector; without masks, so that it listens to depth."""
    detector: Any = SimpleNamespace(manifest=SimpleNamespace(classes=(), masks=''))
    return BuiltDetector(detector, 'nothing')
