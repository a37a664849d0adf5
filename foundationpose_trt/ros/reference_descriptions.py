"""What docs/reference.md says of each topic, service, latency and outcome that the nodes have.

reference_document.py refuses a topic that has no line here, and a line that has no topic.
"""

from __future__ import annotations

from foundationpose_trt.datatypes import Outcome
from foundationpose_trt.ros.detector_node import NOTHING_FOUND, OK
from foundationpose_trt.ros.reference_interfaces import (
    PUBLISHES,
    SERVES,
    SUBSCRIBES,
    Endpoint,
)
from foundationpose_trt.ros.reference_parameters import DETECTOR, PLAYER, TRACKER
from foundationpose_trt.ros.rejections import Rejection

Descriptions = dict[str, dict[str, str]]  # by role and name

# only where the package of the type, or tf2_ros, is installed; listed everywhere
OPTIONAL = {
    TRACKER: (
        Endpoint(PUBLISHES, 'output', 'vision_msgs/Detection3DArray', 'reliable, volatile, 10'),
        Endpoint(PUBLISHES, '/tf', 'tf2_msgs/TFMessage', 'reliable, volatile, 100'),
    ),
    DETECTOR: (
        Endpoint(
            PUBLISHES, 'detections', 'vision_msgs/Detection2DArray', 'reliable, volatile, 10'
        ),
    ),
    PLAYER: (),
}  # fmt: skip

_SUMMARY = {
    'latency/summary': 'once a second while somebody listens: latencies, rate, drops, back end;'
    ' see [Summary](#summary)',
    '/diagnostics': 'the same, where the tools of ROS look for it',
    'engine_build': 'with `build_engines`, while it lasts: network, how far its engine is, phase',
}

DESCRIPTIONS: dict[str, Descriptions] = {
    TRACKER: {
        SUBSCRIBES: {
            'image': 'colour, rectified: rgb8, bgr8, rgba8, bgra8, mono8 or 8UC*; other encodings'
            ' through cv_bridge or rosbags-image',
            'depth': 'registered to `image` and of its size: 16UC1 or mono16 (`depth_unit_m` per'
            ' unit), 32FC1 or 64FC1 (metres); 0, NaN and infinity are invalid',
            'camera_info': 'of `image`, which is rectified: P is used, or K where P is empty;'
            ' the last one is kept, frames never wait for it',
            'segmentation': 'one channel, of the size and with the stamp of its image;'
            ' `mask_label` tells which pixels are the object; used to register, not to track',
        },
        PUBLISHES: {
            'pose': 'of the object (origin and axes of its mesh file) in the frame of the image,'
            ' metres, with the stamp of the image; for outcome OK only',
            'state': 'when it changes, `STATE: REASON`. STATE is SEARCHING, TRACKING, LOST,'
            ' PAUSED (REASON is what it was) or INACTIVE;'
            ' REASON is STARTED, REGISTERED, RESET, TIMEOUT, TIME_JUMPED_BACK or the outcome that'
            ' ended the track',
            'outcome': 'how each frame ended; see [Outcomes](#outcomes-of-tracker_node)',
            'output': 'of each frame that objects were tracked in, those that have a pose;'
            ' `id` is the name, the hypothesis has class, pose as in `pose` and the share of'
            ' agreeing depth as score, `bbox` is the box around the mesh; where vision_msgs is'
            ' installed',
            '/tf': 'with `publish_tf`, each pose as a transform from the frame of the image to'
            ' `tf_frame_name`; where tf2_ros is installed',
            'debug/pose': 'with `publish_debug` and while somebody listens, the image (rgb8) with'
            ' box and axes of each object; drawn in a thread of its own, the newest only',
            **_SUMMARY,
            'latency/register_ms': 'one registration of one object: networks and judgement, not'
            ' the conversion of the messages',
            'latency/track_ms': 'tracking all objects in one frame, which is one batch: networks'
            ' and judgement, not the conversion of the messages',
            'latency/upload_ms': 'bringing a frame to the device: packing and copies; on a GPU'
            ' while tracking with what is drawn and filtered between them, or, of a frame whose'
            ' images both lie in page-locked memory, reading them alone; there of an earlier'
            ' frame, as nothing waits for the measurement, and of one tracked frame in eight, as'
            ' it takes time',
            'latency/publish_ms': 'publishing what was found in a frame',
            'latency/visualize_ms': 'drawing one image of `debug/pose`, in its thread',
            'latency/age_ms': 'clock of the node after publishing poses, minus stamp of the image',
            'latency/cycle_ms': 'from the beginning of one frame in the worker to the next',
            'latency/warm_up_ms': 'running everything once for a size of image, before the first',
            'latency/dropped': 'no time but a count: frames since configuring that were never'
            ' handled, since a newer one was there or their mask did not come in time',
        },
        SERVES: {
            '~/reset': 'forget all objects and search again',
            '~/register': 'register all objects again from the next masks; until one succeeds its'
            ' track goes on',
            '~/pause': 'true: take no frame (counted as paused); false: go on',
        },
    },
    DETECTOR: {
        SUBSCRIBES: {
            'image': 'colour: rgb8, bgr8, rgba8, bgra8, mono8, yuv422 (UYVY, YUY2), any step;'
            ' other encodings through cv_bridge or rosbags-image',
            'depth': 'for a model without masks only, and used while somebody publishes it:'
            ' registered to `image`; 16UC1 or mono16 (`depth_unit_m` per unit), 32FC1 or 64FC1'
            ' (metres)',
        },
        PUBLISHES: {
            'segmentation': 'mono8, stamp and frame of the image: of each pixel the place of its'
            ' object in `objects`, from 1; 0 is nothing. From the masks of the network; without'
            ' masks the pixels of the box at the depth that fills its middle, less the plane it'
            ' stands on; without depth the whole box',
            'detections': 'of every image, with its stamp and frame, what was found of `classes`,'
            ' best first, empty without; where vision_msgs is installed',
            'detector_outcome': 'how each image ended; see [Outcomes](#outcomes-of-detector_node)',
            'debug/image': 'with `publish_debug` and while somebody listens, the image (rgb8) with'
            ' what was found; drawn in a thread of its own, the newest only',
            **_SUMMARY,
            'latency/detector_ms': 'from the message to detections and label image: conversion,'
            ' network, post-processing',
            'latency/detector_upload_ms': 'the copy of an image to the device; on a GPU that of an'
            ' earlier one, as nothing waits for the measurement',
            'latency/detector_publish_ms': 'publishing `segmentation` and `detections`',
            'latency/detector_visualize_ms': 'drawing one image of `debug/image`, in its thread',
            'latency/detector_age_ms': 'clock of the node after publishing, minus stamp of the'
            ' image',
            'latency/detector_cycle_ms': 'from the beginning of one image in the worker to the'
            ' next',
            'latency/detector_warm_up_ms': 'running everything once, before the first image',
            'latency/detector_dropped': 'no time but a count: images since configuring that were'
            ' never handled, since a newer one was there',
        },
        SERVES: {},
    },
    PLAYER: {
        SUBSCRIBES: {'state': 'of tracker_node, for `wait_for_state`; what follows `:` is passed'
                     ' over'},
        PUBLISHES: {
            'image': 'rgb8',
            'depth': 'as `depth_encoding` says; invalid is 0 in 16UC1 and NaN in 32FC1',
            'camera_info': 'of a rectified image: K and P agree, no distortion',
            'segmentation': 'mono8, 255 where the object is visible; where the scene has masks',
            'ground_truth/pose': 'true pose of the object in `frame_id`, metres; where the scene'
            ' has it',
            'player/event': 'waiting, playing or finished',
        },
        SERVES: {},
    },
}  # fmt: skip

