"""What this machine has: devices, memory and disk, as plain numbers."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

__all__ = ["GIB", "Machine", "free_disk", "host_memory", "inspect_machine", "readable"]

GIB = 1024**3

# cgroup v2 and v1: (limit, usage). A container is killed at its own limit, long before the host's memory is gone.
_CGROUP_FILES = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


@dataclass(frozen=True)
class Machine:
    """The resources of one machine.

    Args:
        accelerator: kind of the fastest device here: ``"cuda"``, ``"mps"`` or ``"cpu"``.
        device_memory: bytes of each accelerator device, empty without one.
        host_memory: bytes of main memory that can still be used here.
        disk: bytes that are free where runs are written.
        device_name: name of the first accelerator device, for people.
        capability: CUDA compute capability of the weakest device; None without CUDA.
    """

    accelerator: str
    device_memory: tuple[int, ...]
    host_memory: int
    disk: int
    device_name: str = ""
    capability: tuple[int, int] | None = None


def inspect_machine(folder: Path) -> Machine:
    """Look at this machine.

    Args:
        folder: where runs are written; it need not exist yet.

    Returns:
        Its devices, free memory and free disk.
    """
    import torch

    name = ""
    accelerator = "cpu"
    memory: tuple[int, ...] = ()
    capability: tuple[int, int] | None = None
    if torch.cuda.is_available():
        accelerator = "cuda"
        properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        memory = tuple(int(device.total_memory) for device in properties)
        name = properties[0].name
        capability = min((device.major, device.minor) for device in properties)
    elif torch.backends.mps.is_available():
        # Apple's accelerator shares the main memory.
        accelerator, memory, name = "mps", (host_memory(),), "Apple GPU"
    return Machine(accelerator, memory, host_memory(), free_disk(folder), name, capability)


def host_memory(proc: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Main memory that this process and its children can still use.

    min(available memory of the host, limit of the cgroup - its usage)

    Args:
        proc: the kernel's memory table.
        cgroup: root of the control-group file system.

    Returns:
        Bytes, at least 0.
    """
    available = _available_on_host(proc)
    for limit_name, usage_name in _CGROUP_FILES:
        limit, usage = _number(cgroup / limit_name), _number(cgroup / usage_name)
        if limit is not None:
            available = min(available, limit - (usage or 0))
    return max(0, available)


def _available_on_host(proc: Path) -> int:
    if proc.is_file():
        for line in proc.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    # No kernel table (macOS): the physical memory is the best upper bound that needs no further package.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _number(file: Path) -> int | None:
    """The file's integer; None if the file is missing or says ``max``."""
    try:
        text = file.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def free_disk(folder: Path) -> int:
    """Free bytes on the file system that would hold a folder.

    Args:
        folder: an existing folder or one that would be created.

    Returns:
        Bytes available to this user.
    """
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def readable(num_bytes: float) -> str:
    """Bytes for people.

    Args:
        num_bytes: number of bytes, at least 0.

    Returns:
        For instance ``"9.3 GiB"`` or ``"12 MiB"``.
    """
    if num_bytes >= GIB:
        return f"{num_bytes / GIB:.1f} GiB"
    return f"{num_bytes / 1024**2:.0f} MiB"
