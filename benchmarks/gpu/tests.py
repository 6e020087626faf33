"""The tests that need a GPU, by pytest: on a GPU, a run in which none of them ran proves nothing and fails.

python benchmarks/gpu/tests.py --device cuda|cpu ARGUMENT...      arguments of pytest, with --junitxml FILE among them
"""

from __future__ import annotations

import subprocess
import sys
from xml.etree import ElementTree


def ran(report: str) -> int:
    """How many tests of pytest's JUnit report were run, and not skipped."""
    suites = ElementTree.parse(report).getroot().iter("testsuite")  # pytest's own, of this minute
    return sum(int(suite.get("tests", 0)) - int(suite.get("skipped", 0)) for suite in suites)


def main() -> int:
    device, arguments = sys.argv[2], sys.argv[3:]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", *arguments]
    code = subprocess.run(command, check=False).returncode
    if code == 0 and device == "cuda" and not ran(arguments[arguments.index("--junitxml") + 1]):
        print("every test that needs a GPU was skipped")
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
