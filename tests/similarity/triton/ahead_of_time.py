"""Compile every kernel for every entry of the table, without a device, and read the figures out of the machine code.

Run as a program it compares with, or with ``--write`` renews, the committed record::

    python tests/similarity/triton/ahead_of_time.py [--write] [--only sm_90]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.pop("TRITON_INTERPRET", None)
os.environ.setdefault("TRITON_CACHE_DIR", str(Path(tempfile.gettempdir()) / "ssl_heads_triton_cache"))

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ssl_heads.similarity.triton.configurations import SHARED_MEMORY, TABLE, WIDE, Tile
from ssl_heads.similarity.triton.forward import forward_kernel
from ssl_heads.similarity.triton.gradient import finish_kernel, gradient_kernel, panel_kernel
from ssl_heads.similarity.triton.tiles import ONE_DIAGONAL

GOLDEN = Path(__file__).with_name("aot_golden.json")
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# A wide buffer is compiled at one width that is no power of two.
COMPILED_WIDTH = 768
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

INTEGERS = {
    "N", "M", "D", "q_stride", "k_stride", "column_stride", "panel_stride", "gradient_stride", "offset", "period", "splits",
    "first_block", "first_tile", "last_tile", "tiles", "tiles_per_split", "first_row", "last_row", "first_column", "last_column",
}  # fmt: skip
UNALIGNED_INTEGERS = INTEGERS - {"q_stride", "k_stride", "panel_stride"}


class Case(NamedTuple):
    """One compilation: a kernel in one mode, on one row of the table."""

    name: str
    architecture: str
    kernel: Any
    constants: dict[str, Any]
    element: str
    warps: int
    stages: int


def cases() -> Iterator[Case]:
    """The table, each entry in the mode that costs most registers, and for the half-precision forward in all of them."""
    for (architecture, kernel, precision, width), tile in TABLE.items():
        element = "fp32" if precision == "float" else "bf16"
        for mode, constants in modes(kernel, precision, width):
            name = f"{architecture} {kernel} {element} {width or COMPILED_WIDTH} {mode}"
            yield case(name, architecture, kernel, element, width or COMPILED_WIDTH, tile, constants)
    for architecture in TARGETS:
        constants = {"WIDTH": COMPILED_WIDTH, "BLOCK_M": 16, "BLOCK_D": 64}
        yield Case(f"{architecture} finish bf16", architecture, finish_kernel, constants, "bf16", 4, 1)


def modes(kernel: str, precision: str, width: int) -> Iterator[tuple[str, dict[str, Any]]]:
    if kernel == "forward":
        online = {"BOUNDED": False, "COLUMNS": True, "ONE_SET": False, "SOFTPLUS": False}
        yield "online columns", online
        if precision == "half" and width in (128, WIDE):
            yield "bounded columns", online | {"BOUNDED": True}
            yield "bounded one set", online | {"BOUNDED": True, "ONE_SET": True}
            yield "online rows", online | {"COLUMNS": False}
            yield "softplus", online | {"COLUMNS": False, "SOFTPLUS": True}
    else:
        both = {"ROWS": True, "COLUMNS": True, "BOUNDED": False, "SOFTPLUS": False}
        yield "online", both
        if precision == "half" and width in (128, WIDE):
            yield "bounded", both | {"BOUNDED": True}


def case(
    name: str, architecture: str, kernel: str, element: str, width: int, tile: Tile, constants: dict[str, Any]
) -> Case:
    precision = "ieee" if architecture.startswith("gfx") else "tf32x3"
    constants = constants | {
        "HAS_ROW_BIAS": False, "HAS_COLUMN_BIAS": False, "DIAGONAL": ONE_DIAGONAL.value, "IDS": 0, "WIDTH": width,
        "BLOCK_M": tile.rows, "BLOCK_N": tile.columns, "PRECISION": precision if element == "fp32" else "tf32",
    }  # fmt: skip
    function = {"forward": forward_kernel, "gradient": gradient_kernel, "panel": panel_kernel}[kernel]
    if kernel != "gradient":
        constants["BLOCK_D"] = tile.features
    if kernel == "gradient":
        constants["SUMS"] = False
    if kernel == "panel":
        constants["GROUP"] = 8
    return Case(name, architecture, function, constants, element, tile.warps, tile.stages)


def compile_case(c: Case) -> Any:
    """The compiled kernel, with the divisibility that the launcher's aligned buffers have."""
    signature, attributes = {}, {}
    for position, name in enumerate(c.kernel.arg_names):
        if name in c.constants:
            signature[name] = "constexpr"
        elif name in INTEGERS:
            signature[name] = "i32"
        elif name in ("query_ids_ptr", "key_ids_ptr"):
            signature[name] = "*i64"
        else:
            signature[name] = f"*{c.element}" if name in ("q_ptr", "k_ptr", "panel_ptr", "gradient_ptr") else "*fp32"
        if signature[name] != "constexpr" and name not in UNALIGNED_INTEGERS:
            attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=c.kernel, signature=signature, constexprs=c.constants, attrs=attributes)
    return triton.compile(source, target=TARGETS[c.architecture], options={"num_warps": c.warps, "num_stages": c.stages})


