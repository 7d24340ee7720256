"""Why an actor is gone, read from what Ray says of it. Real deaths: tests/pipelines."""

import pytest

from actors.generation import EngineDied
from actors.pool import cause_of


def task_error(cause):
    from ray.exceptions import RayTaskError

    return RayTaskError("run", "traceback", cause)


@pytest.mark.parametrize(
    ("says", "cause"),
    [
        ("The actor died because its node has died. Node Id: 7f", "node_loss"),
        ("Task was killed due to the node running low on memory.", "memory"),
        ("Worker exit type: SYSTEM_ERROR ... killed by SIGKILL", "crash"),
    ],
)
def test_deaths_of_the_process(says, cause):
    from ray.exceptions import RayActorError

    assert cause_of(RayActorError("id", says)) == (cause, says)


def test_a_preempted_node_blames_nobody():
    from ray.exceptions import RayActorError

    assert cause_of(RayActorError("id", "gone", preempted=True))[0] == "node_loss"


def test_what_an_actor_found_gone_blames_no_row():
    from ray.exceptions import ObjectLostError, RayActorError

    assert cause_of(task_error(RayActorError("id", "the ledger is gone")))[0] == "node_loss"
    assert cause_of(task_error(ObjectLostError("ab", None, "c")))[0] == "node_loss"


def test_exceptions_of_the_actors_own_code_blame_what_ran():
    assert cause_of(task_error(EngineDied("Traceback: cable out"))) == ("crash", "Traceback: cable out")
    assert cause_of(task_error(ValueError("odd row"))) == ("crash", "ValueError: odd row")
