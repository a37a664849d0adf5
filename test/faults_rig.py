"""Nodes as processes, and a peer beside them whose cameras fail on command and check poses."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import soak_scene
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from ros_contexts import begin_context, end_context
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header, String
from std_srvs.srv import Trigger

from foundationpose_trt.ros import conversions
from foundationpose_trt.ros.dds import use_shared_memory_profile
from foundationpose_trt.ros.qos import LATCHED_QOS

RELIABLE = QoSProfile(depth=100)
WAIT_S = 20.0  # for what takes a fraction of a second on a machine that is not busy
START_S = 90.0  # for a process that imports torch on such a machine
MS, S = 1_000_000, 1_000_000_000
LOCK = r'/dev/shm/fastdds_[0-9a-f]{16}_el'
SOAK_NODE = str(Path(__file__).with_name('soak_node.py'))
SLOP_MS = 2.0
APART_NS = 5 * MS  # frames at least, beyond the slop
UNREADABLE = 'UNKNOWN_ENCODING'
KINDS = {'camera_info': CameraInfo, 'segmentation': Image, 'depth': Image, 'image': Image}


class Process:
    """A process with a log, in a session of its own; as a context, killed at the end."""

    def __init__(self, log: Path, *command: str) -> None:
        self.log, self._interrupted = log, False
        self._left: list[Path] = []
        environment = {**os.environ, 'ROS_LOG_DIR': str(log.parent), 'OMP_NUM_THREADS': '1'}
        with log.open('wb') as file:
            self.child = subprocess.Popen(
                [sys.executable, *command], stdout=file, stderr=subprocess.STDOUT,
                env=environment, start_new_session=True,
            )  # fmt: skip

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for path in self._left:
            path.unlink(missing_ok=True)

    def kill(self) -> None:
        """SIGKILL, after which Fast DDS' shared memory lies about until the context ends."""
        if self.child.poll() is None:
            self._left = self._segments()
            self.child.kill()
            self.child.wait()

    def _segments(self) -> list[Path]:
        """Its shared memory; the lock file of each segment is open as long as it lives."""
        folder = f'/proc/{self.child.pid}/fd'
        opened = [os.path.realpath(f'{folder}/{name}') for name in os.listdir(folder)]
        locks = [Path(path) for path in opened if re.fullmatch(LOCK, path)]
        return [*locks, *(path.with_name(path.name.removesuffix('_el')) for path in locks)]

    def text(self) -> str:
        return self.log.read_text(errors='replace')

    def check(self) -> None:
        assert self.child.poll() is None, f'ended with {self.child.poll()}: {self.text()}'
        assert 'Traceback' not in self.text(), self.text()

    def rss_kb(self) -> int:
        lines = Path(f'/proc/{self.child.pid}/status').read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith('VmRSS'))

    def open_files(self) -> int:
        return len(os.listdir(f'/proc/{self.child.pid}/fd'))

    def stat(self) -> list[str]:
        """Fields of /proc/PID/stat from the state (the third) on."""
        return fields_of(self.child.pid)

    def cpu_s(self) -> float:
        user, system = self.stat()[11:13]
        return (int(user) + int(system)) / os.sysconf('SC_CLK_TCK')

    def session(self) -> list[int]:
        """Processes of its session that have not ended."""
        pids = [int(name) for name in os.listdir('/proc') if name.isdigit()]
        fields = {pid: fields_of(pid) for pid in pids}
        return [p for p, f in fields.items() if f and f[3] == str(self.child.pid) and f[0] != 'Z']

    def interrupt(self) -> None:
        """Send SIGINT, once: a second one ends a node at once."""
        if self.child.poll() is None and not self._interrupted:
            self.child.send_signal(signal.SIGINT)
        self._interrupted = True

    def end(self) -> int:
        """Have it end by SIGINT, else kill it; return its status."""
        self.interrupt()
        try:
            return self.child.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.child.returncode


