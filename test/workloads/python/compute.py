"""Computes: big integers, floating point and a hash chain, each checked against an independent second way."""

import hashlib
import math

from workload import Workload

work = Workload()
prime = 2**521 - 1
power = 3
exponent = 1
total = 0.0
terms = 0
chain = hashlib.sha256(b"pageferry").digest()
links = 0
for step in work.steps():
    for _ in range(20):
        power = power * 3 % prime
        exponent += 1
    for _ in range(50):
        total += 1.0 / ((2 * terms + 1) ** 2)
        terms += 1
    for _ in range(50):
        chain = hashlib.sha256(chain).digest()
        links += 1
    work.check(power == pow(3, exponent, prime), "a product of big integers is wrong")
    work.check(abs(total - math.pi**2 / 8) < 1.0 / terms, f"the sum of {terms} terms is {total}")

again = hashlib.sha256(b"pageferry").digest()
for _ in range(links):
    again = hashlib.sha256(again).digest()
work.check(again == chain, "the hash chain is wrong")
again = 0.0
for term in range(terms):
    again += 1.0 / ((2 * term + 1) ** 2)
work.check(again == total, "a sum of floating point numbers is wrong")
work.done()
