"""What stands in for a trainer leaves in the store. Standard library only: cheap_trainer.py starts without packages."""

from typing import Any


def session(
    number: int, attempt: int, first: int, step: int, total: int, started_at: str, seen_at: str
) -> dict[str, Any]:
    return {
        "number": number, "attempt": attempt, "world_size": 1, "device": "cpu", "first_step": first, "step": step,
        "total_steps": total, "stage": "training", "images_per_second": 10.0, "losses": {"loss/total": 1 / step},
        "speed": {
            "images": 10 * (step - first - 1), "seconds": float(step - first - 1), "waiting_seconds": 0.0,
            "compile_seconds": 1.5, "peak_share": 0.25 if step > first + 1 else None,
        },
        "started_at": started_at, "seen_at": seen_at,
    }  # fmt: skip


def result(spec: Any, step: int, more: float = 0.0, export: str = "export") -> dict[str, Any]:
    """Its probe depends on `mask_ratio` and the seed."""
    value = more + 10 - 4 * spec["mask_ratio"] + 0.1 * spec["seed"] + 0.01 * ((spec["seed"] * 7) % 3)
    return {
        "steps": step, "images_seen": step * spec["batch"]["global_batch"], "subset_size": 40,
        "subset_digest": "0" * 64, "held_out_digest": "1" * 64,
        "probe": {"name": "probe/landmark_nme", "value": value, "unit": "% of eye distance", "higher_is_better": False},
        "floors": {"pixels": 12.0, "random_encoder": 11.0 + 0.05 * spec["seed"]},
        "sanity": [{"name": "sanity/psnr", "value": 20.0, "unit": "dB", "higher_is_better": True}],
        "losses": {"loss/total": 0.5}, "export": export,
    }  # fmt: skip
