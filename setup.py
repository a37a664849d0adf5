"""Packaging of foundationpose_trt for pip and, as an ament_python package, for colcon."""

import re
from glob import glob
from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = 'foundationpose_trt'
HERE = Path(__file__).resolve().parent  # resolved: colcon --symlink-install runs it from build/
SHARE = f'share/{PACKAGE}'
# Torch stands in extras so that plain `pip install .` never replaces the build that came with the
# machine (Jetson, a CUDA version of one's own). Which build PyPI has depends on the platform:
# on x86-64 Linux it is the CUDA one, which also runs without a GPU.
TORCH = 'torch>=2.4'
ONNX = ['onnx>=1.16', 'onnxruntime>=1.17']  # older onnx refuses what int8 exports
# Builds engines without a GPU, which is how the build is tested everywhere.
TENSORRT_RTX = [
    f'tensorrt-rtx-cu13-{part}>=1.7; platform_machine == "x86_64" and sys_platform == "linux"'
    for part in ('libs', 'bindings')
]
ROS_WHEELS = '; platform_machine == "x86_64" and sys_platform == "linux"'


def version() -> str:
    """Read the version from the package, its one source, without importing it."""
    text = (HERE / PACKAGE / '__init__.py').read_text(encoding='utf-8')
    return re.findall(r"^__version__ = '(.+)'$", text, re.MULTILINE)[0]


setup(
    name=PACKAGE,
    version=version(),
    description='Finds an object in RGB-D images, registers and tracks its 6-DoF pose, in ROS 2',
    long_description=(HERE / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    maintainer='foundationpose_trt maintainers',
    maintainer_email='maintainers@users.noreply.r-seed-44737708.example',
    packages=find_packages(exclude=['test']),
    package_data={
        PACKAGE: [
            'weights/*/*.safetensors',
            'weights/*/*.json',
            'weights/*/*.onnx',
            'weights/*/*.md',
            'ros/*.xml',
        ]
    },
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{PACKAGE}']),
        (SHARE, ['package.xml', f'{PACKAGE}/ros/fastdds_shm.xml']),
        (f'{SHARE}/launch', sorted(glob('launch/*.launch.py'))),
        (f'{SHARE}/config', sorted(glob('config/*.yaml'))),
    ],
    entry_points={
        'console_scripts': [
            f'foundationpose-trt = {PACKAGE}.tools.cli:main',
            f'tracker_node = {PACKAGE}.ros.tracker_node:main',
            f'detector_node = {PACKAGE}.ros.detector_node:main',
            f'pipeline_node = {PACKAGE}.ros.pipeline_node:main',
            f'player_node = {PACKAGE}.ros.player_node:main',
        ]
    },
    python_requires='>=3.10',
    install_requires=[
        'numpy>=1.21',
        'scipy>=1.8',
        'trimesh>=4.8.3',
        'fast-simplification>=0.1.7',
        'pillow>=9.0',
        'opencv-python-headless>=4.5.4',
        'warp-lang>=1.15',
        'safetensors>=0.4',
        'matplotlib>=3.5',
        'tqdm>=4.57',
        'rich>=11',
    ],
    extras_require={
        'cpu': [TORCH, *ONNX],  # ONNX Runtime is the faster back end there
        'gpu': [TORCH],
        'train': [TORCH],
        'onnx': ONNX,
        # the reference implementation, to export and train detectors; none is needed to run them
        'detector': [
            'rfdetr>=1.11.2,<1.12',
            'torch-linear-assignment>=0.1,<0.2; sys_platform == "linux"',  # of its loss, on GPUs
            'supervision>=0.29',
            *ONNX,
        ],
        'tensorrt': ['tensorrt>=8.6', *ONNX],
        'rtx': [*TENSORRT_RTX, *ONNX],
        'ros': [
            f'ros-kilted-rclpy[fastrtps]==9.1.2{ROS_WHEELS}',
            f'ros-kilted-sensor-msgs==5.5.1{ROS_WHEELS}',
            f'ros-kilted-geometry-msgs==5.5.1{ROS_WHEELS}',
            f'ros-kilted-std-msgs==5.5.1{ROS_WHEELS}',
            f'ros-kilted-std-srvs==5.5.1{ROS_WHEELS}',
            f'ros-kilted-diagnostic-msgs==5.5.1{ROS_WHEELS}',
            # What cv_bridge does in a ROS installation: encodings beyond the common ones.
            'rosbags-image>=0.10',
        ],
        'test': [
            'pytest>=7',
            'rtree>=1.0',
            *ONNX,
            *TENSORRT_RTX,
            'ruff>=0.6',
            'mypy>=1.10',
            'colcon-core',
            'colcon-package-information',
            'colcon-python-setup-py',
            'colcon-recursive-crawl',
            'colcon-ros',
        ],
    },
    zip_safe=False,
)
