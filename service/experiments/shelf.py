"""What stands behind a teacher's name: earlier runs of this service, and MLflow."""

from service.db import Database
from service.runs import repository
from service.settings import Settings
from service.states import RunState
from trainer.contract.records import EXPORT
from trainer.weights.mlflow_files import MlflowFiles
from trainer.weights.sources import RUN, UnknownWeights

SHOWN = 4


class Shelf(MlflowFiles):
    """The names this service knows (trainer.weights.sources.Library)."""

    def __init__(self, db: Database, settings: Settings, project: str | None = None) -> None:
        """`project`: the only one whose runs have names; None = all."""
        super().__init__(settings.tracking_uri)
        self._db, self._settings, self._project = db, settings, project

    def export_of(self, run: str) -> str:
        with self._db.read() as session:
            runs = repository.beginning_with(session, run, SHOWN, self._project) if run else []
        found = {item.id: item.state for item in runs}
        if len(found) > 1:
            some = ", ".join(list(found)[: SHOWN - 1])
            raise UnknownWeights(f"{RUN}{run}, the beginning of several runs' ids", f"more of the id: {some}, ...")
        if not found:
            raise UnknownWeights(
                f"{RUN}{run}, which is not a run of this service", "the id of a run that has succeeded"
            )
        [(id, state)] = found.items()
        if state is not RunState.SUCCEEDED:
            raise UnknownWeights(f"{RUN}{run}, which is {state.value}", "a run that has succeeded")
        return f"{self._settings.run_uri(id)}/{EXPORT.rstrip('/')}"
