"""What `import ssl_heads` must not do: speak, load what the user may not have, wake a device."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
import textwrap

import ssl_heads

# torch 2.6 loads its own sympy late, when an operator is registered
RUN_TIME_NEEDS = "import torch, sympy, einops, typing_extensions"


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=120, check=False
    )


def test_the_import_is_silent() -> None:
    result = run("import ssl_heads")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_import_loads_no_optional_package() -> None:
    # numpy is in memory as soon as torch is, so the question is who asks: every import statement that a module of
    # ours executes is recorded.
    result = run(f"""
        {RUN_TIME_NEEDS}
        import builtins, sys
        theirs, asked = set(sys.modules), set()
        original = builtins.__import__

        def record(name, globals=None, locals=None, fromlist=(), level=0):
            if level == 0 and str((globals or {{}}).get("__name__", "")).split(".")[0] == "ssl_heads":
                asked.add(name.split(".")[0])
            return original(name, globals, locals, fromlist, level)

        builtins.__import__ = record
        import ssl_heads
        builtins.__import__ = original
        loaded = {{name.split(".")[0] for name in set(sys.modules) - theirs}}
        assert "torch" in asked, "the recorder saw nothing"
        print(*sorted((loaded | asked) - set(sys.stdlib_module_names)))
    """)
    assert result.returncode == 0, result.stderr
    assert set(result.stdout.split()) <= {"ssl_heads", "torch", "einops", "typing_extensions"}


QUERIES = """
    import torch

    def query(*args, **kwargs):
        raise RuntimeError("a device was queried")

    names = ("is_available", "device_count", "current_device", "get_device_capability", "init", "_lazy_init")
    for module in (torch.cuda, torch.xpu, torch.mps, torch.backends.mps, torch.accelerator):
        for name in names:
            if hasattr(module, name):
                setattr(module, name, query)
"""


def test_the_import_queries_no_device() -> None:
    result = run(QUERIES + "\n    import ssl_heads")
    assert result.returncode == 0, result.stderr


def test_the_device_trap_springs() -> None:
    result = run(QUERIES + "\n    torch.cuda.is_available()")
    assert "a device was queried" in result.stderr


OPTIONAL = ("triton", "matplotlib", "numpy", "torchvision")


def test_every_public_module_imports_and_a_loss_runs_without_the_optional_packages() -> None:
    modules = [
        module.name
        for module in pkgutil.walk_packages(ssl_heads.__path__, "ssl_heads.")
        if not module.name.startswith(("ssl_heads.similarity.triton", "ssl_heads.rowwise")) and "._" not in module.name
    ]
    # torch itself loads some of these when it finds them: only what comes after `import torch` is ours.
    result = run(f"""
        import importlib, sys
        {RUN_TIME_NEEDS}
        sys.modules.update(dict.fromkeys({OPTIONAL!r}))
        for name in {modules!r}:
            importlib.import_module(name)
        import ssl_heads
        print(float(ssl_heads.NTXentLoss()(torch.eye(4), torch.eye(4))) > 0)
    """)
    assert (result.returncode, result.stdout) == (0, "True\n"), result.stderr
