"""What a benchmark ran on: processor, memory, versions; and how much memory there is for it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from fastce._bench.cases import available_threads
from fastce._bench.system import System

VARIABLES = ("OMP_NUM_THREADS", "FASTCE_NUM_THREADS", "FASTCE_ISA")
"""Of the environment: what changes a figure."""


def cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def versions(systems: Iterable[System]) -> dict[str, str]:
    """Return the version of each package that takes part, by the name it is imported by."""
    modules = dict.fromkeys(["fastce", "numpy", *(module for system in systems for module in system.needs)])
    distributions = metadata.packages_distributions()
    return {module: metadata.version(distributions[module][0]) for module in modules if module in distributions}


def describe(systems: Iterable[System]) -> dict[str, str]:
    """Return what a reader of figures wants to know of the machine, in the order to show it in."""
    import fastce

    core = fastce.show_config("dicts")["backends"]["cython"]
    threads = available_threads()
    return {
        "processor": cpu_name(),
        "threads used": str(threads),
        "cores of the machine": str(os.cpu_count() or threads),
        "instruction set": str(core.get("isa", "none: the C core cannot run")),
        "memory": f"{memory_total() / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "Python": platform.python_version(),
        **versions(systems),
        **{
            name: os.environ[name]
            for name in ("OMP_NUM_THREADS", "FASTCE_NUM_THREADS", "FASTCE_ISA")
            if name in os.environ
        },
    }


def memory_total() -> int:
    pages = ("SC_PHYS_PAGES", "SC_PAGE_SIZE")
    return os.sysconf(pages[0]) * os.sysconf(pages[1]) if set(pages) <= os.sysconf_names.keys() else 0


def memory_available() -> int:
    """Return half of the memory that this process could have, by the kernel's and the control group's word."""
    found = [16 << 30]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        group = Path("/sys/fs/cgroup")
        found.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # not Linux, no control group, or one without a limit
        pass
    return max(0, min(found)) // 2
