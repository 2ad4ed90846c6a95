"""Compile every kernel for every entry of the table, without a device, and read the figures out of the machine code.

Run as a program it compares with, or with `--write` renews, the committed record::

    python tests/similarity/triton/ahead_of_time.py [--write] [--only sm_90] [--heaviest]

The record names the kernels that it is of. As long as these and the compiler are the same, so is the machine code, and
the tests compile the heaviest case of each kernel alone.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.pop("TRITON_INTERPRET", None)
os.environ.setdefault("TRITON_CACHE_DIR", str(Path(tempfile.gettempdir()) / "ssl_heads_triton_cache"))

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import ssl_heads
from ssl_heads.rowwise.host import ACTIVATIONS, GATES, row_block
from ssl_heads.rowwise.kernels import epilogue_kernel, prologue_kernel
from ssl_heads.similarity.triton.configurations import SHARED_MEMORY, TABLE, WIDTHS, Tile, table_tile
from ssl_heads.similarity.triton.kernels import (
    BOUNDED,
    LEAVE_OUT_EQUAL,
    ONE_DIAGONAL,
    ONLINE,
    SOFTPLUS,
    finish_kernel,
    forward_kernel,
    gradient_kernel,
    panel_kernel,
)

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
    "N", "M", "D", "q_stride", "k_stride", "column_stride", "panel_stride", "gradient_stride", "offset", "period",
    "splits", "first_block", "first_tile", "last_tile", "tiles", "tiles_per_split", "first_row", "last_row",
    "first_column", "last_column", "z_row", "a_row", "key_gradient_row", "query_gradient_row",
}  # fmt: skip
ALIGNED_INTEGERS = {"q_stride", "k_stride", "panel_stride", "z_row", "a_row", "key_gradient_row", "query_gradient_row"}
FLOATS = {"temperature", "threshold", "log_prior", "log_not_prior", "eps"}
ELEMENT_POINTERS = {
    "q_ptr", "k_ptr", "panel_ptr", "gradient_ptr", "z_ptr", "a_ptr", "key_ptr", "query_ptr", "key_gradient_ptr",
    "query_gradient_ptr", "z_gradient_ptr", "a_gradient_ptr",
}  # fmt: skip


FUNCTIONS = {
    "forward": forward_kernel,
    "forward_bounded": forward_kernel,
    "forward_ids": forward_kernel,
    "gradient": gradient_kernel,
    "panel": panel_kernel,
}
WITH_IDS = {"IDS": LEAVE_OUT_EQUAL.value}


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
    """The table, each tile in the mode that costs most registers, and a few in every mode."""
    entries = dict.fromkeys((architecture, kernel, precision) for architecture, kernel, precision, _ in TABLE)
    for (architecture, kernel, precision), width in itertools.product(entries, (*WIDTHS, COMPILED_WIDTH)):
        element, dtype = ("fp32", torch.float32) if precision == "float" else ("bf16", torch.bfloat16)
        tile = table_tile(architecture, kernel, dtype, width)
        if tile is None or (kernel == "panel" and width in WIDTHS):
            continue
        for mode, constants in modes(kernel, precision, width):
            special = "forward_ids" if "ids" in mode else "forward_bounded" if "bounded" in mode else kernel
            if kernel == "forward" and special != kernel and (architecture, special, precision) in entries:
                continue  # the mode takes that entry
            name = f"{architecture} {kernel} {element} {width} {mode}"
            yield case(name, architecture, kernel, element, width, tile, constants)
    for architecture in TARGETS:
        yield from rowwise_cases(architecture)
        constants = {"WIDTH": COMPILED_WIDTH, "BLOCK_M": 16, "BLOCK_D": 64}
        yield Case(f"{architecture} finish bf16", architecture, finish_kernel, constants, "bf16", 4, 1)


def rowwise_cases(architecture: str) -> Iterator[Case]:
    """Prologue and epilogue: everything switched on, at a width of one row and of many rows a program; unit rows."""
    everything = {
        "ACTIVATION": ACTIVATIONS["rep_relu"], "GATE": GATES["concrete"], "HAS_KL": True, "HAS_IMPORTANCE": True,
        "TEMPERED_KL": False, "z_feature": 1, "a_feature": 1,
    }  # fmt: skip
    nothing = dict.fromkeys(("HAS_KL", "HAS_IMPORTANCE"), False)
    unit = everything | nothing | {"ACTIVATION": ACTIVATIONS["none"], "GATE": GATES["none"], "TEMPERED_KL": True}
    for mode, flags, width in (("", everything, 128), ("", everything, 2048), (" unit rows", unit, 8192)):
        block = row_block(width)
        warps = block.pop("num_warps")
        for kernel, own in ((prologue_kernel, {"WIDTH": width}), (epilogue_kernel, {"HAS_KEY_GRADIENT": True})):
            name = f"{architecture} {kernel.__name__.removesuffix('_kernel')} bf16 {width}{mode}"
            yield Case(name, architecture, kernel, {**flags, **block, **own}, "bf16", warps, 1)


def modes(kernel: str, precision: str, width: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The modes that cost most registers for every entry, and all that differ in kind for a few."""
    typical = width in (128 if precision == "half" else 64, COMPILED_WIDTH)
    online = {"REDUCTION": ONLINE.value, "COLUMNS": True, "ONE_SET": False}
    bounded = online | {"REDUCTION": BOUNDED.value}
    if kernel == "forward_ids":
        yield "online columns ids", online | WITH_IDS
    elif kernel == "forward_bounded":
        yield "bounded columns", bounded
        yield "bounded one set", bounded | {"ONE_SET": True}
    elif kernel == "forward":
        yield "online columns", online
        if typical:
            yield "online columns ids", online | WITH_IDS
        if typical and precision == "half":
            yield "bounded columns", bounded
            yield "bounded one set", bounded | {"ONE_SET": True}
            yield "online rows", online | {"COLUMNS": False}
            yield "softplus", online | {"COLUMNS": False, "REDUCTION": SOFTPLUS.value}
    else:
        both = {"REDUCTION": ONLINE.value, "ROWS": True, "COLUMNS": True}
        yield "online", both
        if typical:
            yield "bounded", both | {"REDUCTION": BOUNDED.value}
            yield "online ids", both | WITH_IDS


