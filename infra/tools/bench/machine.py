"""What a run was made on, for its record."""

import os
import platform
import subprocess
from pathlib import Path


def processor() -> str:
    try:
        names = (line.split(":", 1)[1] for line in open("/proc/cpuinfo") if line.startswith("model name"))
        return f"{next(names).strip()}, {os.cpu_count()} cores"
    except (OSError, StopIteration):
        return platform.processor()


def commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()

    return git("rev-parse", "HEAD") + (" with changes" if git("status", "--porcelain") else "")
