"""What the list scheduler keeps: records, so that a function is handed a few arrays instead of dozens.

There is one of each kind of instruction (a stage's forward is kind 2 * stage, its backward the next), of each edge between
kinds, of each instruction, and of each device.
"""

import numpy as np

KIND = np.dtype(
    [
        ("device", np.int64),
        ("exists", np.int64),
        ("seconds", np.float64),
        ("key", np.float64),  # urgency: whole microbatches, and a share of one for the work behind it
        ("limit", np.int64),  # how many of them may be ahead of the backward
        ("holds", np.float64),  # bytes taken when it starts
        ("frees", np.float64),  # and given back when it ends
        ("reads", np.float64),  # bytes of messages that it has been sent
        ("first", np.int64),  # its readers among the edges
        ("last", np.int64),
        ("next", np.int64),  # microbatch
        ("offered", np.int64),  # whether that is in a heap or running
    ],
    align=True,
)
EDGE = np.dtype(
    [
        ("kind", np.int64),
        ("device", np.int64),
        ("bytes", np.float64),  # of the message
        ("part", np.float64),  # of it that waits for this reader
    ],
    align=True,
)
INSTRUCTION = np.dtype([("missing", np.int64), ("arrived", np.float64)], align=True)
DEVICE = np.dtype(
    [
        ("slot", np.int64),  # where its part of the heaps begins
        ("ready", np.int64),  # entries in its heap of what may start
        ("coming", np.int64),  # and of what only waits for a message under way
        ("running", np.int64),  # kind, -1 for none
        ("asleep", np.int64),  # neither running nor about to start something
        ("live", np.float64),
        ("unread", np.float64),
        ("most_unread", np.float64),
        ("last_end", np.float64),
    ],
    align=True,
)
