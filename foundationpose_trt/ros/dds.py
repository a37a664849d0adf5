"""The Fast DDS profile that lets whole images through, and how to tell when it is missing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PROFILE_PATH = Path(__file__).with_name('fastdds_shm.xml')
PROFILE_VARIABLES = ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE')
FIRST_RCLPY_WITH_FAST_DDS_3 = 8  # Jazzy has 7, Kilted 9


def profile_variables() -> tuple[str, ...]:
    """Return the environment variables that this ROS release's Fast DDS reads.

    Up to Jazzy that is the old name only; Kilted and later warn at every start about the old name.
    """
    major = rclpy_major()
    if major is None:
        return PROFILE_VARIABLES
    return PROFILE_VARIABLES[:1] if major >= FIRST_RCLPY_WITH_FAST_DDS_3 else PROFILE_VARIABLES[1:]


def rclpy_major() -> int | None:
    """Return rclpy's major version; None where nothing says it: an overlay without metadata."""
    try:
        return int(version('rclpy').partition('.')[0])
    except PackageNotFoundError:
        return None


def profile_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables to add so that Fast DDS uses the package's profile.

    Empty when the user has set a profile of his own. Other DDS implementations ignore them.
    Raises FileNotFoundError when the profile was not installed.
    """
    if any(environment.get(name) for name in PROFILE_VARIABLES):
        return {}
    if not PROFILE_PATH.is_file():
        raise FileNotFoundError(
            f'{PROFILE_PATH} is missing: the package was installed without its data, install again'
        )
    return {name: str(PROFILE_PATH) for name in profile_variables()}


def node_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables to set for the nodes of a launch file: the profile, short spinning.

    PyTorch's idle threads otherwise spin and starve the other nodes of a small machine.
    """
    spin = environment.get('GOMP_SPINCOUNT', '3000')
    return {**profile_environment(environment), 'GOMP_SPINCOUNT': spin}


def use_shared_memory_profile() -> None:
    """Make Fast DDS in this process and its children use the profile; call before rclpy.init."""
    os.environ.update(profile_environment(os.environ))


@dataclass
class SilenceCheck:
    """Notices streams that are announced but do not arrive.

    after_s: how long a stream may be silent. Pure logic: feed it times in seconds, any clock.
    """

    after_s: float
    _last_s: dict[str, float] = field(default_factory=dict)
    _gone_s: dict[str, float] = field(default_factory=dict)

    def heard(self, stream: str, now_s: float) -> None:
        """Note a message."""
        self._last_s[stream] = now_s

    def gone(self, stream: str, publishers: int, now_s: float) -> bool:
        """Tell whether a stream has had no publisher for after_s; ask now and then."""
        if publishers:
            self._gone_s.pop(stream, None)
            return False
        return now_s - self._gone_s.setdefault(stream, now_s) >= self.after_s

    def silent(self, stream: str, publishers: int, now_s: float) -> bool:
        """Tell whether a stream with publishers has been silent for after_s.

        The time counts from the first call that saw a publisher, or from the last message.
        """
        if publishers == 0:
            self._last_s.pop(stream, None)
            return False
        return now_s - self._last_s.setdefault(stream, now_s) >= self.after_s


def announced_but_silent(topic: str, seconds: float, camera_info_arrives: bool) -> str:
    """Explain a topic that has publishers and no messages, and the remedy."""
    if not camera_info_arrives:
        return (
            f'{topic} is announced but nothing arrived for {seconds:.0f} s, nor on camera_info: is'
            ' the camera running, and does its QoS match (ros2 topic info -v)?'
        )
    return (
        f'{topic} is announced and camera_info arrives, but no image for {seconds:.0f} s. Fast DDS'
        ' drops messages above 512 KB in its default shared memory: start the PUBLISHER with'
        f' {PROFILE_VARIABLES[0]} and {PROFILE_VARIABLES[1]} set to {PROFILE_PATH}'
    )
