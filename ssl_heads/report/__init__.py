"""One HTML file that shows what the dimensions of an embedding mean, and answers questions without a network."""

from __future__ import annotations

from ssl_heads.report.report import Report, report

__all__ = ["Report", "report"]
