"""Batches of a source for one process of a run, made in other processes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from train.data.batch import Clips
from train.data.clip import DataError
from train.data.mixture import Source


class Batches(IterableDataset):
    """Endless batches of a source from step `start` on: process `rank` of `ranks` takes every
    ranks-th, and a loader's workers take turns. The last is a DataError where data cannot be read.
    """

    def __init__(self, source: Source, start: int = 0, rank: int = 0, ranks: int = 1):
        super().__init__()
        self.source, self.start, self.rank, self.ranks = source, start, rank, ranks

    def __iter__(self) -> Iterator[Clips | DataError]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        if worker:
            torch.set_num_threads(1)
        for step in count(self.start + first, stride):
            try:
                yield self.source.batch(step * self.ranks + self.rank)
            except DataError as error:  # raised in a worker it would come as text, with a trace
                yield error
                return


def loader(batches: Batches, workers: int) -> Iterator[Clips]:
    """Iterate over batches made in `workers` other processes, or in this one when 0 (as on a
    GPU). Raises DataError.
    """
    ahead = 3 if workers else None
    for made in DataLoader(batches, batch_size=None, num_workers=workers, prefetch_factor=ahead):
        if isinstance(made, DataError):
            raise made
        yield made
