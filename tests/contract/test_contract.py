"""What others rely on does not change by accident: layers, documented fields, digests of old specs."""

import subprocess
import sys
from pathlib import Path

from trainer.contract import RunSpec
from trainer.contract.ablation import expand, parse_experiment
from trainer.contract.presets import PRESETS

ROOT = Path(__file__).resolve().parents[2]


def test_the_service_loads_no_torch() -> None:
    code = "import service.app, sys; print([m for m in ('torch', 'timm', 'torchvision') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stderr


def test_the_client_loads_neither_database_nor_web_framework() -> None:
    code = "import service.client, sys; print([m for m in ('sqlalchemy', 'fastapi', 'torch') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stderr


def test_the_field_reference_is_what_the_models_say(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "scripts/spec-reference", tmp_path / "spec.md"], check=True)
    assert (tmp_path / "spec.md").read_text() == (ROOT / "docs/spec.md").read_text(), "run scripts/spec-reference"


def test_every_preset_is_a_valid_run_and_the_default_is_the_published_recipe() -> None:
    for name in PRESETS:
        base = {"preset": name, "data": {"uri": "/data/faces"}, "teacher": "random"}
        spec, problems = parse_experiment({"name": "preset", "base": base})
        assert spec
        assert not problems
        assert not expand(spec)[1]
    batch = RunSpec.model_fields["batch"].default
    assert (batch.slice, batch.slices_per_group, batch.num_groups, batch.num_cells) == (64, 8, 8, 64)
    published = RunSpec.model_validate({"data": {"uri": "/data"}, "teacher": "/teachers/mocov3.pth"})
    assert published.learning_rate == 2.4e-3
    assert published.visible_patches() == 49
    assert published.total_steps(20_000_000) == 16 * 20_000_000 // 4096
