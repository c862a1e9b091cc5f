/* Looking at a 16-bit word of the other side until it changes. */
#ifndef VQSHM_SPIN_H
#define VQSHM_SPIN_H

#include <stdint.h>
#include <time.h>

#if defined(__x86_64__) || defined(__i386__)
#define VQ_PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define VQ_PAUSE() __asm__ __volatile__("isb" : : : "memory")
#else
#define VQ_PAUSE() __asm__ __volatile__("" : : : "memory")
#endif

#define VQ_GLANCES 64      /* with the GIL held: about a microsecond */
#define VQ_LOOKS_A_CLOCK 8 /* looks between two readings of the clock */

static inline int vq_changed_u16(const unsigned char *p, uint16_t old) {
    return __atomic_load_n((const uint16_t *)(const void *)p, __ATOMIC_ACQUIRE) != old;
}

static inline int vq_glance_u16(const unsigned char *p, uint16_t old) {
    for (int i = 0; i < VQ_GLANCES; i++) {
        if (vq_changed_u16(p, old)) return 1;
        VQ_PAUSE();
    }
    return 0;
}

static inline int64_t vq_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* The time of the last tick of the kernel's timer: some milliseconds coarse, and a few nanoseconds to read. */
static inline int64_t vq_tick(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline int vq_until_changed_u16(const unsigned char *p, uint16_t old, int64_t nanoseconds) {
    int64_t end = vq_now() + nanoseconds;
    do {
        for (int i = 0; i < VQ_LOOKS_A_CLOCK; i++) {
            if (vq_changed_u16(p, old)) return 1;
            VQ_PAUSE();
        }
    } while (vq_now() < end);
    return 0;
}

#endif
