"""Messages that cannot be used: named, counted, and explained to whoever runs the node."""

from __future__ import annotations

from enum import Enum


class Rejection(str, Enum):
    """Why a message was refused before the tracker saw it."""

    UNKNOWN_ENCODING = 'UNKNOWN_ENCODING'  # no converter for sensor_msgs/Image.encoding
    BAD_IMAGE = 'BAD_IMAGE'  # empty, truncated or of contradictory size fields
    BAD_CAMERA_INFO = 'BAD_CAMERA_INFO'  # not a calibrated pinhole camera
    SIZE_MISMATCH = 'SIZE_MISMATCH'  # image, depth, mask and camera_info disagree in size


class RejectedMessage(ValueError):
    """A message that cannot be used; `rejection` is the name under which it is counted."""

    def __init__(self, rejection: Rejection, explanation: str) -> None:
        super().__init__(f'{rejection.value}: {explanation}')
        self.rejection = rejection
