"""What an app asks of a cluster, by itself or with run options."""

import pytest
from torchx.specs import AppDef, InvalidRunConfigException, Role

from k8s.asked import NotOneRole, UnknownPool, asked
from k8s.pools import Pool
from tests.unit.k8s.test_manifests import CPU, app_and_pool

POOLS = {"a100-spot": Pool(**CPU), "cpu": Pool(**CPU)}


def test_an_attempt_of_the_service_says_everything_itself_and_keeps_its_name() -> None:
    app, _, processes = app_and_pool(CPU, {"processes_per_node": 2})
    found = asked(app, {"pool": None, "processes_per_node": None}, POOLS)
    assert found == (app, POOLS["a100-spot"], processes)
    assert asked(app, {}, POOLS) == found


def test_an_app_of_somebody_else_gets_a_name_of_its_own_each_time() -> None:
    app = AppDef("Train_it", roles=[Role("main", image="", entrypoint="sh", args=["-c", "run ${app_id}"])])
    options = {"pool": "cpu", "processes_per_node": 2}
    one, other = asked(app, options, POOLS).app, asked(app, options, POOLS).app
    assert one.name != other.name
    assert one.name.startswith("trainit-")
    assert one.roles[0].args == ["-c", f"run {one.name}"]
    assert app.roles[0].args == ["-c", "run ${app_id}"]


def test_what_is_missing_or_wrong_is_named() -> None:
    role = Role("main", image="", entrypoint="sh")
    app = AppDef("main", roles=[role])
    with pytest.raises(UnknownPool, match=r"placement.pool: asked for h100; possible: a100-spot, cpu"):
        asked(app, {"pool": "h100", "processes_per_node": 1}, POOLS)
    with pytest.raises(UnknownPool, match="possible: none"):
        asked(app, {"pool": "h100", "processes_per_node": 1}, {})
    with pytest.raises(InvalidRunConfigException, match="main does not say its pool: -cfg pool="):
        asked(app, {"processes_per_node": 1}, POOLS)
    with pytest.raises(NotOneRole, match="main has the roles main, other; possible: one"):
        asked(AppDef("main", roles=[role, Role("other", image="")]), {}, POOLS)
