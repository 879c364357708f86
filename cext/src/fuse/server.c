/* Threads that read FUSE requests, answer those on open disks, and pass the others to Python. */
#define _GNU_SOURCE
#include "fuse/server.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "disk/disk.h"
#include "fuse/fuse_uring.h"
#include "fuse/upcall.h"
#include "fuse/requests.h"
#include "fuse/waiting_room.h"

enum {
	PAGE_BYTES = 4096,
	/* Bytes before the data of a WRITE, which therefore begins on a page. */
	HEADERS_BYTES = sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in),
	/* An answer must return by the way of its request. The top bits of `unique` have the worker, or RINGS_FROM
	 * and the ring; the kernel counts from 0 and does not reach them (upcall.c uses the bit below). */
	MARK_SHIFT = 52,
	WORKERS_MAX = 64,
	STANDBY = WORKERS_MAX - SR_SERVER_THREADS_MAX, /* workers that wait until others are busy with slow requests */
	RINGS_FROM = WORKERS_MAX,
	RINGS_MAX = 4000,
};

struct worker {
	struct sr_server *server;
	int fd;
	char *pages; /* a page that ends with the headers, then the data */
	size_t pages_bytes;
	atomic_uint_fast64_t answered, forwarded;
	pthread_t thread;
	bool started;
};

struct sr_server {
	int upcall_fd, ended_fd;
	uint32_t request_bytes_max;
	uint16_t queue;
	struct sr_upcall *upcall;
	struct sr_uring *uring;
	struct sr_waiting_room *room;
	int uring_error;
	atomic_int error;
	int active_max;             /* workers that read requests */
	pthread_mutex_t lock;   /* protects the next two fields */
	pthread_cond_t below_max; /* raised when `active` falls below `active_max` */
	int active;             /* workers that read requests, or execute a quick one */
	int count;
	struct worker workers[];
};

static void *first_place(const struct worker *worker)
{
	return worker->pages + PAGE_BYTES - HEADERS_BYTES;
}

/* Send an answer. An aborted request, or a mount that is gone, is no error: no caller waits for the answer. */
static void reply(int fd, const struct fuse_in_header *in, int64_t answer, void *data)
{
	struct fuse_out_header out = {.unique = in->unique};
	struct iovec parts[2] = {{&out, sizeof(out)}, {data, answer > 0 ? (size_t)answer : 0}};

	out.len = (uint32_t)(parts[0].iov_len + parts[1].iov_len);
	out.error = answer < 0 ? (int32_t)answer : 0;
	while (writev(fd, parts, 2) < 0 && errno == EINTR)
		;
}

static void reply_from_upcall(void *context, const struct fuse_out_header *out, size_t bytes)
{
	struct sr_server *server = context;
	struct fuse_out_header head = *out;
	struct iovec parts[2] = {{&head, sizeof(head)}, {(void *)(out + 1), bytes - sizeof(head)}};
	uint64_t worker = out->unique >> MARK_SHIFT;

	head.unique &= (1ull << MARK_SHIFT) - 1;
	if (worker >= RINGS_FROM && server->uring)
		sr_uring_answer(server->uring, worker - RINGS_FROM, &head, parts[1].iov_base, parts[1].iov_len);
	if (worker >= (uint64_t)server->count)
		return;
	while (writev(server->workers[worker].fd, parts, 2) < 0 && errno == EINTR)
		;
}

static int64_t pass_on(struct worker *worker, const struct fuse_in_header *in, void *arg, size_t bytes)
{
	struct fuse_in_header head = *in;
	struct iovec part = {arg, bytes};
	int rc;

	head.unique |= (uint64_t)(worker - worker->server->workers) << MARK_SHIFT;
	atomic_fetch_add_explicit(&worker->forwarded, 1, memory_order_relaxed);
	rc = sr_upcall_ask(worker->server->upcall, &head, &part, 1);
	return rc == 0 || in->opcode == FUSE_FORGET || in->opcode == FUSE_BATCH_FORGET ? SR_NO_ANSWER : rc;
}

