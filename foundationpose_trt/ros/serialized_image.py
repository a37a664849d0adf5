"""sensor_msgs/Image read from its serialised form, without rclpy's copies of the pixels.

rclpy copies the pixels of every message three times on its way to Python, in the executor's
thread. A raw subscription hands over the bytes as they came, of which the pixels are then a view.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from builtin_interfaces.msg import Time
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from foundationpose_trt.ros.rejections import RejectedMessage, Rejection

ORDERS = {b'\x00\x00': '>', b'\x00\x01': '<'}  # plain CDR (OMG DDSI-RTPS 2.5, table 10.3)
PREFIX = 4  # bytes that tell the encoding; alignment counts from behind them


@dataclass(frozen=True)
class ReceivedImage:
    """What sensor_msgs/Image holds, by the same names. data: read-only view of the message."""

    header: Header
    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: memoryview


def decoding(
    callback: Callable[[Any], None], reject: Callable[[RejectedMessage], None]
) -> Callable[[bytes], None]:
    """Return a callback for a raw subscription that calls one for images, or reject."""

    def decode(serialized: bytes) -> None:
        try:
            image = decoded_image(serialized)
        except RejectedMessage as error:
            reject(error)
        else:
            callback(image)

    return decode


def decoded_image(serialized: bytes) -> ReceivedImage | Image:
    """Return the image of a serialised sensor_msgs/Image.

    Where the bytes are no plain CDR of one, rclpy deserialises them. Raises RejectedMessage where
    it cannot either.
    """
    order = ORDERS.get(bytes(serialized[:2]))
    try:
        if order is not None:
            return _read(_Reader(serialized, order))
    except (struct.error, UnicodeDecodeError):  # cut off, or of another type
        pass
    try:
        return deserialize_message(serialized, Image)
    except RuntimeError as error:  # of the RMW
        raise RejectedMessage(
            Rejection.BAD_IMAGE,
            f'{len(serialized)} bytes came that are no sensor_msgs/Image: {error}',
        ) from error


def _read(reader: _Reader) -> ReceivedImage:
    second, nanosecond = reader.values('iI')
    frame_id = reader.text()
    height, width = reader.values('II')
    encoding = reader.text()
    (is_bigendian,) = reader.values('B')
    step, count = reader.values('II')
    header = Header(stamp=Time(sec=second, nanosec=nanosecond), frame_id=frame_id)
    return ReceivedImage(
        header, height, width, encoding, is_bigendian, step, reader.bytes(count)
    )  # fmt: skip


class _Reader:
    """Reads values of CDR, version 1, one after another (OMG CORBA 3.3, part 2, 9.3.1)."""

    def __init__(self, serialized: bytes, order: str) -> None:
        self._body = memoryview(serialized)[PREFIX:]
        self._order = order
        self._at = 0

    def values(self, code: str) -> tuple[int, ...]:
        """Numbers of one size, aligned to it; raises struct.error where they end too early."""
        self._at += -self._at % struct.calcsize(f'={code[0]}')
        found = struct.unpack_from(self._order + code, self._body, self._at)
        self._at += struct.calcsize(f'={code}')
        return found

    def text(self) -> str:
        """A string, which CDR ends with a zero that its length counts."""
        (size,) = self.values('I')
        return str(self.bytes(size)[:-1], 'utf-8')

    def bytes(self, count: int) -> memoryview:
        """So many bytes; raises struct.error where there are fewer."""
        found = self._body[self._at : self._at + count]
        if len(found) < count:
            raise struct.error(f'{count} bytes at {self._at} of {len(self._body)}')
        self._at += count
        return found
