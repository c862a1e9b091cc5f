/* The C11 memory model for the compiled seam: acquire loads, release stores, a seq_cst fence, and plain accesses that
 * touch each shared byte exactly once.
 *
 * Shared words are little-endian [virtio 1.4, 2.6]; vqshm refuses to start on a big-endian machine.
 */
#ifndef VQSHM_ATOMIC_H
#define VQSHM_ATOMIC_H

#include <stdint.h>
#include <string.h>

#define VQ_ORDERED(bits)                                                                         \
    static inline uint##bits##_t vq_load_u##bits(const unsigned char *p) {                       \
        return __atomic_load_n((const uint##bits##_t *)(const void *)p, __ATOMIC_ACQUIRE);       \
    }                                                                                            \
    static inline void vq_store_u##bits(unsigned char *p, uint##bits##_t v) {                    \
        __atomic_store_n((uint##bits##_t *)(void *)p, v, __ATOMIC_RELEASE);                      \
    }                                                                                            \
    /* The empty asm pins the fetched value: the compiler may not read the peer's memory again. */ \
    static inline uint##bits##_t vq_get_u##bits(const unsigned char *p) {                        \
        uint##bits##_t v;                                                                        \
        memcpy(&v, p, sizeof v);                                                                 \
        __asm__ __volatile__("" : "+r"(v) : : "memory");                                         \
        return v;                                                                                \
    }                                                                                            \
    static inline void vq_put_u##bits(unsigned char *p, uint##bits##_t v) { memcpy(p, &v, sizeof v); }

VQ_ORDERED(16)
VQ_ORDERED(32)
VQ_ORDERED(64)
#undef VQ_ORDERED

#define VQ_LIKELY(condition) __builtin_expect(!!(condition), 1)

static inline void vq_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

#endif
