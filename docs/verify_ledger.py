#!/usr/bin/env python3
"""Checks two raw ledger disks without any of Sockeye's code; the format is told in docs/ledger.md.
usage: verify_ledger.py A B [--at-least N] [--acked N] [--data] [--json]     exit 0 only if consistent and record N is there"""
import argparse, json, struct, sys, zlib
options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
options.add_argument("disks", nargs=2)
options.add_argument("--at-least", type=int, default=1, help="fail unless this record is there (default 1)")
options.add_argument("--acked", type=int, help="last number acknowledged on the console: tells how many are lost")
options.add_argument("--data", action="store_true", help="check the seeded data too")
options.add_argument("--json", action="store_true")
options = options.parse_args()
u64 = lambda block, at: struct.unpack_from("<Q", block, at)[0]
checksum = lambda block: struct.unpack_from("<I", block, 4092)[0]
sealed = lambda block, magic: block.startswith(magic) and zlib.crc32(block[:4092]) == checksum(block)
ZERO = bytes(4096)
disks, bad, gaps, forks, stale, data_bad = [], 0, 0, 0, 0, 0

for role, path in enumerate(options.disks):
    file = open(path, "rb")
    read = lambda at, count: (file.seek(at), [file.read(4096) for _ in range(count)])[1]
    header = read(1 << 20, 1)[0]
    version, is_role, size, seed, ring_at, slots, scribbles_at, scribbles, seeded = struct.unpack_from("<II7Q", header, 8)
    if not sealed(header, b"SKDISK01") or (version, is_role) != (1, role):
        sys.exit(f"{path} is not ledger disk {'AB'[role]}")
    ring, blocks = {}, read(ring_at, slots)
    for slot, block in enumerate(blocks):
        if sealed(block, b"SKRECORD") and 0 < u64(block, 8) and u64(block, 8) % slots == slot:
            ring[u64(block, 8)] = block
        elif block != ZERO:
            bad += 1
    highest = max(ring, default=0)
    must_hold = range(max(1, highest - slots + 1), highest + 1)
    gaps += sum(n not in ring for n in must_hold)
    chained = lambda n: struct.unpack_from("<I", ring[n], 36)[0] == (checksum(ring[n - 1]) if n > 1 else 0)
    forks += sum(n in ring and (n == 1 or n - 1 in ring and n - 1 in must_hold) and not chained(n) for n in must_hold)
    disks.append((ring, highest, must_hold, read(scribbles_at, scribbles)))
    taken = {1, *range(ring_at >> 20, ring_at + slots * 4096 + 0xFFFFF >> 20),
             *range(scribbles_at >> 20, scribbles_at + scribbles * 4096 + 0xFFFFF >> 20)}
    chunks, ordinal = [chunk for chunk in range(size >> 20) if chunk not in taken], 0
    for index, chunk in enumerate(chunks if options.data else []):
        group, groups = index // 4, len(chunks) // 4
        holds = group < groups and (group + 1) * seeded // groups > group * seeded // groups
        for number, block in enumerate(read(chunk << 20, 256), chunk << 8):
            whole = zlib.crc32(block[:4092]) == checksum(block) and u64(block, 4080) == number
            data_bad += not whole if holds and ordinal % 8 < 7 else block != ZERO
        ordinal += holds

(ring_a, top_a, held_a, _), (ring_b, top_b, held_b, _) = disks
both = [n for n in range(max(held_a.start, held_b.start), min(top_a, top_b) + 1) if n in ring_a and n in ring_b]
found = sum(ring_a[n] == ring_b[n] for n in both)
forks += len(both) - found
for role, (_, top, _, blocks) in enumerate(disks):
    named, before = {}, None  # block -> (record, checksum) of its newest write; the same without the very last record
    for n in (n for n in range(held_a.start, min(top, top_a) + 1) if n in ring_a and u64(ring_a[n], 48)):
        before = dict(named) if n == top else before
        named[u64(ring_a[n], 56 + 16 * role)] = (n, u64(ring_a[n], 64 + 16 * role))
    unfinished = before if before is not None and top_a == top_b + (1 - role) else named
    for index, block in enumerate(blocks):
        whole = sealed(block, b"SKSCRIBL") and (u64(block, 16), u64(block, 24)) == (index, role)
        bad += not whole and block != ZERO
        allowed = {named.get(index), unfinished.get(index)}
        old = None in allowed and (block == ZERO or whole and u64(block, 8) < held_a.start)
        stale += (whole or block == ZERO) and not old and not (whole and (u64(block, 8), checksum(block)) in allowed)

report = dict(highest=min(top_a, top_b), highest_a=top_a, highest_b=top_b, found=found, bad=bad, gaps=gaps, forks=forks,
              stale=stale, data_bad=data_bad, b_newer_than_a=top_b > top_a, a_too_far_ahead=top_a > top_b + 1)
if options.acked is not None:
    report["lost"] = max(0, options.acked - report["highest"])
report["consistent"] = not any((bad, gaps, forks, stale, data_bad, top_b > top_a, top_a > top_b + 1))
print(json.dumps(report) if options.json else "\n".join(f"{name:16}{value}" for name, value in report.items()))
sys.exit(0 if report["consistent"] and report["highest"] >= options.at_least else 1)
