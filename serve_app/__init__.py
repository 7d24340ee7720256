"""HTTP over the engines: routes translate, a gateway carries requests to replicas, replicas run the batch engine."""
