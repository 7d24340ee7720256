"""Engines: requests go in, events come out.

The life of a request in an engine of ours (torch, toy):
 1. `Loop.submit` checks the cards, fits the prompt into the context, queues one row per sample (`cards`, `admission`).
 2. `Loop.step` gives a waiting row a slot and pages (`schedule`, `pages`); samples of one request fork their leader's
    prompt, equal beginnings share pages, and when pages run out the row that came last gives its own back.
 3. `draft`: every row gets a token tree rooted at its pending token: a chain of one, a replay, forced ids, a draft
    (`choice`: whose and how large, where the row leaves that to the engine).
 4. `Lane.forward`: one ragged call over all rows' new tokens, prompt chunks among them, with what rows asked of the
    model's inside (`inside`).
 5. `walk`: constrain, mask, chain, draw, observe, verdict, stop; on to the drafted child while there is one.
 6. The lane keeps the accepted path, finished rows free their slots, events go out, drafters observe.

`loop.py` is that page. A lane is a model with a cache (`lane.py`): `toy.py` and `torch/` are two of them.
`vllm/` is an engine of its own behind the same contract.
"""
