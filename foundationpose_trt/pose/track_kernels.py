"""Warp kernels of a tracked frame: all that stands between two runs of the refiner, fused.

The rules are those of crops.py, update.py and quality.py, which state them in torch; here they
are launched as few kernels with fixed arguments. Everything is float32 but the crop window.

What sets poses (start, place, move), one thread each, empties with other threads what they are
drawn into. Where write_crops did that as it read, it took over three times as long for 126 poses
(docs/performance.md).
"""

from __future__ import annotations

from typing import Any

import warp as wp

from .crops import bilinear_color, inside, source_index
from .lanes import LANES, is_first_lane, lanes_sum
from .pixel_kernels import pixel_of, put
from .raster_kernels import EMPTY, Instances, Meshes, make_empty, write_rendered
from .readout import MOST_DRIFT

wp.set_module_options({'enable_backward': False})  # nothing is differentiated; half to compile

CROP_PX = wp.constant(160)
WARP = wp.constant(LANES)
POSE_VALUES = wp.constant(16)
COUNTS = wp.constant(4)  # of datatypes.PoseQuality, behind the pose in a row of results
RUN_PX = wp.constant(4)  # of a row of the crop, counted by one thread
SMALL_SQUARED = wp.constant(1.0e-8)  # below, sine and cosine by their series: geometry.exp_so3
LARGEST_PX = wp.constant(wp.float64(1.0e6))
NEAREST_M = wp.constant(wp.float64(1.0e-3))
HALF = wp.constant(wp.float64(0.5))
ZERO = wp.constant(wp.float64(0.0))
ONE = wp.constant(wp.float64(1.0))
DRIFT = wp.constant(wp.float64(MOST_DRIFT))
SIDE = wp.constant(wp.float64(160.0))
SIDE_SEEN = wp.constant(wp.float64(159.0))  # foundationpose.md §2.4

# The floats of a call: what the header of an upload holds, before the poses and their objects.
HEADER = ('fx', 'fy', 'cx', 'cy', 'width', 'height', 'x', 'y', 'patch_width', 'patch_height')
HEADER_VALUES = wp.constant(len(HEADER))
CAMERA_VALUES = wp.constant(6)  # fx to height
IMAGES = wp.constant(2)  # colours, depth


@wp.struct
class Tracked:
    """What a call knows of its poses; arrays of length n, and what they are made of.

    grid: source of crop pixels as crops.observed_grid; results: (n, 20) pose, counts; final:
    camera_from_object, the last of its numbers 0 instead of 1 where it is not to be used (see
    keep_final). diameters_m, centers_m, default_texture: by mesh. header: in the host's memory,
    read over the bus by start() alone, which copies what comes first in it to camera. addresses:
    there, too, of the images that are to be fetched in place, 0 for none; start() copies them to
    sources. patch: x, y, width, height, of one entry.
    """

    instances: Instances
    grid: wp.array(dtype=wp.vec4)
    results: wp.array2d(dtype=float)
    final: wp.array(dtype=wp.mat44d)
    diameters_m: wp.array(dtype=wp.float64)
    centers_m: wp.array(dtype=wp.vec3d)
    default_texture: wp.array(dtype=int)
    header: wp.array(dtype=float)
    addresses: wp.array(dtype=wp.uint64)
    camera: wp.array(dtype=float)
    sources: wp.array(dtype=wp.uint64)
    patch: wp.array(dtype=wp.vec4i)
    ratio: wp.float64
    poses: int  # room for them in the header


@wp.struct
class Seen:
    """The patch of the image: its colours, and its depth after filtering, metres.

    inverse_radius: 2 / diameter by mesh, 1 / metres, what xyz is normalised by.
    """

    rgb: wp.array(dtype=wp.uint8)
    depth: wp.array2d(dtype=float)
    near_m: float
    inverse_radius: wp.array(dtype=float)


@wp.func
def limited(value: wp.float64) -> wp.float64:
    """Keep a pixel coordinate in integers; of what is not finite, far outside the image."""
    if not wp.isfinite(value):
        return LARGEST_PX
    return wp.clamp(value, -LARGEST_PX, LARGEST_PX)


