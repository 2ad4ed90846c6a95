"""Kernels run in Triton's interpreter under `interpreted/`, in a session of its own: see test_triton_interpreter.py.

Triton reads TRITON_INTERPRET when it is imported, which other tests may have done long before.
"""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted/*"]
