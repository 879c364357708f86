/* FUSE over io_uring, by the bare system calls.
 *
 * The kernel gives a request to a free entry of the CPU it is made on, and the entry is served by the thread that registered it: one
 * a CPU, with a ring.  What can take long is done by other threads.  An entry whose request went to Python, or to one of those
 * threads, is not free before the answer: there must always be some that are, for a request that found none would wait until
 * another of the same CPU is answered, even if an entry is registered meanwhile.
 */
#define _GNU_SOURCE
#include "fuse_uring.h"

#include <errno.h>
#include <linux/io_uring.h>

#ifdef IORING_SETUP_SQE128 /* else these headers are older than the feature */

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "requests.h"

enum {
	FREE_ENTRIES_MIN = 32,
	SLOW_THREADS = 8,
	SQ_ENTRIES = 32,
	CQ_ENTRIES = 256, /* more may wait in the kernel */
	SQE_BYTES = 128,
	COMMAND_REGISTER = 1,
	COMMAND_COMMIT_AND_FETCH = 2,
	EVENT = 1, /* user data of the read from the eventfd; no entry has that address */
};

/* The layouts of linux/fuse.h 7.42. */
struct entry_in_out {
	uint64_t flags, commit_id;
	uint32_t payload_bytes, padding;
	uint64_t reserved;
};

struct headers {
	char in_out[128]; /* fuse_in_header, then fuse_out_header */
	char arg[128];
	struct entry_in_out entry;
};

struct command {
	uint64_t flags, commit_id;
	uint16_t queue;
	uint8_t padding[6];
};

struct entry {
	struct ring *ring;
	struct entry *next, *next_queued; /* of all; of those that were answered, or wait for a slow thread */
	struct headers *headers;
	char *payload;
	size_t mapped_bytes;
	struct iovec parts[2];
	uint64_t asked; /* `unique` of the request that names are asked for; 0: none */
	int command;
};

struct ring {
	struct sr_uring *uring;
	int number, fd, event_fd; /* number: of the CPU */
	uint64_t event;
	void *sq_map, *cq_map, *sqes;
	size_t sq_bytes, cq_bytes;
	struct io_uring_params params;
	unsigned queued;      /* submissions that the kernel was not told of */
	struct entry *entries;
	int free, alive;      /* entries that wait for a request; that the kernel has not given back for good */
	pthread_mutex_t lock; /* of `answered`, and of the entries' `asked` */
	struct entry *answered;
	atomic_bool started;
	atomic_uint_fast64_t answered_count, forwarded_count;
	pthread_t thread;
	bool has_thread;
};

struct sr_uring {
	struct sr_uring_setup setup;
	atomic_bool ending;
	pthread_mutex_t lock; /* of the queue */
	pthread_cond_t filled;
	struct entry *first_slow, **last_slow;
	pthread_t slow_threads[SLOW_THREADS];
	int slow_thread_count;
	int count;
	struct ring rings[]; /* one a CPU */
};

static unsigned *at(void *map, unsigned offset)
{
	return (unsigned *)((char *)map + offset);
}

/* --- the ring --- */

static int enter(struct ring *ring, unsigned wait_for)
{
	long rc = syscall(SYS_io_uring_enter, ring->fd, ring->queued, wait_for, IORING_ENTER_GETEVENTS, NULL, 0);

	if (rc < 0)
		return errno == EINTR || errno == EAGAIN || errno == EBUSY ? 0 : -errno;
	ring->queued -= (unsigned)rc;
	return 0;
}

static struct io_uring_sqe *next_sqe(struct ring *ring)
{
	unsigned *tail_at = at(ring->sq_map, ring->params.sq_off.tail), tail = *tail_at;
	unsigned mask = *at(ring->sq_map, ring->params.sq_off.ring_mask), slot = tail & mask;
	struct io_uring_sqe *sqe = (void *)((char *)ring->sqes + (size_t)slot * SQE_BYTES);

	while (ring->queued == ring->params.sq_entries)
		if (enter(ring, 0) < 0)
			return NULL;
	memset(sqe, 0, SQE_BYTES);
	at(ring->sq_map, ring->params.sq_off.array)[slot] = slot;
	return sqe;
}

static void queue_sqe(struct ring *ring)
{
	unsigned *tail = at(ring->sq_map, ring->params.sq_off.tail);

	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	ring->queued++;
}

