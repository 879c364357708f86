/* The answers to the kernel's FUSE requests on open disks. The caller reads the requests and sends the answers
 * (server.c: /dev/fuse; fuse_uring.c: a ring).
 *
 * Any thread.
 */
#ifndef SITERIG_REQUESTS_H
#define SITERIG_REQUESTS_H

#include <linux/fuse.h>
#include <stdbool.h>
#include <stdint.h>

struct sr_request {
	const struct fuse_in_header *in;
	const void *arg;      /* the header of the operation; at least 40 bytes are readable */
	void *data;           /* the data after it; the bytes of the answer are stored here */
	uint32_t data_bytes;  /* length of the request's data */
	uint32_t data_room;   /* space for the answer */
	bool may_wait;        /* this thread may wait for a fault rule of the disk; otherwise SR_WOULD_WAIT is possible */
};

enum sr_answer {
	SR_UPCALL = -10000,  /* the request is about a name or an attribute: pass it to Python */
	SR_NO_ANSWER = -10001, /* done; the kernel waits for no answer */
};

/* Return true if the request can take long because it waits for a disk, not for a CPU: a barrier, or freeing much
 * space. */
bool sr_request_is_slow(const struct fuse_in_header *in);

/* Execute the request. Returns the number of answer bytes in `data`, -errno as the answer, or an enum sr_answer; or
 * SR_WOULD_WAIT (disk.h): nothing was done, and the request is to be executed on a thread that may wait. */
int64_t sr_request_answer(const struct sr_request *request);

/* Build the answer to FUSE_INIT, for requests of up to `request_bytes_max` (whole pages), at most `queue` of them in
 * progress without a waiting caller. `flags` are further FUSE_... flags of its two flag words. Returns bytes in
 * `out`, or -EPROTO. */
int64_t sr_request_init(const struct fuse_init_in *in, uint32_t request_bytes_max, uint16_t queue, uint64_t flags,
			struct fuse_init_out *out);

#endif
