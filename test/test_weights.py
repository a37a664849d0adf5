"""Weight sets on disk: our own with a manifest, the official checkpoints, and broken ones."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import network_rig as rig
import pytest
import torch
from safetensors import safe_open

from foundationpose_trt.pose import weights
from foundationpose_trt.pose.networks import RefineNet, ScoreNet
from foundationpose_trt.pose.weights import load_networks, save_network, write_manifest

WIDTH = 0.0625
OFFICIAL = {'refiner': '2023-10-28-18-33-37', 'scorer': '2024-01-11-20-02-45'}


def write_set(folder: Path, width: float = WIDTH) -> dict[str, rig.State]:
    """A set of our own format with random numbers; returns the states in full precision."""
    folder.mkdir()
    states = {}
    for seed, (kind, make) in enumerate({'refiner': RefineNet, 'scorer': ScoreNet}.items()):
        states[kind] = rig.random_state(kind, width, seed)
        network = make(width)
        network.load_state_dict(states[kind])
        save_network(network, folder / f'{kind}.safetensors')
        write_manifest(folder, kind, {'width': width, 'metrics_held_out': {'x': 1.5}})
    return states


@pytest.fixture(scope='module')
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, rig.State]]:
    folder = tmp_path_factory.mktemp('sets') / 'mine'
    return folder, write_set(folder)


@pytest.fixture
def own(written: tuple[Path, dict[str, rig.State]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(written[0], tmp_path / 'mine'))


def edit_manifest(folder: Path, kind: str, **changes: object) -> None:
    path = folder / 'manifest.json'
    manifest = json.loads(path.read_text())
    manifest['networks'][kind].update(changes)
    path.write_text(json.dumps(manifest))


def halved(state: rig.State) -> rig.State:
    """What fp16 storage leaves of a state."""
    return {k: v.half().float() if v.is_floating_point() else v for k, v in state.items()}


def test_round_trip_gives_the_networks_that_were_saved(written):
    folder, states = written
    loaded = load_networks(str(folder))
    pair = rig.crops(2)
    with torch.no_grad():
        refined, scored = loaded.refiner(*pair), loaded.scorer(*pair)
        expected = rig.refine(halved(states['refiner']), *pair)
        torch.testing.assert_close(refined, expected, atol=2e-4, rtol=2e-4)
        expected_scores = rig.score(halved(states['scorer']), *pair)
        torch.testing.assert_close(scored, expected_scores, atol=2e-4, rtol=2e-4)
    assert (loaded.name, loaded.device.type, loaded.dtype) == ('mine', 'cpu', torch.float32)
    for network in (loaded.refiner, loaded.scorer):
        assert not network.training
        assert not any(p.requires_grad for p in network.parameters())
        assert not [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]


def test_files_hold_fp16_and_no_counters(own):
    with safe_open(own / 'scorer.safetensors', 'pt') as file:
        keys = set(file.keys())
        assert {file.get_tensor(key).dtype for key in keys} == {torch.float16}
    expected = rig.documented_shapes('scorer', WIDTH)
    assert keys == {key for key in expected if not key.endswith('num_batches_tracked')}


def test_manifest_says_what_a_reader_needs(own):
    manifest = json.loads((own / 'manifest.json').read_text())
    assert (manifest['name'], manifest['license'], manifest['format']) == ('mine', 'Apache-2.0', 1)
    for kind in ('refiner', 'scorer'):
        entry = manifest['networks'][kind]
        content = (own / entry['file']).read_bytes()
        assert entry['sha256'] == hashlib.sha256(content).hexdigest()
        assert entry['width'] == WIDTH and entry['metrics_held_out'] == {'x': 1.5}


def test_writing_one_entry_again_keeps_the_other(own):
    before = json.loads((own / 'manifest.json').read_text())['networks']
    save_network(RefineNet(0.125), own / 'refiner.safetensors')
    write_manifest(own, 'refiner', {'width': 0.125})
    after = json.loads((own / 'manifest.json').read_text())['networks']
    assert after['scorer'] == before['scorer'] and after['refiner'] != before['refiner']
    loaded = load_networks(str(own))
    assert (loaded.refiner.width, loaded.scorer.width) == (0.125, WIDTH)


def test_values_beyond_fp16_are_refused(tmp_path):
    network = RefineNet(WIDTH)
    network.encodeA[0].net[1].running_var.fill_(1e6)
    with pytest.raises(ValueError, match=r'encodeA\.0\.net\.1\.running_var.*not finite in fp16'):
        save_network(network, tmp_path / 'x.safetensors')
    assert not (tmp_path / 'x.safetensors').exists()


def test_a_shipped_set_is_found_by_name(own, monkeypatch):
    monkeypatch.setattr(weights, 'WEIGHTS_FOLDER', own.parent)
    assert load_networks('mine').name == 'mine'


def test_an_unknown_name_lists_the_choices(own, monkeypatch):
    shutil.copytree(own, own.parent / 'huge')
    monkeypatch.setattr(weights, 'WEIGHTS_FOLDER', own.parent)
    with pytest.raises(ValueError, match=r'"smal": neither a shipped set \(huge, mine\) nor a'):
        load_networks('smal')


def test_one_flipped_bit_is_found(own):
    file = own / 'refiner.safetensors'
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r'refiner\.safetensors: sha256 is [0-9a-f]{64}.*restore'):
        load_networks(str(own))


def test_a_truncated_file_is_found(own):
    file = own / 'scorer.safetensors'
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(ValueError, match=r'scorer\.safetensors: sha256 is .*cut short'):
        load_networks(str(own))


def test_a_missing_file_is_named(own):
    (own / 'scorer.safetensors').unlink()
    with pytest.raises(ValueError, match=r'scorer\.safetensors is missing.*manifest\.json'):
        load_networks(str(own))


def test_another_width_in_the_manifest_names_file_and_shapes(own):
    edit_manifest(own, 'refiner', width=0.25)
    with pytest.raises(ValueError, match=r'refiner\.safetensors does not fit RefineNet of width'):
        load_networks(str(own))


def test_swapped_files_name_the_keys_that_do_not_fit(own):
    manifest = json.loads((own / 'manifest.json').read_text())
    entries = manifest['networks']
    entries['refiner'], entries['scorer'] = entries['scorer'], entries['refiner']
    (own / 'manifest.json').write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"missing \['encodeA\..*unknown \['att"):
        load_networks(str(own))


@pytest.mark.parametrize(
    'content',
    ['{', '', '[]', '{}', '{"networks": []}', '{"networks": {"refiner": {}}}', 'null', '\x00'],
)
def test_a_broken_manifest_is_named(own, content):
    (own / 'manifest.json').write_text(content)
    with pytest.raises(ValueError, match=r'manifest\.json: not a manifest .*refiner and a scorer'):
        load_networks(str(own))


@pytest.mark.parametrize('key', ['file', 'sha256', 'width'])
def test_a_manifest_without_a_key_says_which(own, key):
    path = own / 'manifest.json'
    manifest = json.loads(path.read_text())
    del manifest['networks']['scorer'][key]
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=rf"not a manifest .*KeyError: '{key}'"):
        load_networks(str(own))


def test_fp16_on_a_cpu_is_refused(own):
    with pytest.raises(ValueError, match='fp16 on device cpu.*needs CUDA, choose fp32'):
        load_networks(str(own), 'cpu', 'fp16')


def test_unknown_precision_lists_the_choices(own):
    with pytest.raises(ValueError, match='precision is "int4", must be one of fp32, fp16, int8'):
        load_networks(str(own), precision='int4')


def test_integers_need_a_gpu_as_half_does(own):
    with pytest.raises(
        ValueError, match='precision int8 on device cpu: half precision needs CUDA'
    ):
        load_networks(str(own), precision='int8')


def test_an_empty_folder_says_what_is_looked_for(tmp_path):
    with pytest.raises(ValueError, match=r'holds no manifest\.json and no official set .*\.onnx'):
        load_networks(str(tmp_path))


def write_official(folder: Path, contents: dict[str, object]) -> Path:
    for kind, content in contents.items():
        (folder / OFFICIAL[kind]).mkdir(parents=True)
        torch.save(content, folder / OFFICIAL[kind] / 'model_best.pth')
    return folder


@pytest.fixture(scope='module')
def official_states() -> dict[str, rig.State]:
    return {kind: rig.random_state(kind, 1.0, 5) for kind in OFFICIAL}


def test_official_checkpoints_load_bare_and_under_the_key_model(tmp_path, official_states):
    contents = {
        'refiner': {'model': official_states['refiner'], 'epoch': 12, 'loss': 0.5},
        'scorer': official_states['scorer'],
    }
    loaded = load_networks(str(write_official(tmp_path / 'official', contents)))
    pair = rig.crops(1)
    with torch.no_grad():
        expected = rig.refine(official_states['refiner'], *pair)
        torch.testing.assert_close(loaded.refiner(*pair), expected, atol=3e-4, rtol=3e-4)
    for network, kind in ((loaded.refiner, 'refiner'), (loaded.scorer, 'scorer')):
        expected = rig.folded(official_states[kind])
        torch.testing.assert_close(dict(network.state_dict()), expected, atol=1e-5, rtol=1e-5)


def test_an_official_checkpoint_must_be_complete(tmp_path, official_states):
    cut = dict(official_states['refiner'])
    del cut['encodeA.0.net.1.num_batches_tracked'], cut['rot_head.1.bias']
    folder = write_official(tmp_path / 'x', {'refiner': cut, 'scorer': {}})
    with pytest.raises(
        ValueError, match=r'model_best\.pth.*num_batches_tracked.*rot_head\.1\.bias'
    ):
        load_networks(str(folder))


class Malicious:
    """Runs a command where it is unpickled without weights_only."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


