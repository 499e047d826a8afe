"""Evaluate an encoder that is there, without pretraining: python -m trainer.evaluation.measure REQUEST FOLDER

REQUEST is a trainer.contract.request.Request as JSON. FOLDER, a path or s3:// address, keeps state and result; asked
again with it, it goes on. What happens is printed as lines of JSON: {"epoch": number, "of": epochs, metrics ...}, and
at last the StageResult, or {"error": ...} or {"interrupted": ...} where it ends before that. With MLFLOW_RUN_ID every
epoch is logged there, as a run's are. Under torchrun its processes share the work, and rank 0 speaks for them.

Exit code: 0 measured, 1 it cannot be, 143 interrupted, and all that was done is kept.
"""

import json
import logging
import os
import sys

from pydantic import ValidationError

from trainer.contract.records import StageResult
from trainer.contract.request import KINDS, Request
from trainer.contract.stage import misfits
from trainer.data.manifest import DataError, open_images, read_manifest
from trainer.elastic.distributed import NotEnoughGpus, World, joined_world
from trainer.elastic.stop import INTERRUPTED, StopRequest, die_with_parent, exit_on_request, stop_requests
from trainer.evaluation.stages.fitting import Diverged, Epoch, Fit
from trainer.evaluation.stages.runner import Faces, Stopped, Subject, fit_stage, logged
from trainer.store.objects import ObjectMissing, StorageError, Store, open_store
from trainer.tracking.log import RunLog
from trainer.weights.encoders import find_encoder
from trainer.weights.files import WeightsError
from trainer.weights.mlflow_files import MlflowFiles
from trainer.weights.sources import UnknownWeights

logger = logging.getLogger("trainer")

# In the folder: what is measured there.
ASKED = "asked.json"
LOG_SECONDS = 60.0


class OtherRequest(Exception):
    """The folder holds what another request has left."""


# They say what is wrong; anything else is a fault of ours and ends with its traceback.
ERRORS = (
    DataError, WeightsError, UnknownWeights, StorageError, Diverged, OtherRequest, NotEnoughGpus, ValidationError
)  # fmt: skip


def measure(request: Request, store: Store, team: World, stop: StopRequest) -> StageResult:
    """Every rank calls this. Raises Stopped when asked to end, and all the errors that main tells."""
    found = find_encoder(request.model, MlflowFiles(), request.heads)
    asked = KINDS[request.stage].model_validate(request.asked)
    for field, given, possible in misfits(asked, found.encoder.patch, found.encoder.depth):
        raise DataError(f"{field}: asked for {given}; possible: {possible}")
    if team.is_first:
        _claim(store, request, found.digest)
    faces = None
    if request.data:
        manifest = read_manifest(request.data)
        split = manifest.split(held_out=request.held_out, subset_size=None, subset_seed=0)
        faces = Faces(split, open_images(request.data, manifest))
    run_id = os.environ.get("MLFLOW_RUN_ID") if team.is_first else None
    log = RunLog(os.environ.get("MLFLOW_TRACKING_URI"), run_id, attempt=1)

    def tell(name: str, fit: Fit, epoch: Epoch | None) -> None:
        if epoch and team.is_first:
            log.metrics(epoch.epoch + 1, logged(name, epoch))
            say(epoch=epoch.epoch + 1, of=fit.recipe.epochs, **logged(name, epoch))

    subject = Subject(found.encoder, found.weights, request.seed, request.digest)
    try:
        result = fit_stage(request.stage, asked, subject, faces, store, team, tell, stop)
        log.metrics(result.epochs, {metric.name: metric.value for metric in result.metrics})
        return result
    finally:
        log.close(LOG_SECONDS)


def _claim(store: Store, request: Request, weights: str) -> None:
    """Raises OtherRequest."""
    now = {"request": request.model_dump(mode="json"), "weights": weights}
    try:
        before = json.loads(store.get(ASKED))
    except ObjectMissing:
        store.put(ASKED, json.dumps(now, indent=1).encode())
        return
    if before != now:
        raise OtherRequest(
            f"{store.uri} holds another evaluation, of {before['request']['model']}; name another folder"
        )


def say(**values: object) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def main(arguments: list[str]) -> int:
    die_with_parent()
    exit_on_request()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("botocore").setLevel(logging.WARNING)
    request, folder = arguments
    # What a process meets before it has joined the others, each of them meets and says.
    speaks = True
    try:
        asked, store = Request.model_validate_json(request), open_store(folder)
        with joined_world() as team, stop_requests() as stop:
            speaks = team.is_first
            result = measure(asked, store, team, stop)
    except Stopped as error:
        if speaks:
            say(interrupted=str(error))
        return INTERRUPTED
    except ERRORS as error:
        if speaks:
            say(error=str(error))
        return 1
    if speaks:
        say(**result.model_dump(mode="json"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
