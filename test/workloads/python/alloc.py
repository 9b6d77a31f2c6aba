"""Allocates and frees: objects of all sizes, from a few bytes (arenas) to megabytes (mmap), checked before they go."""

import zlib

from workload import Workload

work = Workload()
kept = {}
next_id = 0
bytes_kept = 0
LIMIT = 24 << 20


def content(identity, size):
    pattern = (identity * 2654435761 & 0xFFFFFFFF).to_bytes(4, "little")
    return (pattern * (size // 4 + 1))[:size]


def check(identity):
    data, size, sum_ = kept[identity]
    work.check(len(data) == size and zlib.crc32(data) == sum_, f"object {identity} of {size} bytes is damaged")
    work.check(bytes(data) == content(identity, size), f"object {identity} has another content")


for step in work.steps():
    for _ in range(40):
        size = work.random.choice((7, 40, 300, 4096, 20_000, 150_000, 1_000_000))
        size += work.random.randrange(size)
        while bytes_kept + size > LIMIT or (kept and work.random.random() < 0.3):
            victim = work.random.choice(list(kept))
            check(victim)
            bytes_kept -= kept.pop(victim)[1]
        data = bytearray(content(next_id, size))
        kept[next_id] = (data, size, zlib.crc32(data))
        bytes_kept += size
        next_id += 1
    # Many small objects with references in both directions: the garbage collector walks all over the heap.
    ring = [[index] for index in range(2000)]
    for index, cell in enumerate(ring):
        cell.append(ring[index - 1])
    work.check(ring[0][1][1][0] == 1998, "a ring of references is broken")
    work.check(sum(cell[0] for cell in ring) == 1999 * 1000, "a ring of numbers is damaged")

for identity in list(kept):
    check(identity)
work.done()