static int queue_command(struct ring *ring, struct entry *entry, int command)
{
	struct io_uring_sqe *sqe = next_sqe(ring);
	struct command *inner;

	if (!sqe)
		return -EIO;
	entry->command = command;
	sqe->opcode = IORING_OP_URING_CMD;
	sqe->fd = ring->uring->setup.device_fd;
	sqe->user_data = (uintptr_t)entry;
	sqe->cmd_op = (unsigned)command;
	if (command == COMMAND_REGISTER) {
		sqe->addr = (uintptr_t)entry->parts;
		sqe->len = 2;
	}
	inner = (void *)((char *)sqe + offsetof(struct io_uring_sqe, cmd));
	inner->queue = (uint16_t)ring->number;
	inner->commit_id = command == COMMAND_REGISTER ? 0 : entry->headers->entry.commit_id;
	queue_sqe(ring);
	return 0;
}

static int queue_event(struct ring *ring)
{
	struct io_uring_sqe *sqe = next_sqe(ring);

	if (!sqe)
		return -EIO;
	sqe->opcode = IORING_OP_READ;
	sqe->fd = ring->event_fd;
	sqe->addr = (uintptr_t)&ring->event;
	sqe->len = sizeof(ring->event);
	sqe->user_data = EVENT;
	queue_sqe(ring);
	return 0;
}

/* --- entries --- */

