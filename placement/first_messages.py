"""`FirstMessages`: how long the first message over each link was on its way in a step, on real devices."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class FirstMessages(NamedTuple):
    """The first message over each link in a step, by source and target; nan where its receiver did not wait for it.

    No other message was before it on the link, and when it came in is known only where somebody waited.

    Attributes:
        num_bytes: of its tensors, `float64[d, d]`.
        seconds: from when it was ready, by its sender's clock, until it had come in, by its receiver's, `float64[d, d]`.
            Clocks of different hosts differ, so between hosts only the sum of both directions says something.
    """

    num_bytes: Floats
    seconds: Floats
