/* Threads that read FUSE requests, answer those on open disks, and pass the others on to Python. */
#define _GNU_SOURCE
#include "fuse/pump.h"

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

#include "fuse/fuse_uring.h"
#include "fuse/upcall.h"
#include "fuse/requests.h"

enum {
	PAGE_BYTES = 4096,
	/* Before the data of a WRITE: so it begins on a page. */
	HEADERS_BYTES = sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in),
	/* An answer must go back the way the request came: its worker, or RINGS_FROM and the ring, is in the top bits of `unique`,
	 * which the kernel, counting from 0, does not reach (nor upcall.c, which has the bit below). */
	MARK_SHIFT = 52,
	WORKERS_MAX = 64,
	RESERVES = WORKERS_MAX - SR_PUMP_THREADS_MAX, /* workers that wait until others are busy with what takes long */
	RINGS_FROM = WORKERS_MAX,
	RINGS_MAX = 4000,
};

struct worker {
	struct sr_pump *pump;
	int fd;
	char *pages; /* a page that ends with the headers, then the data */
	size_t pages_bytes;
	atomic_uint_fast64_t answered, forwarded;
	pthread_t thread;
	bool started;
};

struct sr_pump {
	int upcall_fd, ended_fd;
	uint32_t request_bytes_max;
	uint16_t queue;
	struct sr_upcall *upcall;
	struct sr_uring *uring;
	int uring_error;
	atomic_int error;
	int wanted;             /* workers that take requests */
	pthread_mutex_t lock;   /* of the next two */
	pthread_cond_t too_few; /* raised when `taking` has become less than `wanted` */
	int taking;             /* workers that take requests, or are busy with a quick one */
	int count;
	struct worker workers[];
};

static void *first_place(const struct worker *worker)
{
	return worker->pages + PAGE_BYTES - HEADERS_BYTES;
}

/* The kernel has no such request any more if it was aborted, or the mount is gone: nobody waits for the answer. */
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
	struct sr_pump *pump = context;
	struct fuse_out_header head = *out;
	struct iovec parts[2] = {{&head, sizeof(head)}, {(void *)(out + 1), bytes - sizeof(head)}};
	uint64_t worker = out->unique >> MARK_SHIFT;

	head.unique &= (1ull << MARK_SHIFT) - 1;
	if (worker >= RINGS_FROM && pump->uring)
		sr_uring_answer(pump->uring, worker - RINGS_FROM, &head, parts[1].iov_base, parts[1].iov_len);
	if (worker >= (uint64_t)pump->count)
		return;
	while (writev(pump->workers[worker].fd, parts, 2) < 0 && errno == EINTR)
		;
}

static int64_t pass_on(struct worker *worker, const struct fuse_in_header *in, void *arg, size_t bytes)
{
	struct fuse_in_header head = *in;
	struct iovec part = {arg, bytes};
	int rc;

	head.unique |= (uint64_t)(worker - worker->pump->workers) << MARK_SHIFT;
	atomic_fetch_add_explicit(&worker->forwarded, 1, memory_order_relaxed);
	rc = sr_upcall_ask(worker->pump->upcall, &head, &part, 1);
	return rc == 0 || in->opcode == FUSE_FORGET || in->opcode == FUSE_BATCH_FORGET ? SR_NO_ANSWER : rc;
}

static void lock_until_cancelled(void *lock)
{
	pthread_mutex_unlock(lock);
}

/* A worker begins as a reserve, and is one again after a slow request if others have taken its place. */
static void wait_until_wanted(struct sr_pump *pump)
{
	pthread_mutex_lock(&pump->lock);
	pthread_cleanup_push(lock_until_cancelled, &pump->lock);
	pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, NULL);
	while (pump->taking >= pump->wanted)
		pthread_cond_wait(&pump->too_few, &pump->lock);
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
	pump->taking++;
	pthread_cleanup_pop(1);
}

static void let_others_take(struct sr_pump *pump)
{
	pthread_mutex_lock(&pump->lock);
	pump->taking--;
	pthread_cond_signal(&pump->too_few);
	pthread_mutex_unlock(&pump->lock);
}