def figures(c: Case) -> dict[str, int]:
    """Registers, spills, shared memory, and counts of the instructions that matter."""
    compiled = compile_case(c)
    shared = {"shared": compiled.metadata.shared}
    if c.architecture.startswith("gfx"):
        return shared | _amd_figures(compiled.asm["amdgcn"])
    return shared | _nvidia_figures(compiled.asm["cubin"])


def _amd_figures(assembly: str) -> dict[str, int]:
    def field(name: str) -> int:
        return int(re.search(rf"\.{name}:\s*(\d+)", assembly).group(1))  # type: ignore[union-attr]

    return {
        "registers": field("vgpr_count"),
        "spills": field("vgpr_spill_count"),
        "matrix": len(re.findall(r"\bv_mfma", assembly)),
        "exponentials": len(re.findall(r"\bv_exp_f32", assembly)),
        "asynchronous": len(re.findall(r"\b(?:global|buffer)_load\S*", assembly)),
    }


def _nvidia_figures(cubin: bytes) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _run("cuobjdump", "--dump-resource-usage", file.name)
        assembly = _run("nvdisasm", "-c", file.name)
    return {
        "registers": int(re.search(r"REG:(\d+)", usage).group(1)),  # type: ignore[union-attr]
        "spills": int(re.search(r"STACK:(\d+)", usage).group(1)),  # type: ignore[union-attr]
        "matrix": len(re.findall(r"\b(?:HMMA|HGMMA|UTC\w*MMA)\b", assembly)),
        "exponentials": len(re.findall(r"\bMUFU\.EX2\b", assembly)),
        "asynchronous": len(re.findall(r"\b(?:LDGSTS|UTMALDG|UBLKCP)\b", assembly)),
    }


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout


def violations(c: Case, row: dict[str, int]) -> list[str]:
    """What no kernel of the table may do, whatever the record says."""
    found = []
    if row["spills"]:
        found.append(f"spills {row['spills']}")
    if row["shared"] > SHARED_MEMORY[c.architecture]:
        found.append(f"shared memory {row['shared']} > {SHARED_MEMORY[c.architecture]}")
    if c.kernel is not finish_kernel:
        if not row["matrix"]:
            found.append("no tensor-core instruction")
        if not row["asynchronous"]:
            found.append("no asynchronous copy")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="renew the committed record")
    parser.add_argument("--only", default="", help="prefix of the case names")
    arguments = parser.parse_args()
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    found = dict(golden) if arguments.only else {}
    bad = 0
    for c in cases():
        if not c.name.startswith(arguments.only):
            continue
        try:
            row = found[c.name] = figures(c)
        except Exception as error:
            print(f"{c.name}: {type(error).__name__}: {str(error)[-300:]}", flush=True)
            bad += 1
            continue
        problems = violations(c, row)
        if not arguments.write and golden.get(c.name) != row:
            problems.append(f"recorded {golden.get(c.name)}")
        bad += bool(problems)
        print(c.name, row, *problems, flush=True)
    if arguments.write:
        GOLDEN.write_text("{\n" + ",\n".join(f' "{name}": {json.dumps(row)}' for name, row in found.items()) + "\n}\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