static int add_entry(struct ring *ring)
{
	const size_t page = 4096;
	struct entry *entry = calloc(1, sizeof(*entry));
	char *map;

	if (!entry)
		return -ENOMEM;
	entry->mapped_bytes = page + ring->uring->setup.request_bytes_max;
	map = mmap(NULL, entry->mapped_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (map == MAP_FAILED) {
		free(entry);
		return -ENOMEM;
	}
	entry->headers = (void *)map;
	entry->payload = map + page;
	entry->parts[0] = (struct iovec){entry->headers, sizeof(*entry->headers)};
	entry->parts[1] = (struct iovec){entry->payload, ring->uring->setup.request_bytes_max};
	entry->ring = ring;
	pthread_mutex_lock(&ring->lock);
	entry->next = ring->entries;
	ring->entries = entry;
	pthread_mutex_unlock(&ring->lock);
	ring->alive++;
	ring->free++;
	return queue_command(ring, entry, COMMAND_REGISTER);
}

static int add_entries(struct ring *ring)
{
	int rc = 0;

	while (ring->free < FREE_ENTRIES_MIN && !rc)
		rc = add_entry(ring);
	return rc;
}

static int commit(struct ring *ring, struct entry *entry)
{
	ring->free++;
	return queue_command(ring, entry, COMMAND_COMMIT_AND_FETCH);
}

static void put_answer(struct entry *entry, uint64_t unique, int64_t answer)
{
	struct fuse_out_header out = {.unique = unique};

	out.error = answer < 0 ? (int32_t)answer : 0;
	entry->headers->entry.payload_bytes = answer > 0 ? (uint32_t)answer : 0;
	out.len = (uint32_t)sizeof(out) + entry->headers->entry.payload_bytes;
	memcpy(entry->headers->in_out, &out, sizeof(out));
}

static void wake(struct ring *ring)
{
	if (ring->event_fd >= 0)
		eventfd_write(ring->event_fd, 1);
}

/* From another thread: the answer is in its place. */
static void give_back(struct entry *entry)
{
	struct ring *ring = entry->ring;

	pthread_mutex_lock(&ring->lock);
	entry->next_queued = ring->answered;
	ring->answered = entry;
	pthread_mutex_unlock(&ring->lock);
	wake(ring);
}

static int64_t pass_on(struct ring *ring, struct entry *entry, const struct fuse_in_header *in, size_t arg_bytes)
{
	const struct sr_uring_setup *setup = &ring->uring->setup;
	struct iovec parts[2] = {{entry->headers->arg, arg_bytes}, {entry->payload, entry->headers->entry.payload_bytes}};
	struct fuse_in_header head = *in;
	int rc;

	if (arg_bytes > sizeof(entry->headers->arg))
		return -E2BIG;
	head.unique |= (setup->first_mark + (uint64_t)ring->number) << setup->mark_shift;
	pthread_mutex_lock(&ring->lock);
	entry->asked = in->unique;
	pthread_mutex_unlock(&ring->lock);
	atomic_fetch_add_explicit(&ring->forwarded_count, 1, memory_order_relaxed);
	rc = sr_names_ask(setup->names, &head, parts, 2);
	if (rc) {
		pthread_mutex_lock(&ring->lock);
		entry->asked = 0;
		pthread_mutex_unlock(&ring->lock);
		return rc;
	}
	return SR_NO_ANSWER;
}

static struct sr_request request_in(struct entry *entry)
{
	return (struct sr_request){
		.in = (const void *)entry->headers->in_out,
		.arg = entry->headers->arg,
		.data = entry->payload,
		.data_bytes = entry->headers->entry.payload_bytes,
		.data_room = entry->ring->uring->setup.request_bytes_max,
	};
}

static void put_to_slow(struct entry *entry)
{
	struct sr_uring *uring = entry->ring->uring;

	entry->next_queued = NULL;
	pthread_mutex_lock(&uring->lock);
	*uring->last_slow = entry;
	uring->last_slow = &entry->next_queued;
	pthread_cond_signal(&uring->filled);
	pthread_mutex_unlock(&uring->lock);
}

static struct entry *next_slow(struct sr_uring *uring)
{
	struct entry *entry = NULL;

	pthread_mutex_lock(&uring->lock);
	while (!uring->first_slow && !atomic_load(&uring->ending))
		pthread_cond_wait(&uring->filled, &uring->lock);
	if (!atomic_load(&uring->ending)) {
		entry = uring->first_slow;
		uring->first_slow = entry->next_queued;
		if (!uring->first_slow)
			uring->last_slow = &uring->first_slow;
	}
	pthread_mutex_unlock(&uring->lock);
	return entry;
}

static void *serve_slow(void *arg)
{
	struct sr_uring *uring = arg;
	struct entry *entry;

	pthread_setname_np(pthread_self(), "disk-slow");
	while ((entry = next_slow(uring))) {
		struct sr_request request = request_in(entry);
		uint64_t unique = request.in->unique;

		put_answer(entry, unique, sr_request_answer(&request));
		give_back(entry);
	}
	return NULL;
}

static int handle(struct ring *ring, struct entry *entry)
{
	struct sr_request request = request_in(entry);
	const struct fuse_in_header in = *request.in;
	int64_t answer = SR_NO_ANSWER;

	ring->free--;
	if (sr_request_is_slow(&in))
		put_to_slow(entry);
	else
		answer = sr_request_answer(&request);
	if (answer == SR_TO_NAMES)
		answer = pass_on(ring, entry, &in, in.len - sizeof(in) - request.data_bytes);
	else
		atomic_fetch_add_explicit(&ring->answered_count, 1, memory_order_relaxed);
	if (answer == SR_NO_ANSWER)
		return add_entries(ring);
	put_answer(entry, in.unique, answer);
	return commit(ring, entry);
}

static int commit_answered(struct ring *ring)
{
	struct entry *entry;
	int rc = 0;

	pthread_mutex_lock(&ring->lock);
	entry = ring->answered;
	ring->answered = NULL;
	pthread_mutex_unlock(&ring->lock);
	for (; entry && !rc; entry = entry->next_queued)
		rc = commit(ring, entry);
	return rc ? rc : queue_event(ring);
}

/* --- threads --- */

static int complete(struct ring *ring, const struct io_uring_cqe *cqe)
{
	struct entry *entry;

	if (cqe->user_data == EVENT)
		return atomic_load(&ring->uring->ending) ? -ESHUTDOWN : commit_answered(ring);
	entry = (struct entry *)(uintptr_t)cqe->user_data;
	if (cqe->res == 0)
		return handle(ring, entry);
	if (cqe->res == -EAGAIN || cqe->res == -EINTR)
		return queue_command(ring, entry, entry->command);
	/* The mount is gone, or the kernel does not want the ring and goes on without it. */
	ring->free--;
	return --ring->alive > 0 ? 0 : -ENOTCONN;
}

static void take_requests(struct ring *ring)
{
	unsigned *head_at = at(ring->cq_map, ring->params.cq_off.head);
	unsigned *tail_at = at(ring->cq_map, ring->params.cq_off.tail);
	unsigned mask = *at(ring->cq_map, ring->params.cq_off.ring_mask);
	struct io_uring_cqe *cqes = (void *)((char *)ring->cq_map + ring->params.cq_off.cqes), cqe;

	while (enter(ring, 1) == 0) {
		while (*head_at != __atomic_load_n(tail_at, __ATOMIC_ACQUIRE)) {
			cqe = cqes[*head_at & mask];
			__atomic_store_n(head_at, *head_at + 1, __ATOMIC_RELEASE);
			if (complete(ring, &cqe))
				return;
		}
	}
}

static void *serve(void *arg)
{
	struct ring *ring = arg;
	cpu_set_t cpus;
	eventfd_t raised;

	/* Whoever asks sleeps meanwhile: its own CPU is awake and has the bytes in its cache. */
	CPU_ZERO(&cpus);
	CPU_SET(ring->number, &cpus);
	sched_setaffinity(0, sizeof(cpus), &cpus);
	while (!atomic_load(&ring->started) && !atomic_load(&ring->uring->ending))
		eventfd_read(ring->event_fd, &raised);
	if (!atomic_load(&ring->uring->ending) &&
	    syscall(SYS_io_uring_register, ring->fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0) == 0 &&
	    queue_event(ring) == 0 && add_entries(ring) == 0)
		take_requests(ring);
	return NULL;
}

static int open_ring(struct ring *ring)
{
	char name[16];
	int rc;

	ring->event_fd = eventfd(0, EFD_CLOEXEC);
	if (ring->event_fd < 0)
		return -errno;
	ring->params.flags = IORING_SETUP_SQE128 | IORING_SETUP_SUBMIT_ALL | IORING_SETUP_R_DISABLED |
			     IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_CQSIZE;
	ring->params.cq_entries = CQ_ENTRIES;
	ring->fd = (int)syscall(SYS_io_uring_setup, SQ_ENTRIES, &ring->params);
	if (ring->fd < 0)
		return -errno;
	ring->sq_bytes = ring->params.sq_off.array + ring->params.sq_entries * sizeof(unsigned);
	ring->cq_bytes = ring->params.cq_off.cqes + ring->params.cq_entries * sizeof(struct io_uring_cqe);
	ring->sq_map = mmap(NULL, ring->sq_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd, IORING_OFF_SQ_RING);
	ring->cq_map = mmap(NULL, ring->cq_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd, IORING_OFF_CQ_RING);
	ring->sqes = mmap(NULL, (size_t)ring->params.sq_entries * SQE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd,
			  IORING_OFF_SQES);
	if (ring->sq_map == MAP_FAILED || ring->cq_map == MAP_FAILED || ring->sqes == MAP_FAILED)
		return -ENOMEM;
	rc = pthread_create(&ring->thread, NULL, serve, ring);
	if (rc)
		return -rc;
	ring->has_thread = true;
	snprintf(name, sizeof(name), "disk-ring-%d", ring->number % 10000);
	pthread_setname_np(ring->thread, name);
	return 0;
}

static void close_ring(struct ring *ring)
{
	struct entry *entry;

	if (ring->has_thread)
		pthread_join(ring->thread, NULL);
	if (ring->fd >= 0)
		close(ring->fd); /* before the entries' memory goes */
	if (ring->event_fd >= 0)
		close(ring->event_fd);
	if (ring->sq_map != MAP_FAILED)
		munmap(ring->sq_map, ring->sq_bytes);
	if (ring->cq_map != MAP_FAILED)
		munmap(ring->cq_map, ring->cq_bytes);
	if (ring->sqes != MAP_FAILED)
		munmap(ring->sqes, (size_t)ring->params.sq_entries * SQE_BYTES);
	while ((entry = ring->entries)) {
		ring->entries = entry->next;
		munmap(entry->headers, entry->mapped_bytes);
		free(entry);
	}
	pthread_mutex_destroy(&ring->lock);
}

/* The number of CPUs that the kernel makes queues for: "0-3" in sysfs is 4. */
static int possible_cpus(void)
{
	FILE *file = fopen("/sys/devices/system/cpu/possible", "re");
	int first = 0, last = -1, got;

	if (!file)
		return -errno;
	got = fscanf(file, "%d-%d", &first, &last);
	fclose(file);
	if (got == 1)
		last = first;
	return got < 1 || first != 0 ? -ENOSYS : last + 1;
}

static int open_all(struct sr_uring *uring)
{
	int rc = 0;

	for (int i = 0; i < uring->count && !rc; i++)
		rc = open_ring(&uring->rings[i]);
	for (int i = 0; i < SLOW_THREADS && !rc; i++) {
		rc = -pthread_create(&uring->slow_threads[i], NULL, serve_slow, uring);
		uring->slow_thread_count += !rc;
	}
	return rc;
}

int sr_uring_new(const struct sr_uring_setup *setup, struct sr_uring **out)
{
	struct sr_uring *uring;
	int cpus = possible_cpus(), rc;

	if (cpus < 0)
		return cpus;
	if (cpus > setup->rings_max)
		return -ENOSPC;
	uring = calloc(1, sizeof(*uring) + (size_t)cpus * sizeof(uring->rings[0]));
	if (!uring)
		return -ENOMEM;
	uring->setup = *setup;
	uring->count = cpus;
	uring->last_slow = &uring->first_slow;
	pthread_mutex_init(&uring->lock, NULL);
	pthread_cond_init(&uring->filled, NULL);
	for (int i = 0; i < cpus; i++) {
		struct ring *ring = &uring->rings[i];

		*ring = (struct ring){.uring = uring, .number = i, .fd = -1, .event_fd = -1};
		ring->sq_map = ring->cq_map = ring->sqes = MAP_FAILED;
		pthread_mutex_init(&ring->lock, NULL);
	}
	rc = open_all(uring);
	if (rc) {
		sr_uring_free(uring);
		return rc;
	}
	*out = uring;
	return 0;
}

void sr_uring_start(struct sr_uring *uring)
{
	for (int i = 0; i < uring->count; i++) {
		atomic_store(&uring->rings[i].started, true);
		wake(&uring->rings[i]);
	}
}

void sr_uring_answer(struct sr_uring *uring, uint64_t number, const struct fuse_out_header *out, const void *data,
		     size_t bytes)
{
	struct entry *entry;
	struct ring *ring;

	if (number >= (uint64_t)uring->count || bytes > uring->setup.request_bytes_max)
		return;
	ring = &uring->rings[number];
	pthread_mutex_lock(&ring->lock);
	for (entry = ring->entries; entry; entry = entry->next)
		if (entry->asked == out->unique)
			break;
	if (entry) {
		entry->asked = 0;
		memcpy(entry->headers->in_out, out, sizeof(*out));
		memcpy(entry->payload, data, bytes);
		entry->headers->entry.payload_bytes = (uint32_t)bytes;
	}
	pthread_mutex_unlock(&ring->lock);
	if (entry)
		give_back(entry);
}

void sr_uring_counters(struct sr_uring *uring, uint64_t *answered, uint64_t *forwarded)
{
	for (int i = 0; i < uring->count; i++) {
		*answered += atomic_load_explicit(&uring->rings[i].answered_count, memory_order_relaxed);
		*forwarded += atomic_load_explicit(&uring->rings[i].forwarded_count, memory_order_relaxed);
	}
}

void sr_uring_free(struct sr_uring *uring)
{
	pthread_mutex_lock(&uring->lock);
	atomic_store(&uring->ending, true);
	pthread_cond_broadcast(&uring->filled);
	pthread_mutex_unlock(&uring->lock);
	for (int i = 0; i < uring->slow_thread_count; i++)
		pthread_join(uring->slow_threads[i], NULL);
	for (int i = 0; i < uring->count; i++)
		wake(&uring->rings[i]);
	for (int i = 0; i < uring->count; i++)
		close_ring(&uring->rings[i]);
	pthread_cond_destroy(&uring->filled);
	pthread_mutex_destroy(&uring->lock);
	free(uring);
}

#else

int sr_uring_new(const struct sr_uring_setup *setup, struct sr_uring **out)
{
	return -ENOSYS;
}

void sr_uring_start(struct sr_uring *uring)
{
}

void sr_uring_answer(struct sr_uring *uring, uint64_t ring, const struct fuse_out_header *out, const void *data,
		     size_t bytes)
{
}

void sr_uring_counters(struct sr_uring *uring, uint64_t *answered, uint64_t *forwarded)
{
}

void sr_uring_free(struct sr_uring *uring)
{
}

#endif
