"""Comparing evaluations: differences that were put in are found, chance is called chance."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from foundationpose_trt.tools import cli
from foundationpose_trt.tools.compare import interval_of_mean, scored

OBJECTS, VIEWS = 60, 3


def frames(rng, shift_mm=0.0, objects=OBJECTS):
    """Registered views: errors of an object are alike, one object in three is symmetric."""
    rows = []
    for k in range(objects):
        usual_mm = 4 + 8 * k / objects
        for _ in range(VIEWS):
            add_s_mm = max(0.1, usual_mm + shift_mm + rng.normal(0, 1))
            turned = k % 3 == 0 and rng.random() < 0.5
            rows.append({
                'seed': 500 + k, 'diameter_mm': 120.0, 'symmetric': k % 3 == 0,
                'add_s_mm': add_s_mm, 'add_mm': 80.0 if turned else 1.2 * add_s_mm,
            })  # fmt: skip
    return rows


def write(path, kind='register', rows=None):
    key = {'register': 'frames', 'track': 'tracks'}[kind]
    path.write_text(json.dumps({kind: {key: rows}}))
    return str(path)


@pytest.fixture
def compared(tmp_path, capsys):
    def compare(before, after, kind='register'):
        words = [write(tmp_path / 'a.json', kind, before), write(tmp_path / 'b.json', kind, after)]
        status = cli.main(['compare', *words, '--json', str(tmp_path / 'c.json')])
        content = json.loads((tmp_path / 'c.json').read_text())
        return status, content[kind], capsys.readouterr().out

    return compare


def test_chance_is_no_difference(compared):
    status, content, out = compared(
        frames(np.random.default_rng(1)), frames(np.random.default_rng(2))
    )
    assert status == 0 and 'worse beyond chance: nothing' in out
    low, high = content['ADD-S AUC']['interval']
    assert low < 0 < high
    # 1 mm of 100: a view's score differs by sqrt(2) points from one run to the next
    expected = 2 * 1.96 * np.sqrt(2) / np.sqrt(OBJECTS * VIEWS)
    assert high - low == pytest.approx(expected, rel=0.25)


def test_a_difference_of_one_millimetre_is_found(compared):
    rng = np.random.default_rng(3)
    status, content, out = compared(frames(rng), frames(rng, shift_mm=1.0))
    row = content['ADD-S AUC']
    assert status == 1 and 'worse beyond chance: register: ADD-S AUC' in out
    assert row['difference'] == pytest.approx(-1.0, abs=0.3)
    assert row['difference'] == pytest.approx(row['after'] - row['before'])
    assert row['interval'][0] < -1.0 < row['interval'][1] < 0
    assert compared(frames(rng, shift_mm=1.0), frames(rng))[0] == 0  # better is not worse


def test_turns_that_no_image_tells_decide_nothing(compared):
    good = frames(np.random.default_rng(4))
    turned = [{**row, 'add_mm': 90.0} if row['symmetric'] else row for row in good]
    status, content, _ = compared(good, turned)
    assert content['ADD AUC']['interval'][1] < -5
    assert content['ADD(-S) AUC']['interval'] == [0.0, 0.0] and status == 0


def test_a_view_without_a_pose_scores_nothing(compared):
    before = frames(np.random.default_rng(5))
    after = [{**row, 'add_mm': None, 'add_s_mm': None} for row in before]
    status, content, _ = compared(before, after)
    assert status == 1
    assert {row['after'] for row in content.values()} == {0.0}


def test_scores_are_those_of_the_thresholds():
    row = {'seed': 1, 'diameter_mm': 100.0, 'symmetric': True}
    points = scored([{**row, 'add_s_mm': 9.5, 'add_mm': 150.0}]).points
    assert points['ADD-S AUC'].tolist() == pytest.approx([90.5])  # at 10 mm and all above
    assert points['ADD AUC'].tolist() == [0.0]
    assert points['ADD(-S) AUC'].tolist() == pytest.approx([90.5])
    assert points['ADD-S < 0.1 diameter'].tolist() == [100.0]
    assert points['ADD < 0.1 diameter'].tolist() == [0.0]


def test_every_frame_of_a_track_is_a_view(compared):
    rng = np.random.default_rng(6)

    def tracks(shift_mm):
        return [
            {
                'seed': k, 'diameter_mm': 100.0, 'symmetric': False, 'motion': 'fast camera',
                'errors': [
                    {'add_mm': 5 + shift_mm + rng.normal(), 'add_s_mm': 4 + rng.normal()}
                    for _ in range(10)
                ],
            }
            for k in range(12)
        ]  # fmt: skip

    status, content, out = compared(tracks(0), tracks(2.0), 'track')
    assert status == 1 and 'track: ADD(-S) AUC' in out
    assert content['ADD AUC']['difference'] == pytest.approx(-2.0, abs=0.5)


def test_intervals_hold_what_they_promise():
    """Of many samples of a known mean, about 95 in 100 intervals hold it; groups count as one."""
    rng, held = np.random.default_rng(7), 0
    groups = np.repeat(np.arange(30), 4)
    for _ in range(100):
        of_group = rng.normal(0, 1, 30)
        low, high = interval_of_mean(of_group[groups] + rng.normal(0, 0.2, 120), groups)
        held += low <= 0 <= high
    assert held >= stats.binom.ppf(0.001, 100, 0.93)
    # as if every view were an object of its own, it would be half as wide
    alone = interval_of_mean(of_group[groups], np.arange(120))
    assert high - low > 1.5 * (alone[1] - alone[0])


def test_the_same_loss_of_every_object_is_no_chance(compared):
    before = frames(np.random.default_rng(11))
    after = [
        {**row, 'add_mm': 60.0, 'add_s_mm': 60.0} if k % VIEWS == 0 else row
        for k, row in enumerate(before)
    ]
    status, content, _ = compared(before, after)
    row = content['ADD-S < 0.1 diameter']
    assert row['difference'] < -30 and status == 1
    assert row['interval'][1] < 0
    with_one_mean = interval_of_mean(np.tile([0.0, -30.0], 12), np.repeat(np.arange(12), 2))
    assert with_one_mean == (-15.0, -15.0)


def test_few_objects_have_no_interval(compared):
    rng = np.random.default_rng(8)
    status, content, _ = compared(frames(rng, objects=9), frames(rng, 50.0, objects=9))
    assert status == 0 and content['ADD AUC']['interval'] is None


def test_other_views_are_refused(tmp_path, capsys):
    rng = np.random.default_rng(9)
    one = write(tmp_path / 'one.json', rows=frames(rng))
    other = write(tmp_path / 'other.json', rows=frames(rng, objects=20))
    assert cli.main(['compare', one, other]) == 2
    assert 'not of the same views (180 and 60)' in capsys.readouterr().err
    track = write(tmp_path / 'track.json', 'track', [])
    assert cli.main(['compare', one, track]) == 2


@pytest.mark.parametrize('text', ['{"register": {}}', '[1]', 'no json', '{"register": 3}'])
def test_another_file_is_refused(tmp_path, capsys, text):
    (tmp_path / 'x.json').write_text(text)
    file = write(tmp_path / 'good.json', rows=frames(np.random.default_rng(10)))
    assert cli.main(['compare', file, str(tmp_path / 'x.json')]) == 2
    assert 'x.json' in capsys.readouterr().err
