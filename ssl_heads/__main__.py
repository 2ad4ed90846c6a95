"""`python -m ssl_heads report embeddings.npz -o report.html`."""

from __future__ import annotations

from ssl_heads.report.command import main

if __name__ == "__main__":
    main()
