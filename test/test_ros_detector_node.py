"""detector_node over real topics: a network that always gives the same boxes stands in."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='ROS 2 (rclpy) is not installed')
from detector_rig import scene, write_fixed
from rclpy.parameter import Parameter
from ros_detector_rig import HEIGHT, WIDTH, DetectorBench, build_held, stamp_of
from ros_rig import RELIABLE
from sensor_msgs.msg import Image

from foundationpose_trt.ros import conversions, detector_node
from foundationpose_trt.ros.detector_factory import build_detector
from foundationpose_trt.ros.detector_parameters import DetectorParameters
from foundationpose_trt.ros.worker import WorkerFailed

pytestmark = pytest.mark.ros
CAN = (1, 0.9, (0.5, 0.5, 0.5, 0.5))  # x 16..48, y 12..36 of 64x48
BOX = (0, 0.7, (0.125, 0.25, 0.25, 0.5))  # x 0..16, y 0..24


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp('models')
    masks = np.full((1, 6, 12, 16), -1.0, np.float32)
    masks[0, 0, 4:8, 4:8] = 1.0
    return {
        'two': write_fixed(folder / 'two', *scene([CAN, BOX])),
        'none': write_fixed(folder / 'none', *scene([])),
        'masks': write_fixed(folder / 'masks', *scene([CAN]), masks),
    }


@pytest.fixture
def make_bench(tmp_path, monkeypatch, models):
    monkeypatch.setenv('ROS_LOG_DIR', str(tmp_path))
    benches = []

    def make(model='two', **options):
        benches.append(DetectorBench(models[model], **options))
        return benches[-1]

    yield make
    for bench in benches:
        bench.close()


def filled(**boxes):
    """The label image of boxes {label: x0, y0, x1, y1}, later ones on top."""
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    for label, (x0, y0, x1, y1) in boxes.items():
        expected[y0:y1, x0:x1] = int(label[1:])
    return expected


def test_the_label_image_has_the_stamp_and_frame_of_its_image(make_bench):
    bench = make_bench(objects=['can', 'drill', 'box'])
    bench.send('image', stamp_of(0))
    bench.until(lambda: bench.heard['segmentation'] and bench.outcomes())
    (message,) = bench.heard['segmentation']
    assert conversions.stamp_ns(message.header.stamp) == stamp_of(0)
    assert message.header.frame_id == 'left_optical' and message.encoding == 'mono8'
    expected = filled(_3=(0, 0, 16, 24), _1=(16, 12, 48, 36))
    assert np.array_equal(bench.labels()[0], expected)
    assert bench.outcomes() == ['OK']
    bench.until(lambda: all(bench.heard[f'latency/detector_{n}'] for n in ('ms', 'age_ms')))
    assert bench.values('latency/detector_ms')[0] > 0


def test_nothing_found_is_said_with_an_empty_label_image(make_bench):
    bench = make_bench('none')
    bench.send('image', stamp_of(0))
    bench.until(lambda: bench.heard['segmentation'] and bench.outcomes())
    assert bench.outcomes() == ['NOTHING_FOUND'] and not bench.labels()[0].any()


def test_depth_takes_the_background_out_of_the_boxes(make_bench):
    bench = make_bench(depth=True, objects=['can'])
    bench.send('image', stamp_of(0))
    bench.spin(0.1)
    assert not bench.outcomes(), 'depth is announced: its image waits for it'
    bench.send('depth', stamp_of(0))
    bench.until(lambda: bench.heard['segmentation'])
    # of the box x 16..48 the left half is an object at 0.7 m, the right half the wall behind it
    assert np.array_equal(bench.labels()[0], filled(_1=(16, 12, 32, 36)))


def test_without_depth_the_boxes_are_filled_and_the_user_is_told(make_bench, capfd):
    bench = make_bench()
    bench.send('image', stamp_of(0))
    bench.until(lambda: bench.outcomes())
    bench.node._check_inputs()
    assert 'nobody publishes /depth' in capfd.readouterr().err


def test_masks_of_the_network_need_no_depth(make_bench):
    bench = make_bench('masks', objects=['box', 'can'])
    assert 'depth' not in bench.node._topics
    bench.send('image', stamp_of(0))
    bench.until(lambda: bench.heard['segmentation'])
    labels = bench.labels()[0]
    rows, columns = np.nonzero(labels == 2)
    # cells 4..8 of 12x16 are pixels 16..32; bilinear between -1 and 1 cuts half way to the next
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (16, 31, 16, 31)
    assert set(np.unique(labels)) == {0, 2}


def test_the_real_path_is_warm_before_the_first_image(make_bench):
    bench = make_bench(warm_up_width=80, warm_up_height=60)
    bench.until(lambda: bench.detector.seen == [(60, 80)])
    bench.send('image', stamp_of(0))
    bench.until(lambda: bench.outcomes())
    assert bench.detector.seen == [(60, 80), (HEIGHT, WIDTH)]


def test_the_newest_image_wins_and_the_others_are_counted(make_bench):
    bench = make_bench()
    bench.until(lambda: len(bench.detector.seen) == 1)
    bench.detector.hold = True
    bench.send('image', stamp_of(0))
    bench.until(lambda: len(bench.detector.seen) == 2)
    for index in range(1, 6):
        bench.send('image', stamp_of(index))
    bench.detector.permits.release(2)
    bench.until(lambda: len(bench.heard['segmentation']) == 2)
    stamps = [conversions.stamp_ns(m.header.stamp) for m in bench.heard['segmentation']]
    assert stamps == [stamp_of(0), stamp_of(5)] and bench.node.dropped == 4
    bench.until(lambda: len(bench.heard['latency/detector_dropped']) == 2)
    assert bench.values('latency/detector_dropped')[-1] == 4


@pytest.mark.parametrize(
    ('changes', 'outcome', 'words'),
    [
        ({'encoding': 'hsv8'}, 'UNKNOWN_ENCODING', "encoding 'hsv8'"),
        ({'height': 0}, 'BAD_IMAGE', 'must not be empty'),
        ({'step': 100}, 'BAD_IMAGE', 'need 192 bytes per row'),
        ({'step': 100_000}, 'BAD_IMAGE', 'with step 100000 need'),
        ({'height': 4000}, 'BAD_IMAGE', '64x4000 pixels of bgr8'),
    ],
)
def test_unusable_images_are_named_counted_and_survived(
    make_bench, capfd, changes, outcome, words
):
    bench = make_bench()
    bench.send('image', stamp_of(0), **changes)
    bench.until(lambda: bench.outcomes() == [outcome])
    assert words in capfd.readouterr().err and not bench.heard['segmentation']
    bench.send('image', stamp_of(1))
    bench.until(lambda: bench.outcomes() == [outcome, 'OK'])
    assert bench.node.outcomes == {outcome: 1, 'OK': 1} and not bench.node.finished()


def test_depth_of_another_size_is_named(make_bench):
    bench = make_bench(depth=True)
    bench.send('image', stamp_of(0))
    bench.send('depth', stamp_of(0), height=24)
    bench.until(lambda: bench.outcomes() == ['SIZE_MISMATCH'])


def test_the_threshold_may_change_while_running(make_bench):
    bench = make_bench(objects=['can', 'box'])
    bench.send('image', stamp_of(0))
    bench.until(lambda: len(bench.heard['segmentation']) == 1)
    assert set(np.unique(bench.labels()[0])) == {0, 1, 2}
    (result,) = bench.node.set_parameters([Parameter('confidence_threshold', value=0.8)])
    assert result.successful
    bench.send('image', stamp_of(1))
    bench.until(lambda: len(bench.heard['segmentation']) == 2)
    assert set(np.unique(bench.labels()[1])) == {0, 1}
    for name, value in (('confidence_threshold', 1.5), ('max_rate_hz', -1.0), ('model', 'x')):
        (result,) = bench.node.set_parameters([Parameter(name, value=value)])
        assert not result.successful and name in result.reason


def test_images_above_the_highest_rate_are_left_alone(make_bench):
    bench = make_bench(max_rate_hz=0.01)
    for index in range(3):
        bench.send('image', stamp_of(index))
    bench.until(lambda: bench.outcomes())
    bench.spin(0.2)
    assert len(bench.outcomes()) == 1 and bench.node.dropped == 0


def test_the_highest_rate_may_change_while_it_holds_images_back(make_bench):
    bench = make_bench(max_rate_hz=0.01)
    bench.send('image', stamp_of(0))
    bench.until(lambda: bench.outcomes())
    (result,) = bench.node.set_parameters([Parameter('max_rate_hz', value=0.0)])
    assert result.successful
    stamps = iter(range(1, 10_000))

    def more():
        bench.send('image', stamp_of(next(stamps)))
        return len(bench.outcomes()) > 1

    bench.until(more)


def test_the_overlay_is_drawn_only_when_wanted_and_watched(make_bench):
    bench = make_bench(publish_debug=True)
    drawn = []
    draw = bench.node._debug._draw
    bench.node._debug._draw = lambda item: drawn.append(item) or draw(item)
    bench.send('image', stamp_of(0))
    bench.until(lambda: bench.outcomes())
    bench.spin(0.1)
    assert not drawn, 'nobody looks'
    bench.listen('debug/image', Image, RELIABLE)
    bench.until(lambda: bench.node._debug._publisher.get_subscription_count())
    bench.send('image', stamp_of(1))
    bench.until(lambda: bench.heard['debug/image'])
    (message,) = bench.heard['debug/image']
    assert conversions.stamp_ns(message.header.stamp) == stamp_of(1)
    assert (message.width, message.height, message.encoding) == (WIDTH, HEIGHT, 'rgb8')
    bench.until(lambda: bench.values('latency/detector_visualize_ms'))
    bench.node.set_parameters([Parameter('publish_debug', value=False)])
    bench.send('image', stamp_of(2))
    bench.until(lambda: len(bench.outcomes()) == 3)
    bench.spin(0.1)
    assert len(drawn) == 1


def test_slow_drawing_holds_up_no_detection(make_bench):
    bench = make_bench(publish_debug=True)
    bench.node._debug._draw = lambda item: time.sleep(2.0)
    bench.listen('debug/image', Image, RELIABLE)
    bench.until(lambda: bench.node._debug._publisher.get_subscription_count())
    start_s = time.monotonic()
    for index in range(5):
        bench.send('image', stamp_of(index))
        bench.until(lambda: len(bench.outcomes()) == index + 1)  # noqa: B023
    assert time.monotonic() - start_s < 1.5


@pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')
def test_a_fault_in_drawing_is_not_hidden(make_bench):
    bench = make_bench(publish_debug=True)

    def fail(item):
        raise RuntimeError('no ink')

    bench.node._debug._draw = fail
    bench.listen('debug/image', Image, RELIABLE)
    bench.until(lambda: bench.node._debug._publisher.get_subscription_count())
    bench.send('image', stamp_of(0))
    with pytest.raises(WorkerFailed, match='no ink'):
        bench.until(bench.node.finished)
    assert bench.node._debug.stop(), 'its thread would be reported dead in another test'


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'model': ''}, 'model is empty.*export detector'),
        ({'model': '/nowhere'}, "model '/nowhere'.*holds no detector.json.*export"),
        ({'classes': ('cup',)}, "knows no class 'cup'; it knows box, can, drill"),
        ({'objects': ('box', 'cup')}, "knows no class 'cup'"),
        ({'objects': ('box', 'box')}, 'each once'),
        ({'confidence_threshold': 1.5}, r'confidence_threshold is 1.5, must be 0\.\.1'),
        ({'backend': 'tensorrt'}, "model .*tensorrt.* does not run .*'?cpu"),
        ({'backend': 'tpu'}, 'must be one of auto, torchscript, onnxruntime'),
        ({'precision': 'fp16'}, 'half precision needs CUDA'),
    ],
)
def test_what_cannot_be_built_is_refused_by_parameter(models, changes, words):
    values = {'model': str(models['two']), 'device': 'cpu', **changes}
    with pytest.raises(ValueError, match=words):
        build_detector(DetectorParameters(**values))


def test_an_engine_of_another_model_is_refused(models, tmp_path):
    folder = write_fixed(tmp_path / 'other', *scene([CAN]), classes=('a', 'b', 'c', None))
    text = (folder / 'detector.json').read_text().replace('"queries": 6', '"queries": 7')
    (folder / 'detector.json').write_text(text.replace('"c",', '"c", "d",'))
    with pytest.raises(ValueError, match='engine of another model'):
        build_detector(DetectorParameters(model=str(folder), device='cpu'))


def test_the_description_tells_model_back_end_and_labels(models):
    parameters = DetectorParameters(
        model=str(models['masks']), device='cpu', objects=('drill', 'can')
    )
    text = build_held(parameters, None).description
    assert 'boxes and masks' in text and 'segmentation: 1 drill, 2 can' in text


def test_the_executable_refuses_a_missing_model_with_status_2(tmp_path):
    command = [sys.executable, '-m', detector_node.__name__, '--ros-args', '-p', 'clases:=[a]']
    command += ['-p', 'exit_on_failure:=true']
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 2
    assert 'model is empty' in done.stderr and 'Traceback' not in done.stderr
