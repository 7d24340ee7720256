"""Job graphs: a file is one pipeline over actors."""
