"""A command line as the shell takes it: what starts the script, how many processes that is, and the script's words."""

import re
import shlex
from collections import deque
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from trainer.contract import Problem, SpecError

TORCHRUN, MPI = ("torchrun", "torch.distributed.run", "torch.distributed.launch"), ("mpirun", "mpiexec")
# Any other program could start processes that are not counted here.
PROGRAMS = (*TORCHRUN, *MPI, "python", "srun", "env", "export", "exec", "nohup", "time")
ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)

SHELL = re.compile(r"\d*[<>|&;]")


def split(line: str) -> tuple[list[str], list[str], list[str]]:
    """What starts the script, the script's own words, and what of the line is neither. Raises SpecError."""
    text = re.sub(r"\\[ \t]*\r?\n", " ", re.sub(r"^\s*#.*$", "", line, flags=re.MULTILINE))
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise _refusal(f"quotes that do not match ({error})", "the line as the shell would take it") from None
    script = next((place for place, word in enumerate(words) if word.endswith(".py")), None)
    if script is None and not (words and words[0].startswith("--")):
        raise _refusal(repr(line[:60]), "python main_pretrain.py --batch_size 64 ..., or its flags alone")
    launch, own = ([], words) if script is None else (words[:script], words[script + 1 :])
    start = 1 + max((place for place, word in enumerate(launch) if word == "&&" or word.endswith(";")), default=-1)
    end = next((place for place, word in enumerate(own) if SHELL.match(word)), len(own))
    # Of the commands before it only what they set counts: `export WORLD_SIZE=8; python ...`.
    kept = [word.rstrip(";") for word in launch[:start] if ASSIGNMENT.fullmatch(word)]
    left_out = [" ".join(part) for part in (launch[:start], own[end:]) if part]
    return kept + launch[start:], own[:end], left_out


@dataclass
class _Launch:
    programs: list[str] = field(default_factory=list)
    options: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


def processes(words: list[str]) -> int | None:
    """The processes that are started; None where no launcher says it. Raises SpecError."""
    counts = _counts(_read(words))
    wrong = [
        Problem(field=option, asked=repr(text), possible="one number from 1, as the run had it: it decides the batch")
        for option, text in counts.items()
        if not (text.isdecimal() and int(text))
    ]
    if wrong:
        raise SpecError(wrong)
    if not counts:
        return None
    product = 1
    for text in counts.values():
        product *= int(text)
    return product


def _counts(launch: _Launch) -> dict[str, str]:
    """The numbers whose product is the number of processes, by the options that say them."""
    options, environment = launch.options, launch.environment
    if any(program in TORCHRUN for program in launch.programs):
        # By two letters, as both launchers take short forms, with - and with _.
        per_node = next((text for name, text in options.items() if name.startswith("np")), "1")
        nodes = next((text for name, text in options.items() if name.startswith("nn")), "1")
        if per_node in ("gpu", "auto") and (visible := environment.get("CUDA_VISIBLE_DEVICES")):
            per_node = str(len(visible.split(",")))
        least, _, most = nodes.partition(":")
        return {"--nproc_per_node": per_node, "--nnodes": least if most in ("", least) else nodes}
    if any(program in MPI for program in launch.programs):
        return {"-np": next((options[name] for name in ("np", "n", "c") if name in options), "1")}
    return {"WORLD_SIZE": environment["WORLD_SIZE"]} if "WORLD_SIZE" in environment else {}


def _read(words: list[str]) -> _Launch:
    launch, rest = _Launch(), deque(words)
    while rest:
        word = rest.popleft()
        if match := ASSIGNMENT.fullmatch(word):
            launch.environment[match[1]] = match[2]
        elif word == "-m":
            continue
        elif word.startswith("-"):
            option, equals, text = word.partition("=")
            if not equals and rest and not (rest[0].startswith("-") or "=" in rest[0] or _program(rest[0])):
                text = rest.popleft()
            launch.options[option.lstrip("-").replace("-", "_")] = text
        elif program := _program(word):
            launch.programs.append(program)
        else:
            possible = f"{', '.join(PROGRAMS)}; or the flags alone, with --world_size for the number of processes"
            raise _refusal(f"{word!r} before the script", possible)
    return launch


def _program(word: str) -> str:
    """A known program by its plain name; empty for any other word."""
    name = re.sub(r"^python[\d.]+$", "python", PurePosixPath(word).name)
    return name if name in PROGRAMS else ""


def _refusal(asked: str, possible: str) -> SpecError:
    return SpecError([Problem(field="command line", asked=asked, possible=possible)])
