"""The network's input: torch's own resampling, OpenCV's conversions, the reference's record."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from detector_rig import DEVIATION, FIXTURES, MEAN, SIZES, manifest_of, sample_image

from foundationpose_trt.detection.images import ColorImage, UnknownEncoding
from foundationpose_trt.detection.preprocess import (
    CpuPreprocessor,
    KernelPreprocessor,
    make_preprocessor,
)

CPU = torch.device('cpu')
DEVICES = ['cpu', pytest.param('cuda', marks=pytest.mark.gpu)]
# OpenCV's weights are rounded otherwise than torch's: a hundredth of a level
TOLERANCE = {KernelPreprocessor: 1e-4, CpuPreprocessor: 5e-4}


def written(kind, image: ColorImage, side: int = 384, device: str = 'cpu', dtype=torch.float32):
    preprocessor = kind(manifest_of(resolution=(side, side)), torch.device(device))
    out = torch.full((1, 3, side, side), float('nan'), dtype=dtype, device=device)
    preprocessor.upload(image)
    preprocessor.write(out)
    return out.float().cpu()[0]


def by_torch(rgb: np.ndarray, side: int = 384) -> torch.Tensor:
    image = torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None].float() / 255
    resized = torch.nn.functional.interpolate(
        image, (side, side), mode='bilinear', align_corners=False, antialias=False
    )[0]
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (MEAN, DEVIATION))
    return (resized - mean) / deviation


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('size', [*SIZES.values(), (384, 384), (1, 1), (2, 700)])
def test_the_kernel_resizes_as_torch_does(device, size):
    rgb = sample_image(*size)
    actual = written(KernelPreprocessor, ColorImage.of_array(rgb), device=device)
    torch.testing.assert_close(actual, by_torch(rgb), atol=1e-4, rtol=0)


# some are cut into strips: 768, 1152 and 2160 share factors with 384, 1001 does not
MORE_SIZES = [(768, 500), (1152, 1536), (1001, 1333), (2160, 3840), (400, 4000)]


@pytest.mark.parametrize('size', [*SIZES.values(), (384, 384), (2, 700), *MORE_SIZES])
def test_a_cpu_gives_the_same_by_opencv(size):
    rgb = sample_image(*size)
    actual = written(CpuPreprocessor, ColorImage.of_array(rgb))
    # positions are rounded to single precision, differently
    tolerance = 5e-4 * max(1, size[1] / 1920)
    torch.testing.assert_close(actual, by_torch(rgb), atol=tolerance, rtol=0)


@pytest.mark.parametrize('kind', [KernelPreprocessor, CpuPreprocessor])
@pytest.mark.parametrize('size', list(SIZES))
@pytest.mark.parametrize(('model', 'side'), [('nano', 384), ('seg', 312)])
def test_it_is_what_the_reference_package_feeds_its_network(kind, size, model, side):
    """Recorded from rfdetr 1.11.2's predict() (record_detector_fixtures.py)."""
    record = np.load(FIXTURES)
    actual = written(kind, ColorImage.of_array(sample_image(*SIZES[size])), side)
    at_places = actual.numpy().reshape(-1)[record[f'{model}_places']]
    np.testing.assert_allclose(at_places, record[f'{model}_pre_{size}'], atol=TOLERANCE[kind])


CODES = {
    'rgb8': None, 'bgr8': cv2.COLOR_BGR2RGB, '8UC3': cv2.COLOR_BGR2RGB,
    'rgba8': cv2.COLOR_RGBA2RGB, 'bgra8': cv2.COLOR_BGRA2RGB, '8UC4': cv2.COLOR_BGRA2RGB,
    'mono8': cv2.COLOR_GRAY2RGB, '8UC1': cv2.COLOR_GRAY2RGB, 'yuv422': cv2.COLOR_YUV2RGB_UYVY,
    'uyvy': cv2.COLOR_YUV2RGB_UYVY, 'yuyv': cv2.COLOR_YUV2RGB_YUY2,
    'yuv422_yuy2': cv2.COLOR_YUV2RGB_YUY2,
}  # fmt: skip
CHANNELS = {'mono8': 1, '8UC1': 1, 'rgba8': 4, 'bgra8': 4, '8UC4': 4}


def is_yuv(encoding: str) -> bool:
    return 'yuv' in encoding or 'yuy' in encoding or 'uyv' in encoding


def encoded(
    encoding: str, padding: int = 0, size: tuple[int, int] = (90, 120)
) -> tuple[ColorImage, np.ndarray]:
    """A random image of an encoding, rows padded with other bytes, and what OpenCV reads there."""
    channels = CHANNELS.get(encoding, 2 if is_yuv(encoding) else 3)
    rng = np.random.default_rng(len(encoding))
    rows = rng.integers(0, 256, (size[0], size[1] * channels + padding), np.uint8)
    pixels = rows[:, : size[1] * channels].reshape(*size, channels).copy()
    code = CODES[encoding]
    rgb = pixels if code is None else cv2.cvtColor(pixels, code)
    return ColorImage(rows.reshape(-1), *size, rows.shape[1], encoding), rgb


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('padding', [0, 13])
@pytest.mark.parametrize('encoding', list(CODES))
def test_every_encoding_and_step(device, padding, encoding):
    image, rgb = encoded(encoding, padding)
    level = 1 / 255 / min(DEVIATION)
    for kind in (
        (KernelPreprocessor, CpuPreprocessor) if device == 'cpu' else (KernelPreprocessor,)
    ):
        actual = written(kind, image, 96, device)
        # OpenCV converts YUV in whole numbers: a level more or less here and there
        tolerance = 1.01 * level if is_yuv(encoding) and kind is KernelPreprocessor else 5e-4
        torch.testing.assert_close(actual, by_torch(rgb, 96), atol=tolerance, rtol=0)


