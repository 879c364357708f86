/* FUSE over io_uring.
 *
 * The kernel gives a request to a free entry of the CPU on which it was made. The thread that registered the entry
 * serves it: one thread for each CPU, with one ring. Other threads do slow work. An entry whose request went to Python
 * or to one of those threads is not free before the answer. There must always be free entries: a request that finds
 * none waits until another request of the same CPU is answered, even if an entry is registered meanwhile.
 */
#define _GNU_SOURCE
#include "fuse/fuse_uring.h"

#include <errno.h>

#include "fuse/ring.h"

#ifdef IORING_SETUP_SQE128

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "disk/disk.h"
#include "fuse/requests.h"
#include "fuse/waiting_room.h"

enum {
	FREE_ENTRIES_MIN = 32,
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
	struct queue *queue;
	struct entry *next, *next_queued; /* all entries; entries that were answered */
	struct headers *headers;
	char *payload;
	size_t mapped_bytes;
	struct iovec parts[2];
	uint64_t asked; /* `unique` of the upcall in progress; 0: none */
	int command;
};

struct queue {
	struct sr_uring *uring;
	struct sr_ring ring;
	int number; /* number of the CPU */
	int event_fd;
	uint64_t event;
	struct entry *entries;
	int free, alive;      /* entries that wait for a request; entries that the kernel has not returned for good */
	pthread_mutex_t lock; /* protects `answered`, and the entries' `asked` */
	struct entry *answered;
	atomic_bool started;
	atomic_uint_fast64_t answered_count, forwarded_count;
	pthread_t thread;
	bool has_thread;
};

struct sr_uring {
	struct sr_uring_setup setup;
	atomic_bool ending;
	struct sr_waiting_room *room; /* for requests that may take long */
	int count;
	atomic_int error;       /* error with which a thread failed */
	struct queue queues[]; /* one for each CPU */
};

static int queue_command(struct queue *queue, struct entry *entry, int command)
{
	struct io_uring_sqe *sqe = sr_ring_next(&queue->ring);
	struct command *inner;

	if (!sqe)
		return -EIO;
	entry->command = command;
	sqe->opcode = IORING_OP_URING_CMD;
	sqe->fd = queue->uring->setup.device_fd;
	sqe->user_data = (uintptr_t)entry;
	sqe->cmd_op = (unsigned)command;
	if (command == COMMAND_REGISTER) {
		sqe->addr = (uintptr_t)entry->parts;
		sqe->len = 2;
	}
	inner = (void *)((char *)sqe + offsetof(struct io_uring_sqe, cmd));
	inner->queue = (uint16_t)queue->number;
	inner->commit_id = command == COMMAND_REGISTER ? 0 : entry->headers->entry.commit_id;
	sr_ring_queue(&queue->ring);
	return 0;
}

static int queue_event(struct queue *queue)
{
	struct io_uring_sqe *sqe = sr_ring_next(&queue->ring);

	if (!sqe)
		return -EIO;
	sqe->opcode = IORING_OP_READ;
	sqe->fd = queue->event_fd;
	sqe->addr = (uintptr_t)&queue->event;
	sqe->len = sizeof(queue->event);
	sqe->user_data = EVENT;
	sr_ring_queue(&queue->ring);
	return 0;
}

/* --- entries --- */

static struct entry *new_entry(struct queue *queue)
{
	const size_t page = 4096;
	struct entry *entry = calloc(1, sizeof(*entry));
	char *map;

