"""A program worth moving: 256 MiB that it keeps changing and checking, and a log that it keeps writing.

usage: demo.py LOG [MIB]

Every page is filled with a stamp; a shadow (an array apart from the pages) remembers which. Ten times a second it
rewrites some pages, compares others with the shadow and appends a line to the log:

    COUNTER PID HOST MONOTONIC CHECKSUM

SIGTERM: it checks every page and exits with status 0, or 1 if one is wrong.
"""

import array
import os
import random
import signal
import sys
import time

PAGE = 4096
INTERVAL = 0.1
WRITES = 200  # pages changed per interval: 2,000 a second
CHECKS = 500

log_path = sys.argv[1]
pages = int(sys.argv[2] if len(sys.argv) > 2 else 256) * 1024 * 1024 // PAGE
memory = bytearray(pages * PAGE)
shadow = array.array("Q", bytes(8 * pages))
random.seed(42)
checksum = 0
stopping = False


def stop(*_):
    global stopping
    stopping = True


def content(stamp):
    return stamp.to_bytes(8, "little") * (PAGE // 8)


def write(page, stamp):
    global checksum
    memory[page * PAGE : (page + 1) * PAGE] = content(stamp)
    checksum ^= shadow[page] ^ stamp
    shadow[page] = stamp


def check(page):
    if memory[page * PAGE : (page + 1) * PAGE] != content(shadow[page]):
        print(f"page {page} is not what was written to it", flush=True)
        sys.exit(1)


signal.signal(signal.SIGTERM, stop)
for page in range(pages):
    write(page, random.getrandbits(64))
print(f"process {os.getpid()}: {pages} pages filled", flush=True)

log = open(log_path, "a", buffering=1)
counter = 0
next_time = time.monotonic()
while not stopping:
    counter += 1
    for _ in range(WRITES):
        write(random.randrange(pages), random.getrandbits(64))
    for _ in range(CHECKS):
        check(random.randrange(pages))
    log.write(f"{counter} {os.getpid()} {os.uname().nodename} {time.monotonic():.3f} {checksum:016x}\n")
    next_time = max(next_time + INTERVAL, time.monotonic())
    while not stopping and (left := next_time - time.monotonic()) > 0:
        time.sleep(left)

total = 0
for page in range(pages):
    check(page)
    total ^= int.from_bytes(memory[page * PAGE : page * PAGE + 8], "little")
if total != checksum:
    print(f"checksum {total:016x} instead of {checksum:016x}", flush=True)
    sys.exit(1)
print(f"process {os.getpid()} on {os.uname().nodename}: all {pages} pages are right, checksum {total:016x}", flush=True)
