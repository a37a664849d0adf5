"""RefineNet and ScoreNet against the documented table and an independent forward pass."""

from __future__ import annotations

import network_rig as rig
import numpy as np
import pytest
import torch

from foundationpose_trt.pose.networks import RefineNet, ScoreNet, fold_batch_norm, scaled

KINDS = {'refiner': RefineNet, 'scorer': ScoreNet}


def loaded(kind: str, width: float, double: bool = True) -> tuple[torch.nn.Module, rig.State]:
    state = rig.random_state(kind, width)
    network = KINDS[kind](width).eval()
    network.load_state_dict(state, strict=True)
    if double:
        network = network.double()
        state = {key: value.double() for key, value in state.items()}
    return network, state


@pytest.fixture(scope='module')
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    rendered, observed = rig.crops(2)
    return rendered.double(), observed.double()


@pytest.mark.parametrize(('kind', 'keys'), [('refiner', 134), ('scorer', 116)])
def test_the_documented_state_dict_loads_strictly_at_width_1(kind, keys):
    shapes = rig.documented_shapes(kind)
    assert len(shapes) == keys  # §1.5
    network = KINDS[kind](1.0)
    assert {k: tuple(v.shape) for k, v in network.state_dict().items()} == shapes
    network.load_state_dict(rig.random_state(kind), strict=True)


@pytest.mark.parametrize(('kind', 'trainable'), [('refiner', 16_830_406), ('scorer', 15_773_121)])
def test_parameter_and_buffer_counts(kind, trainable):
    network = KINDS[kind](1.0)
    assert sum(p.numel() for p in network.parameters()) == trainable  # §1.6
    assert sum(b.numel() for b in network.buffers()) == 213_391
    a, ab = (getattr(network, name) for name in rig.NAMES[kind])
    assert sum(p.numel() for p in a.parameters()) == 684_480
    assert sum(p.numel() for p in ab.parameters()) == 12_986_880


def test_the_encoders_have_different_names_in_the_two_networks():
    """Trap 6: encodeA in the refiner, encoderA in the scorer."""
    refiner, scorer = RefineNet(0.125).state_dict(), ScoreNet(0.125).state_dict()
    assert 'encodeA.0.net.0.weight' in refiner and 'encodeAB.4.bn2.bias' in refiner
    assert 'encoderA.0.net.0.weight' in scorer and 'encoderAB.4.bn2.bias' in scorer
    assert not [key for key in refiner if key.startswith('encoder')]
    assert not [key for key in scorer if key.startswith('encodeA')]


@pytest.mark.parametrize('width', [1.0, 0.25])
def test_positional_embedding_follows_its_formula(width):
    embedding = RefineNet(width).pos_embed.pe
    assert embedding.shape == (1, 400, int(512 * width))
    # float32 angles of up to 400 radians are off by 2e-5
    np.testing.assert_allclose(embedding, rig.embedding(int(512 * width)), atol=5e-5)


def test_refiner_equals_the_independent_forward_pass(inputs):
    network, state = loaded('refiner', 0.125)
    with torch.no_grad():
        actual, expected = network(*inputs), rig.refine(state, *inputs)
    assert set(actual) == {'trans', 'rot'}
    for key, value in expected.items():
        assert value.shape == (2, 3) and value.std() > 1e-3
        torch.testing.assert_close(actual[key], value, atol=1e-9, rtol=1e-9)


def test_scorer_equals_the_independent_forward_pass(inputs):
    network, state = loaded('scorer', 0.125)
    with torch.no_grad():
        actual, expected = network(*inputs), rig.score(state, *inputs)
    assert actual.shape == (1, 2) and expected.std() > 1e-4
    torch.testing.assert_close(actual, expected, atol=1e-9, rtol=1e-9)


def test_forward_at_the_official_width():
    network, state = loaded('refiner', 1.0, double=False)
    pair = rig.crops(1)
    with torch.no_grad():
        actual, expected = network(*pair), rig.refine(state, *pair)
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, atol=2e-4, rtol=2e-4)


