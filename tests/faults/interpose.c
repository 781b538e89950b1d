/* Faults at system calls: preloaded, so that it stands between a process and the C library.

Once armed, it counts the calls that change files, and strikes at the one with a given number: the process is killed
before or after it, or the call fails. strace -e inject does the same, but costs a start of Python for every fault. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { COUNT, KILL_BEFORE, KILL_AFTER, FAIL_ONCE, FAIL_ON };
enum strike { NOTHING, DIE_AFTER, FAIL };

static atomic_int armed, kind;
static atomic_long at, seen;
static int error;

void fault_arm(int new_kind, long new_at, int new_error) {
    armed = 0;
    kind = new_kind;
    at = new_at;
    error = new_error;
    seen = 0;
    armed = 1;
}

/* Gives the number of calls since it was armed. */
long fault_disarm(void) {
    armed = 0;
    return seen;
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

static enum strike enter(void) {
    if (!armed) return NOTHING;
    long number = ++seen;
    if (number == at && kind == KILL_BEFORE) die();
    if (number == at && kind == KILL_AFTER) return DIE_AFTER;
    if (kind == FAIL_ONCE ? number == at : kind == FAIL_ON && number >= at) {
        errno = error;
        return FAIL;
    }
    return NOTHING;
}

#define CALL(type, on_failure, name, parameters, arguments)             \
    type name parameters {                                              \
        static type(*real) parameters;                                  \
        if (!real) real = (type(*) parameters)dlsym(RTLD_NEXT, #name);  \
        enum strike strike = enter();                                   \
        if (strike == FAIL) return on_failure;                          \
        type result = real arguments;                                   \
        if (strike == DIE_AFTER) die();                                 \
        return result;                                                  \
    }

CALL(ssize_t, -1, write, (int fd, const void *data, size_t size), (fd, data, size))
CALL(ssize_t, -1, writev, (int fd, const struct iovec *parts, int count), (fd, parts, count))
CALL(ssize_t, -1, pwrite, (int fd, const void *data, size_t size, off_t offset), (fd, data, size, offset))
CALL(ssize_t, -1, pwrite64, (int fd, const void *data, size_t size, off64_t offset), (fd, data, size, offset))
CALL(ssize_t, -1, pwritev, (int fd, const struct iovec *parts, int count, off_t offset), (fd, parts, count, offset))
CALL(ssize_t, -1, pwritev64, (int fd, const struct iovec *parts, int count, off64_t offset), (fd, parts, count, offset))
CALL(int, -1, fsync, (int fd), (fd))
CALL(int, -1, fdatasync, (int fd), (fd))
CALL(int, -1, msync, (void *address, size_t size, int flags), (address, size, flags))
CALL(int, -1, ftruncate, (int fd, off_t size), (fd, size))
CALL(int, -1, ftruncate64, (int fd, off64_t size), (fd, size))
CALL(int, error, posix_fallocate, (int fd, off_t offset, off_t size), (fd, offset, size))
CALL(int, error, posix_fallocate64, (int fd, off64_t offset, off64_t size), (fd, offset, size))
CALL(int, -1, rename, (const char *from, const char *to), (from, to))
CALL(int, -1, renameat, (int from_fd, const char *from, int to_fd, const char *to), (from_fd, from, to_fd, to))
CALL(int, -1, unlink, (const char *path), (path))
CALL(int, -1, mkdir, (const char *path, mode_t mode), (path, mode))
