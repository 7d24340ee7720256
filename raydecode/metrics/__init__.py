"""Results to numbers: pure folds over the output's rows, bounded in memory whatever the corpus.

figures = measure(tables, facts)        # tables: one per part; facts: what the run knows and the rows do not
forecast(...)                           # what `raydecode plan` says; `compare` puts it beside the fact
"""

from raydecode.metrics.figures import COLUMNS, measure
from raydecode.metrics.forecast import Forecast, compare, forecast
from raydecode.metrics.histogram import Histogram
from raydecode.metrics.timeline import Timeline

__all__ = ["COLUMNS", "Forecast", "Histogram", "Timeline", "compare", "forecast", "measure"]
