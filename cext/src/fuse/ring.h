/* One io_uring by the bare system calls, with submissions of 128 bytes; used by one thread after sr_ring_enable. */
#ifndef SITERIG_RING_H
#define SITERIG_RING_H

#include <linux/io_uring.h>
#include <stdbool.h>
#include <stddef.h>

#ifdef IORING_SETUP_SQE128 /* else these headers are older than the feature */

struct sr_ring {
	int fd;
	unsigned queued; /* submissions that the kernel was not told of */
	struct io_uring_params params;
	void *sq_map, *cq_map, *sqes;
	size_t sq_bytes, cq_bytes;
};

/* Not open; may be closed. */
struct sr_ring sr_ring_none(void);

/* 0, or -errno; sr_ring_close is due in any case. */
int sr_ring_open(struct sr_ring *ring);
void sr_ring_close(struct sr_ring *ring);

/* By the thread that will use it.  0, or -errno. */
int sr_ring_enable(struct sr_ring *ring);

/* An empty submission, to be filled in; sr_ring_queue is due then.  NULL: the ring is broken. */
struct io_uring_sqe *sr_ring_next(struct sr_ring *ring);
void sr_ring_queue(struct sr_ring *ring);

/* Submit what is queued and wait for so many completions, or a signal.  0, or -errno: the ring is broken. */
int sr_ring_enter(struct sr_ring *ring, unsigned wait_for);

/* Take one completion; false if there is none. */
bool sr_ring_take(struct sr_ring *ring, struct io_uring_cqe *cqe);

#endif
#endif
