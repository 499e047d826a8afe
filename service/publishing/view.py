"""A saved view of MLflow's list of runs: the arms' runs, flat and the best first, with their levels beside them.

MLflow's own first look is one collapsed parent run. It keeps saved views in tags of its experiment, names them under
*Views*, and opens the one that an address asks for (read off MLflow 3.17.2; another version ignores the tag).
"""

import json
from datetime import datetime
from typing import Any

from service.schemas.comparison import Comparison

TAG = "mlflow.sharedViewState."
SECTION = "mcf"


def view_tag(comparison: Comparison, at: datetime) -> tuple[str, str]:
    """Name and value of the tag."""
    ranked = comparison.metric
    metric = [ranked.name] if ranked else []
    params = sorted({f"arm.{name}" for arm in comparison.arms for name in arm.levels})
    order = f"metrics.`{ranked.name}`" if ranked else "tags.`mlflow.runName`"
    charts = [_chart("PARALLEL", selectedParams=params, selectedMetrics=metric, showAllRuns=True)]
    charts += [_chart("BAR", metricKey=name, runsCountToCompare=20) for name in metric]
    state = {
        "searchFilter": f"tags.`mcf.kind` = 'run' and tags.`mcf.experiment_id` = '{comparison.experiment_id}'",
        "orderByKey": order, "orderByAsc": not (ranked and ranked.higher_is_better),
        "selectedColumns": [*(f"metrics.`{name}`" for name in metric), *(f"params.`{name}`" for name in params)],
        "runsHiddenMode": "FIRST_20_RUNS", "compareRunCharts": charts,
        "compareRunSections": [
            {"uuid": SECTION, "name": "Arms", "display": True, "isReordered": False, "deleted": False,
             "isGenerated": False}
        ],
    }  # fmt: skip
    since = round(at.timestamp() * 1000)
    name = f"{comparison.name}: best first ({comparison.experiment_id})"
    text = json.dumps({"name": name, "createdAt": since, "updatedAt": since, "state": json.dumps(state)})
    return TAG + comparison.experiment_id, text


def view_link(tracking_id: str, comparison: Comparison) -> str:
    """Relative to any page of MLflow, whose address from outside the service may not know."""
    return (
        f"#/experiments/{tracking_id}/runs?viewStateShareKey={comparison.experiment_id}&workflowType=machine_learning"
    )


def _chart(kind: str, **fields: Any) -> dict[str, Any]:
    return {
        "type": kind, "uuid": f"mcf-{kind.lower()}", "metricSectionId": SECTION, "deleted": False, "isGenerated": False,
        **fields,
    }  # fmt: skip
