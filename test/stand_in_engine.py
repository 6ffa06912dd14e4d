"""An engine without a model, for tests of what is around one."""

import numpy as np

from cotracker_ros.engines import Engine
from cotracker_ros.engines.metadata import Metadata


class Standing(Engine):
    """Points stay where they were put."""

    name, device, precision = 'standing', 'none', 'f32'

    def __init__(self, slots):
        super().__init__(Metadata(1, 'm', '', 48, 64, 8, 1, 'fp32', '', '', ''), 1, slots, 0)
        self.reset()

    def _step(self, inputs):
        self.xy = np.where(inputs['query'][..., None], inputs['query_xy'], self.xy)
        live = inputs['live'].astype(np.float32)
        return {'xy': self.xy * live[..., None], 'visibility': live, 'confidence': live}

    def reset(self):
        self.xy = np.zeros((1, self.slots, 2), np.float32)
