/* One io_uring with plain system calls. */
#define _GNU_SOURCE
#include "fuse/ring.h"

#ifdef IORING_SETUP_SQE128

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
	SQ_ENTRIES = 32,
	CQ_ENTRIES = 256, /* more may wait in the kernel */
	SQE_BYTES = 128,
};

static unsigned *at(void *map, unsigned offset)
{
	return (unsigned *)((char *)map + offset);
}

static void *map(struct sr_ring *ring, size_t bytes, off_t what)
{
	return mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd, what);
}

struct sr_ring sr_ring_none(void)
{
	return (struct sr_ring){.fd = -1, .sq_map = MAP_FAILED, .cq_map = MAP_FAILED, .sqes = MAP_FAILED};
}

int sr_ring_open(struct sr_ring *ring)
{
	*ring = sr_ring_none();
	ring->params.flags = IORING_SETUP_SQE128 | IORING_SETUP_SUBMIT_ALL | IORING_SETUP_R_DISABLED |
			     IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_CQSIZE;
	ring->params.cq_entries = CQ_ENTRIES;
	ring->fd = (int)syscall(SYS_io_uring_setup, SQ_ENTRIES, &ring->params);
	if (ring->fd < 0)
		return -errno;
	ring->sq_bytes = ring->params.sq_off.array + ring->params.sq_entries * sizeof(unsigned);
	ring->cq_bytes = ring->params.cq_off.cqes + ring->params.cq_entries * sizeof(struct io_uring_cqe);
	ring->sq_map = map(ring, ring->sq_bytes, IORING_OFF_SQ_RING);
	ring->cq_map = map(ring, ring->cq_bytes, IORING_OFF_CQ_RING);
	ring->sqes = map(ring, (size_t)ring->params.sq_entries * SQE_BYTES, IORING_OFF_SQES);
	return ring->sq_map == MAP_FAILED || ring->cq_map == MAP_FAILED || ring->sqes == MAP_FAILED ? -ENOMEM : 0;
}

void sr_ring_close(struct sr_ring *ring)
{
	if (ring->fd >= 0)
		close(ring->fd);
	if (ring->sq_map != MAP_FAILED)
		munmap(ring->sq_map, ring->sq_bytes);
	if (ring->cq_map != MAP_FAILED)
		munmap(ring->cq_map, ring->cq_bytes);
	if (ring->sqes != MAP_FAILED)
		munmap(ring->sqes, (size_t)ring->params.sq_entries * SQE_BYTES);
}

int sr_ring_enable(struct sr_ring *ring)
{
	return syscall(SYS_io_uring_register, ring->fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0) < 0 ? -errno : 0;
}

int sr_ring_enter(struct sr_ring *ring, unsigned wait_for)
{
	long rc = syscall(SYS_io_uring_enter, ring->fd, ring->queued, wait_for, IORING_ENTER_GETEVENTS, NULL, 0);

	if (rc < 0)
		return errno == EINTR || errno == EAGAIN || errno == EBUSY ? 0 : -errno;
	ring->queued -= (unsigned)rc;
	return 0;
}

struct io_uring_sqe *sr_ring_next(struct sr_ring *ring)
{
	unsigned tail = *at(ring->sq_map, ring->params.sq_off.tail);
	unsigned slot = tail & *at(ring->sq_map, ring->params.sq_off.ring_mask);
	struct io_uring_sqe *sqe = (void *)((char *)ring->sqes + (size_t)slot * SQE_BYTES);

	while (ring->queued == ring->params.sq_entries)
		if (sr_ring_enter(ring, 0) < 0)
			return NULL;
	memset(sqe, 0, SQE_BYTES);
	at(ring->sq_map, ring->params.sq_off.array)[slot] = slot;
	return sqe;
}

void sr_ring_queue(struct sr_ring *ring)
{
	unsigned *tail = at(ring->sq_map, ring->params.sq_off.tail);

	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	ring->queued++;
}

bool sr_ring_take(struct sr_ring *ring, struct io_uring_cqe *cqe)
{
	const struct io_uring_cqe *cqes = (const void *)at(ring->cq_map, ring->params.cq_off.cqes);
	unsigned *head = at(ring->cq_map, ring->params.cq_off.head);

	if (*head == __atomic_load_n(at(ring->cq_map, ring->params.cq_off.tail), __ATOMIC_ACQUIRE))
		return false;
	*cqe = cqes[*head & *at(ring->cq_map, ring->params.cq_off.ring_mask)];
	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
	return true;
}

#endif
