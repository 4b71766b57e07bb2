"""`python -m segue.agent.thinking FD`: the process behind a `Proposer`."""

import signal
import sys
from multiprocessing.connection import Connection

from .proposer import serve

if __name__ == "__main__":
    # Ctrl-C reaches every process of the terminal; the run decides what it means, and closes the connection.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(Connection(int(sys.argv[1])))
