/* FUSE over io_uring (Linux 6.14, if enabled): each CPU has a ring with requests, and one system call sends the answer
 * and waits for the next request.
 *
 * Forgets and interrupts, and requests from before the rings were ready, still come through /dev/fuse.
 */
#ifndef SITERIG_FUSE_URING_H
#define SITERIG_FUSE_URING_H

#include <linux/fuse.h>
#include <stddef.h>
#include <stdint.h>

#include "fuse/upcall.h"

/* Flag of FUSE_INIT: the kernel offers it if it is enabled. */
#define SR_FUSE_OVER_IO_URING (1ull << 41)

struct sr_uring;

struct sr_uring_setup {
	int device_fd; /* /dev/fuse; owned by the caller, open until sr_uring_free */
	uint32_t request_bytes_max;
	int ended_fd;  /* an eventfd that is raised when a thread failed */
	struct sr_upcall *upcall;
	int mark_shift;       /* upcalls carry `first_mark` + the ring's number in `unique` from this bit up */
	uint64_t first_mark;
	int rings_max;
};

/* Create the rings and their threads, which wait. After FUSE_INIT was answered with the flag, the kernel holds all
 * requests back until every ring is ready. So all errors must occur here: 0, or -errno, and then continue without
 * io_uring. */
int sr_uring_new(const struct sr_uring_setup *setup, struct sr_uring **out);

/* Begin to read requests, after FUSE_INIT was answered. */
void sr_uring_start(struct sr_uring *uring);

/* Deliver the answer to an upcall of ring number `ring`; `unique` is the kernel's. */
void sr_uring_answer(struct sr_uring *uring, uint64_t ring, const struct fuse_out_header *out, const void *data,
		     size_t bytes);

void sr_uring_counters(struct sr_uring *uring, uint64_t *answered, uint64_t *forwarded);

/* Return the error (-errno) with which a thread failed, or 0. */
int sr_uring_error(struct sr_uring *uring);

/* End all threads; the upcall channel must be closed. Unanswered requests end with the connection. */
void sr_uring_free(struct sr_uring *uring);

#endif
