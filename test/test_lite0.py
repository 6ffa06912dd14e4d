"""The EfficientNet-Lite0 pyramid: where its features lie, and how ImageNet weights enter it."""

import pytest

torch = pytest.importorskip('torch')

from cotracker_ros.model.lite0 import Lite0Encoder, read_imagenet, upsample  # noqa: E402


@pytest.fixture(scope='module')
def encoder():
    torch.manual_seed(0)
    return Lite0Encoder(16).eval()


def test_features_move_with_the_picture(encoder):
    wide = torch.rand(1, 3, 256, 512, generator=torch.Generator().manual_seed(1)) * 255
    with torch.no_grad():
        left, right = encoder(wide[..., :448]), encoder(wide[..., 64:])
    for stride, a, b in zip(encoder.strides, left, right, strict=True):
        assert a.shape == (1, 16, 256 // stride, 448 // stride)
        assert torch.allclose(a.norm(dim=1), torch.ones(()), atol=1e-3)
        part = a.shape[-1] // 2  # far from both borders
        assert torch.allclose(a[..., part, part + 64 // stride], b[..., part, part], atol=0.15), (
            stride
        )


def test_upsampling_keeps_cells_where_they_are():
    ramp = torch.arange(5.0).expand(1, 1, 4, 5)
    assert torch.equal(
        upsample(ramp)[0, 0, 3], torch.tensor([0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4])
    )


def test_imagenet_weights_enter_in_the_order_of_the_network(encoder, tmp_path):
    source = Lite0Encoder(16)
    trunk = [x for part in source.trunk for x in part.state_dict().items()]
    saved = {f'layer{k}.{name}': x for k, (name, x) in enumerate(trunk)}
    saved['classifier'] = torch.zeros(7)
    torch.save(saved, tmp_path / 'lite0.pth')
    taught = Lite0Encoder(16)
    read_imagenet(taught, tmp_path / 'lite0.pth')
    for one, two in zip(source.trunk, taught.trunk, strict=True):
        for name, value in one.state_dict().items():
            assert torch.equal(value, two.state_dict()[name])
    saved['layer0.0.weight'] = torch.zeros(3)
    torch.save(saved, tmp_path / 'other.pth')
    with pytest.raises(ValueError, match='does not hold EfficientNet-Lite0'):
        read_imagenet(taught, tmp_path / 'other.pth')
