{
  "targets": [
    {
      "target_name": "pageferry_kernel",
      "sources": [
        "native/addon.c", "native/common.c", "native/ptrace.c", "native/memory.c", "native/uffd.c",
        "native/event-journal.c", "native/fill.c", "native/gate.c",
        "native/pagemap.c", "native/fd.c", "native/process.c", "native/poll.c", "native/heir.c", "native/sysvipc.c",
        "native/zstd.c"
      ],
      "cflags": ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Wno-unused-parameter", "-fvisibility=hidden"],
      "libraries": ["-lzstd"]
    }
  ]
}