static void handle(struct worker *worker, struct fuse_in_header *in, size_t bytes)
{
	char *data = (char *)in + HEADERS_BYTES;
	struct sr_request request = {
		.in = in,
		.arg = in + 1,
		.data = data,
		.data_bytes = bytes > HEADERS_BYTES ? (uint32_t)(bytes - HEADERS_BYTES) : 0,
		.data_room = worker->pump->request_bytes_max,
	};
	int64_t answer = sr_request_answer(&request);

	if (answer == SR_UPCALL)
		answer = pass_on(worker, in, in + 1, bytes - sizeof(*in));
	else
		atomic_fetch_add_explicit(&worker->answered, 1, memory_order_relaxed);
	if (answer != SR_NO_ANSWER)
		reply(worker->fd, in, answer, data);
}

static void *work(void *arg)
{
	struct worker *worker = arg;
	struct sr_pump *pump = worker->pump;
	struct fuse_in_header *in = first_place(worker);
	const size_t room = HEADERS_BYTES + pump->request_bytes_max;
	ssize_t got;

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
	wait_until_wanted(pump);
	for (;;) {
		/* Here, and in wait_until_wanted, sr_pump_stop may end the thread: it holds nothing. */
		pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, NULL);
		got = read(worker->fd, in, room);
		pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
		if (got >= (ssize_t)sizeof(*in) && sr_request_is_slow(in)) {
			let_others_take(pump);
			handle(worker, in, (size_t)got);
			wait_until_wanted(pump);
		} else if (got >= (ssize_t)sizeof(*in)) {
			handle(worker, in, (size_t)got);
		} else if (got >= 0 || (errno != EINTR && errno != EAGAIN && errno != ENOENT)) {
			break; /* ENOENT: the request was interrupted */
		}
	}
	if (got < 0 && errno != ENODEV && errno != ECONNABORTED)
		atomic_store(&pump->error, -errno);
	eventfd_write(pump->ended_fd, 1);
	return NULL;
}

static int read_request(int fd, void *request, size_t room, ssize_t *got)
{
	do
		*got = read(fd, request, room);
	while (*got < 0 && (errno == EINTR || errno == EAGAIN));
	return *got < 0 ? -errno : 0;
}

static void new_rings(struct sr_pump *pump)
{
	struct sr_uring_setup setup = {
		.device_fd = pump->workers[0].fd,
		.request_bytes_max = pump->request_bytes_max,
		.ended_fd = pump->ended_fd,
		.upcall = pump->upcall,
		.mark_shift = MARK_SHIFT,
		.first_mark = RINGS_FROM,
		.rings_max = RINGS_MAX,
	};

	pump->uring_error = sr_uring_new(&setup, &pump->uring);
}

/* The kernel asks nothing else before it has the answer; Python must be asked nothing before its own. */
static int init(struct sr_pump *pump, int over_io_uring)
{
	struct worker *worker = &pump->workers[0];
	struct fuse_in_header *in = first_place(worker);
	const struct fuse_init_in *arg = (const void *)(in + 1);
	struct fuse_init_out out;
	int64_t answer;
	ssize_t got;
	int rc = read_request(worker->fd, in, HEADERS_BYTES + pump->request_bytes_max, &got);

	if (rc)
		return rc;
	if (got < (ssize_t)sizeof(*in) || in->opcode != FUSE_INIT)
		return -EPROTO;
	rc = sr_upcall_init(pump->upcall);
	if (rc)
		return rc;
	if (over_io_uring && (arg->flags & FUSE_INIT_EXT) && ((uint64_t)arg->flags2 << 32 & SR_FUSE_OVER_IO_URING))
		new_rings(pump);
	answer = sr_request_init(arg, pump->request_bytes_max, pump->queue, pump->uring ? SR_FUSE_OVER_IO_URING : 0, &out);
	reply(worker->fd, in, answer, &out);
	if (answer < 0)
		return (int)answer;
	if (pump->uring)
		sr_uring_start(pump->uring);
	return 0;
}

