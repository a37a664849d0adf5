"""The package as pip and colcon see it: versions, files, sizes, entry points."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import pytest

import foundationpose_trt

ROOT = Path(__file__).parents[1]
PACKAGE = 'foundationpose_trt'
TOP_LEVEL = {
    'package.xml',
    'setup.py',
    'setup.cfg',
    'pyproject.toml',
    'resource',
    'launch',
    'config',
    PACKAGE,
    'test',
    'README.md',
    'docs',
    'CHANGELOG.rst',
    'LICENSE',
    'run',
    '.ci',
    '.gitignore',
}
LARGEST_REPOSITORY_BYTES = 40 * 10**6
PROGRAMS = {
    'foundationpose-trt',
    'detector_node',
    'pipeline_node',
    'player_node',
    'tracker_node',
}
# Packages of a ROS installation that have a rosdep key of their own name.
ROS_PACKAGES = {
    'ament_index_python',
    'builtin_interfaces',
    'cv_bridge',
    'diagnostic_msgs',
    'geometry_msgs',
    'launch',
    'launch_ros',
    'lifecycle_msgs',
    'rcl_interfaces',
    'rclpy',
    'sensor_msgs',
    'std_msgs',
    'vision_msgs',
}


@pytest.fixture(scope='module')
def tracked() -> list[str]:
    if not (ROOT / '.git').exists():
        pytest.skip('not a git checkout')
    listing = subprocess.run(
        ['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return listing.stdout.strip('\0').split('\0')


@pytest.fixture(scope='module')
def source(tmp_path_factory) -> Path:
    """Copy the tree: builds leave their litter where they run."""
    copy = tmp_path_factory.mktemp('workspace') / 'src' / PACKAGE
    litter = shutil.ignore_patterns('.*', '*.egg-info', 'build', '__pycache__', 'demo_output')
    shutil.copytree(ROOT, copy, ignore=litter)
    return copy


@pytest.fixture(scope='module')
def wheel(source) -> zipfile.ZipFile:
    pytest.importorskip('setuptools', minversion='70.1')  # older ones need `wheel` to build one
    options = ['--no-deps', '--no-build-isolation', '--no-index', '-q', '-w', str(source.parent)]
    command = [sys.executable, '-m', 'pip', 'wheel', *options, str(source)]
    subprocess.run(command, check=True, timeout=120)
    return zipfile.ZipFile(next(source.parent.glob('*.whl')))


def manifest() -> ElementTree.Element:
    return ElementTree.parse(ROOT / 'package.xml').getroot()


def test_versions_agree(wheel):
    metadata = next(name for name in wheel.namelist() if name.endswith('/METADATA'))
    newest = re.search(
        r'^(\d+\.\d+\.\d+) \(\d{4}-\d\d-\d\d\)$', (ROOT / 'CHANGELOG.rst').read_text(), re.M
    )
    assert foundationpose_trt.__version__ == manifest().findtext('version') == newest[1]
    assert f'\nVersion: {foundationpose_trt.__version__}\n' in wheel.read(metadata).decode()


def test_top_level_is_exact(tracked):
    assert {name.split('/')[0] for name in tracked} == TOP_LEVEL


def test_tracked_files_stay_small(tracked):
    sizes = {name: (ROOT / name).lstat().st_size for name in tracked if (ROOT / name).exists()}
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:5]
    assert sum(sizes.values()) < LARGEST_REPOSITORY_BYTES, f'largest: {largest}'


def test_wheel_carries_weights_profile_and_shared_files(wheel):
    names = set(wheel.namelist())
    weights = [path for path in (ROOT / PACKAGE / 'weights').rglob('*') if path.is_file()]
    assert {path.name for path in weights} >= {'refiner.safetensors', 'scorer.safetensors'}
    expected = [str(path.relative_to(ROOT)) for path in weights]
    share = f'{PACKAGE}-{foundationpose_trt.__version__}.data/data/share'
    expected += [f'{PACKAGE}/ros/fastdds_shm.xml', f'{share}/{PACKAGE}/fastdds_shm.xml']
    expected += [f'{share}/{PACKAGE}/package.xml']
    expected += [f'{share}/ament_index/resource_index/packages/{PACKAGE}']
    for folder, pattern in (('launch', '*.launch.py'), ('config', '*.yaml')):
        files = [path.name for path in (ROOT / folder).glob(pattern)]
        assert files
        expected += [f'{share}/{PACKAGE}/{folder}/{name}' for name in files]
    assert not set(expected) - names


def test_wheel_carries_programs_and_extras(wheel):
    info = f'{PACKAGE}-{foundationpose_trt.__version__}.dist-info'
    entries = wheel.read(f'{info}/entry_points.txt').decode()
    for program in PROGRAMS:
        assert re.search(rf'^{program} = {PACKAGE}\.\S+:main$', entries, re.M)
    extras = re.findall(r'^Provides-Extra: (\S+)$', wheel.read(f'{info}/METADATA').decode(), re.M)
    assert {'cpu', 'gpu', 'ros', 'train', 'test'} <= set(extras)


@pytest.mark.parametrize('options', [[], ['--symlink-install']], ids=['copied', 'symlinked'])
def test_colcon_builds_an_ament_package(source, tmp_path, options):
    pytest.importorskip('colcon_core')
    colcon = [sys.executable, '-m', 'colcon']
    bases = ['--base-paths', str(source)]
    listed = subprocess.run(
        [*colcon, 'list', *bases], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert '(ros.ament_python)' in listed.stdout, listed.stderr
    built = subprocess.run(
        [*colcon, 'build', *options, *bases],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert built.returncode == 0, built.stderr
    prefix = tmp_path / 'install' / PACKAGE
    programs = {path.name for path in (prefix / 'lib' / PACKAGE).iterdir()}
    assert programs == PROGRAMS
    assert (prefix / 'share/ament_index/resource_index/packages' / PACKAGE).exists()
    assert list((prefix / 'share' / PACKAGE / 'launch').glob('*.launch.py'))


def imported_roots(path: Path) -> set[str]:
    roots = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            roots.add(node.module.split('.')[0])
    return roots


def test_package_xml_declares_the_ros_packages_in_use():
    assert manifest().get('format') == '3'
    assert manifest().findtext('export/build_type') == 'ament_python'
    declared = {element.text for element in manifest().findall('exec_depend')}
    files = [*(ROOT / PACKAGE / 'ros').glob('*.py'), *(ROOT / 'launch').glob('*.py')]
    used = set().union(*map(imported_roots, files)) & ROS_PACKAGES
    assert not used - declared


@pytest.mark.parametrize('path', sorted((ROOT / 'launch').glob('*')), ids=lambda path: path.name)
def test_launch_files_compile(path):
    assert path.name.endswith('.launch.py')
    tree = ast.parse(path.read_text())
    compile(tree, str(path), 'exec')
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert 'generate_launch_description' in functions


@pytest.mark.parametrize('path', sorted((ROOT / 'config').glob('*.yaml')), ids=lambda p: p.name)
def test_the_reference_names_every_parameter_and_the_readme_leads_there(path):
    parameters = re.findall(r'^    (?:# )?(\w+):', path.read_text(), re.M)
    reference = (ROOT / 'docs' / 'reference.md').read_text()
    assert parameters and not [name for name in parameters if f'`{name}`' not in reference]
    assert '(docs/reference.md)' in (ROOT / 'README.md').read_text()
