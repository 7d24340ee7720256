"""`python tests/pipelines/cluster.py JOB.json PLAN.json`: a job on several nodes that come and go, as a process.

Nodes are raylets of this machine, each with logical GPUs: GPU actors on a CPU machine. The head has CPUs for the
readers and no GPU, so that engines are on the nodes that the plan names. PLAN.json is a list of steps, taken in order:

    {"rows": 40, "add": {"name": "b", "num_gpus": 1}}      when so many rows are committed, a node joins
    {"rows": 90, "remove": "a"}                            ... or dies
    {"alive": 4, ...}                                      the same when so many engines are alive

Prints the job's figures, the causes of deaths, the steps that were left, and "most": {node name: engines seen there at
one time}.
"""

import json
import sys
import time
from collections import Counter
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from pipelines.generate import run
from raydecode.config import JobConfig
from raydecode.corpus.history import records, replay
from raydecode.corpus.storage import open_storage

STORE_BYTES = 80 << 20


class Plan:
    """Takes the steps as the job goes; called with every look at it."""

    def __init__(self, cluster, steps, storage):
        self.cluster, self.steps, self.storage = cluster, list(steps), storage
        self.nodes, self.most = {}, Counter()

    def add(self, name, **resources):
        self.nodes[name] = self.cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES, **resources)

    def look(self):
        """The engines on each node now."""
        found = Counter()
        for actor in ray._private.state.actors().values():
            if actor["ActorClassName"] == "GenerationActor" and actor["State"] == "ALIVE":
                found[actor["Address"]["NodeID"]] += 1
        here = {name: found[node.node_id] for name, node in self.nodes.items()}
        for name, count in here.items():
            self.most[name] = max(self.most[name], count)
        return here

    def __call__(self, view):
        if view.ledger is None:
            return
        here = self.look()
        if not self.steps:
            return
        step = self.steps[0]
        if view.ledger.rows < step.get("rows", 0) or sum(here.values()) < step.get("alive", 0):
            return
        self.steps.pop(0)
        if "add" in step:
            self.add(**step["add"])
        else:
            self.cluster.remove_node(self.nodes.pop(step["remove"]), allow_graceful=False)


def main(job_file, plan_file):
    job = JobConfig.model_validate(json.loads(Path(job_file).read_text()))
    steps = json.loads(Path(plan_file).read_text())
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": STORE_BYTES})
    try:
        plan = Plan(cluster, steps[1:], job.output.path)
        plan.add(**steps[0]["add"])
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        began = time.monotonic()
        summary = run(job, progress=plan)
        storage = open_storage(job.output.path)
        causes = [one["cause"] for one in records(storage) if one["kind"] == "blame"]
        print(
            json.dumps({
                "rows": summary.rows, "errors": summary.errors, "deaths": summary.deaths, "causes": causes,
                "hunted": len(replay(storage).tries), "steps_left": plan.steps, "most": plan.most,
                "seconds": time.monotonic() - began,
            })
        )  # fmt: skip
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
