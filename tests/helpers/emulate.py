"""The kernels for AVX-512 on a machine that lacks it: every instruction of theirs as a loop over the lanes.

    python tests/helpers/emulate.py [BUILD_DIR]

Slow, and no word about speed: the tests of the native engine run with the tables `v4` and `vnni` as well. Does nothing
where the machine has AVX-512, whose ordinary tests run them, or is no x86. Needs what tests/helpers/sanitize.py needs.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from sanitize import LEFT_OUT, ROOT, build, load

TESTS = ("tests/native", "tests/engine/test_cpu.py", "tests/engine/test_int8.py")


def main(folder: Path) -> int:
    from sparsetime import _native

    if platform.machine() not in ("x86_64", "AMD64") or "v4" in _native.available():
        print("emulate: nothing to do: this machine runs all of its kernels")
        return 0
    os.chdir(ROOT)
    try:
        build(folder, "EMULATE=ON", "_native")
    except subprocess.CalledProcessError as error:
        sys.exit(f"emulate: failed: {' '.join(map(str, error.cmd))}")
    found = subprocess.run([sys.executable, __file__, "--tests", str(folder)], check=False)
    return found.returncode


def run_tests(folder: Path) -> int:
    """The tests, in this process, with the module of the build."""
    load(folder, "_native")
    from sparsetime import _native

    if not {"v4", "vnni"} <= set(_native.available()):
        raise RuntimeError(f"expected a build with the tables v4 and vnni, got {_native.available()}")
    chosen = f"{LEFT_OUT} and not v3 and not base"  # those run on this machine as they are
    return int(pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", chosen, *TESTS]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--tests"]:
        sys.exit(run_tests(Path(sys.argv[2])))
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "emulate")))
