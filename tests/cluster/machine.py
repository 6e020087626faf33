"""What runs first on each machine of the test cluster: it holds the machine's namespaces and collects what is orphaned there.

    python machine.py NAME

Started in namespaces of its own (network, host name, mounts; on a node processes as well). When it ends, the kernel takes the
network away, and on a node, where it is process 1, every process with it.
"""

import contextlib
import os
import socket
import subprocess
import sys
import time


def main() -> None:
    socket.sethostname(sys.argv[1])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    print("up", flush=True)
    while True:
        with contextlib.suppress(ChildProcessError):
            os.wait()
            continue
        time.sleep(0.2)


if __name__ == "__main__":
    main()
