"""Where this machine keeps what it need not get again. No imports of ours: every command of `mcf` starts with it."""

import os
from pathlib import Path


def cache_folder() -> Path:
    if named := os.environ.get("MCF_CACHE_DIR"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mcf"