@pytest.mark.parametrize('encoding', ['bgr8', 'bgra8', 'mono8', 'uyvy', 'yuyv'])
def test_strips_hold_what_the_whole_image_holds(encoding):
    image, rgb = encoded(encoding, 13, (720, 1280))
    actual = written(CpuPreprocessor, image)
    torch.testing.assert_close(actual, by_torch(rgb), atol=5e-4, rtol=0)
    half = written(CpuPreprocessor, image, dtype=torch.float16)
    assert torch.equal(half, actual.half().float())


@pytest.mark.parametrize('device', DEVICES)
def test_half_precision_is_the_rounded_single(device):
    image = ColorImage.of_array(sample_image(100, 140))
    single = written(KernelPreprocessor, image, device=device)
    half = written(KernelPreprocessor, image, device=device, dtype=torch.float16)
    assert torch.equal(half, single.half().float())


def test_images_of_different_sizes_one_after_the_other():
    for kind in (KernelPreprocessor, CpuPreprocessor):
        preprocessor = kind(manifest_of(), CPU)
        for size in ((480, 640), (90, 50), (720, 1280), (480, 640)):
            rgb, out = sample_image(*size), torch.empty(1, 3, 384, 384)
            preprocessor.upload(ColorImage.of_array(rgb))
            preprocessor.write(out)
            torch.testing.assert_close(out[0], by_torch(rgb), atol=5e-4, rtol=0)


def test_memory_that_may_not_be_written_is_read():
    rgb = sample_image(60, 80)
    rgb.flags.writeable = False
    for kind in (KernelPreprocessor, CpuPreprocessor):
        actual = written(kind, ColorImage.of_array(rgb))
        torch.testing.assert_close(actual, by_torch(rgb), atol=5e-4, rtol=0)


@pytest.mark.parametrize('device', DEVICES)
def test_bytes_that_lie_apart_are_read(device):
    image, _ = encoded('rgb8', padding=13)
    apart = np.column_stack([image.data, ~image.data])[:, 0]
    assert not apart.flags.contiguous
    strided = ColorImage(apart, image.height, image.width, image.step, 'rgb8')
    kinds = (KernelPreprocessor, CpuPreprocessor)[: 2 if device == 'cpu' else 1]
    for kind in kinds:
        actual, expected = (written(kind, given, 32, device) for given in (strided, image))
        assert torch.equal(actual, expected)


def test_a_cpu_takes_opencv_and_a_gpu_the_kernel():
    assert isinstance(make_preprocessor(manifest_of(), CPU), CpuPreprocessor)


def test_another_shape_of_input_is_refused():
    for kind in (KernelPreprocessor, CpuPreprocessor):
        preprocessor = kind(manifest_of(), CPU)
        preprocessor.upload(ColorImage.of_array(sample_image(8, 8)))
        with pytest.raises(ValueError, match=r'is \(2, 3, 4, 4\), must be \(1, 3, H, W\)'):
            preprocessor.write(torch.empty(2, 3, 4, 4))


BYTES = np.zeros(12, np.uint8)


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ((BYTES, 2, 2, 6, 'bayer_rggb8'), "encoding 'bayer_rggb8', must be one of rgb8, bgr8"),
        ((BYTES, 0, 2, 6, 'rgb8'), 'is 2x0 pixels, must not be empty'),
        ((BYTES, 2, 2, 5, 'rgb8'), 'step 5, its 2 pixels of rgb8 need 6 bytes per row'),
        ((BYTES, 3, 2, 6, 'rgb8'), r'\(12,\), 2x3 pixels of rgb8 with step 6 need 18 bytes'),
        ((BYTES.astype(np.int8), 2, 2, 6, 'rgb8'), 'image holds int8'),
        ((BYTES, 2, 3, 6, 'yuyv'), 'the width must be even'),
    ],
)
def test_bytes_that_cannot_be_an_image_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        ColorImage(*arguments)


def test_an_unknown_encoding_has_a_type_of_its_own():
    with pytest.raises(UnknownEncoding):
        ColorImage(BYTES, 2, 2, 6, 'jpeg')


@pytest.mark.parametrize(
    ('pixels', 'words'),
    [
        (np.zeros((4, 4, 3)), r'is float64 \(4, 4, 3\)'),
        (np.zeros((4, 4, 4), np.uint8), 'has 4 bytes per pixel, encoding rgb8 has 3'),
        (np.zeros((0, 4, 3), np.uint8), r'\(0, 4, 3\)'),
    ],
)
def test_arrays_that_are_no_image_are_refused(pixels, words):
    with pytest.raises(ValueError, match=words):
        ColorImage.of_array(pixels)


def test_the_last_row_need_not_be_padded():
    image, _ = encoded('rgb8', padding=13)
    cut = ColorImage(image.data[:-13], image.height, image.width, image.step, 'rgb8')
    for kind in (KernelPreprocessor, CpuPreprocessor):
        assert torch.equal(written(kind, cut, 32), written(kind, image, 32))
