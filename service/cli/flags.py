"""`mcf import-flags`: what a command line of the released MCF script trains, as an experiment for `mcf submit`.

Every flag either goes to a field of the spec or is named in a note with the reason why it decides nothing here.
What is not given has the released script's default, which is not always the published recipe's.
"""

import difflib
import re
import shlex
from collections import deque
from dataclasses import dataclass
from typing import Annotated, Any

import typer
import yaml

from service.cli import commandline
from service.specfile import NOT_PATHS
from trainer.contract import Problem, SpecError
from trainer.contract.ablation import expand, parse_experiment

Json = dict[str, Any]

HEADER = (
    "# Read by `mcf import-flags` from a command line of the released MCF script; which flag is which: docs/flags.md.\n"
)
WRONG_REQUEST = 2


@dataclass(frozen=True)
class Flag:
    """One flag of the released script."""

    kind: type = str
    default: Any = None
    fields: tuple[str, ...] = ()
    """Fields of the spec it decides."""
    why: str = ""
    """Said whenever it is given: why it decides nothing, or what is different here."""


SPEED = "it decides speed, never numbers"
MEETING = "how processes find each other is the platform's business"
PLACE = "checkpoints, logs and pictures go where the service keeps runs"
FLAGS: dict[str, Flag] = {
    "--data_path": Flag(fields=("data.uri",)),
    "--use_lmdb_dataset": Flag(bool, False, ("data.format",)),
    "--lmdb_txt": Flag(fields=("data.keys",)),
    "--model": Flag(str, "mae_vit_large_patch16", ("encoder", "decoder")),
    "--input_size": Flag(int, 224, ("input_size",)),
    "--mask_ratio": Flag(float, 0.75, ("mask_ratio",)),
    "--cpl_ckpt": Flag(fields=("teacher.source",)),
    "--encoder_pretrained_ckpt": Flag(
        fields=("initial.source", "initial.parts"),
        why="a file that does not fit is refused here; the released script passes over every name it does not know, "
        "which is all of them in its own checkpoints",
    ),
    "--resume": Flag(
        str, "", ("initial.source",),
        "its weights are taken, not its optimizer and epoch: training starts at step 0 of the whole schedule. "
        "To repeat the interrupted run leave it out; runs here go on by themselves",
    ),
    "--batch_size": Flag(int, 64, ("batch.slice",)),
    "--world_size": Flag(int, 1, ("batch.contrastive_group",)),
    "--accum_iter": Flag(int, 1, ("batch.global_batch",)),
    "--moco_t": Flag(float, 0.2, ("contrastive.temperature",)),
    "--blr": Flag(float, 1e-3, ("optimizer.base_lr",)),
    "--lr": Flag(float, None, ("optimizer.base_lr",)),
    "--weight_decay": Flag(float, 0.05, ("optimizer.weight_decay",)),
    "--epochs": Flag(int, 400, ("schedule.length",)),
    "--warmup_epochs": Flag(int, 40, ("schedule.warmup",)),
    "--min_lr": Flag(float, 0.0, ("schedule.min_lr",)),
    "--seed": Flag(int, 0, ("seeds",)),
    "--start_epoch": Flag(int, 0),
    "--moco_m": Flag(
        float, 0.99, (),
        "the released script never applies it: m is 0.99 throughout, as it is here; for another m set ema.momentum",
    ),
    "--norm_pix_loss": Flag(
        bool, False, (),
        "the released script accepts it and never uses it: there is no pixel loss beside the teacher; "
        "for a run with one there is pixels.normalise: patch",
    ),
    "--output_dir": Flag(str, "./output_dir", (), PLACE),
    "--log_dir": Flag(str, "./output_dir", (), PLACE),
    "--device": Flag(str, "cuda", (), "a run takes the GPUs of its node pool, or CPUs where there are none"),
    "--num_workers": Flag(int, 10, (), SPEED),
    "--pin_mem": Flag(bool, True, (), SPEED),
    "--no_pin_mem": Flag(bool, False, (), SPEED),
    "--local_rank": Flag(int, -1, (), MEETING),
    "--dist_on_itp": Flag(bool, False, (), MEETING),
    "--dist_url": Flag(str, "env://", (), MEETING),
}  # fmt: skip

