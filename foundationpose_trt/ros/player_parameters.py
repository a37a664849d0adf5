"""The parameters of player_node, with their units and limits; config/player.yaml shows them."""

from __future__ import annotations

from dataclasses import dataclass

from foundationpose_trt.datatypes import TrackingState
from foundationpose_trt.ros.parameters import check_values, parameter

STATES = tuple(state.value for state in TrackingState)


@dataclass(frozen=True)
class PlayerParameters:
    """Values in force for one run of player_node. Raises ValueError naming what is wrong."""

    scene: str = parameter('', 'folder of one BOP scene; required')
    object_id: int = parameter(
        0, 'object whose mask and pose are published; 0: the only or first one', '', (0, 1_000_000)
    )
    rate_hz: float = parameter(10.0, 'images per second', 'Hz', (0.1, 200.0))
    loop: bool = parameter(False, 'start over at the end instead of ending')
    depth_encoding: str = parameter(
        '16UC1', '16UC1: millimetres; 32FC1: metres', choices=('16UC1', '32FC1')
    )
    frame_id: str = parameter(
        'camera_color_optical_frame', 'optical frame of the images: x right, y down, z forward'
    )
    max_images: int = parameter(
        600, 'images read into memory, 1.8 MB each at 640x480; the rest is left out', 'images',
        (1, 100_000),
    )  # fmt: skip
    wait_for_state: str = parameter(
        '', 'repeat the first image until the topic state says so, e.g. TRACKING; empty: play on',
        choices=('', *STATES),
    )  # fmt: skip
    wait_timeout_s: float = parameter(
        120.0, 'give up waiting for subscribers or for wait_for_state', 's', (1.0, 3600.0)
    )
    start_subscribers: int = parameter(
        0, 'begin when the image topic has this many subscribers', '', (0, 100)
    )

    def __post_init__(self) -> None:
        check_values(self)
        if not self.scene:
            raise ValueError('scene is empty: set it to the folder of a BOP scene, -p scene:=DIR')
