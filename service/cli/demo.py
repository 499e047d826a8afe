"""`mcf demo`: everything up, a small ablation on real faces, the comparison, and then it is yours to look around.

Where `mcf up` already runs in the folder, it is used and left running.
"""

import contextlib
import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
from rich.console import Console

from service.cli import show
from service.cli.guard import die_with_parent
from service.cli.home import Home, Up
from service.cli.progress import progress
from service.cli.watch import watch
from service.client import Client, Experiment, McfError, ServiceAway
from service.text import run_of_page
from trainer.contract import Data, plain
from trainer.data.manifest import DataError, read_manifest

SPEC = Path(__file__).parents[2] / "examples" / "ablation.yaml"
NUM_FACES = 100
"""The first images of scikit-image's LFW subset are faces, the rest are not."""
START_SECONDS = 120.0
PUBLISH_SECONDS = 60.0


def demo(home: Home, *, data: Path | None, keep: bool, console: Console) -> int:
    """Exit code: 0 when every run succeeded, or Ctrl-C ended it after that."""
    # Also where a shell has started it in the background, deaf to Ctrl-C, and where it is asked to end by a kill.
    for number in signal.SIGINT, signal.SIGTERM:
        signal.signal(number, signal.default_int_handler)
    spec = _spec(home.folder, data)
    with _running(home) as (up, is_ours):
        client = Client(up.url, up.token)
        with progress("the service reads the data"):
            experiment = client.submit(spec)
        detail = experiment.detail
        console.print(f"\n{detail.name} is {detail.id}: {detail.num_arms} arms, {show.counts(detail)}", soft_wrap=True)
        try:
            watch(experiment)
            console.print()
            console.print(show.comparison(experiment.table()))
            with progress("the table goes to MLflow"):
                _wait_until_published(experiment, up)
            console.print(f"\npage    {up.url}/experiments/{experiment.id}", soft_wrap=True)
            console.print(f"MLflow  {experiment.detail.tracking_url or up.tracking_uri}", soft_wrap=True)
            if keep and is_ours:
                console.print("Ctrl-C stops everything", soft_wrap=True)
                signal.pause()
        except KeyboardInterrupt:
            console.print("\nWhat was trained is kept; the next demo or `mcf up` here goes on from it")
        return 0 if experiment.refresh().state == "succeeded" else 1


def _wait_until_published(experiment: Experiment, up: Up) -> None:
    """Returns once MLflow, which comes up last, has the comparison too; it must not be stopped half-way."""
    deadline = time.monotonic() + PUBLISH_SECONDS
    while time.monotonic() < deadline:
        url = experiment.refresh().tracking_url
        if url:
            with contextlib.suppress(httpx2.TransportError):
                params = {"run_id": run_of_page(url)}
                answer = httpx2.get(f"{up.tracking_uri}/api/2.0/mlflow/runs/get", params=params, trust_env=False)
                if answer.is_success and answer.json()["run"]["info"]["status"] != "RUNNING":
                    return
        time.sleep(0.5)


def _spec(folder: Path, data: Path | None) -> dict[str, Any]:
    """examples/ablation.yaml with the path of the data: scikit-image's faces, or any folder of images."""
    if not SPEC.exists():
        raise McfError(
            f"The demo needs {SPEC.name} of the source tree, which is not here; `mcf submit FILE` takes any spec."
        )
    spec: dict[str, Any] = plain.from_yaml(SPEC.read_text())
    base = spec["base"]
    if data is None:
        base["data"]["uri"] = str(_lfw(folder / "data" / "lfw") / "faces")
        return spec
    if not data.is_dir():
        raise McfError(f"--data {data}: there is no such folder. Give a folder of images, such as JPEG or PNG files.")
    base["data"]["uri"] = str(data.resolve())
    try:
        images = len(read_manifest(Data(uri=str(data.resolve()))))
    except DataError as error:
        raise McfError(f"--data {data}: {error}") from error
    # Of a small folder, as many held out as of the demo's own would leave too few to train on.
    base["evaluation"]["held_out"] = min(base["evaluation"]["held_out"], max(2, images // 5))
    return spec


def _lfw(folder: Path) -> Path:
    """faces/ with the 100 faces; for a probe, all/ with faces and others, and labels.csv (file,label). Written once."""
    done = folder / "labels.csv"
    if done.exists():
        return folder
    # Only needed here, and only once.
    from PIL import Image
    from skimage.data import lfw_subset

    rows = []
    for name in "faces", "all":
        (folder / name).mkdir(parents=True, exist_ok=True)
    images = lfw_subset()  # type: ignore[no-untyped-call]
    for number, pixels in enumerate(images):
        is_face = number < NUM_FACES
        file = f"{number:03d}.png"
        image = Image.fromarray((pixels * 255).round().astype("uint8"), mode="L")
        for name in ("faces", "all") if is_face else ("all",):
            image.save(folder / name / file)
        rows.append((file, "face" if is_face else "other"))
    with (folder / "labels.part").open("w", newline="") as file_:
        csv.writer(file_, lineterminator="\n").writerows([("file", "label"), *rows])
    (folder / "labels.part").rename(done)
    return folder


@contextlib.contextmanager
def _running(home: Home) -> Iterator[tuple[Up, bool]]:
    """A service that answers, and whether it was started here; what was started here is stopped at the end."""
    if home.is_taken():
        yield _when_ready(home, None), False
        return
    log = home.folder / "logs" / "up.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "service.cli.main", "up", "--dir", str(home.folder)],
            stdout=output,
            stderr=output,
            # Ctrl-C is for us, who then stop it in order.
            start_new_session=True,
            preexec_fn=die_with_parent(signal.SIGTERM, os.getpid()),  # noqa: PLW1509 - there are no threads yet
        )
    try:
        yield _when_ready(home, process), True
    finally:
        with progress("stopping: training writes its checkpoints first"):
            process.terminate()
            process.wait()


def _when_ready(home: Home, process: "subprocess.Popen[bytes] | None") -> Up:
    """Where the service answers, once it does; `process` is the `mcf up` that has to write down where."""
    deadline = time.monotonic() + START_SECONDS
    client: Client | None = None
    with progress("starting the service, MLflow and an object store"):
        while time.monotonic() < deadline and (process is None or process.poll() is None):
            up = home.read()
            if up and (process is None or up.pid == process.pid):
                client = client or Client(up.url, up.token)
                with contextlib.suppress(ServiceAway):
                    client.ping()
                    return up
            time.sleep(0.2)
    raise McfError(f"`mcf up` in {home.folder} did not become ready; its logs are in {home.folder / 'logs'}")
