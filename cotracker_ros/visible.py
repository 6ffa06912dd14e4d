"""When a point counts as visible: a rule that every model states for itself."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

_TEXT = re.compile(r'visibility( x confidence)? > ([0-9]*\.?[0-9]+)')


@dataclass(frozen=True)
class VisibleRule:
    """Visible where the probability, or its product with the confidence, is above `threshold`."""

    threshold: float
    with_confidence: bool = False

    def __call__(self, visibility: Any, confidence: Any) -> Any:
        """Apply the rule to probabilities of one shape, arrays or tensors: as many bools."""
        measure = visibility * confidence if self.with_confidence else visibility
        return measure > self.threshold

    def __str__(self) -> str:
        return f'visibility{" x confidence" * self.with_confidence} > {self.threshold:g}'

    @classmethod
    def parse(cls, text: str) -> VisibleRule:
        """Read what `str` gives. Raises ValueError for any other text."""
        found = _TEXT.fullmatch(text)
        if not found:
            raise ValueError(f'{text!r} is no rule like "visibility x confidence > 0.6"')
        return cls(float(found[2]), found[1] is not None)
