"""Warp kernels of the batched z-buffer: one source for CPU and CUDA.

Conventions (foundationpose.md §2.4 and §4): camera x right, y down, z forward; pixel centres at
integer coordinates of the raster; one sample per pixel, no culling, nearest surface wins.
"""

from __future__ import annotations

from typing import Any

import warp as wp

from .pixel_kernels import pixel_of, put

wp.set_module_options({'enable_backward': False})  # nothing is differentiated; half to compile

NEAR_M = wp.constant(0.001)  # near plane of the reference projection, foundationpose.md §4
# Widens triangles by what rounding can move their edges, relative to the largest coordinate: 16
# float32 roundings. Closes cracks, also where triangles meet without sharing a vertex.
EDGE_ROUNDING = wp.constant(1.0e-6)
LEAST_WEIGHT = wp.constant(-1.0)
EMPTY = wp.constant(wp.uint64(0xFFFFFFFFFFFFFFFF))


@wp.struct
class Meshes:
    """Device arrays of a MeshBank."""

    vertices: wp.array(dtype=wp.vec3)
    normals: wp.array(dtype=wp.vec3)
    colors: wp.array(dtype=wp.vec3)
    uv: wp.array(dtype=wp.vec2)
    faces: wp.array(dtype=wp.vec3i)
    face_start: wp.array(dtype=int)
    face_count: wp.array(dtype=int)
    texels: wp.array(dtype=wp.uint8)
    texture_start: wp.array(dtype=int)
    texture_size: wp.array(dtype=wp.vec2i)


@wp.struct
class Instances:
    """What is drawn where: arrays of length images*slots, intrinsics of length images."""

    mesh: wp.array(dtype=int)
    texture: wp.array(dtype=int)
    camera_from_centered: wp.array(dtype=wp.mat44)
    intrinsics: wp.array(dtype=wp.vec4)
    slots: int


@wp.struct
class Fragment:
    """One visible surface point: which face of which instance, and where in it."""

    instance: int
    face: wp.vec3i
    weights: wp.vec3  # perspective-correct, sum to 1
    point: wp.vec3  # camera frame, metres
    facing: float  # |cosine| between the face normal and the viewing ray


@wp.struct
class Triangle:
    """One face of one instance in the camera frame (metres) and in the raster (pixels)."""

    p0: wp.vec3
    p1: wp.vec3
    p2: wp.vec3
    a: wp.vec2
    b: wp.vec2
    c: wp.vec2


@wp.func
def make_empty(visibility: wp.array3d(dtype=wp.uint64), n: int, thread: int, of_row: int):
    """Empty what an image is drawn into; `of_row` threads share each of its rows."""
    row = thread // of_row
    for column in range(thread - row * of_row, visibility.shape[2], of_row):
        visibility[n, row, column] = EMPTY


@wp.func
def to_pixel(point: wp.vec3, k: wp.vec4) -> wp.vec2:
    return wp.vec2(k[0] * point[0] / point[2] + k[2], k[1] * point[1] / point[2] + k[3])


@wp.func
def project(vertices: wp.array(dtype=wp.vec3), face: wp.vec3i, pose: wp.mat44, k: wp.vec4):
    t = Triangle()
    t.p0 = wp.transform_point(pose, vertices[face[0]])
    t.p1 = wp.transform_point(pose, vertices[face[1]])
    t.p2 = wp.transform_point(pose, vertices[face[2]])
    t.a = to_pixel(t.p0, k)
    t.b = to_pixel(t.p1, k)
    t.c = to_pixel(t.p2, k)
    return t


@wp.func
def edge(a: wp.vec2, b: wp.vec2, p: wp.vec2) -> float:
    return (b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0])


@wp.func
def edges(t: Triangle, p: wp.vec2) -> wp.vec3:
    """Distance of a pixel to each side times its length, positive inside."""
    sign = wp.sign(edge(t.a, t.b, t.c))
    return wp.vec3(edge(t.b, t.c, p), edge(t.c, t.a, p), edge(t.a, t.b, p)) * sign


