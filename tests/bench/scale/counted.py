"""`python -m tests.bench.scale.counted FILE`: the service as it is, and what it asks of whom.

boto3, MlflowClient and the Kubernetes client all send their requests through urllib3, where they are counted. FILE is
written twice a second: {"10.77.0.1:9000": requests so far, ...}.
"""

import json
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from urllib3.connectionpool import HTTPConnectionPool

from service.__main__ import main

SECONDS = 0.5


def count(file: Path) -> None:
    made, send = Counter[str](), HTTPConnectionPool._make_request

    def counted(self: HTTPConnectionPool, *arguments: Any, **named: Any) -> Any:
        made[f"{self.host}:{self.port}"] += 1
        return send(self, *arguments, **named)

    def write() -> None:
        while True:
            aside = file.with_suffix(".aside")
            aside.write_text(json.dumps(dict(made)))
            aside.replace(file)
            time.sleep(SECONDS)

    HTTPConnectionPool._make_request = counted  # type: ignore[method-assign]
    threading.Thread(target=write, daemon=True).start()


if __name__ == "__main__":
    count(Path(sys.argv[1]))
    sys.exit(main())