# The released models by name -> encoder and decoder. Those that end in the patch are short for one of the others.
MODELS = {
    "mae_vit_small_patch16_dec256d2b": ("vit-s16", "256x2"),
    **{f"mae_vit_base_patch16_dec512d{depth}b": ("vit-b16", f"512x{depth}") for depth in (8, 4, 2, 1)},
    "mae_vit_large_patch16_dec512d8b": ("vit-l16", "512x8"),
    "mae_vit_huge_patch14_dec512d8b": ("vit-h14", "512x8"),
    "mae_vit_small_patch16": ("vit-s16", "256x2"),
    "mae_vit_base_patch16": ("vit-b16", "512x8"),
    "mae_vit_large_patch16": ("vit-l16", "512x8"),
    "mae_vit_huge_patch14": ("vit-h14", "512x8"),
}
NUMBER = re.compile(r"-\d*\.?\d+")


def import_flags(
    command: Annotated[list[str], typer.Argument(help="The command line, from torchrun or python on; best in quotes.")],
    name: Annotated[str, typer.Option(help="Name of the experiment.")] = "imported",
) -> None:
    """Turn a command line of the released MCF script into a spec, written to standard output."""
    try:
        spec, notes = experiment(command[0] if len(command) == 1 else shlex.join(command), name)
    except SpecError as error:
        count = len(error.problems)
        typer.echo(f"{count} problem{'s' * (count != 1)}; no spec was written:", err=True)
        for problem in error.problems:
            typer.echo(f"  {problem}", err=True)
        raise typer.Exit(WRONG_REQUEST) from None
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(HEADER + yaml.safe_dump(spec, sort_keys=False, default_flow_style=None, width=1000), nl=False)


def experiment(line: str, name: str = "imported") -> tuple[Json, list[str]]:
    """The experiment that a command line stands for, and what there is to say about it.

    Raises SpecError with everything that is wrong with it.
    """
    reader = _Reader()
    spec = reader.experiment(line, name)
    if reader.problems:
        raise SpecError(reader.problems)
    return spec, reader.notes