@wp.func
def perspective_weights(t: Triangle, e: wp.vec3) -> wp.vec3:
    """Barycentric weights in space of screen-space edge values; sum to 1 unless degenerate."""
    w = wp.vec3(e[0] / t.p0[2], e[1] / t.p1[2], e[2] / t.p2[2])
    return w / wp.max(w[0] + w[1] + w[2], 1.0e-30)


@wp.func
def tolerance_px(low: wp.vec2, high: wp.vec2, k: wp.vec4) -> float:
    reach_x = wp.max(wp.max(-low[0], high[0]), wp.abs(k[2]))
    reach_y = wp.max(wp.max(-low[1], high[1]), wp.abs(k[3]))
    return EDGE_ROUNDING * wp.max(reach_x, reach_y)


@wp.kernel
def rasterize(
    meshes: Meshes,
    instances: Instances,
    visibility: wp.array3d(dtype=wp.uint64),
    parts: int,
):
    """Put depth and id of the nearest face into each pixel.

    `parts` threads per (instance, face) take its rows in turn: with few instances the largest face
    decides how long a launch takes.
    """
    i, f, part = wp.tid()
    m = instances.mesh[i]
    if m < 0:
        return
    if f >= meshes.face_count[m]:
        return
    n = i // instances.slots
    k = instances.intrinsics[n]
    face = meshes.faces[meshes.face_start[m] + f]
    t = project(meshes.vertices, face, instances.camera_from_centered[i], k)
    nearest = wp.min(t.p0[2], wp.min(t.p1[2], t.p2[2]))
    farthest = wp.max(t.p0[2], wp.max(t.p1[2], t.p2[2]))
    low = wp.min(t.a, wp.min(t.b, t.c))
    high = wp.max(t.a, wp.max(t.b, t.c))
    tolerance = tolerance_px(low, high, k)
    lengths = wp.vec3(wp.length(t.c - t.b), wp.length(t.a - t.c), wp.length(t.b - t.a))
    # A triangle thinner than the tolerance has weights of rounding noise, and its widened
    # neighbours cover it. Also left for NaN, which a network may have put into the pose.
    thick = wp.abs(edge(t.a, t.b, t.c)) > tolerance * wp.max(lengths)
    if not (nearest >= NEAR_M and thick):
        return
    x_end = float(visibility.shape[2] - 1)
    y_end = float(visibility.shape[1] - 1)
    # bounds are clamped as floats: integers overflow far outside the raster
    x_first = int(wp.ceil(wp.clamp(low[0] - tolerance, 0.0, x_end + 1.0)))
    x_last = int(wp.floor(wp.clamp(high[0] + tolerance, -1.0, x_end)))
    y_first = int(wp.ceil(wp.clamp(low[1] - tolerance, 0.0, y_end + 1.0)))
    y_last = int(wp.floor(wp.clamp(high[1] + tolerance, -1.0, y_end)))
    least = lengths * -tolerance
    identity = (wp.uint64(i - n * instances.slots) << wp.uint64(24)) | wp.uint64(f)
    for y in range(y_first + part, y_last + 1, parts):
        for x in range(x_first, x_last + 1):
            e = edges(t, wp.vec2(float(x), float(y)))
            if e[0] >= least[0] and e[1] >= least[1] and e[2] >= least[2]:
                w = perspective_weights(t, e)
                depth = w[0] * t.p0[2] + w[1] * t.p1[2] + w[2] * t.p2[2]
                depth = wp.clamp(depth, nearest, farthest)
                bits = wp.uint64(wp.cast(depth, wp.uint32))  # positive floats order as integers
                wp.atomic_min(visibility, n, y, x, (bits << wp.uint64(32)) | identity)