static void lock_until_cancelled(void *lock)
{
	pthread_mutex_unlock(lock);
}

/* Wait until the pool needs this worker. Each worker begins as standby, and returns to standby after a slow request
 * if another has replaced it. */
static void join_pool(struct sr_server *server)
{
	pthread_mutex_lock(&server->lock);
	pthread_cleanup_push(lock_until_cancelled, &server->lock);
	pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, NULL);
	while (server->active >= server->active_max)
		pthread_cond_wait(&server->below_max, &server->lock);
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
	server->active++;
	pthread_cleanup_pop(1);
}

static void leave_pool(struct sr_server *server)
{
	pthread_mutex_lock(&server->lock);
	server->active--;
	pthread_cond_signal(&server->below_max);
	pthread_mutex_unlock(&server->lock);
}

/* A request that waits for a fault rule, with its data. */
struct waiting {
	struct worker *worker;
	size_t bytes;
	char request[]; /* the headers, then the data or the space for the answer */
};

static void answer_waiting(void *item)
{
	struct waiting *waiting = item;
	struct fuse_in_header *in = (void *)waiting->request;
	char *data = waiting->request + HEADERS_BYTES;
	struct sr_request request = {
		.in = in,
		.arg = in + 1,
		.data = data,
		.data_bytes = waiting->bytes > HEADERS_BYTES ? (uint32_t)(waiting->bytes - HEADERS_BYTES) : 0,
		.data_room = waiting->worker->server->request_bytes_max,
		.may_wait = true,
	};
	int64_t answer = sr_request_answer(&request);

	reply(waiting->worker->fd, in, answer, data);
	free(waiting);
}

/* Let another thread execute the request, because this one takes further requests. */
static int64_t let_wait(struct worker *worker, const struct fuse_in_header *in, size_t bytes)
{
	const struct fuse_read_in *arg = (const void *)(in + 1);
	size_t room = sizeof(struct fuse_out_header);
	struct waiting *waiting;

	if (in->opcode == FUSE_READ)
		room = arg->size;
	if (bytes > HEADERS_BYTES + room)
		room = bytes - HEADERS_BYTES;
	waiting = malloc(sizeof(*waiting) + HEADERS_BYTES + room);
	if (!waiting)
		return -ENOMEM;
	waiting->worker = worker;
	waiting->bytes = bytes;
	memset(waiting->request, 0, HEADERS_BYTES);
	memcpy(waiting->request, in, bytes);
	int rc = sr_waiting_room_put(worker->server->room, answer_waiting, waiting);
	if (rc)
		free(waiting);
	return rc ? rc : SR_NO_ANSWER;
}

static void handle(struct worker *worker, struct fuse_in_header *in, size_t bytes)
{
	char *data = (char *)in + HEADERS_BYTES;
	struct sr_request request = {
		.in = in,
		.arg = in + 1,
		.data = data,
		.data_bytes = bytes > HEADERS_BYTES ? (uint32_t)(bytes - HEADERS_BYTES) : 0,
		.data_room = worker->server->request_bytes_max,
	};
	int64_t answer = sr_request_answer(&request);

	if (answer == SR_UPCALL)
		answer = pass_on(worker, in, in + 1, bytes - sizeof(*in));
	else
		atomic_fetch_add_explicit(&worker->answered, 1, memory_order_relaxed);
	if (answer == SR_WOULD_WAIT)
		answer = let_wait(worker, in, bytes);
	if (answer != SR_NO_ANSWER)
		reply(worker->fd, in, answer, data);
}

static void *work(void *arg)
{
	struct worker *worker = arg;
	struct sr_server *server = worker->server;
	struct fuse_in_header *in = first_place(worker);
	const size_t room = HEADERS_BYTES + server->request_bytes_max;
	ssize_t got;

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
	join_pool(server);
	for (;;) {
		/* Here, and in join_pool, sr_server_stop may end the thread: it holds no lock. */
		pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, NULL);
		got = read(worker->fd, in, room);
		pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
		if (got >= (ssize_t)sizeof(*in) && sr_request_is_slow(in)) {
			leave_pool(server);
			handle(worker, in, (size_t)got);
			join_pool(server);
		} else if (got >= (ssize_t)sizeof(*in)) {
			handle(worker, in, (size_t)got);
		} else if (got >= 0 || (errno != EINTR && errno != EAGAIN && errno != ENOENT)) {
			break; /* ENOENT: the request was interrupted */
		}
	}
	if (got < 0 && errno != ENODEV && errno != ECONNABORTED)
		atomic_store(&server->error, -errno);
	eventfd_write(server->ended_fd, 1);
	return NULL;
}

