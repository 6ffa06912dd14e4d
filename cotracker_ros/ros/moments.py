"""When images were taken: by their stamps or, where these are no times, by their arrival."""

import threading

STANDING = 2  # repetitions of a stamp after which it is none
RESUMED = 1.0  # seconds by which stamps that begin again may differ from what is expected


class Moments:
    """Gives each image of a camera a moment in seconds, by which time passes.

    Some drivers never set a stamp (0), some repeat one for ever. From the third image with one
    stamp on, and at once where it is 0, moments go on with the arrival of the images, so that
    what waits for time to pass does not wait for ever. Where stamps come back, moments go on from
    where they are. Moments stay inside: published headers are those of the images.
    """

    def __init__(self) -> None:
        self.by_arrival = False  # of the last image
        self._stamp: float | None = None
        self._same = 0
        self._moment: float | None = None
        self._arrival = 0.0
        self._shift = 0.0  # from stamps to moments
        self._lock = threading.Lock()  # images come to the worker, queries to the executor

    def of(self, stamp: float, arrival: float) -> float:
        """Return the moment of the next image; `arrival`: seconds of a clock that never stops."""
        with self._lock:
            self._same = self._same + 1 if stamp == self._stamp else 0
            none = stamp == 0 or self._same >= STANDING
            if self._moment is None:
                moment = arrival if none else stamp
            else:
                expected = self._moment + max(0.0, arrival - self._arrival)
                if self.by_arrival and abs(stamp + self._shift - expected) > RESUMED:
                    self._shift = expected - stamp
                moment = expected if none else stamp + self._shift
            self.by_arrival, self._stamp = none, stamp
            self._moment, self._arrival = moment, arrival
            return moment

    def of_query(self, stamp: float, arrival: float, clock: float) -> float | None:
        """Return the moment that the stamp of a query means; None: the next image.

        arrival: of the query, on the clock of the images' arrival; clock: the time by which
        stamps are set, 0 where it is not known.
        """
        with self._lock:
            if stamp == 0 or self._moment is None:
                return stamp or None
            if not self.by_arrival:
                return stamp + self._shift
            if stamp == self._stamp or not clock:
                return None
            return self._moment + (arrival - self._arrival) - (clock - stamp)