def test_a_malicious_checkpoint_is_refused_and_not_run(tmp_path):
    attacked = tmp_path / 'attacked'
    content = {'model': {'encodeA.0.net.0.weight': Malicious(attacked)}}
    folder = write_official(tmp_path / 'x', {'refiner': content, 'scorer': {}})
    with pytest.raises(ValueError, match=r'model_best\.pth is not a checkpoint of tensors alone'):
        load_networks(str(folder))
    assert not attacked.exists()
    function, arguments = Malicious(attacked).__reduce__()
    function(*arguments)
    assert attacked.is_dir(), 'the attack of this test is none'


@pytest.mark.parametrize('content', [b'', b'not a checkpoint', b'PK\x03\x04 cut'])
def test_a_broken_checkpoint_is_named(tmp_path, content):
    folder = write_official(tmp_path / 'x', {'refiner': {}, 'scorer': {}})
    (folder / OFFICIAL['refiner'] / 'model_best.pth').write_bytes(content)
    with pytest.raises(
        ValueError, match=r'model_best\.pth is not a checkpoint.*download it again'
    ):
        load_networks(str(folder))


@pytest.mark.parametrize('content', [[1, 2], torch.zeros(3), {'model': {'epoch': 3}}])
def test_a_checkpoint_without_tensors_by_name_is_named(tmp_path, content):
    folder = write_official(tmp_path / 'x', {'refiner': content, 'scorer': {}})
    with pytest.raises(ValueError, match=r'model_best\.pth holds no state_dict'):
        load_networks(str(folder))
