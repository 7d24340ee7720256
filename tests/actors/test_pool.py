"""Why an actor is gone, read from what Ray says of it, and patience with a lost one. Real deaths: tests/pipelines."""

from types import SimpleNamespace

import pytest

from actors import pool
from actors.generation import EngineDied
from actors.pool import Pool, cause_of


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


class Lost:
    """An actor that Ray calls unavailable; it counts how often it is asked."""

    def __init__(self):
        self.asked = 0
        self.start = self.stacks = SimpleNamespace(remote=self.ask)

    def ask(self):
        self.asked += 1
        return object()


def test_a_lost_actor_is_asked_now_and_then_and_given_up_in_the_end(monkeypatch):
    import ray
    from ray.exceptions import ActorUnavailableError

    now, handles, told = [0.0], [], []

    def get(ref, timeout=None):
        raise ActorUnavailableError("the network is away", actor_id=None)

    monkeypatch.setattr(pool.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(pool.time, "sleep", lambda s: None)
    monkeypatch.setattr(ray, "wait", lambda refs, num_returns, timeout: (refs[:1], refs[1:]))
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "kill", lambda handle, no_restart: None)
    workers = Pool(
        lambda name, spare: handles.append(Lost()) or handles[-1], 1, 1, lambda *call: told.append(call), "1."
    )
    for tick in range(1, 601):
        now[0] = tick / 10
        workers.poll()
    assert len(handles) == 1
    assert handles[0].asked <= 61, "600 polls in a minute, about one question a second"
    now[0] += pool.LOST_S
    workers.poll()
    workers.poll()
    assert len(handles) == 2, "given up, and replaced"
    assert not told, "it never came to run: no row, and no start, is to blame"
