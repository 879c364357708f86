/* Bytes of one socket move to another through a pipe, by splice(2): their pages are not copied.
 *
 * One thread runs a loop; any thread may wake it.
 */
#ifndef SITERIG_SPLICE_H
#define SITERIG_SPLICE_H

#include <stdint.h>

enum sr_splice_end {
	SR_SPLICE_COMPLETE,      /* `wanted_bytes` are moved */
	SR_SPLICE_END_OF_STREAM, /* the source has no more bytes */
	SR_SPLICE_WOKEN,         /* sr_splice_wake was called; the pipe has taken_bytes - moved_bytes */
	SR_SPLICE_SOURCE_BROKEN,
	SR_SPLICE_TARGET_BROKEN,
};

struct sr_splice {
	int source, target;      /* sockets that do not block */
	int readable, writable;  /* the ends of a pipe that do not block */
	int waker;               /* an eventfd that does not block */
	int32_t is_woken;
	int64_t piece_bytes;     /* the most that one call of splice(2) takes from the source */
	int64_t wanted_bytes;    /* -1 for all bytes */
	int64_t taken_bytes;     /* bytes that the source has given */
	int64_t moved_bytes;     /* bytes that the target has got */
};

/* Move bytes until one of the reasons. */
enum sr_splice_end sr_splice_run(struct sr_splice *loop);

/* End sr_splice_run, now or when it is called. */
void sr_splice_wake(struct sr_splice *loop);

#endif
