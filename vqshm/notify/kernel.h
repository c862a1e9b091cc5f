/* The system calls of ringing and sleeping; each returns a negative errno where it fails. */
#ifndef VQSHM_KERNEL_H
#define VQSHM_KERNEL_H

#include <errno.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <unistd.h>

#define VQ_NEWS 4 /* descriptors that are told of at a time: bell, control connection and peer of one lane, and one over */

/* A counter that is full (or, when reading, zero) is no failure. */
static inline int vq_ring(int fd) {
    uint64_t one = 1;
    return write(fd, &one, sizeof one) < 0 && errno != EAGAIN ? -errno : 0;
}

static inline int vq_hush(int fd) {
    uint64_t count;
    return read(fd, &count, sizeof count) < 0 && errno != EAGAIN ? -errno : 0;
}

/* Whether the bell is among the descriptors that are ready then. */
static inline int vq_doze(int epoll, int bell, int milliseconds) {
    struct epoll_event news[VQ_NEWS];
    int count = epoll_wait(epoll, news, VQ_NEWS, milliseconds);
    if (count < 0) return -errno;
    for (int i = 0; i < count; i++) {
        if (news[i].data.fd == bell) return 1;
    }
    return 0;
}

#endif
