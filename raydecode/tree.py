"""A token tree: what a drafter proposes and what one forward verifies. A single token is a tree of one node."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenTree:
    """token[0] is the root: the row's pending token, chosen already, without KV.

    parent[0] = -1 and parent[i] < i; siblings are distinct; nothing hangs under an EOS.
    est[i] estimates P(node i accepted | its parent accepted); it only serves pruning.
    """

    token: tuple[int, ...]
    parent: tuple[int, ...]
    est: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.token)

    @staticmethod
    def root(token: int) -> TokenTree:
        """The tree of plain decoding."""
        return TokenTree((token,), (-1,), (1.0,))

    @staticmethod
    def chain(tokens: Sequence[int]) -> TokenTree:
        """tokens[0] is the root, each later token the child of the one before."""
        n = len(tokens)
        return TokenTree(tuple(tokens), tuple(range(-1, n - 1)), (1.0,) * n)

    @staticmethod
    def paths(root: int, paths: Iterable[Sequence[int]]) -> TokenTree:
        """Merge paths below `root` by common prefix; nodes in order of first appearance."""
        token, parent, children = [root], [-1], {}
        for path in paths:
            at = 0
            for step in path:
                if (at, step) not in children:
                    children[at, step] = len(token)
                    token.append(step)
                    parent.append(at)
                at = children[at, step]
        return TokenTree(tuple(token), tuple(parent), (1.0,) * len(token))

    def child(self, node: int, token: int) -> int | None:
        """The child of `node` that carries `token`, or None."""
        for i in range(node + 1, len(self.token)):
            if self.parent[i] == node and self.token[i] == token:
                return i
        return None

    def path(self, node: int) -> tuple[int, ...]:
        """Node indices from the root to `node`, both included."""
        out = []
        while node >= 0:
            out.append(node)
            node = self.parent[node]
        return tuple(reversed(out))

    def depth(self) -> tuple[int, ...]:
        """Depth of every node; the root's is 0."""
        out: list[int] = []
        for parent in self.parent:
            out.append(0 if parent < 0 else out[parent] + 1)
        return tuple(out)

    def prune(self, size: int) -> TokenTree:
        """The `size` nodes likeliest to be reached (product of `est` along the path): prefix-closed, order kept."""
        reach: list[float] = []
        for i, parent in enumerate(self.parent):
            reach.append(1.0 if parent < 0 else reach[parent] * self.est[i])
        return self.only(sorted(sorted(range(len(reach)), key=lambda i: (-reach[i], i))[: max(size, 1)]))

    def shallow(self, depth: int) -> TokenTree:
        """The nodes less deep than `depth` (the root is 0 deep); order kept."""
        return self.only([i for i, deep in enumerate(self.depth()) if deep < depth])

    def only(self, keep: Sequence[int]) -> TokenTree:
        """The nodes of `keep`, in rising order, the parents of all among them."""
        new = {old: i for i, old in enumerate(keep)}
        pick = tuple(self.token[i] for i in keep), tuple(new.get(self.parent[i], -1) for i in keep)
        return TokenTree(*pick, tuple(self.est[i] for i in keep))

    def check(self, vocab_size: int, eos: frozenset[int] = frozenset()) -> str | None:
        """Why this is not a valid tree, or None. Drafters are not trusted: the engine asks every time."""
        n = len(self.token)
        if n == 0 or len(self.parent) != n or len(self.est) != n or self.parent[0] != -1:
            return "a tree has a root and as many parents and estimates as tokens"
        if any(type(x) is not int for x in (*self.token, *self.parent)):
            return "tokens and parents are plain ints"
        if any(not 0 <= p < i for i, p in enumerate(self.parent) if i):
            return "a parent comes before its children"
        if any(not 0 <= t < vocab_size for t in self.token):
            return f"token outside the vocabulary of {vocab_size}"
        if len(set(zip(self.parent, self.token, strict=True))) != n:
            return "siblings carry one token twice"
        if any(p > 0 and self.token[p] in eos for p in self.parent):
            return "a node below an end of text"
        return None
