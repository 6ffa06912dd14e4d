"""Every conversion between camera and model pixels.

Pixels: x right, y down, (0, 0) is the centre of the top-left pixel, so an image of width W covers
-0.5 to W - 0.5. Points are arrays (..., 2) of x, y: numpy arrays or torch tensors alike (torch is
not imported). Sizes are (H, W), the order of array shapes.

Three ways of resizing an image are in use, and each has its own way of moving points. A model says
which of POINTS belongs to it; images go with them:

- 'edges': edges stay edges, as `cv2.resize` or `interpolate(align_corners=False)`. The real-time
  model: it is the only convention that an anti-aliased (area) reduction can have.
- 'aligned': corner centres stay corner centres, as `interpolate(align_corners=True)`. The
  published versions 2 and 3.
- 'ratio': version 1's published way, images as 'edges' and points by a plain ratio; it shifts
  points by up to half a pixel, and its weights were measured with it.
"""

import numpy as np


def _as(xy, values):
    """Two numbers as an array of the kind, type (at least float32) and device of `xy`."""
    if hasattr(xy, 'new_tensor'):
        return xy.new_tensor(values)
    return np.asarray(values, np.result_type(xy, np.float32))


def rescale(xy, source, target):
    """Points (..., 2) of an image of size `source` (H, W), in pixels of its resize to `target`."""
    ratio = _as(xy, (target[1] / source[1], target[0] / source[0]))
    return (xy + 0.5) * ratio - 0.5


def rescale_aligned(xy, source, target):
    """As `rescale`, for images resized with aligned corners: (W' - 1) / (W - 1)."""
    return xy * _as(
        xy, ((target[1] - 1) / max(source[1] - 1, 1), (target[0] - 1) / max(source[0] - 1, 1))
    )


def rescale_plain(xy, source, target):
    """As `rescale`, by the plain ratio W' / W of the published version 1."""
    return xy * _as(xy, (target[1] / source[1], target[0] / source[0]))


POINTS = {'edges': rescale, 'aligned': rescale_aligned, 'ratio': rescale_plain}


def inside(xy, size):
    """Whether points (..., 2) lie on the image of `size` (H, W), its outer edges included."""
    x, y = xy[..., 0], xy[..., 1]
    return (x >= -0.5) & (x <= size[1] - 0.5) & (y >= -0.5) & (y <= size[0] - 0.5)


def between_centres(xy, size):
    """Whether points (..., 2) lie between the centres of the outermost pixels of an image of
    `size` (H, W), where it can be read without being continued; half a pixel less than `inside`.
    """
    x, y = xy[..., 0], xy[..., 1]
    return (x >= 0) & (x <= size[1] - 1) & (y >= 0) & (y <= size[0] - 1)
