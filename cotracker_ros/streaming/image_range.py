"""Values of more than 8 bits to 8 bits, in a range that holds from image to image."""

import functools
import re

import numpy as np

FIRST_IMAGES = 10  # from which `auto` takes its range
MARGIN = 0.25  # of what was seen, on either side: for light that changes
LEAST = 1024  # counts of an integer range: noise must not fill the picture
OVERRUN = 0.25  # share of pixels outside a settled range above which it is taken anew
_STEP = 5  # of the pixels looked at; odd, or it would meet one colour of a Bayer pattern alone


def parse(text: str) -> tuple[float, float] | None:
    """Return the limits that `auto`, `bits:12` or `min,max` stand for; None: automatic.

    Raises ValueError for anything else.
    """
    if text == 'auto':
        return None
    bits = re.fullmatch(r'bits:(\d+)', text)
    if bits and 8 <= int(bits[1]) <= 32:
        return 0.0, 2.0 ** int(bits[1]) - 1
    try:
        low, high = (float(part) for part in text.split(','))
    except ValueError:
        low = high = 0.0
    if not (low < high and np.isfinite([low, high]).all()):
        raise ValueError(
            f'image_range must be auto, bits:8 to bits:32, or min,max such as 0,4095; not {text!r}'
        )
    return low, high


class ImageRange:
    """Which values of a stream's images become black and white.

    `auto` spans what the first images hold, with a margin, and then stays: a range that followed
    each image would flicker, and a lamp that comes into view would change all else. Only where a
    quarter of an image lies outside is it taken anew, and wider.
    """

    def __init__(self, text: str = 'auto') -> None:
        """Raises ValueError as `parse`."""
        self.text = text
        self._fixed = parse(text)
        self._settled: tuple[float, float] | None = None
        self._proposed: tuple[float, float] | None = None
        self._seen = 0

    @property
    def automatic(self) -> bool:
        """Whether the range is found from the images."""
        return self._fixed is None

    def limits(self, values: np.ndarray) -> tuple[float, float] | None:
        """Return the limits for an image (H, W, C); None: of 8 bits, to be left alone."""
        if values.dtype.itemsize == 1:
            return None
        if self._fixed is not None:
            return self._fixed
        sample = _sample(values)
        if self._settled is not None:
            low, high = self._settled
            outside = ((sample < low) | (sample > high)).mean() if sample.size else 0.0
            if outside > OVERRUN:
                self._seen = 0
            if self._seen >= FIRST_IMAGES or outside <= 0.005:
                self._proposed = self._settled
                return self._settled
        self._proposed = _spanned(sample, values.dtype, self._settled)
        return self._proposed

    def learn(self) -> None:
        """Keep the limits of the last image, which was not blank."""
        if self._proposed is not None:
            self._settled = self._proposed
            self._seen += 1


def _sample(values: np.ndarray) -> np.ndarray:
    """Return some finite values of an image, in float64."""
    step = _STEP if min(values.shape[:2]) >= 16 * _STEP else 1
    with np.errstate(invalid='ignore'):  # signalling NaNs
        sample = values[::step, ::step].astype(np.float64)
    sample = sample[np.isfinite(sample)]
    return np.clip(sample, -1e300, 1e300)  # differences stay finite


def _spanned(
    sample: np.ndarray, dtype: np.dtype, before: tuple[float, float] | None
) -> tuple[float, float]:
    """Return limits around a sample and around those before; hot and dead pixels do not count."""
    low, high = np.percentile(sample, (0.5, 99.5)) if sample.size else (0.0, 0.0)
    margin = MARGIN * (high - low)
    low, high = low - margin, high + margin
    if dtype.kind == 'f':
        least = max(1e-3 * max(abs(low), abs(high)), 1e-6)
        smallest, largest = -np.inf, np.inf
    else:
        least, info = LEAST, np.iinfo(dtype)
        smallest, largest = float(info.min), float(info.max)
    if high - low < least:
        low, high = (low + high - least) / 2, (low + high + least) / 2
    if before is not None:
        low, high = min(low, before[0]), max(high, before[1])
    if low < smallest:
        low, high = smallest, max(high, smallest + least)
    if high > largest:
        low, high = min(low, largest - least), largest
    return float(low), float(high)


def to_8_bit(values: np.ndarray, limits: tuple[float, float] | None = None) -> np.ndarray:
    """Return values of any type as uint8, in their shape: `limits` become 0 and 255, values beyond
    are clipped.

    Without limits the whole range of an integer type, 0 to 1 of floating point ones. NaN is 0.
    """
    dtype = values.dtype
    if dtype == np.uint8:
        return values
    if dtype == np.int8:
        return (values.view(np.uint8) ^ 128).astype(np.uint8)
    if limits is None:
        limits = (0.0, 1.0)
        if dtype.kind != 'f':
            limits = float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)
    if dtype.kind != 'f' and dtype.itemsize == 2:
        return _table(limits, dtype.kind)[values.astype(dtype.newbyteorder('='), copy=False)]
    with np.errstate(invalid='ignore'):
        return _scaled(values.astype(np.float64), limits, dtype.kind)


@functools.lru_cache(maxsize=8)
def _table(limits: tuple[float, float], kind: str) -> np.ndarray:
    """Return the 8-bit value of each 16-bit one; negative ones index from the end, as they lie."""
    every = np.arange(65536, dtype=np.uint16)
    return _scaled(every.view(f'{kind}2').astype(np.float64), limits, kind)


def _scaled(values: np.ndarray, limits: tuple[float, float], kind: str) -> np.ndarray:
    low, high = limits
    values = np.clip(values, low, high)
    if kind == 'f':
        scaled = np.rint((values - low) * (255 / (high - low)))
    else:  # 256 equal steps: of the whole range, the high byte
        scaled = np.floor((values - low) * (256 / (high - low + 1)))
    return np.clip(np.nan_to_num(scaled, nan=0.0, posinf=255, neginf=0), 0, 255).astype(np.uint8)
