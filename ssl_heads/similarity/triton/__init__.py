"""Fused kernels for CUDA and ROCm devices.

Importing this package imports nothing else. Its modules import Triton, so the engine imports them when a call needs
them: ``backend`` is what the engine calls; ``forward``, ``backward`` and ``rowwise`` prepare and launch on the host;
``kernels`` is Triton's language.
"""