def case(
    name: str, architecture: str, kernel: str, element: str, width: int, tile: Tile, constants: dict[str, Any]
) -> Case:
    precision = "ieee" if architecture.startswith("gfx") else "tf32x3"
    constants = {
        "DIAGONAL": ONE_DIAGONAL.value, "IDS": 0, "WIDTH": width,
        "BLOCK_M": tile.rows, "BLOCK_N": tile.columns, "PRECISION": precision if element == "fp32" else "tf32",
        **constants,
    }  # fmt: skip
    function = FUNCTIONS[kernel]
    if kernel != "gradient":
        constants["BLOCK_D"] = tile.features
    if kernel == "gradient":
        constants["SUMS"] = False
    if kernel == "panel":
        constants["GROUP"] = 8
    return Case(name, architecture, function, constants, element, tile.warps, tile.stages)


def fingerprint() -> str:
    """Changes with the kernels and with what they are compiled for, and not with comments or the layout of lines."""
    package = Path(ssl_heads.__file__).parent
    left_out = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING)
    total = hashlib.sha256()
    for path in sorted({*package.rglob("kernels/*.py"), *package.rglob("kernels.py")}):
        with path.open("rb") as file:
            words = [token.string for token in tokenize.tokenize(file.readline) if token.type not in left_out]
        total.update(" ".join(words).encode())
    total.update(repr([c._replace(kernel=c.kernel.__name__) for c in cases()]).encode())
    return total.hexdigest()


def heaviest(selected: list[Case], golden: dict[str, dict[str, int]]) -> list[Case]:
    """The case with most registers: of every kernel for sm_90, of the two that take the time for every architecture."""
    found: dict[tuple[str, str], Case] = {}
    for c in sorted(selected, key=lambda c: golden[c.name]["registers"]):
        if c.architecture == "sm_90" or c.kernel in (forward_kernel, gradient_kernel):
            found[c.architecture, c.kernel.__name__] = c
    return list(found.values())


