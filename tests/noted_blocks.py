"""Which blocks of Philox are drawn: every purpose, seed, draw and sample has its own, and none is drawn twice."""

import itertools
from dataclasses import dataclass

from sde_toolkit.noise.philox import HostPhilox
from sde_toolkit.noise.streams import Purpose


@dataclass
class Walk:
    """Words that follow each other, from the block ``first`` of a key on."""

    key: tuple[int, int]
    first: int
    words: int = 0

    @property
    def last(self):
        """One after the last block. A generator of numpy takes one at least."""
        return self.first + max(1, -(-self.words // 4))


class NotedBlocks:
    """Notes the blocks that are drawn on the CPU from now on."""

    def __init__(self, monkeypatch):
        self.walks, current = [], {}
        start, words = HostPhilox.start, HostPhilox.words

        def noted_start(host, counter):
            current[host] = Walk(tuple(host.bits.state["state"]["key"].tolist()), counter)
            self.walks.append(current[host])
            start(host, counter)

        def noted_words(host, n):
            current[host].words += n
            return words(host, n)

        monkeypatch.setattr(HostPhilox, "start", noted_start)
        monkeypatch.setattr(HostPhilox, "words", noted_words)

    @property
    def purposes(self):
        return {Purpose(walk.key[1]) for walk in self.walks}

    def shared(self):
        """Pairs of walks that have a block in common."""
        ordered = sorted(self.walks, key=lambda walk: (walk.key, walk.first))
        return [(a, b) for a, b in itertools.pairwise(ordered) if a.key == b.key and b.first < a.last]
