"""The promise of the engines that made an output: in its log before their first row, and named when it changes."""

import json

from raydecode.corpus.history import records, replay
from raydecode.corpus.intervals import Span
from raydecode.corpus.ledger import Ledger
from raydecode.corpus.provenance import difference
from raydecode.corpus.records import State
from raydecode.corpus.storage import LocalStorage
from tests.corpus.power_loss import PowerLossDisk
from tests.corpus.small_job import N, open_log, run

BITWISE = {"engine": "torch", "dtype": "float32", "device": "cpu", "promise": "bitwise", "noise": 0.0, "pid": 7}
NEAR = {**BITWISE, "promise": "near-ties only", "noise": "0.031", "detail": "logits differ"}


def storage() -> LocalStorage:
    return LocalStorage("/out", PowerLossDisk())


def ledger(place, **options) -> Ledger:
    return Ledger(open_log(place, **options), [Span(0, 0, N)], lambda: 0.0)


def test_each_kind_of_engine_is_recorded_once() -> None:
    place = storage()
    one = ledger(place)
    assert one.introduce(BITWISE) is None
    assert one.introduce({**BITWISE, "pid": 8}) is None, "its replacement is of the same kind"
    assert [record["engine"] for record in records(place) if record["kind"] == "engine"] == [
        {name: value for name, value in BITWISE.items() if name != "pid"}
    ]
    assert ledger(place).introduce(BITWISE) is None, "a resume under the same promise says nothing"
    assert len(replay(place).engines) == 1


def test_a_resume_under_another_promise_is_told_with_both_names_and_goes_on() -> None:
    place = storage()
    ledger(place).introduce(BITWISE)
    told = ledger(place).introduce(NEAR)
    assert told is not None
    assert "bitwise (torch, float32, cpu)" in told
    assert "near-ties only with noise 0.031" in told
    assert difference(replay(place).engines) == told
    assert run(place, lambda: "x").state.summary is not None, "nothing is refused"


def test_two_kinds_of_engine_under_one_promise_are_no_news() -> None:
    one = ledger(storage())
    assert one.introduce(BITWISE) is None
    assert one.introduce({**BITWISE, "device": "cuda"}) is None
    assert len(one.log.state.engines) == 2


def test_other_kernels_under_one_promise_are_told() -> None:
    one = ledger(storage())
    assert one.introduce({**BITWISE, "kernels": "built here"}) is None
    told = one.introduce({**BITWISE, "kernels": "torch's"})
    assert told is not None
    assert "different kernels: bitwise (torch, float32, cpu, kernels built here)" in told


def test_an_engine_that_states_no_promise_is_named_so() -> None:
    one = ledger(storage())
    one.introduce(BITWISE)
    assert "none stated (mine)" in str(one.introduce({"engine": "mine"}))


def test_checkpoints_keep_it_and_another_job_forgets_it() -> None:
    place = storage()
    one = ledger(place)
    one.introduce(NEAR)
    while one.log.state.next < 102:
        one.log.blame([], [], {}, rerun=0, worker="w", cause="crash")
    assert [engine["promise"] for engine in replay(place).engines] == ["near-ties only"]
    over = open_log(place, job={"model": "other"}, overwrite=True)
    assert over.state.engines == []


def test_a_log_of_the_format_before_is_read_and_told_nothing_of() -> None:
    place = storage()
    log = open_log(place)
    old = State()
    for record in records(place):
        old.apply({**record, "format": 1} if record["kind"] == "job" else record)
    saved = json.loads(json.dumps(log.state.checkpoint([])))
    del saved["engines"]
    old.apply({"kind": "checkpoint", "state": saved})
    assert old.engines == []
    assert ledger(place).introduce(NEAR) is None, "nobody said what came before"