def compile_case(c: Case, wide_integers: tuple[str, ...] = ()) -> Any:
    """The compiled kernel, with the divisibility that the launcher's aligned buffers have."""
    signature, attributes = {}, {}
    for position, name in enumerate(c.kernel.arg_names):
        if name in c.constants:
            signature[name] = "constexpr"
        elif name in INTEGERS:
            signature[name] = "i64" if name in wide_integers else "i32"
        elif name in FLOATS:
            signature[name] = "fp32"
        elif name in ("query_ids_ptr", "key_ids_ptr", "seed_ptr"):
            signature[name] = "*i64"
        else:
            signature[name] = f"*{c.element}" if name in ELEMENT_POINTERS else "*fp32"
        if signature[name].startswith("*") or (signature[name] == "i32" and name in ALIGNED_INTEGERS):
            attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=c.kernel, signature=signature, constexprs=c.constants, attrs=attributes)
    return triton.compile(
        source, target=TARGETS[c.architecture], options={"num_warps": c.warps, "num_stages": c.stages}
    )


def compile_extremes(architecture: str) -> int:
    """Compile each kernel as the launcher does for integers that are 1, which become constants, or beyond 32 bits."""
    chosen = {c.kernel: c for c in cases() if c.architecture == architecture}
    for kernel, c in chosen.items():
        integers = [name for name in kernel.arg_names if name in INTEGERS]
        compile_case(c._replace(constants={**c.constants, **dict.fromkeys(integers, 1)}))
        compile_case(c, wide_integers=("offset", "period"))
    return len(chosen)


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
        # this architecture pipelines through registers: wide loads stand in for asynchronous copies
        "asynchronous": len(re.findall(r"\b(?:global|buffer)_load_dwordx4", assembly)),
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
        "exchanges": len(re.findall(r"\bSHFL\b", assembly)),
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
    if c.kernel in FUNCTIONS.values():
        if not row["matrix"]:
            found.append("no tensor-core instruction")
        if not row["asynchronous"]:
            found.append("no asynchronous copy")
        if c.constants.get("REDUCTION") == BOUNDED.value:
            found += _exponentials_of_a_bounded_tile(c, row["exponentials"])
    return found


def _exponentials_of_a_bounded_tile(c: Case, count: int) -> list[str]:
    """One exponential an element: a thread's share of the tile, in each copy of the body that pipelining peels off."""
    lanes = c.warps * TARGETS[c.architecture].warp_size
    share = c.constants["BLOCK_M"] * c.constants["BLOCK_N"] // lanes
    return [] if count in (share, 2 * share, 3 * share) else [f"{count} exponentials for {share} elements a thread"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="renew the committed record")
    parser.add_argument("--only", default="", help="prefix of the case names")
    parser.add_argument("--heaviest", action="store_true", help="one case of each kernel, where the record is of these")
    parser.add_argument("--fingerprint", action="store_true", help="print what the record must be of")
    parser.add_argument("--extremes", default="", help="an architecture: compile for integers of 1 and beyond 32 bits")
    arguments = parser.parse_args()
    if arguments.fingerprint:
        print(fingerprint())
        return 0
    if arguments.extremes:
        print(f"{compile_extremes(arguments.extremes)} kernels compile")
        return 0
    record = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {"triton": "", "of": "", "kernels": {}}
    golden = record["kernels"]
    # another compiler allocates other registers: then only what no kernel may do is checked
    comparable = record["triton"] == triton.__version__ and not arguments.write
    found = dict(golden) if arguments.only else {}
    selected = [c for c in cases() if c.name.startswith(arguments.only)]
    if comparable and record.get("of") != fingerprint():
        print("FAIL the record is of other kernels: renew it with --write")
        return 1
    if comparable and arguments.heaviest:
        selected = heaviest(selected, golden)
    bad = 0
    for c in selected:
        row = found[c.name] = figures(c)
        problems = violations(c, row)
        if comparable and golden.get(c.name) != row:
            problems.append(f"recorded: {golden.get(c.name)}")
        bad += bool(problems)
        print("FAIL" if problems else "ok  ", c.name, row, *problems, flush=True)
    print(f"{len(selected)} kernels, {bad} fail; {'compared with' if comparable else 'not compared with'} the record")
    if arguments.write:
        rows = ",\n".join(f'  "{name}": {json.dumps(row)}' for name, row in found.items())
        head = f' "triton": "{triton.__version__}",\n "of": "{fingerprint()}",\n'
        GOLDEN.write_text(f'{{\n{head} "kernels": {{\n{rows}\n }}\n}}\n')
    return 1 if bad or not selected else 0


if __name__ == "__main__":
    sys.exit(main())