@wp.func
def fragment_at(
    meshes: Meshes, instances: Instances, n: int, pixel: wp.vec2, packed: wp.uint64
) -> Fragment:
    """Rebuild the surface point behind a visibility entry that is not EMPTY."""
    low = int(packed & wp.uint64(0xFFFFFFFF))
    i = n * instances.slots + ((low >> 24) & 0xFF)
    k = instances.intrinsics[n]
    face = meshes.faces[meshes.face_start[instances.mesh[i]] + (low & 0xFFFFFF)]
    t = project(meshes.vertices, face, instances.camera_from_centered[i], k)
    w = perspective_weights(t, edges(t, pixel))
    # Pixels within the tolerance outside extrapolate, which must not run away.
    for corner in range(3):
        w[corner] = wp.clamp(w[corner], LEAST_WEIGHT, 1.0 - 2.0 * LEAST_WEIGHT)
    depth = wp.cast(wp.uint32(packed >> wp.uint64(32)), wp.float32)
    ray = wp.vec3((pixel[0] - k[2]) / k[0], (pixel[1] - k[3]) / k[1], 1.0)
    out = Fragment()
    out.instance = i
    out.face = face
    out.weights = w
    out.point = ray * depth
    normal = wp.normalize(wp.cross(t.p1 - t.p0, t.p2 - t.p0))
    out.facing = wp.abs(wp.dot(normal, wp.normalize(ray)))
    return out


@wp.func
def texel(meshes: Meshes, texture: int, x: int, y: int) -> wp.vec3:
    size = meshes.texture_size[texture]
    column = ((x % size[1]) + size[1]) % size[1]
    row = ((y % size[0]) + size[0]) % size[0]
    at = (meshes.texture_start[texture] + row * size[1] + column) * 3
    red, green, blue = meshes.texels[at], meshes.texels[at + 1], meshes.texels[at + 2]
    return wp.vec3(float(red), float(green), float(blue)) / 255.0


@wp.func
def sample_texture(meshes: Meshes, texture: int, uv: wp.vec2) -> wp.vec3:
    """Bilinear, wrapping, texel centres at half integers (OpenGL convention)."""
    size = meshes.texture_size[texture]
    x = uv[0] * float(size[1]) - 0.5
    y = uv[1] * float(size[0]) - 0.5
    x0 = wp.floor(x)
    y0 = wp.floor(y)
    fx = x - x0
    fy = y - y0
    top = (
        texel(meshes, texture, int(x0), int(y0)) * (1.0 - fx)
        + texel(meshes, texture, int(x0) + 1, int(y0)) * fx
    )
    bottom = (
        texel(meshes, texture, int(x0), int(y0) + 1) * (1.0 - fx)
        + texel(meshes, texture, int(x0) + 1, int(y0) + 1) * fx
    )
    return top * (1.0 - fy) + bottom * fy


@wp.func
def albedo_at(meshes: Meshes, instances: Instances, at: Fragment) -> wp.vec3:
    texture = instances.texture[at.instance]
    if texture < 0:
        return (
            meshes.colors[at.face[0]] * at.weights[0]
            + meshes.colors[at.face[1]] * at.weights[1]
            + meshes.colors[at.face[2]] * at.weights[2]
        )
    uv = (
        meshes.uv[at.face[0]] * at.weights[0]
        + meshes.uv[at.face[1]] * at.weights[1]
        + meshes.uv[at.face[2]] * at.weights[2]
    )
    return sample_texture(meshes, texture, uv)


@wp.func
def vertex_diffuse(pose: wp.mat44, normal: wp.vec3, toward_light: wp.vec3) -> float:
    return wp.clamp(wp.dot(wp.transform_vector(pose, normal), toward_light), 0.0, 1.0)


@wp.func
def diffuse_at(meshes: Meshes, instances: Instances, at: Fragment, toward: wp.vec3) -> float:
    """Gouraud: the clamped cosine is taken per vertex and interpolated (foundationpose.md §4)."""
    pose = instances.camera_from_centered[at.instance]
    return (
        vertex_diffuse(pose, meshes.normals[at.face[0]], toward) * at.weights[0]
        + vertex_diffuse(pose, meshes.normals[at.face[1]], toward) * at.weights[1]
        + vertex_diffuse(pose, meshes.normals[at.face[2]], toward) * at.weights[2]
    )