static int open_worker(struct worker *worker, int device_fd)
{
	uint32_t source = (uint32_t)device_fd;

	worker->pages_bytes = PAGE_BYTES + (size_t)worker->pump->request_bytes_max;
	worker->pages = mmap(NULL, worker->pages_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (worker->pages == MAP_FAILED) {
		worker->pages = NULL;
		return -ENOMEM;
	}
	/* Each that takes requests has a descriptor, so a list in the kernel, of its own; the reserves share the first. */
	if (worker == worker->pump->workers || worker - worker->pump->workers >= worker->pump->wanted) {
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
	snprintf(name, sizeof(name), "disk-io-%d", (int)(worker - worker->pump->workers) % WORKERS_MAX);
	pthread_setname_np(worker->thread, name);
	return 0;
}

/* Everything but the two descriptors that the caller gave. */
static void release(struct sr_pump *pump)
{
	for (int i = 0; i < pump->count; i++)
		if (pump->workers[i].started)
			pthread_cancel(pump->workers[i].thread);
	for (int i = 0; i < pump->count; i++)
		if (pump->workers[i].started)
			pthread_join(pump->workers[i].thread, NULL);
	if (pump->upcall)
		sr_upcall_close(pump->upcall); /* its receiver writes to the workers' descriptors and rings */
	if (pump->uring)
		sr_uring_free(pump->uring);
	if (pump->upcall)
		sr_upcall_free(pump->upcall); /* and the rings ask it */
	for (int i = 0; i < pump->count; i++) {
		if (pump->workers[i].fd >= 0 && pump->workers[i].fd != pump->workers[0].fd)
			close(pump->workers[i].fd);
		if (pump->workers[i].pages)
			munmap(pump->workers[i].pages, pump->workers[i].pages_bytes);
	}
	pthread_cond_destroy(&pump->too_few);
	pthread_mutex_destroy(&pump->lock);
	free(pump);
}

/* Signals are the Python thread's, for threads that are started from here on; but not those of which a thread is the cause.
 * One that came while it is held back would end the process: so of a SIGBUS mapped.c could not make an error of one read. */
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

int sr_pump_start(const struct sr_pump_setup *setup, struct sr_pump **out)
{
	struct sr_pump *pump;
	sigset_t before;
	int rc = 0;

	if (setup->threads < 1 || setup->threads > SR_PUMP_THREADS_MAX || setup->queue < 1 || setup->request_bytes_max < PAGE_BYTES ||
	    setup->request_bytes_max % PAGE_BYTES)
		return -EINVAL;
	pump = calloc(1, sizeof(*pump) + (size_t)(setup->threads + RESERVES) * sizeof(pump->workers[0]));
	if (!pump)
		return -ENOMEM;
	pump->upcall_fd = setup->upcall_fd;
	pump->ended_fd = setup->ended_fd;
	pump->request_bytes_max = setup->request_bytes_max;
	pump->queue = setup->queue;
	pump->wanted = setup->threads;
	pump->count = setup->threads + RESERVES;
	pthread_mutex_init(&pump->lock, NULL);
	pthread_cond_init(&pump->too_few, NULL);
	for (int i = 0; i < pump->count; i++)
		pump->workers[i] = (struct worker){.pump = pump, .fd = -1};
	for (int i = 0; i < pump->count && !rc; i++)
		rc = open_worker(&pump->workers[i], setup->device_fd);
	hold_back_signals(&before);
	if (!rc) {
		pump->upcall = sr_upcall_new(setup->upcall_fd, reply_from_upcall, pump);
		rc = pump->upcall ?? 0 : -ENOMEM;
	}
	if (!rc)
		rc = init(pump, setup->over_io_uring);
	for (int i = 0; i < pump->count && !rc; i++)
		rc = start_worker(&pump->workers[i]);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (rc) {
		release(pump);
		return rc;
	}
	*out = pump;
	return 0;
}

int sr_pump_stop(struct sr_pump *pump)
{
	int device_fd = pump->workers[0].fd, upcall_fd = pump->upcall_fd, error = atomic_load(&pump->error);

	if (pump->uring && !error)
		error = sr_uring_error(pump->uring);
	release(pump);
	close(upcall_fd);
	close(device_fd);
	return error;
}

void sr_pump_counters(struct sr_pump *pump, struct sr_pump_counters *out)
{
	*out = (struct sr_pump_counters){.over_io_uring = pump->uring ? 1 : pump->uring_error};
	if (pump->uring)
		sr_uring_counters(pump->uring, &out->answered, &out->forwarded);
	for (int i = 0; i < pump->count; i++) {
		out->answered += atomic_load_explicit(&pump->workers[i].answered, memory_order_relaxed);
		out->forwarded += atomic_load_explicit(&pump->workers[i].forwarded, memory_order_relaxed);
	}
}