class _Reader:
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.problems: list[Problem] = []
        self.relative: list[str] = []

    def experiment(self, line: str, name: str) -> Json:
        launch, words, left_out = commandline.split(line)
        self.notes += [f"{text}: not read, the script's own command alone is" for text in left_out]
        started = self._started(launch)
        given = self._given(words)
        asked = {flag: given.get(flag, known.default) for flag, known in FLAGS.items()}
        for flag, value in given.items():
            if flag == "--resume" and not value:
                self.notes.append("--resume '': nothing is resumed")
            elif FLAGS[flag].why:
                self.notes.append(f"{_said(flag, value)}: {FLAGS[flag].why}")
        world = asked["--world_size"] if started is None else started
        if started is None:
            self.notes.append(
                f"--world_size {world}: it counts, as no launcher is named; the released script reads it under Slurm"
            )
        elif "--world_size" in given:
            self.notes.append(f"--world_size {asked['--world_size']}: the {started} processes of the launcher count")
        base = {
            "data": self._data(asked),
            "input_size": asked["--input_size"],
            "mask_ratio": asked["--mask_ratio"],
            **self._model(asked["--model"]),
            "teacher": self._teacher(asked),
            **self._initial(asked, given),
            **self._batch_and_rate(asked, given, world),
        }
        spec = {"name": name, "base": base, "seeds": [asked["--seed"]]}
        if self.relative:
            self.notes.append(f"{', '.join(self.relative)}: relative paths start at the spec's folder")
        self._say_defaults(given)
        # What is missing or misspelt is enough to say; what follows from it would only confuse.
        if not self.problems:
            self._check(spec, given)
        return spec

    # ------------------------------------------------------------ words

    def _given(self, words: list[str]) -> Json:
        """Flag -> value, read as the released script's argparse does: short forms, `=`, the last one counts."""
        given: Json = {}
        rest = deque(words)
        while rest:
            word, equals, text = rest.popleft().partition("=")
            has_value = bool(equals)
            flag = self._known(word)
            takes_none = bool(flag) and FLAGS[flag].kind is bool
            if not (has_value or takes_none) and word.startswith("-") and rest and _is_value(rest[0]):
                text, has_value = rest.popleft(), True
            if flag and has_value == takes_none:
                asked, possible = (repr(text), "") if takes_none else ("no value", f" {FLAGS[flag].kind.__name__}")
                self._refuse(flag, asked, f"{flag}{possible}")
            elif flag:
                self._take(given, flag, text)
        return given

    def _known(self, word: str) -> str:
        """The flag meant by a word; empty where there is none, and that is said."""
        if word in FLAGS:
            return word
        if not word.startswith("-"):
            self._refuse("command line", f"{word!r}, which belongs to no flag", "flags, each with its value")
            return ""
        meant = [flag for flag in FLAGS if flag.startswith(word)] if len(word) > 2 else []
        if len(meant) == 1:
            return meant[0]
        nearest = difflib.get_close_matches(word.replace("-", "_"), FLAGS, n=1, cutoff=0)
        self._refuse("command line", f"the unknown flag {word!r}", " or ".join(meant or nearest))
        return ""

    def _take(self, given: Json, flag: str, text: str) -> None:
        kind = FLAGS[flag].kind
        if flag in given:
            self.notes.append(f"{_said(flag, given[flag])}: given again later, and the last one counts")
        if kind is bool:
            given[flag] = True
            return
        if "$" in text or "`" in text:
            self._refuse(flag, repr(text), "the value itself: what the shell puts there is not known here")
            return
        try:
            given[flag] = kind(text)
        except ValueError:
            self._refuse(flag, repr(text), {"int": "a whole number", "float": "a number"}[kind.__name__])

    def _started(self, launch: list[str]) -> int | None:
        """Processes that are started before the script; None where nothing but --world_size says it."""
        try:
            started = commandline.processes(launch)
        except SpecError as error:
            self.problems += error.problems
            return None
        if started is not None:
            self.notes.append(
                f"{shlex.join(launch)}: that it is {started} process{'es' * (started != 1)} decides the batch; "
                "where and how a run starts is placement, and the platform's"
            )
        elif any("=" in word or word.startswith("-") for word in launch):
            self.notes.append(f"{shlex.join(launch)}: where and how a run starts is placement, and the platform's")
        return started

    # ------------------------------------------------------------ parts of the run

    def _data(self, asked: Json) -> Json:
        data = {"uri": self._path("--data_path", asked["--data_path"] or "")}
        if not data["uri"]:
            self._refuse("--data_path", "nothing", "the folder of images, or with --use_lmdb_dataset the LMDB")
        if asked["--use_lmdb_dataset"]:
            data["format"] = "lmdb"
            if asked["--lmdb_txt"]:
                data["keys"] = self._path("--lmdb_txt", asked["--lmdb_txt"])
            else:
                self.notes.append(
                    "--lmdb_txt is not given: every key is taken; the released script stops without a list"
                )
        else:
            data["format"] = "folder"
            if asked["--lmdb_txt"]:
                self.notes.append("--lmdb_txt: the released script reads it with --use_lmdb_dataset alone")
        return data

    def _model(self, name: str) -> Json:
        if name not in MODELS:
            close = difflib.get_close_matches(name, MODELS, n=1, cutoff=0)
            self._refuse("--model", repr(name), ", ".join(dict.fromkeys([*close, *MODELS])))
        encoder, decoder = MODELS.get(name, ("vit-b16", "512x8"))
        return {"encoder": encoder, "decoder": decoder}

    def _teacher(self, asked: Json) -> Json:
        source = asked["--cpl_ckpt"]
        if source is None:
            self._refuse(
                "--cpl_ckpt", "nothing, where the released script stops", "the teacher's weights, MoCo v3's file"
            )
        elif not source:
            self.notes.append(
                "--cpl_ckpt '': the released script then trains against random weights; here teacher: random"
            )
            return {"source": "random"}
        teacher: Json = {"source": self._path("--cpl_ckpt", source or "")}
        if asked["--input_size"] != 224:
            self.notes.append(
                f"--input_size {asked['--input_size']}: the released models take 224 alone and stop; "
                "the teacher still sees 224, as it would there"
            )
            teacher["input_size"] = 224
        return teacher

    def _initial(self, asked: Json, given: Json) -> Json:
        resume, encoder = asked["--resume"], asked["--encoder_pretrained_ckpt"]
        if "--start_epoch" in given:
            epoch = asked["--start_epoch"]
            if epoch and not resume:
                self._refuse("--start_epoch", f"{epoch} without --resume", "0: a schedule starts at its beginning")
            why = "with --resume the checkpoint's epoch takes its place" if resume else "where training starts anyway"
            self.notes.append(f"--start_epoch {epoch}: {why}")
        if resume and encoder:
            self.notes.append("--encoder_pretrained_ckpt: --resume is read after it and takes its place")
        if resume:
            return {"initial": {"source": self._path("--resume", resume)}}
        if encoder:
            return {"initial": {"source": self._path("--encoder_pretrained_ckpt", encoder), "parts": "encoder"}}
        return {}

    def _batch_and_rate(self, asked: Json, given: Json, world: int) -> Json:
        piece = asked["--batch_size"]
        global_batch = piece * world * asked["--accum_iter"]
        rate, epochs, warmup = asked["--blr"], asked["--epochs"], asked["--warmup_epochs"]
        if asked["--lr"] is not None:
            rate = asked["--lr"] * 256 / (global_batch or 1)
            if "--blr" in given:
                self.notes.append(f"{_said('--blr', given['--blr'])}: --lr takes its place")
        if warmup > epochs > 0:
            rate *= epochs / warmup
            self.notes.append(
                f"--epochs {epochs} end within --warmup_epochs {warmup}: the rate only rises, to {epochs}/{warmup} of "
                "what was asked for; the spec says the same with a warm-up of the whole length"
            )
            warmup = epochs
        return {
            "batch": {"slice": piece, "contrastive_group": piece * world, "global_batch": global_batch},
            "contrastive": {"temperature": asked["--moco_t"]},
            # Twelve digits: --lr and --blr for the same rate are then the same run, and not trained twice.
            "optimizer": {"base_lr": float(f"{rate:.12g}"), "weight_decay": asked["--weight_decay"]},
            "schedule": {"length": epochs, "warmup": warmup, "min_lr": asked["--min_lr"]},
        }

    def _path(self, flag: str, path: str) -> str:
        if path.startswith(("http:", "https:")):
            self._refuse(flag, path, "a path or an s3:// address")
        elif path and not path.startswith(("/", "~", "s3://")):
            self.relative.append(path)
        return f"./{path}" if path and path in NOT_PATHS else path

    # ------------------------------------------------------------ the last look

    def _say_defaults(self, given: Json) -> None:
        taken = [
            _said(flag, known.default)
            for flag, known in FLAGS.items()
            if known.fields and flag not in given and known.default not in (None, False, "")
            if flag != "--world_size" and not (flag == "--blr" and "--lr" in given)
        ]
        if taken:
            self.notes.append(f"not given, so as the released script has it: {', '.join(taken)}")

    def _check(self, spec: Json, given: Json) -> None:
        """What the service would say, by the names of the flags."""
        parsed, problems = parse_experiment(spec)
        if parsed:
            problems += expand(parsed)[1]
        flags = sorted(FLAGS, key=lambda flag: flag not in given)
        for problem in problems:
            flag = next((flag for flag in flags if problem.field in FLAGS[flag].fields), "--name")
            self.problems.append(problem.model_copy(update={"field": f"{flag} ({problem.field})"}))

    def _refuse(self, field: str, asked: str, possible: str) -> None:
        if field == "command line" or all(field != problem.field for problem in self.problems):
            self.problems.append(Problem(field=field, asked=asked, possible=possible))


def _is_value(word: str) -> bool:
    return not word.startswith("-") or NUMBER.match(word) is not None


def _said(flag: str, value: Any) -> str:
    return flag if value is True else f"{flag} {value}"
