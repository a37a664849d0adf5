"""The Fast DDS profile: it is found, it is used, and with it whole images arrive."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
import xml.etree.ElementTree as ElementTree

import pytest

pytest.importorskip('rclpy', reason='ROS 2 (rclpy) is not installed')
import rclpy
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from foundationpose_trt.ros import dds

pytestmark = pytest.mark.ros
BOTH = ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE')
BYTES_4K_RGB8 = 3840 * 2160 * 3


def test_profile_has_room_for_large_images_and_keeps_udp():
    root = ElementTree.parse(dds.PROFILE_PATH).getroot()
    text = {e.tag.rpartition('}')[2]: e.text for e in root.iter() if e.text and e.text.strip()}
    assert int(text['segment_size']) >= BYTES_4K_RGB8 and text['useBuiltinTransports'] == 'false'
    kinds = [e.text for e in root.iter() if e.tag.endswith('}type')]
    assert kinds == ['SHM', 'UDPv4'] and 'interfaceWhiteList' not in text


@pytest.mark.parametrize(
    ('release', 'names'), [('3.3.13', BOTH[1:]), ('7.1.6', BOTH[1:]), ('9.1.2', BOTH[:1])]
)
def test_each_release_gets_the_variable_it_reads(monkeypatch, release, names):
    monkeypatch.setattr(dds, 'version', lambda name: release)
    assert dds.profile_environment({}) == {name: str(dds.PROFILE_PATH) for name in names}


@pytest.mark.parametrize('name', BOTH)
def test_a_profile_of_the_users_stays(name):
    assert dds.profile_environment({name: '/own.xml'}) == {}


def test_silence_counts_from_the_last_message_or_the_first_publisher():
    check = dds.SilenceCheck(after_s=5.0)
    assert not check.silent('image', publishers=0, now_s=0.0)
    assert not check.silent('image', publishers=0, now_s=100.0)
    assert [check.silent('image', 1, now_s) for now_s in (100.0, 104.9, 105.0)] == [
        False,
        False,
        True,
    ]
    check.heard('image', 106.0)
    assert [check.silent('image', 1, now_s) for now_s in (110.9, 111.0)] == [False, True]
    assert not check.silent('image', 0, 120.0) and not check.silent('image', 1, 121.0)


PUBLISHER = textwrap.dedent("""
    import array, time
    from foundationpose_trt.ros.dds import use_shared_memory_profile
    use_shared_memory_profile()
    import rclpy
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from sensor_msgs.msg import Image
    rclpy.init()
    node = rclpy.create_node('camera')
    qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    publisher = node.create_publisher(Image, 'image', qos)
    end_s = time.monotonic() + 15
    while publisher.get_subscription_count() == 0 and time.monotonic() < end_s:
        time.sleep(0.05)
    time.sleep(0.3)
    message = Image(data=array.array('B', bytes(640 * 480 * 3)))
    for number in range(40):
        message.header.stamp.sec = number
        publisher.publish(message)
        time.sleep(1 / 20)
    time.sleep(0.5)
""")


def test_best_effort_vga_images_arrive_from_another_process(tmp_path, monkeypatch):
    monkeypatch.setenv('ROS_LOG_DIR', str(tmp_path))
    for name in BOTH:
        monkeypatch.delenv(name, raising=False)
    camera = subprocess.Popen([sys.executable, '-c', PUBLISHER])
    rclpy.init()
    node = rclpy.create_node('listener')
    received = []
    qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    node.create_subscription(Image, 'image', lambda m: received.append(m.header.stamp.sec), qos)
    try:
        end_s = time.monotonic() + 30
        while camera.poll() is None and time.monotonic() < end_s:
            rclpy.spin_once(node, timeout_sec=0.1)
    finally:
        camera.kill()
        camera.wait()
        node.destroy_node()
        rclpy.try_shutdown()
    # without the profile 0 to 3 of 40 arrive
    assert len(received) >= 30, received