def fields_of(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state (the third) on; none when it is gone."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(') ')[2].split()
    except OSError:
        return []


def tracker(log: Path, *words: str, **parameters: object) -> Process:
    """Start soak_node.py."""
    values = {
        'mesh_file_path': 'painted', 'device': 'cpu', 'warm_up_width': 160,
        'warm_up_height': 120, 'track_refine_iterations': 1,
        'sync_slop_ms': SLOP_MS, **parameters,
    }  # fmt: skip
    given = [word for name, value in values.items() for word in ('-p', f'{name}:={value}')]
    return Process(log, SOAK_NODE, *words, '--ros-args', *given)


class Peer:
    """A node in a context of its own; `until` spins it until something holds."""

    count = itertools.count()

    def __init__(self) -> None:
        use_shared_memory_profile()
        self.context = begin_context()
        self.node = Node(f'peer_{next(Peer.count)}', context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.processes: list[Process] = []
        self.cameras: list[Camera] = []

    def until(
        self,
        holds: Callable[[], Any],
        feed: Callable[[], None] | None = None,
        timeout_s: float = WAIT_S,
    ) -> None:
        """Spin, and feed meanwhile."""
        pause_s = 0.005 if feed else 0.03  # a message ends it, so it is for what no message tells
        end_s = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < end_s, f'in vain: {self.told()}'
            if feed:
                feed()
            self.executor.spin_once(timeout_sec=pause_s)

    def told(self) -> str:
        """What was heard last, and what the processes wrote."""
        lines = [f'{c.namespace}: {c.states[-3:]}, {c.outcomes[-5:]}' for c in self.cameras]
        return '\n'.join(lines + [process.text()[-2000:] for process in self.processes])

    def wait(self, seconds: float, feed: Callable[[], None] | None = None) -> None:
        """Spin for a time: where nothing may happen, there is no condition to wait for."""
        end_s = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= end_s, feed, seconds + WAIT_S)

    def client(self, kind: type, name: str) -> Any:
        client = self.node.create_client(kind, name)
        self.until(client.service_is_ready)
        return client

    def call(self, kind: type, name: str, **fields: Any) -> Any:
        client = self.client(kind, name)
        future = client.call_async(kind.Request(**fields))
        self.until(future.done)
        self.node.destroy_client(client)
        return future.result()

    def close(self) -> None:
        self.node.destroy_node()
        self.executor.shutdown()
        end_context(self.context)


class Camera:
    """Publishes the scene in a namespace, and compares every pose with the truth of its stamp.

    first: the index of its first picture. `wrong` says what was wrong with which pose.
    """

    def __init__(self, peer: Peer, namespace: str = '', first: int = 0) -> None:
        self.peer, self.namespace = peer, namespace
        peer.cameras.append(self)
        self.frame_id = f'{namespace.replace("/", "_")}_optical'
        self.indices = [(first + k) % soak_scene.POSES for k in range(soak_scene.POSES)]
        self.now_ns: Callable[[], int] = lambda: peer.node.get_clock().now().nanoseconds
        self.shift_ns = 0  # of the stamps
        self.sent: list[int] = []  # stamps
        self.truth: dict[int, int] = {}  # stamp -> index
        self.posed: list[int] = []  # stamps, as they came
        self.wrong: list[str] = []
        self.outcomes: list[str] = []
        self.states: list[str] = []
        self.flow: dict[str, float] = {}
        self.summaries, self.summary_ns = 0, 0  # how many, and the newest one's stamp
        self._may_pose: set[int] = set()
        self._unreadable = Image(encoding='hsv8', header=Header(frame_id=self.frame_id))
        self._pictures = {i: self._messages(i) for i in self.indices}
        create = peer.node.create_publisher
        self.out = {t: create(kind, f'{namespace}/{t}', RELIABLE) for t, kind in KINDS.items()}
        self._listen(PoseStamped, 'pose', self._on_pose)
        self._listen(String, 'outcome', lambda m: self.outcomes.append(m.data))
        self._listen(String, 'state', lambda m: self.states.append(m.data), LATCHED_QOS)
        self._listen(DiagnosticArray, 'latency/summary', self._on_summary)

    def connect(self) -> None:
        """Wait until a tracker is there and both know each other."""
        node, ns = self.peer.node, self.namespace
        results = [f'{ns}/{name}' for name in ('pose', 'outcome', 'latency/summary')]
        self.peer.until(lambda: self.states, timeout_s=START_S)
        self.peer.until(lambda: all(p.get_subscription_count() for p in self.out.values()))
        self.peer.until(lambda: all(node.count_publishers(name) for name in results))

    def track(self) -> None:
        """Reset the tracker, and go on until it tracks; what was before shall not matter."""
        self.shift_ns = 0
        assert self.peer.call(Trigger, f'{self.namespace}/tracker_node/reset').success
        self.peer.until(lambda: self.states[-1] == 'SEARCHING: RESET')
        self.until_tracking()

    def until_tracking(self, poses: int = 3) -> None:
        """Feed with masks until it tracks, and some poses more; all come from then on."""
        before = len(self.posed)
        self.peer.until(
            lambda: (
                self.states[-1] == 'TRACKING: REGISTERED' and len(self.posed) >= before + poses
            ),
            self.feed(30.0, masked=True),
        )
        self.settle()

    def feed(self, rate_hz: float, **how: Any) -> Callable[[], None]:
        """Return what sends a frame when it is time for the next one; see send."""
        due_s = [time.monotonic()]

        def feed() -> None:
            now_s = time.monotonic()
            if now_s >= due_s[0]:
                # what was missed is not made up
                due_s[0] = max(due_s[0] + 1 / rate_hz, now_s + 0.5 / rate_hz)
                self.send(**how)

        return feed

    def send(
        self,
        masked: bool = False,
        instead: dict[str, Image | None] | None = None,
        stamp_ns: int | None = None,
    ) -> int:
        """Publish the next picture; instead: other messages, None: none. Return the stamp.

        A stamp that was sent already keeps its truth: another picture under it must not count.
        """
        index = self.indices[len(self.sent) % len(self.indices)]
        stamp_ns = self._next_stamp() if stamp_ns is None else stamp_ns
        self.sent.append(stamp_ns)
        if stamp_ns not in self.truth:
            self.truth[stamp_ns] = index
            self._may_pose.add(stamp_ns)
        messages = {**self._pictures[index], **(instead or {})}
        for topic, message in messages.items():
            if message is not None and (masked or topic != 'segmentation'):
                message.header.stamp = conversions.stamp_message(stamp_ns)
                self.out[topic].publish(message)
        return stamp_ns

    def _next_stamp(self) -> int:
        """Now, but never so near the last one that halves of the two could be paired."""
        stamp_ns = self.now_ns() + self.shift_ns
        ahead_ns = stamp_ns - self.sent[-1] if self.sent else APART_NS
        return self.sent[-1] + APART_NS if -S < ahead_ns < APART_NS else stamp_ns

    def step(self, masked: bool = False, **how: Any) -> int:
        """Send a picture and wait until the tracker said what became of it; return the stamp."""
        before = len(self.outcomes)
        stamp_ns = self.send(masked, **how)
        self.peer.until(lambda: len(self.outcomes) > before)
        return stamp_ns

    def settle(self) -> None:
        """Wait until all that was sent is done: a frame that nobody can read comes back last."""
        before = self.outcomes.count(UNREADABLE)
        self.peer.until(
            lambda: self.outcomes.count(UNREADABLE) > before,
            self.feed(2.0, instead={'image': self._unreadable}),
        )

    def repeat(self, stamps: list[int]) -> None:
        """Allow poses of these stamps a second time: a recording begins anew."""
        self._may_pose |= set(stamps)

    def _listen(self, kind: type, topic: str, callback: Any, qos: QoSProfile = RELIABLE) -> None:
        self.peer.node.create_subscription(kind, f'{self.namespace}/{topic}', callback, qos)

    def _messages(self, index: int) -> dict[str, Any]:
        rgb, depth_mm, mask = soak_scene.picture(index)
        header = Header(frame_id=self.frame_id)
        message = conversions.image_message
        return {
            'camera_info': conversions.camera_info_message(soak_scene.CAMERA, header),
            'segmentation': message(mask.astype('u1'), 'mono8', header),
            'depth': message(depth_mm, '16UC1', header),
            'image': message(rgb, 'rgb8', header),
        }

    def _on_pose(self, message: PoseStamped) -> None:
        stamp_ns = conversions.stamp_ns(message.header.stamp)
        self.posed.append(stamp_ns)
        wrong = self._fault(message, stamp_ns)
        if wrong:
            self.wrong.append(f'pose {len(self.posed)} of stamp {stamp_ns}: {wrong}')

    def _fault(self, message: PoseStamped, stamp_ns: int) -> str:
        if stamp_ns not in self.truth:
            return 'no image had this stamp'
        if stamp_ns not in self._may_pose:
            return 'a second pose of one image'
        self._may_pose.remove(stamp_ns)
        if message.header.frame_id != self.frame_id:
            return f'in frame {message.header.frame_id}, not {self.frame_id}'
        return soak_scene.is_wrong(conversions.pose_matrix(message.pose), self.truth[stamp_ns])

    def _on_summary(self, message: DiagnosticArray) -> None:
        self.summaries += 1
        self.summary_ns = conversions.stamp_ns(message.header.stamp)
        for status in message.status:
            if status.name.endswith(': flow'):
                self.flow = {pair.key: float(pair.value) for pair in status.values}


@contextmanager
def peer_of(*processes: Process) -> Iterator[Peer]:
    """A peer for the length of a block; the processes have to end well after it."""
    peer = Peer()
    peer.processes = list(processes)
    try:
        yield peer
    finally:
        for process in processes:
            process.interrupt()
        statuses = [process.end() for process in processes]
        peer.close()
    assert statuses == [0] * len(processes), [process.text() for process in processes]
