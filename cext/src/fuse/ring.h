/* One io_uring with plain system calls and submissions of 128 bytes; one thread uses it after sr_ring_enable. */
#ifndef SITERIG_RING_H
#define SITERIG_RING_H

#include <linux/io_uring.h>
#include <stdbool.h>
#include <stddef.h>

#ifdef IORING_SETUP_SQE128 /* otherwise these headers are older than the feature */

struct sr_ring {
	int fd;
	unsigned queued; /* submissions that the kernel does not know yet */
	struct io_uring_params params;
	void *sq_map, *cq_map, *sqes;
	size_t sq_bytes, cq_bytes;
};

/* Return a ring that is not open, and that may be closed. */
struct sr_ring sr_ring_none(void);

/* Open a ring: 0, or -errno; call sr_ring_close in any case. */
int sr_ring_open(struct sr_ring *ring);
void sr_ring_close(struct sr_ring *ring);

/* Enable the ring, in the thread that will use it. 0, or -errno. */
int sr_ring_enable(struct sr_ring *ring);

/* Return an empty submission to fill in; then call sr_ring_queue. NULL: the ring is broken. */
struct io_uring_sqe *sr_ring_next(struct sr_ring *ring);
void sr_ring_queue(struct sr_ring *ring);

/* Submit the queued submissions, and wait for so many completions or a signal. 0, or -errno: the ring is broken. */
int sr_ring_enter(struct sr_ring *ring, unsigned wait_for);

/* Take one completion; false if there is none. */
bool sr_ring_take(struct sr_ring *ring, struct io_uring_cqe *cqe);

#endif
#endif
