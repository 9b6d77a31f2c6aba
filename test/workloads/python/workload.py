"""What the Python workloads share.

usage: PROGRAM.py LOG MARKER [SEED]

The program appends "ready" to LOG when it is set up, then "step N" with N = 0, 1, 2, ... until the file MARKER
exists; then it checks everything once more, appends "done" and exits with status 0. On a wrong observation it appends
"FAILED reason" and exits with status 1. It need not be killed: it gives up by itself after two minutes.
"""

import os
import random
import sys
import time

GIVE_UP_S = 120


class Workload:
    def __init__(self, interval=0.005):
        path, self.marker = sys.argv[1:3]
        self.seed = int(sys.argv[3]) if len(sys.argv) > 3 else 1
        self.random = random.Random(self.seed)
        self.log = open(path, "a", buffering=1)
        self.interval = interval
        self.began = self.last = time.monotonic()
        self.pid = os.getpid()

    def say(self, line):
        self.log.write(line + "\n")

    def fail(self, reason):
        self.say(f"FAILED {reason}")
        os._exit(1)

    def check(self, condition, reason):
        if not condition:
            self.fail(reason)

    def steps(self):
        """Yields until the marker is there; the caller does its work in between."""
        self.say("ready")
        step = 0
        while not os.path.exists(self.marker):
            yield step
            self.say(f"step {step}")
            step += 1
            now = time.monotonic()
            self.check(now >= self.last, f"the monotonic clock went back from {self.last} to {now}")
            self.check(now - self.last < 20, f"the monotonic clock jumped from {self.last} to {now}")
            self.check(os.getpid() == self.pid, "another pid")
            self.check(now - self.began < GIVE_UP_S, "nobody made the marker")
            self.last = now
            time.sleep(self.interval)

    def done(self):
        self.say("done")
        sys.exit(0)
