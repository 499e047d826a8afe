"""Load of the machine rank 0 runs on: processor, memory and GPUs, as metrics named system/..."""

import time
from contextlib import suppress

import psutil
import pynvml

# Utilisation is a mean since the last sample: sampled faster it would be noise.
SAMPLE_SECONDS = 1.0


class SystemMetrics:
    """Samples when asked, at most once a second; a machine without NVIDIA GPUs has no system/gpu values."""

    def __init__(self) -> None:
        psutil.cpu_percent()  # the first reading counts from here
        self._sampled_at = time.monotonic()
        try:
            pynvml.nvmlInit()
            self._gpus = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        except pynvml.NVMLError:
            self._gpus = []

    def sample(self) -> dict[str, float]:
        """Percent and GiB in use; empty when the last sample is too recent."""
        now = time.monotonic()
        if now - self._sampled_at < SAMPLE_SECONDS:
            return {}
        self._sampled_at = now
        values = {
            "system/cpu_percent": psutil.cpu_percent(),
            "system/memory_gib": psutil.virtual_memory().used / 2**30,
            "system/process_memory_gib": psutil.Process().memory_info().rss / 2**30,
        }
        for number, gpu in enumerate(self._gpus):
            with suppress(pynvml.NVMLError):  # a GPU that is cut up (MIG) does not say
                values[f"system/gpu{number}_memory_gib"] = pynvml.nvmlDeviceGetMemoryInfo(gpu).used / 2**30
                values[f"system/gpu{number}_percent"] = float(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu)
        return values