@wp.func
def side(low: wp.float64, high: wp.float64) -> wp.float64:
    if not wp.isfinite(high - low):
        return wp.float64(1.0)
    return wp.clamp(high - low, wp.float64(1.0), LARGEST_PX)


@wp.func
def place_crop(tracked: Tracked, n: int, camera: wp.array(dtype=float)):
    """Set what a pose's crop needs: the rendered half's intrinsics, the observed half's grid."""
    pose = tracked.instances.camera_from_centered[n]
    fx = wp.float64(camera[0])
    fy = wp.float64(camera[1])
    cx = wp.float64(camera[2])
    cy = wp.float64(camera[3])
    z = wp.max(wp.float64(pose[2, 3]), NEAREST_M)
    u = fx * wp.float64(pose[0, 3]) / z + cx
    v = fy * wp.float64(pose[1, 3]) / z + cy
    diameter = tracked.diameters_m[tracked.instances.mesh[n]]
    radius = wp.max(fx, fy) * (tracked.ratio * diameter * HALF) / z
    left = wp.rint(u - radius)
    top = wp.rint(v - radius)
    size_x = side(left, wp.rint(u + radius))
    size_y = side(top, wp.rint(v + radius))
    left = limited(left)
    top = limited(top)
    step_x = size_x * (SIDE_SEEN / SIDE) / SIDE
    step_y = size_y * (SIDE_SEEN / SIDE) / SIDE
    tracked.instances.intrinsics[n] = wp.vec4(
        float(fx / step_x),
        float(fy / step_y),
        float((cx - left) / step_x - HALF),
        float((cy - top) / step_y - HALF),
    )
    width = wp.float64(camera[4])
    height = wp.float64(camera[5])
    scale_x = width / (width - wp.float64(1.0))
    scale_y = height / (height - wp.float64(1.0))
    tracked.grid[n] = wp.vec4(
        float(left * scale_x - HALF),
        float(top * scale_y - HALF),
        float(size_x / SIDE * scale_x),
        float(size_y / SIDE * scale_y),
    )


@wp.func
def keep_final(tracked: Tracked, n: int, pose: wp.mat44):
    """Keep the pose of the mesh file's origin, its rotation the nearest one, in float64.

    By the one step of readout.nearest_rotation; where that does not do (too far from a rotation,
    a mirror, not finite) it is marked, and the host decides.
    """
    given = wp.mat33d()
    for i in range(3):
        for j in range(3):
            given[i, j] = wp.float64(pose[i, j])
    off = wp.transpose(given) * given - wp.identity(3, dtype=wp.float64)
    drift = ZERO
    for i in range(3):
        for j in range(3):
            drift = drift + wp.abs(off[i, j])  # a sum: what is not a number stays in it
    nearest = given - HALF * (given * off)
    away = nearest * tracked.centers_m[tracked.instances.mesh[n]]
    final = wp.mat44d()
    for i in range(3):
        for j in range(3):
            final[i, j] = nearest[i, j]
        final[i, 3] = wp.float64(pose[i, 3]) - away[i]
    if drift < DRIFT and wp.determinant(given) > ZERO:
        final[3, 3] = ONE
    tracked.final[n] = final


@wp.func
def keep_pose(tracked: Tracked, n: int, pose: wp.mat44, camera: wp.array(dtype=float)):
    """Make a pose the current one: for the next crop and in the results, with nothing counted."""
    tracked.instances.camera_from_centered[n] = pose
    for i in range(4):
        for j in range(4):
            tracked.results[n, i * 4 + j] = pose[i, j]
    for k in range(COUNTS):
        tracked.results[n, POSE_VALUES + k] = 0.0
    keep_final(tracked, n, pose)
    place_crop(tracked, n, camera)


@wp.func
def empties(visibility: wp.array3d(dtype=wp.uint64), n: int, thread: int, of_row: int) -> bool:
    """Whether a thread is not the first of a pose, which sets it, but one that empties what it is
    drawn into; does that. The others of the first one's warp do nothing: it would wait for them.
    """
    if thread >= WARP:
        make_empty(visibility, n, thread - WARP, of_row)
    return thread > 0


