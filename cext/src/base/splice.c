/* Bytes of one socket move to another through a pipe. */
#define _GNU_SOURCE
#include "base/splice.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stddef.h>
#include <stdbool.h>
#include <sys/eventfd.h>
#include <sys/types.h>

enum { FLAGS = SPLICE_F_NONBLOCK | SPLICE_F_MOVE };

static bool is_woken(struct sr_splice *loop)
{
	return __atomic_load_n(&loop->is_woken, __ATOMIC_ACQUIRE);
}

void sr_splice_wake(struct sr_splice *loop)
{
	__atomic_store_n(&loop->is_woken, 1, __ATOMIC_RELEASE);
	(void)!eventfd_write(loop->waker, 1); /* fails only if it is readable already */
}

/* splice(2), which waits for `fd` where it would return EAGAIN.  Returns the bytes, -EAGAIN if woken, or -errno. */
static ssize_t splice_or_wait(struct sr_splice *loop, int from, int to, int64_t bytes, int fd, short event)
{
	while (!is_woken(loop)) {
		ssize_t moved = splice(from, NULL, to, NULL, bytes, FLAGS);
		if (moved >= 0)
			return moved;
		if (errno != EAGAIN && errno != EINTR)
			return -errno;
		struct pollfd ready[] = {{.fd = fd, .events = event}, {.fd = loop->waker, .events = POLLIN}};
		if (errno == EAGAIN)
			poll(ready, 2, -1);
	}
	return -EAGAIN;
}

enum sr_splice_end sr_splice_run(struct sr_splice *loop)
{
	for (;;) {
		int64_t bytes = loop->piece_bytes;
		if (loop->wanted_bytes >= 0 && loop->wanted_bytes - loop->taken_bytes < bytes)
			bytes = loop->wanted_bytes - loop->taken_bytes;
		if (bytes == 0)
			return SR_SPLICE_COMPLETE;
		ssize_t taken = splice_or_wait(loop, loop->source, loop->writable, bytes, loop->source, POLLIN);
		if (taken == 0)
			return SR_SPLICE_END_OF_STREAM;
		if (taken < 0)
			return taken == -EAGAIN ? SR_SPLICE_WOKEN : SR_SPLICE_SOURCE_BROKEN;
		loop->taken_bytes += taken;
		while (loop->moved_bytes < loop->taken_bytes) {
			ssize_t moved = splice_or_wait(loop, loop->readable, loop->target,
						       loop->taken_bytes - loop->moved_bytes, loop->target, POLLOUT);
			if (moved < 0)
				return moved == -EAGAIN ? SR_SPLICE_WOKEN : SR_SPLICE_TARGET_BROKEN;
			loop->moved_bytes += moved;
		}
	}
}