static int read_request(int fd, void *request, size_t room, ssize_t *got)
{
	do
		*got = read(fd, request, room);
	while (*got < 0 && (errno == EINTR || errno == EAGAIN));
	return *got < 0 ? -errno : 0;
}

static void new_rings(struct sr_server *server)
{
	struct sr_uring_setup setup = {
		.device_fd = server->workers[0].fd,
		.request_bytes_max = server->request_bytes_max,
		.ended_fd = server->ended_fd,
		.upcall = server->upcall,
		.mark_shift = MARK_SHIFT,
		.first_mark = RINGS_FROM,
		.rings_max = RINGS_MAX,
	};

	server->uring_error = sr_uring_new(&setup, &server->uring);
}

/* Answer FUSE_INIT. The kernel sends no other request before this answer, and Python must get no request before its
 * own INIT. */
static int init(struct sr_server *server, int over_io_uring)
{
	struct worker *worker = &server->workers[0];
	struct fuse_in_header *in = first_place(worker);
	const struct fuse_init_in *arg = (const void *)(in + 1);
	struct fuse_init_out out;
	int64_t answer;
	ssize_t got;
	int rc = read_request(worker->fd, in, HEADERS_BYTES + server->request_bytes_max, &got);

	if (rc)
		return rc;
	if (got < (ssize_t)sizeof(*in) || in->opcode != FUSE_INIT)
		return -EPROTO;
	rc = sr_upcall_init(server->upcall);
	if (rc)
		return rc;
	if (over_io_uring && (arg->flags & FUSE_INIT_EXT) && ((uint64_t)arg->flags2 << 32 & SR_FUSE_OVER_IO_URING))
		new_rings(server);
	answer = sr_request_init(arg, server->request_bytes_max, server->queue, server->uring ? SR_FUSE_OVER_IO_URING : 0, &out);
	reply(worker->fd, in, answer, &out);
	if (answer < 0)
		return (int)answer;
	if (server->uring)
		sr_uring_start(server->uring);
	return 0;
}

