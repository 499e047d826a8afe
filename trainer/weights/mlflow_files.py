"""Weights by their name in MLflow: registered models and run artifacts. No torch: the service looks them up too."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainer.contract.records import POINTER
from trainer.store.objects import StorageError
from trainer.weights.sources import MLFLOW, FilesOnly, UnknownWeights

NAME = re.compile(
    r"models:/(?P<model>[^/@]+)(/(?P<version>\d+)|/?@(?P<alias>[^/]+))(?P<model_path>/.*)?"
    r"|runs:/(?P<run>[^/]+)(?P<path>/.*)?"
)
SUFFIXES = (".safetensors", ".pt", ".pth", ".pth.tar", ".bin", ".npz")


class MlflowFiles(FilesOnly):
    """Names as MLflow has them: `models:/NAME/VERSION[/PATH]`, `models:/NAME/@ALIAS[/PATH]`, `runs:/ID[/PATH]`."""

    def __init__(self, tracking_uri: str | None = None) -> None:
        """`tracking_uri`: None = MLFLOW_TRACKING_URI."""
        self.tracking_uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")

    def find(self, name: str) -> str:
        if self.tracking_uri is None:
            return super().find(name)
        pinned, path = self._pinned(name)
        # A path to a file is found out by fetching it; a folder is looked through. A run's folder has pictures
        # beside the pointer to its export, and the weights that points to are not in MLflow.
        files = [path] if path.endswith((*SUFFIXES, POINTER)) else self._files(pinned, path)
        pointers = [file for file in files if file.rpartition("/")[2] == POINTER]
        found = pointers or [file for file in files if file.endswith(SUFFIXES)]
        if len(found) == 1:
            return f"{pinned}/{found[0]}"
        raise UnknownWeights(
            f"{MLFLOW}{name}, which holds {', '.join(sorted(found or files)[:6]) or 'nothing'}",
            f"the path of one weights file ({', '.join(SUFFIXES)}) or of {POINTER}",
        )

    def fetch(self, name: str, folder: Path) -> Path:
        if self.tracking_uri is None:
            return super().fetch(name, folder)
        pinned, path = self._pinned(name)
        with self._asking(name):
            from mlflow.artifacts import download_artifacts

            root = self._root(pinned)
            return Path(download_artifacts(f"{root}/{path}", dst_path=str(folder), tracking_uri=self.tracking_uri))

    def _pinned(self, name: str) -> tuple[str, str]:
        """The model version or run that a name means today, and the path in it."""
        match = NAME.fullmatch(name)
        if match is None:
            raise UnknownWeights(
                f"{MLFLOW}{name}", "mlflow:models:/NAME/VERSION, mlflow:models:/NAME/@ALIAS, or mlflow:runs:/ID/PATH"
            )
        path = (match["model_path"] or match["path"] or "").strip("/")
        if match["run"]:
            return f"runs:/{match['run']}", path
        version = match["version"]
        if version is None:
            with self._asking(name):
                version = self._client().get_model_version_by_alias(match["model"], match["alias"]).version
        return f"models:/{match['model']}/{version}", path

    def _files(self, pinned: str, path: str) -> list[str]:
        with self._asking(f"{pinned}/{path}"):
            from mlflow.artifacts import list_artifacts

            # Asked by its parts: of an address MLflow would not know where the root ends.
            root = self._root(pinned)
            files: list[str] = []
            folders = [path]
            while folders:
                folder = folders.pop()
                for item in list_artifacts(f"{root}/{folder}", tracking_uri=self.tracking_uri):
                    place = f"{folder}/{item.path.rpartition('/')[2]}".lstrip("/")
                    (folders if item.is_dir else files).append(place)
            return files

    def _root(self, pinned: str) -> str:
        """Address of a version's or a run's artifacts."""
        kind, _, rest = pinned.partition(":/")
        if kind == "runs":
            return str(self._client().get_run(rest).info.artifact_uri).rstrip("/")
        return str(self._client().get_model_version_download_uri(*rest.split("/"))).rstrip("/")

    def _client(self) -> Any:
        from mlflow import MlflowClient  # seconds of import that few teachers need

        return MlflowClient(self.tracking_uri, registry_uri=self.tracking_uri)

    @contextmanager
    def _asking(self, name: str) -> Iterator[None]:
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            if error.get_http_status_code() in (400, 404):
                raise UnknownWeights(
                    f"{MLFLOW}{name}, of which MLflow says: {error.message}",
                    "a model version or artifact that is there",
                ) from error
            raise StorageError(f"MLflow at {self.tracking_uri}, asked for {name}: {error}") from error
        except OSError as error:  # requests' own errors are some
            raise StorageError(f"MLflow at {self.tracking_uri}, asked for {name}: {error}") from error
