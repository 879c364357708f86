/* FUSE over io_uring (Linux 6.14, where it is enabled): requests come through rings that belong to a CPU each, and the answer
 * and the wait for the next request are one system call.
 *
 * Forgets and interrupts, and what was asked before the rings were ready, still come through /dev/fuse.
 */
#ifndef SITERIG_FUSE_URING_H
#define SITERIG_FUSE_URING_H

#include <linux/fuse.h>
#include <stddef.h>
#include <stdint.h>

#include "fuse/upcall.h"

/* Among FUSE_INIT's flags: offered where it is enabled. */
#define SR_FUSE_OVER_IO_URING (1ull << 41)

struct sr_uring;

struct sr_uring_setup {
	int device_fd; /* /dev/fuse; the caller's, open until sr_uring_free */
	uint32_t request_bytes_max;
	int ended_fd;  /* an eventfd that is raised when a thread gave up */
	struct sr_upcall *upcall;
	int mark_shift;       /* requests for names carry `first_mark` + the ring's number in `unique` from this bit up */
	uint64_t first_mark;
	int rings_max;
};

/* Make the rings and their threads, which wait.  Once FUSE_INIT was answered with the flag, the kernel holds all requests back until
 * every ring is ready, so what can fail must fail here: 0, or -errno, and then go on without. */
int sr_uring_new(const struct sr_uring_setup *setup, struct sr_uring **out);

/* Begin to take requests, after FUSE_INIT was answered. */
void sr_uring_start(struct sr_uring *uring);

/* The answer of names to a request that ring number `ring` passed on; `unique` as the kernel knows it. */
void sr_uring_answer(struct sr_uring *uring, uint64_t ring, const struct fuse_out_header *out, const void *data,
		     size_t bytes);

void sr_uring_counters(struct sr_uring *uring, uint64_t *answered, uint64_t *forwarded);

/* With which (-errno) a thread gave up, or 0. */
int sr_uring_error(struct sr_uring *uring);

/* End all threads; names must be closed.  What was not answered ends with the connection. */
void sr_uring_free(struct sr_uring *uring);

#endif
