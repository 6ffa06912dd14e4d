"""Half precision where it pays: in an encoder, which takes nearly all of the time."""

import torch
from torch import Tensor, nn

HALF = torch.float16, torch.bfloat16


class HalfPrecisionEncoder(nn.Module):
    """A model whose `.half()` and `.bfloat16()` are of its `encoder` alone.

    Positions of hundreds of pixels, and their state, have no fraction of a pixel left in half
    precision: the rest keeps the precision that it had.
    """

    def _apply(self, fn, recurse=True):
        def wide(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            return tensor.to(new.device) if new.dtype in HALF else new

        for name, part in self.named_children() if recurse else ():
            part._apply(fn if name == 'encoder' else wide)
        return super()._apply(wide, recurse=False)


def encode(encoder: nn.Module, picture: Tensor) -> list[Tensor]:
    """Return the features of float32 pictures, in their type, from an encoder of any precision."""
    precision = next(encoder.parameters()).dtype
    if precision not in HALF:
        return encoder(picture)
    return [feature.to(picture.dtype) for feature in encoder(picture.to(precision))]