static int open_worker(struct worker *worker, int device_fd)
{
	uint32_t source = (uint32_t)device_fd;

	worker->pages_bytes = PAGE_BYTES + (size_t)worker->server->request_bytes_max;
	worker->pages = mmap(NULL, worker->pages_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (worker->pages == MAP_FAILED) {
		worker->pages = NULL;
		return -ENOMEM;
	}
	/* Each active worker has a descriptor of its own, and therefore a request list of its own in the kernel;
	 * standby workers share the first. */
	if (worker == worker->server->workers || worker - worker->server->workers >= worker->server->active_max) {
		worker->fd = device_fd;
		return 0;
	}
	worker->fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (worker->fd < 0 || ioctl(worker->fd, FUSE_DEV_IOC_CLONE, &source))
		return -errno;
	return 0;
}

static int start_worker(struct worker *worker)
{
	char name[16];
	int rc = pthread_create(&worker->thread, NULL, work, worker);

	if (rc)
		return -rc;
	worker->started = true;
	snprintf(name, sizeof(name), "disk-io-%d", (int)(worker - worker->server->workers) % WORKERS_MAX);
	pthread_setname_np(worker->thread, name);
	return 0;
}

/* Release everything except the two descriptors of the caller. */
static void release(struct sr_server *server)
{
	for (int i = 0; i < server->count; i++)
		if (server->workers[i].started)
			pthread_cancel(server->workers[i].thread);
	for (int i = 0; i < server->count; i++)
		if (server->workers[i].started)
			pthread_join(server->workers[i].thread, NULL);
	sr_waiting_room_free(server->room); /* its threads write to the workers' descriptors */
	if (server->upcall)
		sr_upcall_close(server->upcall); /* its receiver writes to the workers' descriptors and rings */
	if (server->uring)
		sr_uring_free(server->uring);
	if (server->upcall)
		sr_upcall_free(server->upcall); /* the rings call it */
	for (int i = 0; i < server->count; i++) {
		if (server->workers[i].fd >= 0 && server->workers[i].fd != server->workers[0].fd)
			close(server->workers[i].fd);
		if (server->workers[i].pages)
			munmap(server->workers[i].pages, server->workers[i].pages_bytes);
	}
	pthread_cond_destroy(&server->below_max);
	pthread_mutex_destroy(&server->lock);
	free(server);
}

/* Block signals for new threads, because the Python thread handles them. Signals caused by the thread itself stay
 * unblocked: a blocked one would end the process, and mapped.c could not turn a SIGBUS into an error. */
static void hold_back_signals(sigset_t *before)
{
	sigset_t held;

	sigfillset(&held);
	sigdelset(&held, SIGBUS);
	sigdelset(&held, SIGSEGV);
	sigdelset(&held, SIGFPE);
	sigdelset(&held, SIGILL);
	pthread_sigmask(SIG_SETMASK, &held, before);
}

int sr_server_start(const struct sr_server_setup *setup, struct sr_server **out)
{
	struct sr_server *server;
	sigset_t before;
	int rc = 0;

	if (setup->threads < 1 || setup->threads > SR_SERVER_THREADS_MAX || setup->queue < 1 || setup->request_bytes_max < PAGE_BYTES ||
	    setup->request_bytes_max % PAGE_BYTES)
		return -EINVAL;
	server = calloc(1, sizeof(*server) + (size_t)(setup->threads + STANDBY) * sizeof(server->workers[0]));
	if (!server)
		return -ENOMEM;
	server->upcall_fd = setup->upcall_fd;
	server->ended_fd = setup->ended_fd;
	server->request_bytes_max = setup->request_bytes_max;
	server->queue = setup->queue;
	server->active_max = setup->threads;
	server->count = setup->threads + STANDBY;
	pthread_mutex_init(&server->lock, NULL);
	pthread_cond_init(&server->below_max, NULL);
	for (int i = 0; i < server->count; i++)
		server->workers[i] = (struct worker){.server = server, .fd = -1};
	for (int i = 0; i < server->count && !rc; i++)
		rc = open_worker(&server->workers[i], setup->device_fd);
	hold_back_signals(&before);
	server->room = rc ? NULL : sr_waiting_room_new();
	if (!rc && !server->room)
		rc = -ENOMEM;
	if (!rc) {
		server->upcall = sr_upcall_new(setup->upcall_fd, reply_from_upcall, server);
		rc = server->upcall ? 0 : -ENOMEM;
	}
	if (!rc)
		rc = init(server, setup->over_io_uring);
	for (int i = 0; i < server->count && !rc; i++)
		rc = start_worker(&server->workers[i]);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (rc) {
		release(server);
		return rc;
	}
	*out = server;
	return 0;
}

int sr_server_stop(struct sr_server *server)
{
	int device_fd = server->workers[0].fd, upcall_fd = server->upcall_fd, error = atomic_load(&server->error);

	if (server->uring && !error)
		error = sr_uring_error(server->uring);
	release(server);
	close(upcall_fd);
	close(device_fd);
	return error;
}

void sr_server_counters(struct sr_server *server, struct sr_server_counters *out)
{
	*out = (struct sr_server_counters){.over_io_uring = server->uring ? 1 : server->uring_error};
	if (server->uring)
		sr_uring_counters(server->uring, &out->answered, &out->forwarded);
	for (int i = 0; i < server->count; i++) {
		out->answered += atomic_load_explicit(&server->workers[i].answered, memory_order_relaxed);
		out->forwarded += atomic_load_explicit(&server->workers[i].forwarded, memory_order_relaxed);
	}
}
