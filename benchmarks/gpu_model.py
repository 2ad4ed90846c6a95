"""What a roofline predicts for the fused kernels, in the time of one library product: a model, nothing is timed.

    python benchmarks/gpu_model.py

Assumed: shares of the peak for products, the rates at which a multiprocessor takes exponentials and shuffles, and that
these are not overlapped with products while memory traffic is. How many of them an element costs is counted in the
machine code for sm_90, see tests/similarity/triton/aot_golden.json. `gpu.py` measures the same ratios on a device.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """What the roofline needs to know."""

    name: str
    bf16: float  # FLOP/s
    multiprocessors: int
    clock: float  # Hz
    bytes_: float  # B/s


@dataclass(frozen=True)
class Path:
    """What an element of the similarity matrix costs beside its product."""

    exponentials: int  # each way
    exchanges: float  # shuffles that the column sums of the forward cost


DEVICES = [Device("H100 SXM", 989e12, 132, 1.755e9, 3.35e12), Device("A100 SXM", 312e12, 108, 1.41e9, 2.04e12)]
# CLIP's scale lives on the device and its rows come as they are: a maximum is kept for rows and for columns. NT-Xent
# knows from its temperature that no exponential overflows.
ONLINE, BOUNDED = Path(2, 6.13), Path(1, 1.31)
# Assumed shares of the peak: a library product, our tile loop, two chained products in one kernel.
LIBRARY, KERNEL, CHAINED = 0.74, 0.65, 0.50
# Assumed a clock and multiprocessor.
EXPONENTIAL_RATE, EXCHANGE_RATE = 16, 32


def predict(device: Device, path: Path, rows: int, width: int, one_set: bool) -> tuple[float, float, float]:
    """Seconds of one library product rows x rows x width, of the forward, and of forward and backward."""
    pairs = float(rows * rows)
    product = 2 * pairs * width / device.bf16
    per_second = device.multiprocessors * device.clock
    exponentials = path.exponentials * pairs / (EXPONENTIAL_RATE * per_second)
    exchanges = path.exchanges * pairs / (EXCHANGE_RATE * per_second)
    half = 0.5 if one_set else 1.0
    forward = half * (product / KERNEL + max(exponentials, exchanges))
    sides = 1 if one_set else 2
    if width <= 256:
        backward = sides * (2 * product / CHAINED + exponentials)
    else:
        traffic = 2 * pairs / device.bytes_  # the panel in bf16, written once and read by each product
        backward = max(product / KERNEL, traffic) + exponentials + sides * max(product / LIBRARY, traffic)
    return product / LIBRARY, forward, forward + backward


def print_model() -> None:
    print("| device | rows | d | product ms | CLIP forward | CLIP both | NT-Xent forward | NT-Xent both |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for device in DEVICES:
        for width in (128, 512, 768, 2048):
            unit, *clip = predict(device, ONLINE, 32768, width, one_set=False)
            _, *nt_xent = predict(device, BOUNDED, 32768, width, one_set=True)
            ratios = " | ".join(f"{seconds / unit:.2f}" for seconds in (*clip, *nt_xent))
            print(f"| {device.name} | 32768 | {width} | {1e3 * unit:.2f} | {ratios} |")


if __name__ == "__main__":
    print_model()
