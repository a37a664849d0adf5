"""Qualities of service by what a topic carries; inputs are in image_node.py."""

from __future__ import annotations

from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions

RESULT_QOS = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
LATCHED_QOS = QoSProfile(
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
RESULT_DEPTH, NEWEST_DEPTH = 10, 1


def reliable_publisher(node: Node, kind: type, topic: str, depth: int) -> Any:
    """Return a publisher whose QoS the user may override (qos_overrides.TOPIC.publisher.*).

    Reliable, so that subscribers of either kind are served. Images have NEWEST_DEPTH. Raises
    ValueError for overrides that are none.
    """
    # a profile of its own: overrides are written into it
    profile = QoSProfile(depth=depth, reliability=ReliabilityPolicy.RELIABLE)
    options = QoSOverridingOptions.with_default_policies()
    try:
        return node.create_publisher(kind, topic, profile, qos_overriding_options=options)
    except RuntimeError as error:  # how rclpy, or the middleware below it, refuses a value
        raise ValueError(f'topic {topic}, or its qos_overrides: {error}') from error
