"""Fused kernels that act on rows, on the way from embeddings to the similarity matrix and back.

Importing this package imports nothing else. `host` prepares, launches and registers; `kernels` is Triton's language.
Both import Triton, so callers import them when a call needs them.
"""
