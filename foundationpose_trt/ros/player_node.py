"""ROS node: plays a recorded scene as a live RGB-D camera with a segmentation and its truth."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header, String

from foundationpose_trt.datatypes import Frame
from foundationpose_trt.ros import conversions
from foundationpose_trt.ros.parameters import declare, given_parameters, unknown_parameters
from foundationpose_trt.ros.player_parameters import PlayerParameters
from foundationpose_trt.ros.qos import LATCHED_QOS, RESULT_QOS
from foundationpose_trt.ros.running import run_node
from foundationpose_trt.scenes.bop import BopScene

NODE_NAME = 'player_node'
# reliable: a subscriber may still ask for best effort, and reliable recorders lose nothing
IMAGE_QOS = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
MM_PER_M = 1000.0
MAX_16U_MM = 65535
LINGER_S = 1.0  # the last image must leave before the process does


@dataclass(frozen=True)
class Picture:
    """The messages of one image, made beforehand; stamp and frame are filled in when played."""

    image: Image
    depth: Image
    camera_info: CameraInfo
    segmentation: Image | None
    truth: PoseStamped | None

    def messages(self) -> Iterator[tuple[str, Any]]:
        """Yield topic and message, masks before the images they belong to."""
        for topic in ('camera_info', 'segmentation', 'truth', 'depth', 'image'):
            message = getattr(self, topic)
            if message is not None:
                yield topic, message


class PlayerNode(Node):
    """Publishes image, depth, camera_info, segmentation and ground_truth/pose at a fixed rate.

    All messages of one image carry the same stamp, the time it was published at. Raises
    ValueError or FileNotFoundError naming what is wrong with the scene before the first image.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(NODE_NAME, **options)
        self.parameters = declare(self, PlayerParameters)
        for line in unknown_parameters(given_parameters(self), PlayerParameters):
            self.get_logger().warning(line)
        self._pictures = load_pictures(self.parameters)
        self._topics = {
            'image': self.create_publisher(Image, 'image', IMAGE_QOS),
            'depth': self.create_publisher(Image, 'depth', IMAGE_QOS),
            'segmentation': self.create_publisher(Image, 'segmentation', IMAGE_QOS),
            'camera_info': self.create_publisher(CameraInfo, 'camera_info', IMAGE_QOS),
            'truth': self.create_publisher(PoseStamped, 'ground_truth/pose', RESULT_QOS),
        }
        self._event = self.create_publisher(String, 'player/event', LATCHED_QOS)
        self._state = ''
        self.create_subscription(String, 'state', self._on_state, LATCHED_QOS)
        self._playing = False
        self._order = self._indices()
        self._started_s = time.monotonic()
        self._ended_s: float | None = None
        self._say('waiting')
        self.create_timer(1.0 / self.parameters.rate_hz, self._on_timer)

    def finished(self) -> bool:
        """Tell whether the last image left; raises TimeoutError when nobody was ready in time."""
        if self._ended_s is not None:
            return time.monotonic() - self._ended_s >= LINGER_S
        waited_s = time.monotonic() - self._started_s
        if not self._playing and waited_s > self.parameters.wait_timeout_s:
            raise TimeoutError(f'waited {waited_s:.0f} s for {self._missing()}')
        return False

    def close(self, timeout_s: float = 0.0) -> bool:
        """Nothing runs in the background."""
        return True

    def _on_state(self, message: String) -> None:
        self._state = message.data.partition(':')[0]  # what follows is the reason

    def _on_timer(self) -> None:
        if self._ended_s is not None:
            return
        if not self._playing and not self._missing():
            self._playing = True
            self._say('playing')
        if not self._playing:
            if self._enough_subscribers():
                self._publish(self._pictures[0])
            return
        index = next(self._order, None)
        if index is None:
            self._ended_s = time.monotonic()
            self._say('finished')
            return
        self._publish(self._pictures[index])

    def _missing(self) -> str:
        """Say what playing still waits for, '' when nothing."""
        if not self._enough_subscribers():
            wanted = self.parameters.start_subscribers
            return f'{wanted} subscribers of {self._topics["image"].topic_name}'
        wanted_state = self.parameters.wait_for_state
        if wanted_state and self._state != wanted_state:
            seen = f'it says {self._state}' if self._state else 'nobody published it'
            return f'topic state to say {wanted_state}; {seen}'
        return ''

    def _enough_subscribers(self) -> bool:
        count = self._topics['image'].get_subscription_count()
        return bool(count >= self.parameters.start_subscribers)

    def _indices(self) -> Iterator[int]:
        once = range(len(self._pictures))
        return itertools.cycle(once) if self.parameters.loop else iter(once)

    def _publish(self, picture: Picture) -> None:
        stamp = self.get_clock().now().to_msg()
        for topic, message in picture.messages():
            message.header.stamp = stamp
            self._topics[topic].publish(message)

    def _say(self, event: str) -> None:
        self._event.publish(String(data=event))
        self.get_logger().info(f'{event} ({len(self._pictures)} images)')


def load_pictures(parameters: PlayerParameters) -> list[Picture]:
    """Read the whole scene into messages, so that playing never waits for a disk or a decoder.

    Raises ValueError when the scene has no such object.
    """
    scene = BopScene.open(parameters.scene)
    object_id = choose_object(scene, parameters.object_id)
    ids = scene.frame_ids[: parameters.max_images]
    return [_picture(scene, frame_id, object_id, parameters) for frame_id in ids]


def choose_object(scene: BopScene, object_id: int) -> int:
    """Return the object to publish; 0 means the first one of the scene."""
    if object_id == 0 and scene.object_ids:
        return scene.object_ids[0]
    if object_id not in scene.object_ids:
        raise ValueError(
            f'object_id is {object_id}, but {scene.folder} has {scene.object_ids or "no objects"}'
        )
    return object_id


def depth_message(frame: Frame, encoding: str, header: Header) -> Image:
    """Return depth as 16UC1 millimetres or 32FC1 metres, invalid as 0 or NaN (REP 118).

    16UC1 ends at 65.5 m; what is farther becomes invalid.
    """
    depth_m = frame.valid_depth_m
    if encoding == '32FC1':
        depth_m = np.where(depth_m > 0, depth_m, np.float32(np.nan))
        return conversions.image_message(depth_m, encoding, header)
    depth_mm = np.rint(depth_m * MM_PER_M)
    depth_mm[depth_mm > MAX_16U_MM] = 0
    return conversions.image_message(depth_mm.astype(np.uint16), encoding, header)


def mask_message(mask: np.ndarray, header: Header) -> Image:
    """Return a (H, W) bool mask as mono8, 255 = object."""
    return conversions.image_message(np.where(mask, 255, 0).astype(np.uint8), 'mono8', header)


def _picture(
    scene: BopScene, frame_id: int, object_id: int, parameters: PlayerParameters
) -> Picture:
    frame = dataclasses.replace(scene.frame(frame_id), frame_id=parameters.frame_id)
    header = Header(frame_id=parameters.frame_id)
    mask, pose = scene.mask(frame_id, object_id), scene.camera_from_object(frame_id, object_id)
    return Picture(
        image=conversions.image_message(frame.rgb, 'rgb8', header),
        depth=depth_message(frame, parameters.depth_encoding, header),
        camera_info=conversions.camera_info_message(frame.intrinsics, header),
        segmentation=mask_message(mask, header) if mask is not None else None,
        truth=conversions.pose_message(pose, frame) if pose is not None else None,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `ros2 run foundationpose_trt player_node`."""
    return run_node(NODE_NAME, PlayerNode, arguments)


if __name__ == '__main__':
    raise SystemExit(main())
