"""raydecode: one specification of how to decode, run over corpora, on clusters, online and in training.

The library works without Ray and without a server. Read `contracts.py` first.
"""

__version__ = "0.1.0"
