"""What the value types accept, refuse and count."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from foundationpose_trt.datatypes import (
    CameraIntrinsics,
    Frame,
    Outcome,
    PoseEstimate,
    PoseQuality,
    TrackingState,
    require,
)

CAMERA = CameraIntrinsics(600.0, 610.0, 3.5, 2.5, 8, 6)
RIGHT = {'fx': 600.0, 'fy': 610.0, 'cx': 3.5, 'cy': 2.5, 'width': 8, 'height': 6}


def frame(depth: np.ndarray | None = None, **parts: object) -> Frame:
    depth = np.ones((6, 8), np.float32) if depth is None else depth
    return Frame(
        **{'rgb': np.zeros((6, 8, 3), np.uint8), 'depth_m': depth, 'intrinsics': CAMERA} | parts
    )


def test_require_raises_only_when_the_condition_fails():
    require(True, 'never shown')
    with pytest.raises(ValueError, match='^the message$'):
        require(False, 'the message')


# --- camera --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        ({'fx': 0.0, 'fy': 0.0}, 'fx=0.0, fy=0.0 px, must be positive; is the camera calibrated'),
        ({'fx': -600.0}, 'fx=-600.0'),
        ({'fy': float('nan')}, 'fy is nan, must be finite'),
        ({'cx': float('inf')}, 'cx is inf, must be finite'),
        ({'width': 0}, 'image size is 0x6, must be positive'),
        ({'height': -1}, 'image size is 8x-1'),
    ],
)
def test_impossible_cameras_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        CameraIntrinsics(**(RIGHT | wrong))


def test_camera_matrix_round_trip():
    matrix = np.array([[600, 0, 3.5], [0, 610, 2.5], [0, 0, 1]])
    camera = CameraIntrinsics.from_matrix(matrix, 8, 6)
    assert camera == CAMERA
    np.testing.assert_array_equal(camera.matrix(), matrix)
    assert CameraIntrinsics.from_matrix(matrix.ravel(), 8, 6) == CAMERA


def test_camera_matrix_with_skew_is_refused():
    matrix = CAMERA.matrix()
    matrix[0, 1] = 0.3
    with pytest.raises(ValueError, match='skew 0.3: rectify the image first'):
        CameraIntrinsics.from_matrix(matrix, 8, 6)


def test_zero_camera_matrix_says_that_the_camera_is_not_calibrated():
    with pytest.raises(ValueError, match='calibrated'):
        CameraIntrinsics.from_matrix(np.zeros(9), 8, 6)


# --- frame ---------------------------------------------------------------------------------------
def test_invalid_depth_is_zero_in_the_valid_depth_and_the_source_stays():
    depth = np.full((6, 8), 0.75, np.float32)
    depth[0, :5] = np.nan, np.inf, -np.inf, -0.2, -0.0
    kept = depth.copy()
    made = frame(depth)
    assert made.valid_depth_m.dtype == np.float32
    assert (made.valid_depth_m[0, :5] == 0).all() and not np.signbit(made.valid_depth_m).any()
    assert (made.valid_depth_m == 0.75).sum() == 6 * 8 - 5
    np.testing.assert_array_equal(depth, kept)


@pytest.mark.parametrize('value', [0.0, np.nan, np.inf])
def test_depth_without_any_valid_pixel_is_all_zero(value):
    assert (frame(np.full((6, 8), value, np.float32)).valid_depth_m == 0).all()


def test_depth_is_not_copied():
    depth = np.ones((6, 8), np.float32)
    assert frame(depth).depth_m is depth


def test_other_float_depth_is_converted():
    made = frame(np.full((6, 8), 0.5, np.float64))
    assert made.depth_m.dtype == np.float32
    assert (made.depth_m == 0.5).all()


@pytest.mark.parametrize('kind', [np.uint16, np.int32])
def test_depth_in_whole_numbers_is_refused(kind):
    # a 16UC1 image in millimetres would be taken for metres
    with pytest.raises(ValueError, match='depth is .*int.*, must be floating-point metres.*0.001'):
        frame(np.full((6, 8), 750, kind))


@pytest.mark.parametrize('shape', [(6, 8), (6, 8, 4), (8, 6, 3)])
def test_colour_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r'must be uint8 \(6, 8, 3\) as in the camera intrinsics'):
        frame(rgb=np.zeros(shape, np.uint8))


def test_colour_of_another_type_is_refused():
    with pytest.raises(ValueError, match='rgb is float32'):
        frame(rgb=np.zeros((6, 8, 3), np.float32))


def test_depth_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r'depth is \(3, 4\), must be \(6, 8\).*registered'):
        frame(np.ones((3, 4), np.float32))


def test_frames_are_frozen_and_keep_their_stamp():
    made = frame(stamp_ns=1234567890123456789, frame_id='lens')
    assert (made.stamp_ns, made.frame_id) == (1234567890123456789, 'lens')
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.stamp_ns = 0


# --- results -------------------------------------------------------------------------------------
def test_quality_shares():
    quality = PoseQuality(rendered=200, agreeing=60, in_front=100, behind=20)
    assert quality.agreement == pytest.approx(0.75)
    assert quality.visible == pytest.approx(0.3)


def test_quality_without_evidence_is_zero_not_an_error():
    nothing = PoseQuality(0, 0, 0, 0)
    assert (nothing.agreement, nothing.visible) == (0.0, 0.0)
    hidden = PoseQuality(rendered=50, agreeing=0, in_front=50, behind=0)
    assert (hidden.agreement, hidden.visible) == (0.0, 0.0)


@pytest.mark.parametrize('outcome', [o for o in Outcome if o is not Outcome.OK])
def test_a_failure_never_carries_a_pose(outcome):
    assert PoseEstimate(outcome).camera_from_object is None
    with pytest.raises(ValueError, match=outcome.value):
        PoseEstimate(outcome, np.eye(4))


def test_ok_needs_a_pose():
    assert PoseEstimate(Outcome.OK, np.eye(4)).outcome is Outcome.OK
    with pytest.raises(ValueError, match='OK needs a pose'):
        PoseEstimate(Outcome.OK)


def test_ranked_hypotheses_default_to_none_of_the_right_shape():
    estimate = PoseEstimate(Outcome.EMPTY_MASK)
    assert estimate.ranked_camera_from_object.shape == (0, 4, 4)
    assert estimate.ranked_scores.shape == (0,)


def test_names_are_their_own_values():
    # they go out over ROS and into JSON as text
    for kind in (Outcome, TrackingState):
        assert all(member.value == member.name for member in kind)
