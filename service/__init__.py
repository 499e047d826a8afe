"""The control service, the `mcf` command and the Python client. Each part may use the parts below it (import-linter).

app, __main__           puts the parts together and serves them
pages/, cli/            what people see: pages rendered by the server, the `mcf` command
api/, client            HTTP: the routes, and the client that calls them
reconciler/             brings every run to its end: lease, look, decide, act, write
publishing/             what MLflow is told of an experiment and its trials
notify/                 what webhooks are told of it, and sending that
compare/                statistics over seeds, the table and its formats
experiments/, pools/, tokens/, runs/    what the service knows of each, and what may be done with it
tracking, launching/    the ports to MLflow and to the schedulers
downloads               files of a run from the service onto this machine
db, migrations/, tables     the database
costs                   what hours cost, at the prices of the node pools
schemas/                what the API answers with
states, settings, errors, text, telemetry, connection, specfile     words and helpers that all share
version                 of this mcf
"""

import os

# MLflow looks at it once, when it is imported, and would tell its makers of every start of ours.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
