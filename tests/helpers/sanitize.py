"""The native code under sanitizers: memory and undefined behaviour in the native tests, data races in two streams.

    python tests/helpers/sanitize.py [BUILD_DIR]

AddressSanitizer and UndefinedBehaviorSanitizer watch the extension modules while their own tests run: the runtimes are
preloaded, the interpreter and PyTorch stay as they are. ThreadSanitizer would see races in an interpreter that it was
not built with, so it watches a program of its own, `tests/native/streams.cpp`. Needs cmake, ninja and nanobind, GCC's
or Clang's sanitizer runtimes, and a minute or two. Exits non-zero at the first finding.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = ("_native", "_quantize")
TESTS = (
    *("tests/native", "tests/engine/test_cpu.py", "tests/engine/test_int8.py", "tests/nn/test_fused.py"),
    "tests/convert/test_random_modules.py",  # values of any rank
)
# Under a sanitizer every process of these tests would start slowly, and none loads the modules that are watched.
LEFT_OUT = "not by_environment and not parallel_runtime and not pytorchs_own and not forked"
OPTIONS = {
    # Python and PyTorch keep memory until the end on purpose. Frames that outlive their function are not looked for:
    # the runtimes of GCC 12 and older Clangs place them without the alignment that 512-bit registers need
    # (github.com/llvm/llvm-project/pull/152819), and sound code crashes.
    "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:strict_string_checks=1",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}


def build(folder: Path, option: str, *targets: str) -> None:
    """Compile targets of CMakeLists.txt with an option of its own."""
    configure = ["cmake", "-G", "Ninja", "-S", ROOT, "-B", folder, "-DCMAKE_BUILD_TYPE=None"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}", f"-DSPARSETIME_{option}"]
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", folder, "--target", *targets], check=True, stdout=subprocess.DEVNULL)


def runtime(name: str) -> str:
    """Path of a sanitizer's runtime, as the compiler knows it."""
    compiler = os.environ.get("CXX", "c++")
    found = subprocess.run([compiler, f"-print-file-name=lib{name}.so"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def load(folder: Path, *modules: str) -> None:
    """Put modules of a build in the place of the installed ones."""
    for name in modules:
        (path,) = folder.glob(f"{name}.*so")
        full = f"sparsetime.{name}"
        loader = importlib.machinery.ExtensionFileLoader(full, str(path))
        spec = importlib.util.spec_from_file_location(full, path, loader=loader)
        assert spec is not None
        sys.modules[full] = importlib.util.module_from_spec(spec)
        loader.exec_module(sys.modules[full])


def run_tests(folder: Path) -> int:
    """The native tests, in this process, with the modules of a build."""
    import pytest

    load(folder, *MODULES)
    return int(pytest.main(["-q", "--capture=no", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", LEFT_OUT, *TESTS]))


def main(folder: Path) -> None:
    os.chdir(ROOT)
    address, thread = folder / "address", folder / "thread"
    build(address, "SANITIZE=address,undefined", *MODULES)
    build(thread, "SANITIZE=thread", "streams")
    env = {**os.environ, **OPTIONS}

    print("AddressSanitizer, UndefinedBehaviorSanitizer: native tests", flush=True)
    preload = f"{runtime('asan')} {runtime('ubsan')}"
    watched = {**env, "LD_PRELOAD": preload, "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, __file__, "--tests", str(address)], check=True, env=watched)

    print("ThreadSanitizer: two streams of one plan, two threads each", flush=True)
    # Addresses laid out at random can lie where the sanitizer of some compilers cannot work.
    fixed = ["setarch", platform.machine(), "-R"]
    if subprocess.run([*fixed, "true"], capture_output=True, check=False).returncode:
        fixed = []
    subprocess.run([*fixed, str(thread / "streams")], check=True, env=env)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--tests"]:
        sys.exit(run_tests(Path(sys.argv[2])))
    try:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "sanitize"))
    except subprocess.CalledProcessError as error:
        sys.exit(f"sanitize: failed: {' '.join(map(str, error.cmd))}")
