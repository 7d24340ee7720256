"""Engines: requests go in, events come out.

The life of a request in an engine of ours (torch, toy):
 1. `Loop.submit` checks the cards, fits the prompt into the context, queues one row per sample (`cards`, `admission`).
 2. `Loop.step` gives a waiting row a slot of the lane's cache; samples of one request share a prefill by fork.
 3. `draft`: every row gets a token tree rooted at its pending token: a chain of one, a replay, forced ids, a draft.
 4. `Lane.forward`: one ragged call over all rows' new tokens, prompt chunks among them.
 5. `walk`: constrain, mask, chain, draw, observe, verdict, stop; on to the drafted child while there is one.
 6. The lane keeps the accepted path, finished rows free their slots, events go out, drafters observe.

`loop.py` is that page. A lane is a model with a cache (`lane.py`): `toy.py` and `torch/` are two of them.
`vllm/` is an engine of its own behind the same contract.
"""
