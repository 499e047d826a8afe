"""What a run was trained with: versions, the commit of this project, and the kind of GPU."""

import os
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("mcf", "torch", "torchvision", "numpy")


def software(device: torch.device) -> dict[str, str]:
    """Name -> version. `commit` is that of the image (MCF_REVISION) or of the checkout; left out where neither is.

    `gpu` is what `device` is called; left out on a CPU.
    """
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    if commit := os.environ.get("MCF_REVISION") or _checked_out():
        found["commit"] = commit
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def _checked_out() -> str:
    """The commit of the folder that this file is in, with a mark where files have been changed since."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
