"""The client and the `mcf` command against a real service whose attempts are cheap."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from k8s.local import stop_all
from service.client import Ambiguous, Client, NoSuchThing, Refused, ServiceAway
from service.compare.paper import html, read_back
from tests.conftest import free_port
from tests.forks import forks
from tests.integration.test_service import Service
from tests.integration.test_service import request as cheap
from tests.unit.service.test_progress import in_terminal

ROOT = Path(__file__).parents[2]
Mcf = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    made = Service(folder)
    made.start()
    made.wait_until_up()
    yield made
    made.kill(signal.SIGTERM)
    stop_all(folder / "attempts", grace_seconds=2)


@pytest.fixture(scope="module")
def client(service: Service) -> Client:
    return Client(service.url)


@pytest.fixture
def mcf(service: Service, tmp_path: Path) -> Mcf:
    """The command as a person runs it, in an empty folder."""

    def run(*words: str, url: str | None = service.url) -> "subprocess.CompletedProcess[str]":
        return forks.run("service.cli.main:app", *words, env=environment(url), cwd=tmp_path, timeout=120)

    return run


def environment(url: str | None) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("MCF_")}
    return env | {"PYTHONPATH": str(ROOT)} | ({"MCF_URL": url} if url else {})


def write(folder: Path, spec: dict[str, Any]) -> Path:
    file = folder / "spec.yaml"
    file.write_text(yaml.safe_dump(spec))
    return file


def test_a_notebook_gets_from_a_spec_to_a_table_in_one_line(client: Client, tiny_faces: Path) -> None:
    pandas = pytest.importorskip("pandas")
    seen: list[float] = []
    done = client.submit(cheap(tiny_faces, name="notebook")).wait(
        poll_seconds=0.2, timeout_seconds=60, on_progress=lambda detail: seen.append(detail.progress)
    )
    table = done.comparison()
    assert isinstance(table, pandas.DataFrame)
    assert sorted(table.index) == ["mask_ratio=0.5", "mask_ratio=0.75"]
    assert list(table["n"]) == [3, 3]
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    [run, *_] = done.runs()
    assert "attempt 1 from step 0" in "".join(client.follow_logs(run.id))
    # The same again costs nothing: every run is there.
    assert client.submit(cheap(tiny_faces, name="notebook-2")).detail.counts == {"succeeded": 6}


def test_things_go_by_id_by_its_beginning_and_by_name(client: Client, tiny_faces: Path) -> None:
    first = client.submit(cheap(tiny_faces, name="named", seeds=1))
    second = client.submit(cheap(tiny_faces, name="named", seeds=2))
    assert client.experiment(first.id[:9]).id == first.id
    with pytest.raises(Ambiguous, match=f"means 2 things:\n  {second.id} .*\n  {first.id} "):
        client.experiment("named")
    run = first.runs()[0].id
    assert client.run(run[:9]).id == run
    with pytest.raises(NoSuchThing, match=r"no experiment 'nemed'.*mcf list"):
        client.experiment("nemed")
    with pytest.raises(NoSuchThing, match="means"):
        client.run("r")


def test_the_shell_is_offered_names_and_ids_and_without_a_service_nothing(
    service: Service, client: Client, tiny_faces: Path, tmp_path: Path
) -> None:
    made = client.submit(cheap(tiny_faces, name="offered", seeds=1))
    client.submit(cheap(tiny_faces, name="offered-twice", seeds=1))
    client.submit(cheap(tiny_faces, name="offered-twice", seeds=1))
    run = made.runs()[0].id

    def offered(*words: str, url: str | None = service.url) -> list[str]:
        asked = {"COMP_WORDS": " ".join(["mcf", *words]), "COMP_CWORD": str(len(words))}
        env = environment(url) | asked | {"_SERVICE.CLI.MAIN_COMPLETE": "complete_bash"}
        answer = forks.run("service.cli.main:app", env=env, cwd=tmp_path, timeout=60)
        assert answer.stderr == ""
        return answer.stdout.split()

    for command in "show", "compare", "cancel", "watch", "extend":
        assert offered(command, "offe") == ["offered-twice", "offered"], command
    assert offered("--url", service.url, "compare", "offered", "offered-", url=None) == ["offered-twice"]
    assert offered("cancel", made.id[:-1]) == [made.id]
    for command in "logs", "get", "show":
        assert offered(command, run[:-1]) == [run], command
    for nobody in None, f"http://127.0.0.1:{free_port()}":
        assert offered("show", "offe", url=nobody) == []


def test_a_finished_run_is_fetched_from_the_command_line(
    mcf: Mcf, service: Service, client: Client, tiny_faces: Path, tmp_path: Path
) -> None:
    spec = cheap(tiny_faces, name="fetched", seeds=1, factors={})
    [run] = client.submit(spec).wait(poll_seconds=0.2, timeout_seconds=60).runs()
    got = mcf("get", run.id[:9], "--result")
    assert got.returncode == 0, got.stderr
    assert got.stdout.startswith(f"{run.id}-result.json: ")
    found = client.run(run.id).result
    assert found
    assert json.loads((tmp_path / f"{run.id}-result.json").read_text())["steps"] == found.steps
    none = mcf("get", run.id, "--encoder")
    assert (none.returncode, none.stdout) == (1, "")
    assert f"Run {run.id} has succeeded, but there is no encoder in its directory" in none.stderr
    folder = Path(client.run(run.id).uri, "export")
    folder.mkdir()
    for name in "model.safetensors", "config.json", "README.md":
        (folder / name).write_bytes(name.encode() * 1000)
    got = mcf("get", run.id, "--encoder", "--out", "kept")
    assert got.returncode == 0, got.stderr
    assert (tmp_path / "kept/config.json").read_bytes() == b"config.json" * 1000
    assert mcf("get", run.id).returncode == mcf("get", run.id, "--result", "--encoder").returncode == 2


def test_six_mistakes_are_six_lines(mcf: Mcf, client: Client, tiny_faces: Path, tmp_path: Path) -> None:
    spec = cheap(tiny_faces, name="six")
    spec["base"] |= {"mask_ration": 0.5, "batch": {"slice": 16, "contrastive_group": 40, "global_batch": 80}}
    spec["base"]["data"]["subset_size"] = 10_000
    spec["base"]["teacher"] = {"source": "missing.pt", "arch": "as-encoder", "taps": [1]}
    spec |= {"factors": {"mask_ratio": [0.75, 1.5]}, "placement": {"min_nodes": 3, "max_nodes": 2}}
    with pytest.raises(Refused) as caught:
        client.submit(spec)
    answer = mcf("submit", str(write(tmp_path, spec)))
    assert answer.returncode == 2
    head, *lines = answer.stderr.splitlines()
    assert head == "6 problems; nothing was submitted:"
    assert len(lines) == len(caught.value.problems) == 6
    for field in "mask_ration", "contrastive_group", "subset_size", "teacher.source", "mask_ratio", "min_nodes":
        assert any(field in line for line in lines), answer.stderr
    # The service was told where the spec's folder is.
    assert str(tmp_path / "missing.pt") in answer.stderr


def test_watching_ends_with_the_comparison_and_says_whether_all_went_well(
    mcf: Mcf, tiny_faces: Path, tmp_path: Path
) -> None:
    good = mcf("submit", str(write(tmp_path, cheap(tiny_faces, name="watched", steps=6))), "--watch")
    assert good.returncode == 0, good.stderr
    assert "6 runs: 6 succeeded" in good.stderr
    assert "Arms are ranked" in good.stdout or "not ranked" in good.stdout
    spec = cheap(tiny_faces, name="half", factors={"contrastive.temperature": [0.2, 0.5]}, seeds=1)
    bad = mcf("submit", str(write(tmp_path, spec)), "--watch")
    assert bad.returncode == 1
    assert "the loss is not finite" in bad.stdout
    for form, start in ("md", "# half"), ("csv", "rank,arm"), ("json", "{"), ("tex", "% e"):
        assert mcf("compare", "half", "--format", form).stdout.startswith(start)
    assert "half" in mcf("list").stdout
    found = mcf("list", "--state", "failed", "--state", "cancelled", "--name", "HAL").stdout
    assert "half" in found
    assert "watched" not in found
    assert "No experiment is like that" in mcf("list", "--state", "queued", "--name", "half").stdout
    assert "temperature=0.5" in mcf("show", "half").stdout


def test_a_watched_experiment_is_a_line_an_arm_however_narrow_the_terminal(client: Client, tiny_faces: Path) -> None:
    client.submit(cheap(tiny_faces, name="narrow", steps=40, pause=0.05, seeds=1))
    words = ["--url", client.url, "watch", "narrow"]
    told = re.sub(
        r"\x1b\[[\d;?]*[A-Za-z]", "", in_terminal(f"from service.cli.main import app; app({words})", columns=44)
    )
    bars = re.findall(r"[^\r\n]* +\d+%  [^\r\n]*", told)
    assert len({line.split()[0] for line in bars}) == 2  # both arms begin alike; and the experiment
    assert any("100%" in line for line in bars)
    assert max(map(len, bars)) <= 44


def test_a_report_is_trained_again_and_it_is_said_number_by_number_what_moved(
    mcf: Mcf, client: Client, tiny_faces: Path, tmp_path: Path
) -> None:
    client.submit(cheap(tiny_faces, name="told", seeds=2)).wait(poll_seconds=0.2, timeout_seconds=60)
    written = mcf("report", "told")
    assert written.returncode == 0, written.stderr
    file = tmp_path / "told.html"
    assert mcf("report", "told", "--out", "-").stdout.startswith("<!doctype html>")
    same = mcf("reproduce", str(file))
    assert same.returncode == 0, same.stdout + same.stderr
    assert re.search(r"\n0 of \d+ numbers moved", same.stdout)
    # Both are called so by now.
    again = client.experiment(next(client.experiments()).id)
    was = read_back(file.read_text())
    # It was trained, not shared.
    assert again.id != was.comparison.experiment_id
    assert not any(trial.shared for arm in again.detail.arms for trial in arm.trials)
    assert not {run.id for run in again.runs()} & {run.run_id for row in was.comparison.arms for run in row.runs}

    number = was.comparison.arms[0].runs[1]
    assert number.value is not None
    number.value += 0.25
    file.write_text(html(was))
    moved = mcf("reproduce", str(file), "--with", again.id)
    assert moved.returncode == 1
    assert re.search(r"\n1 of \d+ numbers moved", moved.stdout)
    assert f"seed {number.seed}" in next(line for line in moved.stdout.splitlines() if line.rstrip().endswith("-0.25"))
    wrong = mcf("reproduce", str(write(tmp_path, {})))
    assert wrong.returncode == 1
    assert "not a report of mcf" in wrong.stderr


def test_two_experiments_are_compared_arm_by_arm(mcf: Mcf, client: Client, tiny_faces: Path) -> None:
    ratios = ({"mask_ratio": [0.75, 0.5]}, {"mask_ratio": [0.5, 0.25]})
    for name, factors in zip(("left-one", "right-one"), ratios, strict=True):
        experiment = client.submit(cheap(tiny_faces, name=name, factors=factors))
        experiment.wait(poll_seconds=0.2, timeout_seconds=60)
    shown = mcf("compare", "left-one", "right-one")
    assert shown.returncode == 0, shown.stderr
    [line] = [line for line in shown.stdout.splitlines() if line.startswith("mask_ratio=0.5 ")]
    assert line.rstrip().endswith("3 shared")
    assert re.search(r"Only in left-one .*: mask_ratio=0.75\.", shown.stdout)
    assert re.search(r"Only in right-one .*: mask_ratio=0.25\.", shown.stdout)
    assert '"same_runs": 3' in mcf("compare", "left-one", "right-one", "--format", "json").stdout
    assert mcf("compare", "left-one", "right-one", "--format", "csv").returncode == 2


def test_ctrl_c_while_watching_leaves_the_experiment_alone_and_says_so(
    service: Service, client: Client, tiny_faces: Path, tmp_path: Path
) -> None:
    spec = cheap(tiny_faces, name="left", steps=400, pause=0.05, factors={}, seeds=1)
    command = [sys.executable, "-m", "service.cli.main", "submit", str(write(tmp_path, spec)), "--watch"]
    watching = subprocess.Popen(command, env=environment(service.url), stdout=subprocess.PIPE, text=True)
    assert watching.stdout
    assert watching.stdout.readline().startswith("left is ")
    while not client.experiment("left").detail.counts.get("running"):
        assert watching.poll() is None
        time.sleep(0.1)
    watching.send_signal(signal.SIGINT)
    told, _ = watching.communicate(timeout=30)
    assert watching.returncode == 130
    left = client.experiment("left")
    assert f"mcf watch {left.id}" in told
    assert left.detail.state == "running"
    assert left.cancel().detail.state == "cancelled"


def test_a_dry_run_says_what_would_be_done_and_does_nothing(mcf: Mcf, tiny_faces: Path, tmp_path: Path) -> None:
    answer = mcf("submit", str(write(tmp_path, cheap(tiny_faces, name="dry"))), "--dry-run")
    assert answer.returncode == 0
    assert "2 arms, 6 runs" in answer.stdout
    assert "dry" not in mcf("list").stdout


def test_without_a_service_it_says_how_to_start_one(mcf: Mcf) -> None:
    for url in None, f"http://127.0.0.1:{free_port()}":
        began = time.monotonic()
        answer = mcf("list", url=url)
        assert answer.returncode == 1
        assert "mcf up" in answer.stderr
        assert len(answer.stderr.splitlines()) <= 3
        assert time.monotonic() - began < 20


def test_waiting_outlives_a_service_that_is_killed(service: Service, client: Client, tiny_faces: Path) -> None:
    experiment = client.submit(cheap(tiny_faces, name="survivor", steps=40, pause=0.05, seeds=1))
    service.kill()
    service.start()
    assert experiment.wait(timeout_seconds=90).detail.state == "succeeded"


def test_a_transfer_outlives_a_service_that_is_killed(
    service: Service, client: Client, tiny_faces: Path, tmp_path: Path
) -> None:
    spec = cheap(tiny_faces, name="big", seeds=1, factors={})
    [run] = client.submit(spec).wait(poll_seconds=0.2, timeout_seconds=60).runs()
    content = os.urandom(64 << 20)
    Path(client.run(run.id).uri, "result.json").write_bytes(content)
    killed: list[int] = []

    def kill_once(done: int, of: int) -> None:
        if not killed:
            killed.append(done)
            service.kill()
            service.start()

    assert client.get_result(run.id, tmp_path, told=kill_once).read_bytes() == content
    assert 0 < killed[0] < len(content)


def test_the_token_goes_along(tmp_path: Path, tiny_faces: Path) -> None:
    guarded = Service(tmp_path, MCF_TOKEN="s3cret")
    guarded.start()
    try:
        guarded.wait_until_up()
        with pytest.raises(Refused, match="token"):
            list(Client(guarded.url).experiments())
        assert list(Client(guarded.url, "s3cret").experiments()) == []
    finally:
        guarded.kill(signal.SIGTERM)
    with pytest.raises(ServiceAway):
        Client(guarded.url, "s3cret").ping()


def test_tokens_are_made_used_and_revoked_from_the_command_line(tmp_path: Path, tiny_faces: Path) -> None:
    guarded = Service(tmp_path, MCF_TOKEN="s3cret")
    guarded.start()

    def mcf(token: str, *words: str) -> "subprocess.CompletedProcess[str]":
        env = environment(guarded.url) | {"MCF_TOKEN": token}
        return forks.run("service.cli.main:app", *words, env=env, cwd=tmp_path, timeout=60)

    try:
        guarded.wait_until_up()
        made = mcf("s3cret", "token", "create", "ci", "--scope", "submit", "--project", "faces", "--expires", "90")
        assert made.returncode == 0, made.stderr
        secret = made.stdout.strip()  # alone, so that MCF_TOKEN=$(mcf token create ...) works
        assert secret.startswith("mcf_t")
        assert "submit in faces, until 20" in made.stderr
        spec = str(write(tmp_path, cheap(tiny_faces, name="of-faces", seeds=1, factors={})))
        assert mcf(secret, "submit", spec, "--watch").returncode == 0
        assert mcf("s3cret", "submit", spec, "--project", "other").returncode == 0
        assert "other" in mcf("s3cret", "list").stdout
        listed = mcf(secret, "list").stdout
        assert "faces" in listed
        assert "other" not in listed
        refused = mcf(secret, "submit", spec, "--project", "other")
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "belongs to project 'faces'" in refused.stderr
        refused = mcf(secret, "token", "list")
        assert refused.returncode == 1
        assert "needs the scope admin, but the token 'ci' has submit" in refused.stderr

        tokens = mcf("s3cret", "token", "list").stdout
        assert "ci" in tokens
        assert secret not in tokens
        token_id = secret.split("_")[1]
        assert "is revoked" in mcf("s3cret", "token", "revoke", token_id).stdout
        assert "was revoked at" in mcf(secret, "list").stderr
        assert " s ago" in mcf("s3cret", "token", "list").stdout.partition("revoked ")[2]
        assert secret not in (tmp_path / "service.log").read_text()
    finally:
        guarded.kill(signal.SIGTERM)
        stop_all(tmp_path / "attempts", grace_seconds=2)
