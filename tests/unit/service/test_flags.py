"""A command line of the released script becomes the spec of what it trained, and nothing of it is lost in silence."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from service.cli.flags import FLAGS, MODELS, experiment
from service.cli.main import app
from service.specfile import read
from trainer.contract import ENCODERS, Data, Optimizer, Placement, RunSpec, Schedule, SpecError, TeacherSpec
from trainer.contract.ablation import expand, parse_experiment

PAGE = Path(__file__).parents[3] / "docs/flags.md"
FILES = "--data_path /faces --cpl_ckpt /moco.pth"
RECIPE = f"""# lmdb dataset
OMP_NUM_THREADS=1 python3 -m torch.distributed.launch --nproc_per_node=8 main_pretrain.py \\
    --batch_size 64 \\
    --accum_iter 8 --model mae_vit_base_patch16     \\
    --input_size 224 --mask_ratio 0.75 --epochs 16 --warmup_epochs 1 --blr 1.5e-4 --weight_decay 0.05 \\
    --moco_m 0.99 --use_lmdb_dataset --lmdb_txt /keys.txt {FILES} \\
    --log_dir logs --output_dir out
"""


def run_of(line: str) -> RunSpec:
    """The one run of a command line's spec, as the service reads it."""
    parsed, problems = parse_experiment(experiment(line)[0])
    assert parsed is not None
    arms, more = expand(parsed)
    assert not problems + more
    [run] = arms[0].runs.values()
    return run


