"""What the server tells of itself: metrics, traces, log lines. All of it is derived from one record per stream.

watch     a gateway around the gateway: counts what passes, makes the record (`Seen`) when a stream ends
inquiry   the HTTP request a stream belongs to; the ASGI layer that opens and closes it
metrics   Prometheus; board: one view over several ingress processes
tracing   OpenTelemetry, when it is installed and asked for
logs      JSON lines; no prompt and no text unless asked for
"""
