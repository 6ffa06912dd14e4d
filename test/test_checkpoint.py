"""Published checkpoints load strictly; anything else is refused with the reason."""

import re

import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('safetensors')

from golden_rule import FAMILY, KEYS, published_state  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from cotracker_ros.model import build_model, load_checkpoint  # noqa: E402
from cotracker_ros.model.checkpoint import checkpoint_metadata  # noqa: E402

FILES = {
    'cotracker1': 'cotracker_stride_4_wind_8.pth',
    'cotracker2': 'cotracker2.pth',
    'cotracker3_online': 'scaled_online.pth',
    'cotracker3_offline': 'scaled_offline.pth',
}


@pytest.mark.parametrize(
    'name, nested', [*((name, False) for name in FAMILY), ('cotracker1', True)]
)
def test_published_checkpoints_load(name, nested, tmp_path):
    state = published_state(name)
    torch.save({'model': state} if nested else state, tmp_path / FILES[name])
    model = load_checkpoint(tmp_path / FILES[name], (96, 128))
    assert model.config == build_model(name, (96, 128)).config
    assert not model.training
    # every published number arrives, once
    stored = [v.double() for k, v in state.items() if not k.endswith('_emb')]
    loaded = [v.double() for v in model.state_dict().values()]
    assert sum(v.numel() for v in loaded) == sum(v.numel() for v in stored)
    total = sum(v.sum() for v in stored)
    torch.testing.assert_close(sum(v.sum() for v in loaded), total, rtol=0, atol=1e-6)


def test_joined_and_split_weights_keep_their_order(tmp_path):
    first = published_state('cotracker1')
    torch.save(first, tmp_path / FILES['cotracker1'])
    model = load_checkpoint(tmp_path / FILES['cotracker1'], (96, 128))
    fused = first['updateformer.space_blocks.2.attn.qkv.weight']
    attention = model.transformer.space[2].points.attention
    assert torch.equal(attention.q.weight, fused[:384])
    assert torch.equal(attention.kv.weight, fused[384:])
    third = published_state('cotracker3_online')
    save_file(third, tmp_path / 'x.safetensors')
    model = load_checkpoint(tmp_path / 'x.safetensors', (96, 128))
    assert torch.equal(model.transformer.head.bias[:2], third['updateformer.flow_head.bias'])
    assert torch.equal(model.transformer.head.bias[2:], third['updateformer.vis_conf_head.bias'])


def test_window_and_stride_are_read_off_the_file(tmp_path):
    state = published_state('cotracker2')
    state['time_emb'] = torch.zeros(1, 16, 456)
    torch.save(state, tmp_path / 'cotracker2v1.pth')
    assert load_checkpoint(tmp_path / 'cotracker2v1.pth').config.window == 16
    torch.save(published_state('cotracker1'), tmp_path / 'cotracker_stride_8_wind_16.pth')
    config = load_checkpoint(tmp_path / 'cotracker_stride_8_wind_16.pth').config
    assert (config.stride, config.window, config.image_size) == (8, 16, (384, 512))
    torch.save(published_state('cotracker1'), tmp_path / 'mine.pth')
    with pytest.raises(ValueError, match=r'window and stride .* cotracker1_stride_4_wind_8\.pth'):
        load_checkpoint(tmp_path / 'mine.pth')


def test_own_checkpoints_load(tmp_path):
    model = build_model('cotracker3_offline', (96, 128))
    save_file(model.state_dict(), tmp_path / 'mine_wind_60.safetensors')
    loaded = load_checkpoint(tmp_path / 'mine_wind_60.safetensors', (96, 128))
    assert loaded.config == model.config
    assert all(map(torch.equal, loaded.parameters(), model.parameters()))
    model = build_model('realtime')
    save_file(model.state_dict(), tmp_path / 'realtime.safetensors')
    loaded = load_checkpoint(tmp_path / 'realtime.safetensors')
    assert loaded.image_size == model.image_size
    assert all(map(torch.equal, loaded.parameters(), model.parameters()))


def assert_refused(path, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_checkpoint(path, (96, 128))
    assert path.name in str(caught.value)


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / 'none.pth'))):
        load_checkpoint(tmp_path / 'none.pth')
    for name in ('text.pth', 'text.safetensors'):
        (tmp_path / name).write_text('not weights')
        assert_refused(tmp_path / name, 'no readable checkpoint')
    (tmp_path / 'empty.pth').touch()
    assert_refused(tmp_path / 'empty.pth', 'no readable checkpoint')
    torch.save([1, 2], tmp_path / 'list.pth')
    assert_refused(tmp_path / 'list.pth', 'must be a dictionary of tensors')
    (tmp_path / 'folder.pth').mkdir()
    with pytest.raises(FileNotFoundError, match='folder'):
        load_checkpoint(tmp_path / 'folder.pth')


@pytest.mark.parametrize('name', ['cotracker1', 'cotracker3_online'])
def test_what_the_keys_do_not_tell_may_be_noted_in_the_file(name, tmp_path):
    model = build_model(name, (64, 96), window=12)
    path = tmp_path / 'mine.safetensors'
    older = {'window': '12', 'stride': '4'}
    for metadata in (checkpoint_metadata(model), older):
        save_file(model.state_dict(), path, metadata=metadata)
        assert load_checkpoint(path, (64, 96)).config == model.config
    save_file(model.state_dict(), path, metadata={'window': 'many'})
    with pytest.raises(ValueError, match='cannot be read off the file; name the file like'):
        load_checkpoint(path, (64, 96))


class Hostile:
    """Runs code where it is unpickled freely."""

    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    torch.save({'model': Hostile()}, tmp_path / 'hostile.pth')
    assert_refused(tmp_path / 'hostile.pth', r'never loaded because it could run code$')


def test_other_networks_and_wrong_keys_are_refused(tmp_path):
    path = tmp_path / 'net.pth'
    torch.save({'conv.weight': torch.zeros(3)}, path)
    assert_refused(path, r'no checkpoint of a known network; it holds conv\.weight')
    state = published_state('cotracker3_online')
    del state['fnet.conv2.bias']
    state['updateformer.extra'] = torch.zeros(1)
    state['corr_mlp.fc2.bias'] = torch.zeros(5)
    torch.save(state, path)
    assert_refused(
        path,
        r'missing: encoder\.conv2\.bias; unexpected: transformer\.extra;'
        r' of another shape: update\.correlation\.mlp\.fc2\.bias',
    )


def test_the_published_sizes():
    # the paper's figure, tables not counted
    model = build_model('cotracker3_online')
    assert sum(p.numel() for p in model.parameters()) == 25_385_700
    assert set(KEYS) == set(FILES)
