"""Sources of training clips and their mixture: every batch is of one source, chosen by share.

A batch is a function of the run's seed and of the batch's number alone, so that a resumed run goes
on exactly, whatever the number of processes that make its batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from train.data.batch import Clips

GOLDEN = (5**0.5 - 1) / 2


class Source(Protocol):
    """Where batches come from. Its name stands beside its losses and in what is published."""

    name: str

    def batch(self, index: int) -> Clips:
        """Return batch `index` of the run: the same for the same seed and index, always."""
        ...


class Mixture:
    """A source of several: each gives its share of the batches.

    The multiples of the golden ratio, modulo 1, fall evenly into [0, 1), so the shares are met
    within any stretch of a run and not only in the long run.
    """

    def __init__(self, sources: Sequence[Source], shares: Sequence[float]):
        """Shares are relative: (3, 1) and (0.75, 0.25) mean the same. ValueError where one is
        negative, or all are zero.
        """
        if len(sources) != len(shares) or min(shares, default=-1) < 0 or not sum(shares):
            raise ValueError(f'shares of the sources must be positive, not {list(shares)}')
        self.sources, total = list(sources), sum(shares)
        self.limits = [sum(shares[: k + 1]) / total for k in range(len(shares))]
        parts = zip(sources, shares, strict=True)
        names = [f'{share / total:.0%} {source.name}' for source, share in parts]
        self.name = ', '.join(names) if len(names) > 1 else sources[0].name

    def source(self, index: int) -> Source:
        """Return the source of batch `index`."""
        place = (0.5 + index * GOLDEN) % 1
        return next(s for s, top in zip(self.sources, self.limits, strict=True) if place < top)

    def batch(self, index: int) -> Clips:
        """Return batch `index`, with the name of its source."""
        source = self.source(index)
        clips = source.batch(index)
        clips.source = source.name
        return clips
