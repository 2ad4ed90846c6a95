"""Every kernel compiles for every architecture of the table, and the machine code is what the record says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import ssl_heads

triton = pytest.importorskip("triton")
if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 3):
    pytest.skip("the record is of Triton 3.3's compiler and its interface, or newer", allow_module_level=True)
PROGRAM, RECORD = (Path(__file__).with_name(name) for name in ("ahead_of_time.py", "aot_golden.json"))


def compile_for(cache: Path, *arguments: str, packages: Path = PROGRAM.parents[3]) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": str(packages)}
    return subprocess.run(
        [sys.executable, str(PROGRAM), *arguments],
        env=environment, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_compiles_as_recorded(architecture: str, tmp_path: Path) -> None:
    run = compile_for(tmp_path, "--heaviest", "--only", architecture)
    assert run.returncode == 0, "\n".join(re.findall(r"FAIL.*", run.stdout)) + run.stderr[-3000:]
    if triton.__version__ == json.loads(RECORD.read_text())["triton"]:
        compiled = 6 if architecture == "sm_90" else 2
        assert f"{compiled} kernels, 0 fail; compared with the record" in run.stdout


def test_another_kernel_or_another_table_is_another_record(tmp_path: Path) -> None:
    package = tmp_path / "ssl_heads"
    shutil.copytree(Path(ssl_heads.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))

    def fingerprint_after(change: Callable[[str], str], *place: str) -> str:
        path = package.joinpath(*place)
        before = path.read_text()
        path.write_text(change(before))
        run = compile_for(tmp_path, "--fingerprint", packages=tmp_path)
        path.write_text(before)
        assert run.returncode == 0, run.stderr[-3000:]
        return run.stdout.strip()

    kernels, table = ("similarity", "triton", "kernels.py"), ("similarity", "triton", "configurations.py")
    recorded = json.loads(RECORD.read_text())["of"]
    assert fingerprint_after(lambda text: text + "\n\n# a comment\n", *kernels) == recorded
    assert fingerprint_after(lambda text: text + "\nEXTRA = 1\n", *kernels) != recorded
    assert (
        fingerprint_after(lambda text: re.sub(r"(Tile\(\d+, \d+, \d+, \d+), \d", r"\1, 7", text, count=1), *table)
        != recorded
    )


def test_compiles_for_integers_of_one_and_beyond_32_bits(tmp_path: Path) -> None:
    run = compile_for(tmp_path, "--extremes", "sm_90")
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout == "6 kernels compile\n"
