"""An occluder before a clip: columns of the picture that show its first frame upside down, so that
they look like the rest of it.
"""

from torch import Tensor


def hide(video: Tensor, columns: Tensor) -> Tensor:
    """Put an occluder before a video (T, C, H, W), in the columns (T, W) bool of each frame."""
    return video.where(~columns[:, None, None], video[:1].flip(-2))


def is_hidden(columns: Tensor, xy: Tensor) -> Tensor:
    """Tell which points (..., T, N, 2) px are behind occluders in columns (..., T, W): (..., T,
    N) bool. Points outside the picture are as at its border.
    """
    column = xy[..., 0].round().clamp(0, columns.shape[-1] - 1).long()
    return columns.gather(-1, column)
