"""Process-wide settings that make steps faster, in one place, and what the process has used."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_big_blocks() -> None:
    """Tell glibc to keep freed tensors' memory instead of returning it to the system after each one.

    Cuts page faults. Does nothing on another C library.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)
    except (OSError, AttributeError):
        return


def reset_peak_memory() -> None:
    """Start counting peak memory anew (Linux); elsewhere the peak is the whole process's."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory_bytes() -> int:
    """Peak resident memory since the last reset."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def num_threads() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_values() -> dict[str, str]:
    """Versions and hardware that a run's figures depend on."""
    packages = ("luthier", "torch", "transformers", "peft", "tokenizers", "scikit-learn", "bm25s", "numpy")
    return {
        **{name: metadata.version(name) for name in packages},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor_name(),
        "threads": str(num_threads()),
    }


def processor_name() -> str:
    """The processor's own name on Linux, else what Python knows."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def set_up_torch() -> None:
    """Threads and memory for this process; once, before the first model is loaded."""
    import torch

    keep_big_blocks()
    torch.set_num_threads(num_threads())


@cache
def has_fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices in hardware (Intel AMX); elsewhere it is emulated."""
    try:
        return " amx_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Inside it, float32 matrix products on a CPU round their factors to bfloat16 and add up in float32."""
    import torch

    if precision != "bfloat16":
        yield
        return
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before