REJECTIONS = {
    'UNKNOWN_ENCODING': 'nothing that is installed reads the encoding of an image',
    'BAD_IMAGE': 'an image that is empty, cut off or contradicts its own size',
    'SIZE_MISMATCH': 'image, depth, mask or camera_info differ in size',
}
OUTCOMES: dict[str, dict[str, str]] = {
    TRACKER: {
        'OK': 'a pose was found and published; after a registration, the one that is tracked from'
        ' it into the newest image',
        'NO_MASK': 'the object is searched and the frame came without a mask',
        'EMPTY_MASK': 'the mask marks no pixel',
        'NO_DEPTH_IN_MASK': 'the mask holds too few pixels with depth',
        'OUT_OF_RANGE': 'the object would stand outside `min_depth_m`..`max_depth_m`',
        'NOT_FINITE': 'a network or the geometry gave NaN or infinity',
        'LOW_QUALITY': 'the depth contradicts the pose: `min_agreement`, or after a'
        ' registration `register_min_agreement`; or a turned copy won: `score_margin`',
        'LOW_SUPPORT': 'too little of the object is to be seen: `min_visible`,'
        ' `min_support_px`, or after a registration `register_min_visible`',
        'EXPIRED': 'the last pose is too old (`tracking_timeout_ms`), or stamps jumped back',
        **REJECTIONS,
        'BAD_CAMERA_INFO': 'camera_info is not that of a calibrated pinhole camera',
    },
    DETECTOR: {
        'OK': 'something was found',
        'NOTHING_FOUND': 'the image was looked at, nothing was found',
        **REJECTIONS,
    },
}
OUTCOME_WORDS = {  # all that there are
    TRACKER: {one.value for one in (*Outcome, *Rejection)},
    DETECTOR: {OK, NOTHING_FOUND, *(one.value for one in Rejection)}
    - {Rejection.BAD_CAMERA_INFO.value},  # it takes no camera_info
}
