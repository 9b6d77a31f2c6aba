"""Threads: a queue with producers and consumers, a thread that sleeps, threads that are born and die all the time."""

import queue
import threading
import time

from workload import Workload

work = Workload()
jobs = queue.Queue(maxsize=16)
results = queue.Queue()
stopping = threading.Event()
slept = [0]
local = threading.local()


def square():
    local.mine = threading.get_ident()
    while (job := jobs.get()) is not None:
        results.put((job, job * job))
        work.check(local.mine == threading.get_ident(), "thread-local data of another thread")


def sleep():
    while not stopping.is_set():
        before = time.monotonic()
        time.sleep(0.05)
        after = time.monotonic()
        work.check(after - before >= 0.05, f"a sleep of 0.05 s took {after - before} s")
        work.check(after - before < 15, f"a sleep of 0.05 s took {after - before} s")
        slept[0] += 1


def wait():
    while not stopping.wait(0.02):
        slept[0] += 1


workers = [threading.Thread(target=square) for _ in range(3)]
others = [threading.Thread(target=sleep), threading.Thread(target=wait)]
for thread in workers + others:
    thread.start()
for step in work.steps():
    for job in range(step * 10, step * 10 + 10):
        jobs.put(job)
    got = dict(results.get(timeout=20) for _ in range(10))
    work.check(got == {job: job * job for job in range(step * 10, step * 10 + 10)}, f"wrong results: {got}")
    answers = []
    brief = [threading.Thread(target=lambda n=n: answers.append(sum(range(n)))) for n in (10, 100, 1000)]
    for thread in brief:
        thread.start()
    for thread in brief:
        thread.join(20)
        work.check(not thread.is_alive(), "a thread does not end")
    work.check(sorted(answers) == [45, 4950, 499500], f"threads gave {answers}")

stopping.set()
for _ in workers:
    jobs.put(None)
for thread in workers + others:
    thread.join(20)
    work.check(not thread.is_alive(), "a thread does not end")
work.check(slept[0] > 0, "nobody slept")
work.done()