def refusals(line: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        experiment(line)
    return [str(problem) for problem in caught.value.problems]


def notes(line: str) -> str:
    return "\n".join(experiment(line)[1])


def test_the_published_command_is_the_default_run() -> None:
    data = Data(uri="/faces", format="lmdb", keys="/keys.txt")
    assert run_of(RECIPE) == RunSpec(data=data, teacher=TeacherSpec(source="/moco.pth"))


def test_what_is_not_given_is_as_the_script_has_it() -> None:
    run = run_of(f"torchrun --nproc_per_node=8 main_pretrain.py {FILES}")
    assert run == RunSpec(
        data=Data(uri="/faces"),
        encoder=ENCODERS["vit-l16"],
        teacher=TeacherSpec(source="/moco.pth"),
        batch={"slice": 64, "contrastive_group": 512, "global_batch": 512},
        optimizer=Optimizer(base_lr=1e-3),
        schedule=Schedule(length=400, warmup=40),
    )
    assert "--epochs 400" in notes(f"main_pretrain.py {FILES}")


@pytest.mark.parametrize(
    ("start", "processes"),
    [
        ("python main_pretrain.py", 1),
        ("python main_pretrain.py --world_size 4", 4),
        ("--world_size 4", 4),
        ("srun -n 4 python -u main_pretrain.py --world_size 4", 4),
        ("torchrun --nproc_per_node=8 main_pretrain.py", 8),
        ("torchrun --standalone --nproc-per-node 8 /code/main_pretrain.py --world_size 2", 8),
        ("python3.8 -m torch.distributed.launch --nproc_per_node 8 --nnodes=2 --node_rank 0 main_pretrain.py", 16),
        ("CUDA_VISIBLE_DEVICES=0,1,2 torchrun --nnodes 1:1 --nproc_per_node=gpu main_pretrain.py", 3),
        ("mpirun --allow-run-as-root -np 4 -x NCCL_DEBUG=INFO python main_pretrain.py --dist_on_itp", 4),
        ("cd MCF && RANK=0 WORLD_SIZE=2 python main_pretrain.py", 2),
        ("export WORLD_SIZE=2; python main_pretrain.py", 2),
    ],
)
def test_the_number_of_processes_decides_the_batch(start: str, processes: int) -> None:
    batch = run_of(f"{start} --batch_size 32 --accum_iter 3 {FILES} > log.txt 2>&1 &").batch
    assert (batch.slice, batch.contrastive_group, batch.global_batch) == (32, 32 * processes, 96 * processes)


def test_an_absolute_rate_is_the_same_run_as_its_base_rate() -> None:
    assert run_of(f"{RECIPE.replace('--blr 1.5e-4', '--lr 2.4e-3')}").digest == run_of(RECIPE).digest
    assert "--blr 0.00015: --lr takes its place" in notes(f"{RECIPE.strip()} --lr 1e-3")


def test_a_run_that_ends_in_its_warm_up_has_the_rates_it_would_have_had() -> None:
    run = run_of(f"--epochs 16 --blr 1e-3 {FILES}")
    assert (run.schedule.length, run.schedule.warmup, run.optimizer.base_lr) == (16, 16, 4e-4)
    assert "16/40" in notes(f"--epochs 16 {FILES}")


@pytest.mark.parametrize("model", MODELS)
def test_every_released_model_is_named_as_its_sizes_say(model: str) -> None:
    run = run_of(f"--model {model} {FILES}")
    size, patch = re.match(r"mae_vit_([a-z])\w+?_patch(\d+)", model).groups()  # type: ignore[union-attr]
    assert run.encoder.model_dump() == ENCODERS[f"vit-{size}{patch}"]
    if sizes := re.search(r"_dec(\d+)d(\d+)b", model):
        assert (run.decoder.width, run.decoder.depth) == tuple(map(int, sizes.groups()))
    assert run.decoder.heads == 16


OTHER: dict[str, str] = {
    "--lmdb_txt": "/keys.txt", "--model": "mae_vit_base_patch16", "--input_size": "112", "--mask_ratio": "0.5",
    "--encoder_pretrained_ckpt": "/mae.pth", "--resume": "/checkpoint-3.pth", "--lr": "3e-4", "--min_lr": "1e-6",
    "--data_path": "/more", "--cpl_ckpt": "/other.pth", "--weight_decay": "0.1", "--device": "cpu",
}  # fmt: skip


@pytest.mark.parametrize("flag", FLAGS)
def test_every_flag_changes_the_spec_or_is_named_with_the_reason(flag: str) -> None:
    kind = FLAGS[flag].kind
    value = "" if kind is bool else OTHER.get(flag, "2" if kind is int else "0.3" if kind is float else "x")
    line = f"{FILES} {flag} {value}"
    if flag == "--start_epoch":
        line = f"{FILES} {flag} 0"
    without, said_without = experiment(FILES)
    spec, said = experiment(line)
    named = [note for note in said if note.startswith(flag) and note not in said_without]
    assert spec != without if FLAGS[flag].fields and flag != "--lmdb_txt" else named
    if not FLAGS[flag].fields:
        assert spec == without


def test_weights_to_start_from_are_the_encoder_or_everything() -> None:
    encoder = run_of(f"{FILES} --encoder_pretrained_ckpt /mae.pth").initial
    assert (encoder.source, encoder.parts) == ("/mae.pth", "encoder")
    resumed = run_of(f"{FILES} --encoder_pretrained_ckpt /mae.pth --resume /c.pth --start_epoch 3").initial
    assert (resumed.source, resumed.parts) == ("/c.pth", "all")
    assert "not its optimizer and epoch" in notes(f"{FILES} --resume /c.pth")
    assert not run_of(f"{FILES} --resume ''").initial.is_file


def test_a_teacher_is_a_file_whatever_it_is_called() -> None:
    assert experiment("--data_path /d --cpl_ckpt none")[0]["base"]["teacher"] == {"source": "./none"}
    assert run_of("--data_path /d --cpl_ckpt ''").teacher.source == "random"
    assert run_of(f"{FILES} --input_size 112").teacher.input_size == 224


def test_flags_are_read_as_argparse_reads_them() -> None:
    run = run_of(f"{FILES} --accum 2 --batch_size=32 --epochs 5 --epochs 6 --warmup 0 --norm")
    assert (run.batch.global_batch, run.schedule.length) == (64, 6)
    assert "--epochs 5: given again later" in notes(f"{FILES} --epochs 5 --epochs 6")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (f"{FILES} --batch-size 64", "unknown flag '--batch-size'; possible: --batch_size"),
        (f"{FILES} --mask_ration 0.5", "possible: --mask_ratio"),
        (f"{FILES} --w 3", "--world_size or --weight_decay or --warmup_epochs"),
        (f"{FILES} --epochs 1.5", "--epochs: asked for '1.5'; possible: a whole number"),
        (f"{FILES} --blr fast", "--blr: asked for 'fast'; possible: a number"),
        (f"{FILES} --epochs --blr 1e-3", "--epochs: asked for no value"),
        (f"{FILES} --pin_mem=1", "--pin_mem: asked for '1'"),
        (f"{FILES} 64", "'64', which belongs to no flag"),
        (f"{FILES} --mask_ratio 1.0", "--mask_ratio (mask_ratio): asked for 1.0"),
        (f"{FILES} --lr 0", "--lr (optimizer.base_lr)"),
        (
            f"{FILES} --model mae_vit_base_patch61",
            "--model: asked for 'mae_vit_base_patch61'; possible: mae_vit_base_p",
        ),
        (f"{FILES} --start_epoch 3", "--start_epoch: asked for 3 without --resume"),
        (f"{FILES} --resume https://models/c.pth", "--resume: asked for https://models/c.pth"),
        ("--cpl_ckpt /m.pth", "--data_path: asked for nothing"),
        ("--data_path /d", "--cpl_ckpt: asked for nothing"),
        ("--cpl_ckpt /m.pth --data_path $DATA", "--data_path: asked for '$DATA'"),
        (f"accelerate launch main_pretrain.py {FILES}", "'accelerate' before the script"),
        (f"torchrun --nnodes=1:4 main_pretrain.py {FILES}", "--nnodes: asked for '1:4'"),
        (f"torchrun --nproc_per_node=gpu main_pretrain.py {FILES}", "--nproc_per_node: asked for 'gpu'"),
        ("make train", "python main_pretrain.py"),
        ("main_pretrain.py --model 'mae", "quotes that do not match"),
    ],
)
def test_what_cannot_be_is_refused_by_its_flag(line: str, told: str) -> None:
    [problem] = refusals(line)
    assert told in problem


