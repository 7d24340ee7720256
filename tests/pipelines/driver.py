"""`python tests/pipelines/driver.py JOB.json [--takeover]`: one run as a process of its own, to be killed."""

import json
import sys
from pathlib import Path

from pipelines.generate import run
from raydecode.config import JobConfig

if __name__ == "__main__":
    job = JobConfig.model_validate(json.loads(Path(sys.argv[1]).read_text()))
    summary = run(job, takeover="--takeover" in sys.argv)
    print(json.dumps({"rows": summary.rows, "rows_rerun": summary.rows_rerun, "deaths": summary.deaths}))
