/* What the kernel's FUSE requests on open disks are answered with; how they got here and how the answer goes back is
 * the caller's (server.c: /dev/fuse; fuse_uring.c: a ring).
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
	const void *arg;      /* the operation's own header; at least 40 bytes are readable */
	void *data;           /* what follows it; the answer's bytes are put here */
	uint32_t data_bytes;  /* of the request */
	uint32_t data_room;   /* for the answer */
};

enum sr_answer {
	SR_UPCALL = -10000,  /* not for here: a request on names or attributes */
	SR_NO_ANSWER = -10001, /* done, and the kernel waits for nothing */
};

/* Whether it may take long, and then waits for a disk and not for a CPU: a barrier, or freeing much space. */
bool sr_request_is_slow(const struct fuse_in_header *in);

/* Do what the request asks.  Returns bytes of the answer in `data`, -errno as the answer, or an enum sr_answer. */
int64_t sr_request_answer(const struct sr_request *request);

/* The answer to FUSE_INIT, with requests of up to `request_bytes_max` (whole pages), `queue` of which the kernel keeps under
 * way on its own account; `flags`: FUSE_... of its two flag words to ask for beside the usual.  Returns bytes in `out`,
 * or -EPROTO. */
int64_t sr_request_init(const struct fuse_init_in *in, uint32_t request_bytes_max, uint16_t queue, uint64_t flags,
			struct fuse_init_out *out);

#endif
