"""`python tests/pipelines/several_nodes.py SEEN.json`: a cluster with a job server, until its standard input closes.

A head with CPUs for the driver and the readers, and two nodes with a logical GPU each: engines that ask for one are on
these. Prints {"server": URL}. SEEN.json says where engines have been seen: {node name: [actor ids]}, a name being
"head", "a" or "b".
"""

import json
import os
import select
import socket
import sys
from collections import defaultdict
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

STORE_BYTES = 80 << 20
LOOK_S = 0.5


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def engines():
    """(actor id, node id) of each engine that is alive."""
    for id, actor in ray._private.state.actors().items():
        if actor["ActorClassName"] == "GenerationActor" and actor["State"] == "ALIVE":
            yield id, actor["Address"]["NodeID"]


def main(seen_file):
    port = free_port()
    head = {
        "num_cpus": 2, "include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": port,
        "dashboard_agent_listen_port": free_port(), "object_store_memory": STORE_BYTES,
    }  # fmt: skip
    cluster = Cluster(initialize_head=True, head_node_args=head)
    seen = defaultdict(set)
    try:
        names = {cluster.head_node.node_id: "head"}
        for name in ("a", "b"):
            node = cluster.add_node(
                num_cpus=1, num_gpus=1, object_store_memory=STORE_BYTES, dashboard_agent_listen_port=free_port()
            )
            names[node.node_id] = name
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        print(json.dumps({"server": f"http://127.0.0.1:{port}"}), flush=True)
        whole = Path(seen_file)
        while not select.select([sys.stdin], [], [], LOOK_S)[0]:
            for id, node in engines():
                seen[names[node]].add(id)
            torn = whole.with_suffix(".part")
            torn.write_text(json.dumps({name: sorted(ids) for name, ids in seen.items()}))
            os.replace(torn, whole)
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