@wp.kernel
def start(tracked: Tracked, visibility: wp.array3d(dtype=wp.uint64), of_row: int):
    """Take the poses of a call out of its header."""
    n, thread = wp.tid()
    if empties(visibility, n, thread, of_row):
        return
    header = tracked.header
    first = HEADER_VALUES + n * POSE_VALUES
    pose = wp.mat44()
    for i in range(4):
        for j in range(4):
            pose[i, j] = header[first + i * 4 + j]
    mesh = int(header[HEADER_VALUES + tracked.poses * POSE_VALUES + n])
    tracked.instances.mesh[n] = mesh
    tracked.instances.texture[n] = tracked.default_texture[mesh]
    if n == 0:
        tracked.patch[0] = wp.vec4i(int(header[6]), int(header[7]), int(header[8]), int(header[9]))
        for k in range(CAMERA_VALUES):
            tracked.camera[k] = header[k]
        for k in range(IMAGES):
            tracked.sources[k] = tracked.addresses[k]
    keep_pose(tracked, n, pose, header)  # not the camera, which thread 0 is writing


@wp.kernel
def place(
    tracked: Tracked,
    visibility: wp.array3d(dtype=wp.uint64),
    of_row: int,
    poses: wp.array(dtype=wp.mat44),
    mesh: int,
):
    """Take poses of one mesh from the device; the camera is there."""
    n, thread = wp.tid()
    if empties(visibility, n, thread, of_row):
        return
    tracked.instances.mesh[n] = mesh
    tracked.instances.texture[n] = tracked.default_texture[mesh]
    keep_pose(tracked, n, poses[n], tracked.camera)


@wp.func
def exponential(w: wp.vec3) -> wp.mat33:
    """Rodrigues' formula (geometry.exp_so3)."""
    squared = wp.dot(w, w)
    sine = 1.0 - squared / 6.0
    cosine = 0.5 - squared / 24.0
    if squared >= SMALL_SQUARED:
        angle = wp.sqrt(squared)
        sine = wp.sin(angle) / angle
        cosine = (1.0 - wp.cos(angle)) / squared
    k = wp.skew(w)
    return wp.identity(3, dtype=float) + sine * k + cosine * (k * k)


@wp.kernel
def move(
    tracked: Tracked,
    visibility: wp.array3d(dtype=wp.uint64),
    of_row: int,
    trans: wp.array2d(dtype=Any),
    rot: wp.array2d(dtype=Any),
    rot_normalizer_rad: float,
):
    """Apply the refiner's output to the poses (update.apply_update) and place their next crops."""
    n, thread = wp.tid()
    if empties(visibility, n, thread, of_row):
        return
    pose = tracked.instances.camera_from_centered[n]
    w = wp.vec3(wp.tanh(float(rot[n, 0])), wp.tanh(float(rot[n, 1])), wp.tanh(float(rot[n, 2])))
    turn = wp.transpose(exponential(w * rot_normalizer_rad))
    radius = float(tracked.diameters_m[tracked.instances.mesh[n]] * HALF)
    moved = wp.mat44()
    for i in range(3):
        for j in range(3):
            total = float(0.0)
            for k in range(3):
                total += turn[i, k] * pose[k, j]
            moved[i, j] = total
        moved[i, 3] = pose[i, 3] + float(trans[n, i]) * radius
    moved[3, 3] = 1.0
    keep_pose(tracked, n, moved, tracked.camera)


