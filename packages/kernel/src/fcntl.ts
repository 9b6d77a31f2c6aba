/**
 * Numbers of fcntl.h and unistd.h on x86_64 (asm-generic/fcntl.h, linux/fcntl.h). Octal, as open(2) and
 * /proc/PID/fdinfo write them. node:fs has some of them; these are for values in images and in other processes.
 */

export const O_RDONLY = 0
export const O_WRONLY = 1
export const O_RDWR = 2
export const O_ACCMODE = 3
export const O_CREAT = 0o100
export const O_EXCL = 0o200
export const O_TRUNC = 0o1000
export const O_NONBLOCK = 0o4000
/** Sends a signal when the file becomes readable or writable: fcntl(2) F_SETOWN, F_SETSIG. */
export const O_ASYNC = 0o20000
export const O_APPEND = 0o2000
export const O_DIRECT = 0o40000
export const O_DIRECTORY = 0o200000
export const O_NOFOLLOW = 0o400000
export const O_NOATIME = 0o1000000
/** A flag of the descriptor, not of the description; /proc/PID/fdinfo shows it among the flags. */
export const O_CLOEXEC = 0o2000000
export const O_PATH = 0o10000000
/** With O_DIRECTORY, which O_TMPFILE contains, so that kernels that do not know it refuse to write. */
export const O_TMPFILE = 0o20000000 | O_DIRECTORY

/** The only flag of a descriptor: F_GETFD, F_SETFD. */
export const FD_CLOEXEC = 1

export const F_GETFD = 1
export const F_SETFD = 2
export const F_GETFL = 3
export const F_SETFL = 4
export const F_SETLK = 6
export const F_SETOWN = 8
export const F_GETOWN = 9
export const F_SETSIG = 10
export const F_GETSIG = 11
export const F_DUPFD_CLOEXEC = 1030
export const F_SETPIPE_SZ = 1031
export const F_GETPIPE_SZ = 1032
export const F_ADD_SEALS = 1033
export const F_GET_SEALS = 1034

export const F_OFD_SETLK = 37

/** Types of locks by range: fcntl(2). */
export const F_RDLCK = 0
export const F_WRLCK = 1

/** flock(2). */
export const LOCK_SH = 1
export const LOCK_EX = 2
export const LOCK_NB = 4

export const SEEK_SET = 0
export const SEEK_CUR = 1
export const SEEK_END = 2
export const SEEK_DATA = 3
export const SEEK_HOLE = 4
