"""Process-wide settings that make steps faster, in one place, and what the process has used."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from luthier.errors import RunError
from luthier.processes import local_rank, num_processes_here

M_MXFAST, M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = 1, -1, -3
CONTAINERS = ("/sys/fs/cgroup", "/sys/fs/cgroup/memory")  # where a container finds its limits, versions 2 and 1


def keep_big_blocks() -> None:
    """Tell glibc to keep freed tensors' memory instead of returning it to the system after each one.

    Cuts page faults. Small freed pieces are joined to their neighbours at once: one that stays apart keeps a tensor's
    place from being used for the next of its size (docs/memory.md). Does nothing on another C library.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)
        libc.mallopt(M_MXFAST, 0)
    except (OSError, AttributeError):
        return


def reset_peak_memory() -> bool:
    """Start counting peak memory anew (Linux); False elsewhere, where the peak is the whole process's."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_memory_bytes() -> int:
    """Peak resident memory since the last reset."""
    return status_bytes("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident_bytes() -> int:
    """Resident memory now; the peak where the system does not say."""
    return status_bytes("VmRSS") or peak_memory_bytes()


def status_bytes(field: str) -> int:
    """A size that Linux tells of this process; 0 elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)


def release_free_memory() -> None:
    """Give freed memory back to the system, so that what is resident is what is used. Does nothing without glibc."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return


def leave_file(parameters: Iterable[Any]) -> None:
    """Copy parameters that may lie in a model's file: one left there would keep all of it in memory."""
    for parameter in parameters:
        parameter.data = parameter.data.clone()
    release_free_memory()


def available_bytes() -> int:
    """Memory that this process may still take: what Linux says is available, within the container's limit."""
    try:
        told = Path("/proc/meminfo").read_text()
        free = next(int(line.split()[1]) * 1024 for line in told.splitlines() if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return min([free, *(room for folder in CONTAINERS if (room := container_bytes(Path(folder))) is not None)])


def container_bytes(folder: Path) -> int | None:
    """What a control group has left; None where it sets no limit. Caches of files do not count: they make room."""
    names = ("memory.max", "memory.current", "inactive_file")
    if not (folder / names[0]).is_file():
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    try:
        limit = int((folder / names[0]).read_text())  # "max" is no number
        used = int((folder / names[1]).read_text())
        told = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return max(0, limit - used + int(told.get(names[2], 0)))


def num_cores() -> int:
    """Cores this process may use: its share, where a run has several processes on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // num_processes_here())


def num_threads() -> int:
    """Threads of torch: one a core, or OMP_NUM_THREADS where that is less.

    Of several processes it is not asked: torchrun sets it to 1 for each, however many cores there are.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if num_processes_here() > 1 or not asked.isdigit():
        return num_cores()
    return max(1, min(num_cores(), int(asked)))


def chosen_device() -> str:
    """Where models live: what LUTHIER_DEVICE says (`auto`, `cpu`, `cuda`, `cuda:1`).

    `auto` is a GPU where torch has one, else the CPU. `cuda` is the first GPU; of several
    processes on a machine each has its own.

    Raises:
        RunError: torch has no such device here.
    """
    import torch

    asked = os.environ.get("LUTHIER_DEVICE", "").strip() or "auto"
    if asked == "auto":
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "cuda":
        asked = f"cuda:{local_rank()}"
    try:
        torch.empty(1, device=asked)
    except (RuntimeError, AssertionError) as error:
        raise RunError(
            f"LUTHIER_DEVICE={asked}: torch cannot use it here ({str(error).splitlines()[0]}). Set LUTHIER_DEVICE to "
            "cpu or auto, or install the build of torch for this GPU."
        ) from error
    return asked


def machine_values() -> dict[str, str]:
    """Versions and hardware that a run's figures depend on."""
    packages = ("luthier", "torch", "transformers", "peft", "tokenizers", "scikit-learn", "bm25s", "numpy")
    return {
        **{name: metadata.version(name) for name in packages},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor_name(),
        "threads": str(num_threads()),
        "device": chosen_device(),
    }


def processor_name() -> str:
    """The processor's own name on Linux, else what Python knows."""
    return processor_field("model name") or platform.processor() or "unknown"


def processor_flags() -> frozenset[str]:
    """What Linux says a processor of the x86 family can do; empty elsewhere."""
    return frozenset(processor_field("flags").split())


def processor_field(name: str) -> str:
    """What Linux says of the first processor under a name; nothing where it does not."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(name):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return ""


def set_up_torch() -> None:
    """Threads and memory for this process; once, before the first model is loaded."""
    import torch

    keep_big_blocks()
    torch.set_num_threads(num_threads())


@cache
def has_fast_bfloat16(device: str = "cpu") -> bool:
    """Whether a device multiplies bfloat16 matrices in hardware.

    Of processors those with AMX or AVX512-BF16 (twice the speed of float32), of GPUs Nvidia's from Ampere on and AMD's.
    Elsewhere it would be emulated; of other devices nothing is known.
    """
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device == "cpu" and ("avx512_bf16" in processor_flags() or has_matrix_units())


@cache
def has_matrix_units() -> bool:
    """Whether the processor has Intel's AMX for bfloat16, with which float32 factors are rounded inside a product."""
    return "amx_bf16" in processor_flags()