@wp.func
def write_observed(
    tracked: Tracked, seen: Seen, n: int, j: int, i: int, out: wp.array4d(dtype=Any)
):
    """Write one pixel of the observed half "B", as crops.sample_observed does of whole images."""
    grid = tracked.grid[n]
    patch = tracked.patch[0]
    size = wp.vec2i(patch[3], patch[2])
    x = grid[0] + float(i) * grid[2] - float(patch[0])
    y = grid[1] + float(j) * grid[3] - float(patch[1])
    color = bilinear_color(seen.rgb, 0, size, y, x)
    u = source_index(i, grid[0], grid[2])
    v = source_index(j, grid[1], grid[3])
    xyz = wp.vec3(0.0, 0.0, 0.0)
    column = u - patch[0]
    row = v - patch[1]
    if inside(row, column, patch[3], patch[2]):
        z = seen.depth[0, row * patch[2] + column]
        if z >= seen.near_m:
            camera = tracked.camera
            pose = tracked.instances.camera_from_centered[n]
            point = wp.vec3(
                (float(u) - camera[2]) / camera[0] * z, (float(v) - camera[3]) / camera[1] * z, z
            )
            center = wp.vec3(pose[0, 3], pose[1, 3], pose[2, 3])
            xyz = (point - center) * seen.inverse_radius[tracked.instances.mesh[n]]
    put(out, n, j, i, color / 255.0, xyz)


@wp.kernel
def write_crops(
    tracked: Tracked,
    meshes: Meshes,
    visibility: wp.array3d(dtype=wp.uint64),
    seen: Seen,
    rendered: wp.array4d(dtype=Any),
    observed: wp.array4d(dtype=Any),
):
    """Write both halves of the network's input, the rendered one by the first half of the threads,
    the observed one by the others."""
    half, n, down, along = wp.tid()
    at = pixel_of(rendered, down, along, CROP_PX)
    j = at[0]
    i = at[1]
    if half == 0:
        packed = visibility[n, j, i]
        write_rendered(
            meshes, tracked.instances, packed, seen.inverse_radius, seen.near_m, n, j, i, rendered
        )
    else:
        write_observed(tracked, seen, n, j, i, observed)


for _dtype in (wp.float32, wp.float16, wp.uint32):  # before the first launch: each builds all anew
    _crops = wp.array4d(dtype=_dtype)
    wp.overload(write_crops, {'rendered': _crops, 'observed': _crops})
for _dtype in (wp.float32, wp.float16):
    _output = wp.array2d(dtype=_dtype)
    wp.overload(move, {'trans': _output, 'rot': _output})


@wp.struct
class Tolerance:
    """What the observed depth may be off the rendered one, metres (see quality.py)."""

    least_m: float
    of_diameter: float
    of_depth_squared: float


@wp.kernel
def count_evidence(
    tracked: Tracked,
    visibility: wp.array3d(dtype=wp.uint64),
    seen: Seen,
    tolerance: Tolerance,
):
    """Count rendered, agreeing, nearer and farther pixels.

    One thread takes RUN_PX pixels of a row; those of a warp, all of one pose, add up first. All
    of its lanes run: a crop is a multiple of whole warps.
    """
    n, j, run = wp.tid()
    grid = tracked.grid[n]
    patch = tracked.patch[0]
    center_z = tracked.instances.camera_from_centered[n][2, 3]
    diameter = float(tracked.diameters_m[tracked.instances.mesh[n]])
    z = wp.max(center_z, 0.0)
    allowed = tolerance.least_m + tolerance.of_depth_squared * z * z
    allowed = wp.max(allowed, diameter * tolerance.of_diameter)
    counts = wp.vec4(0.0, 0.0, 0.0, 0.0)
    row = source_index(j, grid[1], grid[3]) - patch[1]
    for i in range(run * RUN_PX, (run + 1) * RUN_PX):
        packed = visibility[n, j, i]
        if packed != EMPTY:
            counts[0] = counts[0] + 1.0
            column = source_index(i, grid[0], grid[2]) - patch[0]
            observed = float(0.0)
            if inside(row, column, patch[3], patch[2]):
                observed = seen.depth[0, row * patch[2] + column]
            if observed > 0.0:
                gap = observed - wp.cast(wp.uint32(packed >> wp.uint64(32)), wp.float32)
                if wp.abs(gap) <= allowed:
                    counts[1] = counts[1] + 1.0
                elif gap < 0.0:
                    counts[2] = counts[2] + 1.0
                else:
                    counts[3] = counts[3] + 1.0
    for k in range(COUNTS):
        together = lanes_sum(counts[k], WARP)
        if together > 0.0 and is_first_lane():
            wp.atomic_add(tracked.results, n, POSE_VALUES + k, together)
