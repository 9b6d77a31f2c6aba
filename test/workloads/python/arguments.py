"""Has long arguments and a long environment, and looks at them in /proc from its first step on the other host on."""

import os
import sys

from workload import Workload

NR, LENGTH = 1000, 800

if len(sys.argv) < NR:
    many = [chr(97 + i % 26) * LENGTH for i in range(NR)]
    environment = dict(os.environ) | {f"V{i}": value for i, value in enumerate(many)}
    os.execve(sys.executable, [sys.executable, *sys.argv, *many], environment)


def read(name):
    with open(f"/proc/self/{name}", "rb") as file:
        return file.read()


known = {name: read(name) for name in ("cmdline", "environ")}
# More memory, so that a good part is still to come when the process runs.
filler = [os.urandom(1 << 20) for _ in range(48)]
work = Workload()
for name, value in known.items():
    work.check(len(value) > NR * LENGTH, f"{name} is not long")
for step in work.steps():
    for name, value in known.items():
        now = read(name)
        work.check(now == value, f"{name} has {len(now)} bytes instead of {len(value)}, or others")
work.done()