@wp.func
def write_rendered(  # noqa: PLR0913 (a Warp function writes through its parameters)
    meshes: Meshes,
    instances: Instances,
    packed: wp.uint64,
    inverse_radius: wp.array(dtype=float),
    near_m: float,
    n: int,
    y: int,
    x: int,
    out: wp.array4d(dtype=Any),
):
    """Write one pixel of the rendered half "A": head-lit colour and normalised xyz."""
    color = wp.vec3(0.0, 0.0, 0.0)
    xyz = wp.vec3(0.0, 0.0, 0.0)
    if packed != EMPTY:
        at = fragment_at(meshes, instances, n, wp.vec2(float(x), float(y)), packed)
        albedo = albedo_at(meshes, instances, at)
        diffuse = diffuse_at(meshes, instances, at, wp.vec3(0.0, 0.0, -1.0))
        color = albedo * (0.8 + 0.5 * diffuse)
        if at.point[2] >= near_m:
            pose = instances.camera_from_centered[at.instance]
            center = wp.vec3(pose[0, 3], pose[1, 3], pose[2, 3])
            xyz = (at.point - center) * inverse_radius[instances.mesh[at.instance]]
    for c in range(3):
        color[c] = wp.clamp(color[c], 0.0, 1.0)
    put(out, n, y, x, color, xyz)


@wp.kernel
def shade_network_input(
    meshes: Meshes,
    instances: Instances,
    visibility: wp.array3d(dtype=wp.uint64),
    inverse_radius: wp.array(dtype=float),
    near_m: float,
    out: wp.array4d(dtype=Any),
):
    """Rendered half "A" of the network input, as put() takes it."""
    n, down, along = wp.tid()
    at = pixel_of(out, down, along, visibility.shape[2])
    y = at[0]
    x = at[1]
    packed = visibility[n, y, x]
    write_rendered(meshes, instances, packed, inverse_radius, near_m, n, y, x, out)


@wp.struct
class Lights:
    """One light per image, arrays of length images (see rasterizer.Light)."""

    toward: wp.array(dtype=wp.vec3)
    strengths: wp.array(dtype=wp.vec4)  # ambient, diffuse, specular, shininess


@wp.kernel
def shade_image(  # noqa: PLR0913 (a Warp kernel writes through its parameters)
    meshes: Meshes,
    instances: Instances,
    visibility: wp.array3d(dtype=wp.uint64),
    lights: Lights,
    color_out: wp.array4d(dtype=float),
    depth_out: wp.array3d(dtype=float),
    slot_out: wp.array3d(dtype=int),
    facing_out: wp.array3d(dtype=float),
):
    """Image-like output for scenes: colour, depth, slot and facing ratio, NHWC / NHW."""
    n, y, x = wp.tid()
    packed = visibility[n, y, x]
    color = wp.vec3(0.0, 0.0, 0.0)
    depth = float(0.0)
    slot = int(-1)
    facing = float(0.0)
    if packed != EMPTY:
        at = fragment_at(meshes, instances, n, wp.vec2(float(x), float(y)), packed)
        strengths = lights.strengths[n]
        toward = lights.toward[n]
        diffuse = diffuse_at(meshes, instances, at, toward)
        albedo = albedo_at(meshes, instances, at)
        half = wp.normalize(toward - wp.normalize(at.point))
        shine = wp.pow(diffuse_at(meshes, instances, at, half), strengths[3]) * strengths[2]
        color = albedo * (strengths[0] + strengths[1] * diffuse) + wp.vec3(shine, shine, shine)
        depth = at.point[2]
        slot = at.instance - n * instances.slots
        facing = at.facing
    for c in range(3):
        color_out[n, y, x, c] = wp.clamp(color[c], 0.0, 1.0)
    depth_out[n, y, x] = depth
    slot_out[n, y, x] = slot
    facing_out[n, y, x] = facing