	if (!entry)
		return NULL;
	entry->mapped_bytes = page + queue->uring->setup.request_bytes_max;
	map = mmap(NULL, entry->mapped_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (map == MAP_FAILED) {
		free(entry);
		return NULL;
	}
	entry->headers = (void *)map;
	entry->payload = map + page;
	entry->parts[0] = (struct iovec){entry->headers, sizeof(*entry->headers)};
	entry->parts[1] = (struct iovec){entry->payload, queue->uring->setup.request_bytes_max};
	entry->queue = queue;
	pthread_mutex_lock(&queue->lock);
	entry->next = queue->entries;
	queue->entries = entry;
	pthread_mutex_unlock(&queue->lock);
	return entry;
}

static int register_entry(struct queue *queue, struct entry *entry)
{
	queue->alive++;
	queue->free++;
	return queue_command(queue, entry, COMMAND_REGISTER);
}

/* Without memory for more entries, requests wait for the existing ones. */
static int add_entries(struct queue *queue)
{
	struct entry *entry;
	int rc = 0;

	while (queue->free < FREE_ENTRIES_MIN && !rc && (entry = new_entry(queue)))
		rc = register_entry(queue, entry);
	return rc;
}

static int commit(struct queue *queue, struct entry *entry)
{
	queue->free++;
	return queue_command(queue, entry, COMMAND_COMMIT_AND_FETCH);
}

static void put_answer(struct entry *entry, uint64_t unique, int64_t answer)
{
	struct fuse_out_header out = {.unique = unique};

	out.error = answer < 0 ? (int32_t)answer : 0;
	entry->headers->entry.payload_bytes = answer > 0 ? (uint32_t)answer : 0;
	out.len = (uint32_t)sizeof(out) + entry->headers->entry.payload_bytes;
	memcpy(entry->headers->in_out, &out, sizeof(out));
}

static void wake(struct queue *queue)
{
	if (queue->event_fd >= 0)
		eventfd_write(queue->event_fd, 1);
}

/* Return an entry with its answer, from another thread. */
static void give_back(struct entry *entry)
{
	struct queue *queue = entry->queue;

	pthread_mutex_lock(&queue->lock);
	entry->next_queued = queue->answered;
	queue->answered = entry;
	pthread_mutex_unlock(&queue->lock);
	wake(queue);
}

static int64_t pass_on(struct queue *queue, struct entry *entry, const struct fuse_in_header *in, size_t arg_bytes)
{
	const struct sr_uring_setup *setup = &queue->uring->setup;
	struct iovec parts[2] = {{entry->headers->arg, arg_bytes}, {entry->payload, entry->headers->entry.payload_bytes}};
	struct fuse_in_header head = *in;
	int rc;

	if (arg_bytes > sizeof(entry->headers->arg))
		return -E2BIG;
	head.unique |= (setup->first_mark + (uint64_t)queue->number) << setup->mark_shift;
	pthread_mutex_lock(&queue->lock);
	entry->asked = in->unique;
	pthread_mutex_unlock(&queue->lock);
	atomic_fetch_add_explicit(&queue->forwarded_count, 1, memory_order_relaxed);
	rc = sr_upcall_ask(setup->upcall, &head, parts, 2);
	if (rc) {
		pthread_mutex_lock(&queue->lock);
		entry->asked = 0;
		pthread_mutex_unlock(&queue->lock);
		return rc;
	}
	return SR_NO_ANSWER;
}

static struct sr_request request_in(struct entry *entry, bool may_wait)
{
	return (struct sr_request){
		.in = (const void *)entry->headers->in_out,
		.arg = entry->headers->arg,
		.data = entry->payload,
		.data_bytes = entry->headers->entry.payload_bytes,
		.data_room = entry->queue->uring->setup.request_bytes_max,
		.may_wait = may_wait,
	};
}

/* Execute a request that may take long, or wait for a fault rule. */
static void answer_elsewhere(void *item)
{
	struct entry *entry = item;
	struct sr_request request = request_in(entry, true);
	uint64_t unique = request.in->unique;

	put_answer(entry, unique, sr_request_answer(&request));
	give_back(entry);
}

static int64_t answer_or_let_wait(struct entry *entry, struct sr_request *request)
{
	int64_t answer = SR_WOULD_WAIT;

	if (!sr_request_is_slow(request->in))
		answer = sr_request_answer(request);
	if (answer != SR_WOULD_WAIT)
		return answer;
	int rc = sr_waiting_room_put(entry->queue->uring->room, answer_elsewhere, entry);
	return rc ? rc : SR_NO_ANSWER;
}

static int handle(struct queue *queue, struct entry *entry)
{
	struct sr_request request = request_in(entry, false);
	const struct fuse_in_header in = *request.in;
	int64_t answer;

	queue->free--;
	answer = answer_or_let_wait(entry, &request);
	if (answer == SR_UPCALL)
		answer = pass_on(queue, entry, &in, in.len - sizeof(in) - request.data_bytes);
	else
		atomic_fetch_add_explicit(&queue->answered_count, 1, memory_order_relaxed);
	if (answer == SR_NO_ANSWER)
		return add_entries(queue);
	put_answer(entry, in.unique, answer);
	return commit(queue, entry);
}

static int commit_answered(struct queue *queue)
{
	struct entry *entry;
	int rc = 0;

	pthread_mutex_lock(&queue->lock);
	entry = queue->answered;
	queue->answered = NULL;
	pthread_mutex_unlock(&queue->lock);
	for (; entry && !rc; entry = entry->next_queued)
		rc = commit(queue, entry);
	return rc ? rc : queue_event(queue);
}

/* --- threads --- */

static int complete(struct queue *queue, const struct io_uring_cqe *cqe)
{
	struct entry *entry;

	if (cqe->user_data == EVENT)
		return atomic_load(&queue->uring->ending) ? -ESHUTDOWN : commit_answered(queue);
	entry = (struct entry *)(uintptr_t)cqe->user_data;
	if (cqe->res == 0)
		return handle(queue, entry);
	if (cqe->res == -EAGAIN || cqe->res == -EINTR)
		return queue_command(queue, entry, entry->command);
	/* The mount is gone, or the kernel refuses the ring and continues without it. */
	queue->free--;
	return --queue->alive > 0 ? 0 : -ENOTCONN;
}

static int take_requests(struct queue *queue)
{
	struct io_uring_cqe cqe;
	int rc = sr_ring_enable(&queue->ring);

	if (!rc)
		rc = queue_event(queue);
	for (struct entry *entry = queue->entries; entry && !rc; entry = entry->next)
		rc = register_entry(queue, entry);
	while (!rc) {
		rc = sr_ring_enter(&queue->ring, 1);
		while (!rc && sr_ring_take(&queue->ring, &cqe))
			rc = complete(queue, &cqe);
	}
	return rc;
}

static void *serve(void *arg)
{
	struct queue *queue = arg;
	struct sr_uring *uring = queue->uring;
	cpu_set_t cpus;
	eventfd_t raised;
	int rc;

	/* Run on the CPU of the caller, which sleeps meanwhile: that CPU is awake and has the bytes in its cache. */
	CPU_ZERO(&cpus);
	CPU_SET(queue->number, &cpus);
	sched_setaffinity(0, sizeof(cpus), &cpus);
	while (!atomic_load(&queue->started) && !atomic_load(&uring->ending))
		eventfd_read(queue->event_fd, &raised);
	rc = atomic_load(&uring->ending) ? -ESHUTDOWN : take_requests(queue);
	if (rc != -ESHUTDOWN && rc != -ENOTCONN) { /* requests of this CPU would wait for ever */
		atomic_store(&uring->error, rc);
		eventfd_write(uring->setup.ended_fd, 1);
	}
	return NULL;
}

static int open_queue(struct queue *queue)
{
	char name[16];
	int rc = sr_ring_open(&queue->ring);

	if (rc)
		return rc;
	queue->event_fd = eventfd(0, EFD_CLOEXEC);
	if (queue->event_fd < 0)
		return -errno;
	for (int i = 0; i < FREE_ENTRIES_MIN; i++)
		if (!new_entry(queue))
			return -ENOMEM;
	rc = pthread_create(&queue->thread, NULL, serve, queue);
	if (rc)
		return -rc;
	queue->has_thread = true;
	snprintf(name, sizeof(name), "disk-ring-%d", queue->number % 10000);
	pthread_setname_np(queue->thread, name);
	return 0;
}

static void close_queue(struct queue *queue)
{
	struct entry *entry;

	sr_ring_close(&queue->ring); /* before the entries' memory is freed */
	if (queue->event_fd >= 0)
		close(queue->event_fd);
	while ((entry = queue->entries)) {
		queue->entries = entry->next;
		munmap(entry->headers, entry->mapped_bytes);
		free(entry);
	}
	pthread_mutex_destroy(&queue->lock);
}

/* Return the number of CPUs for which the kernel makes queues: "0-3" in sysfs is 4. */
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
		rc = open_queue(&uring->queues[i]);
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
	uring = calloc(1, sizeof(*uring) + (size_t)cpus * sizeof(uring->queues[0]));
	if (!uring)
		return -ENOMEM;
	uring->setup = *setup;
	uring->count = cpus;
	for (int i = 0; i < cpus; i++) {
		struct queue *queue = &uring->queues[i];

		*queue = (struct queue){.uring = uring, .number = i, .event_fd = -1};
		queue->ring = sr_ring_none();
		pthread_mutex_init(&queue->lock, NULL);
	}
	uring->room = sr_waiting_room_new();
	rc = uring->room ? open_all(uring) : -ENOMEM;
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
		atomic_store(&uring->queues[i].started, true);
		wake(&uring->queues[i]);
	}
}

