"""All figures as one table, on the screen and in docs/performance.md: python -m tests.bench

Each part is a process of its own: one after the other, on a machine that does nothing else.
"""

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch

PAGE = Path(__file__).parents[2] / "docs/performance.md"
BEGIN, END = "<!-- make bench: begin -->\n", "<!-- make bench: end -->\n"

# Part of the benchmark, figure, how it is shown, what it is.
FIGURES = [
    ("step", "step_over_product", "{:.2f}", "ViT-B/16 step: FLOP rate / that of a plain matrix product (aim 0.80)"),
    ("step", "step_flop_rate", "{:.3g} FLOP/s", "the step's own rate"),
    ("step", "flop_an_image", "{:.4g}", "FLOP an image"),
    ("step", "images_per_second", "{:.3g}", "images/s, forward and backward"),
    ("step", "share_of_bf16_peak", "{:.2f}", "share of the GPU's bf16 peak (aim 0.50)"),
    ("step", "peak_memory_gib", "{:.1f} GiB", "peak GPU memory"),
    ("step", "optimizer_and_ema_seconds", "{:.3f} s", "gradient norm, optimizer and target, once a step"),
    ("step", "optimizer_and_ema_share", "{:.4%}", "their share of a published step of 4096 images"),
    ("step", "checkpoint_stall_seconds", "{:.3f} s", "what the loop waits for when the state is kept (aim: 5 % of it)"),
    (
        "step",
        "slowdown_while_one_is_written",
        "{:+.1%}",
        "a slice while a checkpoint is written and uploaded beside it, over one alone",
    ),
    ("step", "kept_taps_speedup", "{:.2f} x", "step with the teacher's features of the images kept (at most 1.25)"),
    ("loader", "loader_over_plain", "{:.2f}", "loader / torchvision decoding into a batch, one core (aim 0.90)"),
    ("loader", "loader_over_bare_decoding", "{:.2f}", "loader / torchvision decoding alone, its pixels never read"),
    ("loader", "loader_images_a_second_a_core", "{:.0f}", "images/s a core, 224-pixel JPEGs of 18 KB"),
    ("loader", "loaded_over_kept", "{:.3f}", "training on loaded images / on one batch kept in memory (aim 0.97)"),
    ("runs", "start_up_seconds", "{:.1f} s", "worker's start to its first step, tiny run"),
    ("runs", "speedup_2_workers", "{:.2f} x", "images/s of 2 workers / 1, one thread each, tiny run"),
    (
        "runs",
        "side_by_side",
        "{:.2f} x",
        "images/s of two runs at once / one alone, each with a thread a core",
    ),
    (
        "stage",
        "stage_speedup_2_workers",
        "{:.2f} x",
        "an epoch of a stage of evaluation on 2 ranks / 1, one thread each",
    ),
    ("runs", "images_a_second_at_4x_accumulation", "{:.2f} x", "images/s with 4 times the cells a step"),
    ("runs", "images_a_second_at_8x_accumulation", "{:.2f} x", "and with 8 times"),
    ("runs", "reform_seconds", "{:.1f} s", "one of two workers killed -> the next step taken"),
]


def main() -> None:
    found = {part: _measured(part) for part in dict.fromkeys(part for part, *_ in FIGURES)}
    rows = [(what, form.format(found[part][name])) for part, name, form, what in FIGURES if name in found[part]]
    lines = [
        f"{_machine()}, {datetime.now(UTC):%Y-%m-%d}, torch {torch.__version__}.",
        "",
        "| figure | |",
        "| --- | --- |",
    ]
    table = "\n".join([*lines, *(f"| {what} | {value} |" for what, value in rows)]) + "\n"
    print(table)  # noqa: T201
    page = PAGE.read_text()
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}{table}{END}{after}")


def _measured(part: str) -> dict[str, float]:
    code = f"import json; from tests.bench.{part} import measure; print('\\n' + json.dumps(measure()))"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _machine() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    with open("/proc/cpuinfo") as info:
        names = [line.partition(":")[2].strip() for line in info if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, no GPU"


if __name__ == "__main__":
    main()