def test_the_fast_path_of_inference_gives_the_same(inputs):
    """Without gradients torch takes a fused encoder layer; with them it does not."""
    network, state = loaded('refiner', 0.125)
    with torch.inference_mode():
        fused = network(*inputs)
    plain = network.train()
    for module in plain.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for head in (plain.trans_head, plain.rot_head):
        head[0].self_attn.dropout = 0.0
    torch.testing.assert_close(fused, plain(*inputs), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize('kind', ['refiner', 'scorer'])
def test_folding_batch_norm_keeps_the_result(kind, inputs):
    network, state = loaded(kind, 0.125)
    with torch.no_grad():
        before = network(*inputs)
        fold_batch_norm(network)
        after = network(*inputs)
    torch.testing.assert_close(after, before, atol=1e-9, rtol=1e-9)
    expected = rig.folded(state)
    folded = {key: value.float() for key, value in network.state_dict().items()}
    torch.testing.assert_close(folded, {k: v.float() for k, v in expected.items()})


def test_folding_twice_changes_nothing(inputs):
    network, _ = loaded('scorer', 0.125)
    fold_batch_norm(network)
    once = {key: value.clone() for key, value in network.state_dict().items()}
    fold_batch_norm(network)
    torch.testing.assert_close(network.state_dict(), once, atol=0, rtol=0)


@pytest.mark.parametrize('kind', ['refiner', 'scorer'])
def test_the_order_of_the_two_images_matters(kind, inputs):
    network, _ = loaded(kind, 0.125)
    with torch.no_grad():
        forward, swapped = network(*inputs), network(*inputs[::-1])
    values = [torch.cat(list(v.values())) if kind == 'refiner' else v for v in (forward, swapped)]
    assert (values[0] - values[1]).abs().max() > 1e-3


def test_refiner_crops_do_not_influence_each_other_but_scored_ones_do(inputs):
    refiner, _ = loaded('refiner', 0.125)
    scorer, _ = loaded('scorer', 0.125)
    first = [half[:1] for half in inputs]
    with torch.no_grad():
        torch.testing.assert_close(refiner(*first)['rot'], refiner(*inputs)['rot'][:1])
        torch.testing.assert_close(scorer.extract(*first), scorer.extract(*inputs)[:1])
        alone, among = scorer(*first)[0, 0], scorer(*inputs)[0, 0]
    assert (alone - among).abs() > 1e-6  # att_cross looks at all hypotheses


def test_rank_keeps_objects_apart(inputs):
    scorer, _ = loaded('scorer', 0.125)
    with torch.no_grad():
        features = scorer.extract(*inputs)
        both = scorer.rank(torch.stack([features, features.flip(0)]))
        single = scorer.rank(features[None])
    assert both.shape == (2, 2)
    torch.testing.assert_close(both[:1], single)
    torch.testing.assert_close(both[1:], single.flip(1))


@pytest.mark.parametrize('width', [0.3, 0.01, 0.0, -1.0, 1 / 3])
@pytest.mark.parametrize('make', [RefineNet, ScoreNet])
def test_widths_that_do_not_divide_are_refused(make, width):
    with pytest.raises(ValueError, match=r'network width .* makes .* channels.* choose 1, 0\.5'):
        make(width)


@pytest.mark.parametrize(('width', 'channels'), [(1.0, 64), (0.5, 32), (0.125, 8), (0.0625, 4)])
def test_widths_that_divide(width, channels):
    assert scaled(64, width) == channels


def test_training_reaches_every_parameter():
    rendered, observed = rig.crops(2)
    for network in (RefineNet(0.0625).train(), ScoreNet(0.0625).train()):
        output = network(rendered, observed)
        values = list(output.values()) if isinstance(output, dict) else [output]
        sum((value * torch.randn_like(value)).sum() for value in values).backward()
        still = [k for k, p in network.named_parameters() if p.grad is None]
        assert not still
