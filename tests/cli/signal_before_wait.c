/* A signal at the worst moment, preloaded: once Python has looked for one, and before a call that waits for a pipe.

The pipe is standard input that is empty, or standard output that has too little room. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define REAL(name) ((typeof(&name))dlsym(RTLD_NEXT, #name))

static int is_ready(int descriptor, short event) {
    struct pollfd looked = {.fd = descriptor, .events = event};
    return REAL(poll)(&looked, 1, 0) != 0;
}

/* Interrupt this process, once: the handler has run when this returns. */
static void interrupt(void) {
    static int done;
    if (!done++) raise(SIGINT);
}

ssize_t read(int descriptor, void *buffer, size_t count) {
    if (descriptor == STDIN_FILENO && !is_ready(descriptor, POLLIN)) interrupt();
    return REAL(read)(descriptor, buffer, count);
}

ssize_t write(int descriptor, const void *buffer, size_t count) {
    int held = 0;
    if (descriptor == STDOUT_FILENO && ioctl(descriptor, FIONREAD, &held) == 0 &&
        (long)count > fcntl(descriptor, F_GETPIPE_SZ) - held)
        interrupt();
    return REAL(write)(descriptor, buffer, count);
}

int poll(struct pollfd *descriptors, nfds_t count, int timeout_ms) {
    if (count == 1 && timeout_ms != 0 && descriptors->fd <= STDOUT_FILENO &&
        !is_ready(descriptors->fd, descriptors->events))
        interrupt();
    return REAL(poll)(descriptors, count, timeout_ms);
}
