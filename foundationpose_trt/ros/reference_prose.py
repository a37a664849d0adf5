"""The prose of docs/reference.md; paragraphs are filled when they are written."""

from __future__ import annotations

from foundationpose_trt.ros.reference_parameters import DETECTOR, PLAYER, TRACKER

TITLE = 'Nodes of foundationpose_trt'

HEAD = """
Written from the code by `python -m foundationpose_trt.ros.reference --write`: edit that, not
this.

Names of topics and services are those before namespace and remapping; `~` is the node's own name.
QoS is reliability, durability and depth (keep last); transient local is what is also called
latched. A parameter that is `live` may be set at any time (`ros2 param set`) and is in force from
the next frame on; one that is `fixed` while the node is unconfigured, or for player_node at its
start; one of `start` at the start only: on the command line, in a parameter file or in a launch
file.

Beside what is listed each node has what ROS gives it: the topics `/rosout` and
`/parameter_events`, the parameter `use_sim_time` and the services for parameters
(`~/get_parameters`, `~/set_parameters` ...), lifecycle nodes also the topic `~/transition_event`
and the services `~/change_state`, `~/get_state` and so on, newer releases of ROS
`~/get_type_description`.

`pipeline_node` is detectors and trackers in one process, each as it is here; they share one
executor, so while one of them is configured or deactivated the others take no images.

[tracker_node](#tracker_node) - [detector_node](#detector_node) - [player_node](#player_node) -
[Summary](#summary)
"""

INTRODUCTIONS = {
    TRACKER: """
Registers one or several known objects from masks, then follows their poses. One worker thread
always takes the newest frame.
""",
    DETECTOR: """
Finds objects in colour images with RF-DETR and publishes them as one label image, which is what
tracker_node takes as `segmentation`. One worker thread always takes the newest image.
""",
    PLAYER: """
Plays one scene in BOP format as a camera, with masks and true poses. All messages of an image
have the time of publishing as their stamp.
""",
}

QOS_OVERRIDES = """
What is subscribed takes other QoS at the start by parameters
`qos_overrides.TOPIC.subscription.{{{policies}}}`, TOPIC being the full name after
remapping; `pose`, `output`, `segmentation`, `detections` and images under `debug/` by
`qos_overrides.TOPIC.publisher.{{depth,history,reliability}}`.
"""

SEVERAL_OBJECTS = """
With several objects (parameter `objects`) each has topics of its own under its name: {topics}.
Objects `mug` and `drill` so have `mug/pose` and `drill/pose`, and parameters `mug.mesh_file_path`
and `drill.mesh_file_path`; an example ends [config/tracker.yaml](../config/tracker.yaml). All
other topics are there once; `output` and `/tf` have all objects in one message.
"""

_MANAGED = """
With `autostart` the node configures and activates itself. If that fails it says why and stays
unconfigured, to be mended with `ros2 param set` and tried again with `ros2 lifecycle set`; with
`exit_on_failure`, and with `build_only`, the process ends instead, status 2. With `build_only` it
ends, status 0, as soon as it is configured. SIGINT and SIGTERM end the process, status 0; a frame
in work has {close_s:g} s to end then. A thread that raises ends it with status 1.
"""

LIFECYCLE = {
    TRACKER: """
A lifecycle node. *configure* reads the parameters, loads meshes, weights and engines, with
`build_engines` builds those that are missing, makes the publishers and warms up for
`warm_up_width` x `warm_up_height`. *activate* makes the subscriptions and services; what was
tracked before *deactivate* is forgotten. *deactivate* takes them off and waits for the frame in
work; one that takes more than {end_s:g} s is an error, and the node is unconfigured then.
*cleanup* frees everything, on the GPU too.
"""
    + _MANAGED,
    DETECTOR: """
A lifecycle node. *configure* reads the parameters, loads the model, with `build_engines` builds
its engine if that is missing, makes the publishers and warms up for `warm_up_width` x
`warm_up_height`. *activate* makes the subscriptions. *deactivate* takes them off and waits for the
image in work; one that takes more than {end_s:g} s is an error, and the node is unconfigured then.
*cleanup* frees everything, on the GPU too.
"""
    + _MANAGED,
    PLAYER: """
No lifecycle node: it reads the scene into memory and plays when it is started. First it waits, at
most `wait_timeout_s` (then it ends, status 1), for `start_subscribers`, and for `wait_for_state`,
for which it repeats the first image. Unless `loop` is set it ends, status 0, a second after the
last image. Parameters or scenes that it cannot use end it with status 2.
""",
}

LATENCIES = """
Topics of type std_msgs/Float32, milliseconds unless said otherwise. They are published while
somebody listens; those that are transient local always.
"""

SUMMARY = """
`latency/summary` and `/diagnostics` carry the same diagnostic_msgs/DiagnosticArray once a second,
by a steady clock, while somebody listens. A status has the name `/NAMESPACE/NODE: TASK`:
"""
SUMMARY_ROWS = (
    (
        '`latency STAGE`',
        '`p50_ms`, `p95_ms`, `p99_ms`, `max_ms` and `count` of the last `latency_window_s`'
        ' seconds; `budget_ms` where there is one',
        'WARN: p95 is above the budget; ERROR: p50 is',
    ),
    (
        '`flow`',
        '`rate_hz` of the last seconds; since configuring `handled`, `outcome_WORD` of each'
        ' outcome, `dropped_busy`: a newer frame was there or the mask did not come in time,'
        ' `dropped_unmatched`: image or depth without partner, `dropped_stale`: late, repeated or'
        ' older than `max_frame_age_ms`, `dropped_invalid`: refused, see outcomes; of tracker_node'
        ' `dropped_paused`; of detector_node `dropped_over_rate`: more than `max_rate_hz`',
        'WARN: frames came before, and none of late',
    ),
    (
        '`runtime`',
        '`backend`: what runs; with CUDA graphs `graph_hits`, `graph_misses`, `graph_size`,'
        ' `graph_capacity`; on a GPU `gpu_memory_mb` that PyTorch holds in this process',
        '',
    ),
    ('`object NAME`', 'of tracker_node: `state`, `reason`', 'WARN: not TRACKING'),
)
AFTER_SUMMARY = '`foundationpose-trt monitor` shows it as a table.'
