"""Fused kernels for CUDA and ROCm devices.

Importing this package imports nothing else. `backend` is what the engine calls, when a call needs it: `forward` and
`backward` prepare and launch on the host, with `arguments` and the tiles of `configurations`; `kernels` is Triton's
language.
"""
