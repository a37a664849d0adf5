"""Words of symmetry against closed forms: orders of the groups, scipy's rotations, the grid."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from foundationpose_trt.pose.estimator import EstimatorSettings
from foundationpose_trt.pose.hypotheses import rotation_grid
from foundationpose_trt.pose.symmetry import is_rotation, symmetry_rotations


def group_of(*axes: str) -> np.ndarray:
    """The rotations (N, 3, 3) that the words stand for, with the identity."""
    return np.array([np.eye(3).ravel(), *symmetry_rotations(axes)]).reshape(-1, 3, 3)


def contained(rotations: np.ndarray, group: np.ndarray) -> np.ndarray:
    """How far each of the rotations is from its nearest in the group: largest difference."""
    gaps = np.abs(rotations[:, None] - group[None]).max((2, 3))
    return gaps.min(1)


ORDERS = {
    (): 1,
    ('x_180',): 2,
    ('y_90',): 4,
    ('z_120',): 3,
    ('x_1',): 360,
    ('z_full',): 72,
    ('x_180', 'y_180'): 4,  # a box
    ('x_90', 'y_180'): 8,  # a square prism
    ('x_60', 'z_180'): 12,  # a hexagonal one
    ('x_90', 'y_90'): 24,  # a cube
    ('z_full', 'x_180'): 144,  # a cylinder
    ('z_full', 'x_180', 'y_180'): 144,
    ('y_90', 'y_180', 'y_90'): 4,
    ('z_full', 'z_2'): 360,  # both are whole degrees: every degree
    ('x_1', 'y_180'): 720,
}


@pytest.mark.parametrize('axes', ORDERS, ids='+'.join)
def test_the_group_has_the_order_of_its_closed_form(axes):
    group = group_of(*axes)
    assert len(group) == ORDERS[axes]
    np.testing.assert_allclose(group @ group.transpose(0, 2, 1) - np.eye(3), 0, atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(group), 1, atol=1e-12)
    vectors = group.reshape(-1, 9)
    traces = vectors @ vectors.T - 3 * np.eye(len(group))
    # no rotation is there twice: the nearest two are a degree apart at least
    assert len(group) == 1 or traces.max() < 1 + 2 * np.cos(np.deg2rad(0.99))


@pytest.mark.parametrize(
    'axes', [('x_180', 'y_180'), ('x_90', 'y_90'), ('z_full', 'x_180'), ('x_60', 'y_180')]
)
def test_products_and_inverses_stay_in_the_group(axes):
    group = group_of(*axes)
    products = (group[:, None] @ group[None]).reshape(-1, 3, 3)
    for part in np.array_split(products, -(-len(products) // 500)):
        assert contained(part, group).max() < 1e-12
    assert contained(group.transpose(0, 2, 1), group).max() < 1e-12


@pytest.mark.parametrize('axis', ['x', 'y', 'z'])
def test_turns_are_about_the_axis_that_is_named(axis):
    for word, step in ((f'{axis}_45', 45), (f'{axis}_full', 5)):
        angles = np.arange(0, 360, step)[:, None]
        expected = Rotation.from_euler(axis, angles, degrees=True).as_matrix()
        group = group_of(word)
        assert len(group) == len(expected)
        assert contained(expected, group).max() < 1e-12


def test_the_identity_is_left_out_and_quarter_turns_are_whole_numbers():
    rotations = symmetry_rotations(['x_90', 'y_90'])
    assert len(rotations) == 23
    for rotation in rotations:
        assert isinstance(rotation, tuple) and rotation != tuple(np.eye(3).ravel())
        assert set(rotation) <= {0.0, 1.0, -1.0}
    assert symmetry_rotations([]) == ()


def test_the_order_of_the_words_does_not_matter():
    first, second = group_of('x_180', 'z_90'), group_of('z_90', 'x_180')
    assert len(first) == len(second) == 8
    assert contained(first, second).max() < 1e-12


@pytest.mark.parametrize(
    ('axes', 'count'),
    [
        (['z_180'], 126),
        (['x_180', 'y_180'], 63),
        (['z_90'], 54),
        (['z_full'], 20),
        (['z_full', 'x_180'], 10),
        (['y_full'], 38),
    ],
)
def test_the_grid_shrinks_to_the_published_number_of_hypotheses(axes, count):
    assert len(rotation_grid(group_of(*axes))) == count < len(rotation_grid())


def test_the_estimators_settings_take_them():
    symmetries = symmetry_rotations(['z_full', 'x_180'])
    assert EstimatorSettings(symmetries=symmetries).symmetries == symmetries
    assert all(is_rotation(one) for one in symmetries)


@pytest.mark.parametrize(
    'word',
    [
        'x', 'x_', '_180', 'w_180', 'X_180', 'x_180 ', 'x180', 'x-180', 'x_0', 'x_7', 'x_360',
        'x_720', 'x_-90', 'x_22.5', 'x_fully', 'full', '', 'x_²',
    ],
)  # fmt: skip
def test_another_word_is_refused_with_an_example(word):
    with pytest.raises(ValueError) as caught:
        symmetry_rotations(['z_90', word])
    message = str(caught.value)
    assert message.startswith(f'symmetry axis is "{word}", must be an axis of the mesh')
    assert 'divide 360' in message and 'e.g. "x_180"' in message


@pytest.mark.parametrize(
    'axes', [['z_full', 'x_full'], ['z_full', 'x_90'], ['x_120', 'y_120'], ['x_60', 'y_90']]
)
def test_turns_that_make_no_small_group_are_refused_with_a_remedy(axes):
    with pytest.raises(ValueError, match='generate more than 2000 rotations: beside "full"') as it:
        symmetry_rotations(axes)
    assert str(it.value).startswith(f'symmetry axes {", ".join(axes)} together')
    assert 'for a ball give "x_90" and "y_90"' in str(it.value)


def test_a_string_instead_of_a_list_is_refused():
    with pytest.raises(ValueError, match=r'symmetry axes are "x_180", must be a list: \["x_180"]'):
        symmetry_rotations('x_180')


@pytest.mark.parametrize(
    ('numbers', 'expected'),
    [
        (tuple(np.eye(3).ravel()), True),
        (tuple(np.diag([1.0, -1.0, -1.0]).ravel()), True),
        (tuple(np.diag([1.0, 1.0, -1.0]).ravel()), False),  # a mirror
        (tuple(np.diag([2.0, 1.0, 0.5]).ravel()), False),
        ((1.0, 0.0, 0.0), False),
    ],
)
def test_rotations_are_told_from_other_numbers(numbers, expected):
    assert bool(is_rotation(numbers)) is expected