def test_everything_wrong_is_said_at_once() -> None:
    assert len(refusals("--epochs x --blr y --moco 3 --colour red --data_path /d")) == 5


def test_the_page_and_the_parser_know_the_same_flags() -> None:
    rows = re.findall(r"^\| `(--\w+)` \| (.+?) \| (.+) \|$", PAGE.read_text(), flags=re.MULTILINE)
    assert [flag for flag, _, _ in rows] == list(FLAGS)
    for flag, default, here in rows:
        known = FLAGS[flag]
        assert all(re.search(rf"`{re.escape(field)}\b", here) for field in known.fields), flag
        assert bool(known.fields) != here.startswith("nothing"), flag
        if known.kind is bool:
            assert default == ("on" if known.default else "off")
        elif known.default not in (None, ""):
            assert default == f"`{known.default}`"
        for field in re.findall(r"`([a-z_]+\.[a-z_]+)", here):
            assert _exists(field), field


def test_the_page_and_the_parser_know_the_same_models() -> None:
    table: dict[str, tuple[str, str]] = {}
    for names, encoder, decoder in re.findall(
        r"^\| (`mae_.+) \| `(\S+)` \| `(\S+)` \|$", PAGE.read_text(), re.MULTILINE
    ):
        table |= dict.fromkeys(re.findall(r"`(\w+)`", names), (encoder, decoder))
    assert table == MODELS


def test_the_command_writes_a_file_that_submit_reads(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["import-flags", RECIPE.replace("/faces", "faces"), "--name", "published"])
    assert done.exit_code == 0
    (file := tmp_path / "spec.yaml").write_text(done.stdout)
    parsed, problems = parse_experiment(read(file))
    assert not problems
    assert parsed is not None
    assert (parsed.name, parsed.base["data"]["uri"]) == ("published", str(tmp_path / "faces"))
    assert yaml.safe_load(done.stdout) == experiment(RECIPE.replace("/faces", "faces"), "published")[0]
    assert "note: --moco_m 0.99" in done.stderr
    assert "note: --output_dir out" in done.stderr
    assert "faces: relative paths start at the spec's folder" in done.stderr


def test_the_command_takes_words_without_quotes_and_refuses_with_a_code() -> None:
    words = f"torchrun --nproc_per_node 2 main_pretrain.py {FILES}".split()
    done = CliRunner().invoke(app, ["import-flags", *words])
    assert (done.exit_code, yaml.safe_load(done.stdout)["base"]["batch"]["contrastive_group"]) == (0, 128)
    wrong = CliRunner().invoke(app, ["import-flags", f"{FILES} --epoch_s 3"])
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("1 problem; no spec was written:")


def _exists(field: str) -> bool:
    part, name = field.split(".")
    model: Any = Placement if part == "placement" else RunSpec.model_fields[part].annotation
    return name in model.model_fields
