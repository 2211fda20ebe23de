"""Every neighbour is an extra: without it, an error says which; and nothing imports it unasked."""

import importlib
import subprocess
import sys

import pytest

NEIGHBOURS = ["onnx", "nir", "neurobench", "keras"]


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_without_the_package_the_extra_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)  # what import sees of a package that is not installed
    for module in [m for m in sys.modules if m.startswith(f"{name}.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delitem(sys.modules, f"sparsetime.neighbours.{name}", raising=False)
    with pytest.raises(ImportError, match=rf"pip install 'sparsetime\[{name}\]'"):
        importlib.import_module(f"sparsetime.neighbours.{name}")


def test_none_is_imported_unasked():
    code = f"import sys, sparsetime.neighbours; print(sorted({{*{NEIGHBOURS}, 'torch'}} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
