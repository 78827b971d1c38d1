"""One of the sources that training reads: endlessly many documents, by number."""
from fractions import Fraction

import numpy as np

from kit.sources.base import Pairs

BLOCK = 64  # documents of a mix that change places among themselves


class Source:
    """What one of the keys m3w, align, ltip, vtp and text stands for: one or several parts, mixed by weight.

    document(number) -> data.Document of an endless stream; text(number) -> str. Both depend on seed, role
    and number alone, so a position in the data is one number, and ranks and workers need not talk. Each part
    has numbers of its own, 0, 1, 2, ..., each of them once: of every part every item comes once in an epoch
    of that part.
    """

    def __init__(self, role, parts, weights, seed):
        self.role, self.parts, self.seed = role, parts, seed
        self.weights = [Fraction(str(weight)) for weight in weights]  # 0.1 is a tenth, however far it goes on

    def whose(self, i):
        """-> (which part number i belongs to, how many of its own come before it)

        *Why not drawn by weight:* a sampled part would show some items twice and others not at all. Dealt out
        evenly, as a line is drawn in pixels, the first i numbers hold i times the share of a part, rounded,
        and that needs no counting. The numbers of a block change places, or a mix of 1:1 would deal all even
        numbers to the same part, and rows of texts (kit/run/batches.py) begin with even numbers only.
        """
        if len(self.parts) == 1:
            return 0, i
        block, place = divmod(i, BLOCK)
        places = np.random.default_rng([self.seed, *self.role.encode(), BLOCK, block]).permutation(BLOCK)
        i, total = block * BLOCK + int(places[place]), sum(self.weights)
        for part, weight in enumerate(self.weights):  # this part against all that come after it
            before = i * weight // total
            if (i + 1) * weight // total > before:  # always so for the last, whose weight is all that is left
                return part, before
            i, total = i - before, total - weight

    def draw(self, number):
        """-> the part, its own number, and a random generator for this number alone"""
        part, own = self.whose(number)
        return self.parts[part], own, np.random.default_rng([self.seed, *self.role.encode(), number])

    def doubts(self):
        """What makes the captions of its pairs doubtful, a line each."""
        pairs = [getattr(part, 'pairs', part) for part in self.parts]
        return [f'{one.name}: {line}' for one in pairs if isinstance(one, Pairs) for line in one.doubts()]

    def document(self, number):
        part, own, rng = self.draw(number)
        return part.document(own, rng)

    def text(self, number):
        part, own, rng = self.draw(number)
        return part.text(own, rng)