void sr_uring_answer(struct sr_uring *uring, uint64_t number, const struct fuse_out_header *out, const void *data,
		     size_t bytes)
{
	struct entry *entry;
	struct queue *queue;

	if (number >= (uint64_t)uring->count || bytes > uring->setup.request_bytes_max)
		return;
	queue = &uring->queues[number];
	pthread_mutex_lock(&queue->lock);
	for (entry = queue->entries; entry; entry = entry->next)
		if (entry->asked == out->unique)
			break;
	if (entry) {
		entry->asked = 0;
		memcpy(entry->headers->in_out, out, sizeof(*out));
		memcpy(entry->payload, data, bytes);
		entry->headers->entry.payload_bytes = (uint32_t)bytes;
	}
	pthread_mutex_unlock(&queue->lock);
	if (entry)
		give_back(entry);
}

void sr_uring_counters(struct sr_uring *uring, uint64_t *answered, uint64_t *forwarded)
{
	for (int i = 0; i < uring->count; i++) {
		*answered += atomic_load_explicit(&uring->queues[i].answered_count, memory_order_relaxed);
		*forwarded += atomic_load_explicit(&uring->queues[i].forwarded_count, memory_order_relaxed);
	}
}

int sr_uring_error(struct sr_uring *uring)
{
	return atomic_load(&uring->error);
}

void sr_uring_free(struct sr_uring *uring)
{
	atomic_store(&uring->ending, true);
	for (int i = 0; i < uring->count; i++)
		wake(&uring->queues[i]);
	for (int i = 0; i < uring->count; i++)
		if (uring->queues[i].has_thread)
			pthread_join(uring->queues[i].thread, NULL);
	sr_waiting_room_free(uring->room); /* its threads use the entries */
	for (int i = 0; i < uring->count; i++)
		close_queue(&uring->queues[i]);
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

int sr_uring_error(struct sr_uring *uring)
{
	return 0;
}

void sr_uring_free(struct sr_uring *uring)
{
}

#endif
