"""
A Python program after an upgrade of the machine: its interpreter and a library were replaced on disk, its temporary files
never had a name or have lost it.
"""

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import zlib

directory = os.path.dirname(sys.argv[1])
program = os.path.join(directory, "python-copy")
library = os.path.join(directory, "libz-copy.so")


def replace(path):
    """As a package manager does: another file takes the name."""
    subprocess.run(["cp", "--remove-destination", "/bin/true", path], check=True)


if os.readlink("/proc/self/exe") != program:
    shutil.copy(os.path.realpath("/proc/self/exe"), program)
    os.execve(program, [program, *sys.argv], {**os.environ, "PYTHONHOME": sys.base_prefix})

from workload import Workload

with open("/proc/self/maps") as maps:
    used = next((line.split()[-1] for line in maps if "/libz.so" in line), None)
work = Workload()
work.check(used is not None, "this Python has no libz of its own to copy")
shutil.copy(used, library)
libz = ctypes.CDLL(library)
libz.crc32.restype = ctypes.c_ulong
replace(program)
replace(library)

nameless = tempfile.TemporaryFile(dir=directory)  # O_TMPFILE
named = tempfile.NamedTemporaryFile(dir=directory, delete=False)
os.unlink(named.name)
expected = b""
records = 0

for step in work.steps():
    piece = f"record {step}\n".encode() * work.random.randrange(1, 200)
    nameless.write(piece)
    nameless.flush()
    named.write(f"{step:08d}".encode())
    named.flush()
    expected += piece
    records += 1
    nameless.seek(0)
    work.check(zlib.crc32(nameless.read()) == zlib.crc32(expected), "the temporary file has another content")
    work.check(libz.crc32(0, piece, len(piece)) == zlib.crc32(piece), "the replaced library computes wrongly")
    link = os.readlink("/proc/self/exe")
    work.check(link.endswith(" (deleted)"), f"the interpreter is {link}")
    for temporary in (nameless, named):
        work.check(os.fstat(temporary.fileno()).st_nlink == 0, "a temporary file has a name")

named.seek(0)
work.check(named.read() == b"".join(f"{i:08d}".encode() for i in range(records)), "the unlinked file has another content")
work.done()
