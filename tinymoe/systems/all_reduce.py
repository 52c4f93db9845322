"""Data parallelism's exchange: every worker has a gradient of its own, and needs the sum of all.

One example, three workers with the parts a = (1 2 3), b = (10 20 30), c = (100 200 300). A block of the ring is one number:

    a adds to b, b to c, c to a       a 1 2 303      b 11 20 30     c 100 220 300    (a sends block 0, b 1, c 2)
    and once more                     a 1 222 303    b 11 20 333    c 111 220 300    (c now has all of block 0, a 1, b 2)
    then whole sums go round, twice   a 111 222 333  b 111 222 333  c 111 222 333

Each sent one number in each of four steps. A worker that got the others' parts whole would receive six.
"""

import numpy as np


def ring_all_reduce(parts):
    """The sum of W arrays at each of W workers, who send each other blocks.

    The array is cut into W blocks. In step s of the first W − 1, worker w sends its block w − s to worker w + 1, which adds
    it to its own; after these worker w has the sum of block w + 1. In W − 1 more steps these go round, each replacing what
    the next worker has there (numbers of workers and blocks modulo W).

    parts  a list of W arrays of one shape and dtype, the gradient of each worker

    Returns (sums, sent): a list of W arrays, the sum at each worker, equal to the bit; and how many bytes each has sent
    (W,): 2 (W − 1)/W of the bytes of an array where W divides its size, near which no exchange can do better.
    Raises ValueError if there are no parts, or parts of different shapes or dtypes.

    Source: Patarasuk & Yuan 2009, §3 (bandwidth-optimal all-reduce); 《大语言模型原理基础与前沿：为什么采用稀疏专家模型》 §6.7.
    """
    if len({(part.shape, part.dtype) for part in parts}) != 1:
        given = ", ".join(f"{part.shape} {part.dtype}" for part in parts) or "none"
        raise ValueError(f"the parts are {given}; one for each worker is needed, all of one shape and dtype")
    workers = len(parts)
    blocks = [np.array_split(part.ravel(), workers) for part in parts]
    sent = np.zeros(workers, np.int64)

    def step(s, received):
        """Each worker w sends its block w − s on; what the next makes of it and its own is `received(own, other)`."""
        moving = [blocks[w][(w - s) % workers] for w in range(workers)]
        for w, block in enumerate(moving):
            sent[w] += block.nbytes
            own = blocks[(w + 1) % workers]
            own[(w - s) % workers] = received(own[(w - s) % workers], block)

    for s in range(workers - 1):
        step(s, lambda own, other: own + other)
    for s in range(workers - 1):
        step(s - 1, lambda own, other: other)
    return [np.concatenate(own).reshape(parts[0].shape) for own in blocks], sent
