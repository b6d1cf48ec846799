"""Runs a command for as long as somebody holds the other end of standard input: `python kept_process.py COMMAND ...`.

A server whose owner was killed would go on holding its port, its files and the GPU's memory. This process ends it then, also when
it hangs. SIGTERM is handed on. Standard library only.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading

PR_SET_PDEATHSIG = 1


def main(command: list[str]) -> int:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent if sys.platform == "linux" else None)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())

    def end_with_the_owner() -> None:
        os.read(0, 1)  # returns when the other end is closed
        process.kill()

    threading.Thread(target=end_with_the_owner, daemon=True).start()
    return process.wait()


def die_with_parent() -> None:
    """In the new process: end when this one is killed itself, as Ray does with the children of its workers."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
