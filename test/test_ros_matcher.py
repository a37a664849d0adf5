"""Which pairs come out of which arrivals: late, missing, out of order, equal, backward stamps."""

from __future__ import annotations

import pytest

from foundationpose_trt.ros.matcher import MISSES_BEFORE_REPORT, PARTNERS_KEPT, NewestMatcher

MS = 1_000_000
S = 1000 * MS


def feed(matcher, arrivals):
    """Feed ('i'|'d'|'m', stamp in ms) in order; return what came out, stamps in ms."""
    add = {'i': matcher.add_image, 'd': matcher.add_depth, 'm': matcher.add_segmentation}
    pairs = [add[kind](stamp * MS, (kind, stamp)) for kind, stamp in arrivals]
    return [
        (p.stamp_ns // MS, p.depth[1], p.segmentation[1] if p.segmentation else None, p.late_mask)
        for p in pairs
        if p is not None
    ]


def test_equal_stamps_pair_whichever_comes_first():
    assert feed(NewestMatcher(0), [('i', 0), ('d', 0), ('d', 33), ('i', 33)]) == [
        (0, 0, None, False),
        (33, 33, None, False),
    ]


def test_pair_keeps_the_images_stamp_within_slop_and_refuses_beyond():
    matcher = NewestMatcher(5 * MS)
    assert feed(matcher, [('d', 4), ('i', 0), ('i', 33), ('d', 38), ('i', 66), ('d', 72)]) == [
        (0, 4, None, False),
        (33, 38, None, False),
    ]


def test_a_missing_half_never_holds_back_the_newest_pair():
    matcher = NewestMatcher(0)
    out = feed(matcher, [('i', 0), ('i', 33), ('d', 33), ('d', 66), ('i', 99), ('d', 99)])
    assert out == [(33, 33, None, False), (99, 99, None, False)]
    assert matcher.counts == {'image_unmatched': 1, 'depth_unmatched': 1}


def test_depth_that_lags_by_several_frames_still_pairs():
    arrivals = [('i', 33 * k) for k in range(4)]
    for k in range(4, 10):
        arrivals += [('d', 33 * (k - 4)), ('i', 33 * k)]
    out = feed(NewestMatcher(0), arrivals)
    assert [stamp for stamp, *_ in out] == [33 * k for k in range(6)]


@pytest.mark.parametrize(('period', 'slop'), [(33, 40), (16, 20), (8, 10), (33, 33)])
def test_a_lost_image_pairs_none_after_it_with_the_depth_before(period, slop):
    matcher = NewestMatcher(slop * MS)
    arrivals = [(kind, period * k) for k in range(60) for kind in 'id']
    del arrivals[arrivals.index(('i', 30 * period))]
    pairs = feed(matcher, arrivals)
    assert [stamp for stamp, *_ in pairs] == [period * k for k in range(60) if k != 30]
    assert all(stamp == depth for stamp, depth, *_ in pairs)
    assert matcher.counts == {'depth_unmatched': 1}


def test_masks_that_come_too_late_are_told_with_what_helps():
    matcher = NewestMatcher(40 * MS, mask_history=5)
    for k in range(60):
        feed(matcher, [('i', 32 * k), ('d', 32 * k)])
        if k >= 30:
            assert not feed(matcher, [('m', 32 * (k - 20))])
    told = matcher.never_matching()
    assert 'sync_slop_ms allows 40, half a frame period 16;' in told
    assert 'mask_history_frames' in told and 'same clock' not in told


def test_late_and_repeated_messages_are_counted_and_dropped():
    matcher = NewestMatcher(0)
    out = feed(matcher, [('i', 99), ('d', 99), ('i', 66), ('d', 66), ('i', 99), ('d', 132)])
    assert out == [(99, 99, None, False)]
    assert matcher.counts == {'image_late': 1, 'depth_late': 1, 'image_repeated': 1}


def test_pairs_never_go_backwards_when_halves_arrive_out_of_order():
    out = feed(NewestMatcher(0), [('i', 0), ('i', 33), ('d', 33), ('d', 0), ('i', 66), ('d', 66)])
    assert [stamp for stamp, *_ in out] == [33, 66]


def test_a_clock_that_jumps_back_starts_a_new_run():
    matcher = NewestMatcher(0)
    out = feed(matcher, [('i', 9000), ('d', 9000), ('m', 9000), ('i', 10), ('d', 10), ('i', 43)])
    assert [stamp for stamp, *_ in out] == [9000, 9000, 10]
    assert matcher.counts['clock_resets'] >= 1
    # the mask of the old run is gone, also for a stamp that comes again
    assert feed(matcher, [('m', 10)]) == [(10, 10, 10, True)]


def test_mask_before_its_frame_comes_with_it_and_after_it_as_late_mask():
    matcher = NewestMatcher(0)
    assert feed(matcher, [('m', 0), ('i', 0), ('d', 0)]) == [(0, 0, 0, False)]
    out = feed(matcher, [('i', 33), ('d', 33), ('i', 66), ('d', 66), ('m', 33)])
    assert out == [(33, 33, None, False), (66, 66, None, False), (33, 33, 33, True)]


def test_a_mask_is_never_given_to_another_frame():
    arrivals = [('m', 0), ('i', 33), ('d', 33), ('m', 50), ('i', 66), ('d', 66)]
    out = feed(NewestMatcher(5 * MS), arrivals)
    assert [mask for *_, mask, _ in out] == [None, None]


def test_memory_is_bounded_when_one_stream_is_alone():
    matcher = NewestMatcher(0, mask_history=3)
    assert feed(matcher, [('i', 33 * k) for k in range(500)]) == []
    assert matcher.counts['image_unmatched'] == 500 - PARTNERS_KEPT
    matcher = NewestMatcher(0, mask_history=3)
    for k in range(20):
        feed(matcher, [('i', 33 * k), ('d', 33 * k)])
    assert feed(matcher, [('m', 33 * 16)]) == [], 'only three pairs are remembered'
    assert feed(matcher, [('m', 33 * 17)]) == [(33 * 17, 33 * 17, 33 * 17, True)]


def test_stamps_that_never_match_are_explained_with_the_gap():
    matcher = NewestMatcher(5 * MS)
    for k in range(MISSES_BEFORE_REPORT):
        feed(matcher, [('i', 100 * k), ('d', 100 * k + 12)])
    report = matcher.never_matching()
    assert 'image and depth' in report and '12.000 ms apart' in report and 'allows 5' in report
    feed(matcher, [('i', 9000), ('d', 9000)])
    assert matcher.never_matching() is None


def test_masks_that_never_match_are_explained_too():
    matcher = NewestMatcher(0)
    for k in range(MISSES_BEFORE_REPORT):
        feed(matcher, [('i', 33 * k), ('d', 33 * k), ('m', 33 * k + 7)])
    assert 'segmentation and image' in matcher.never_matching()
    assert '7.000 ms' in matcher.never_matching()


def test_a_stream_without_counterpart_is_no_mismatch():
    matcher = NewestMatcher(0)
    feed(matcher, [('i', 33 * k) for k in range(100)])
    assert matcher.never_matching() is None


@pytest.mark.parametrize('bad', [{'slop_ns': -1}, {'slop_ns': 0, 'mask_history': 0}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError, match='must be >='):
        NewestMatcher(**bad)
