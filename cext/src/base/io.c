#define _GNU_SOURCE
#include "base/io.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define IOVS_MAX 4
#define ZERO_STEP_BYTES (1 << 20)

static sr_io_hook_fn io_hook;

#define SR_IO_DONE (1ll << 62)

int64_t sr_io_done(int64_t bytes)
{
	return SR_IO_DONE + bytes;
}

void sr_io_set_hook(sr_io_hook_fn hook)
{
	__atomic_store_n(&io_hook, hook, __ATOMIC_RELEASE);
}

/* The last failed call of this thread, for the text of the error, which Python makes in the same thread. */
static __thread int failed_fd = -1, failed_with;

static int64_t failed(int fd, int64_t rc)
{
	failed_fd = fd;
	failed_with = (int)-rc;
	return rc;
}

int sr_io_failed_fd(int error)
{
	return failed_with == error ? failed_fd : -1;
}

static int64_t ask(int op, int fd, int64_t offset, int64_t bytes, const struct iovec *iov, int iovs)
{
	sr_io_hook_fn hook = __atomic_load_n(&io_hook, __ATOMIC_ACQUIRE);
	return hook ? hook(op, fd, offset, bytes, iov, iovs) : 0;
}

/* Read as many of the bytes as the file has; returns their number or -errno. */
static int64_t read_there(int fd, char *buf, int64_t bytes, int64_t offset)
{
	struct iovec whole = {.iov_base = buf, .iov_len = (size_t)bytes};
	int64_t got = 0;
	int64_t verdict = ask(SR_IO_READ, fd, offset, bytes, &whole, 1);

	if (verdict < 0)
		return failed(fd, verdict);
	if (verdict >= SR_IO_DONE)
		return verdict - SR_IO_DONE;
	while (got < bytes) {
		ssize_t n = pread(fd, buf + got, (size_t)(bytes - got), offset + got);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return failed(fd, -errno);
		if (n == 0)
			break;
		got += n;
	}
	return got;
}

int sr_io_read(int fd, void *buf, int64_t bytes, int64_t offset)
{
	int64_t got = read_there(fd, buf, bytes, offset);
	if (got < 0)
		return (int)got;
	if (got < bytes)
		memset((char *)buf + got, 0, (size_t)(bytes - got));
	return 0;
}

int sr_io_read_whole(int fd, void *buf, int64_t bytes, int64_t offset)
{
	int64_t got = read_there(fd, buf, bytes, offset);
	if (got < 0)
		return (int)got;
	return got == bytes ? 0 : (int)failed(fd, -EIO);
}

int sr_io_read_cached(int fd, void *buf, int64_t bytes, int64_t offset)
{
	struct iovec whole = {.iov_base = buf, .iov_len = (size_t)bytes};
	int64_t verdict = ask(SR_IO_READ, fd, offset, bytes, &whole, 1);

	return verdict ? verdict == SR_IO_DONE + bytes : preadv2(fd, &whole, 1, offset, RWF_NOWAIT) == bytes;
}

/* Remove `done` bytes from the front of the vectors; returns the number of remaining vectors. */
static int advance(struct iovec **iov, int iovs, size_t done)
{
	while (iovs > 0 && done >= (*iov)->iov_len) {
		done -= (*iov)->iov_len;
		(*iov)++;
		iovs--;
	}
	if (iovs > 0) {
		(*iov)->iov_base = (char *)(*iov)->iov_base + done;
		(*iov)->iov_len -= done;
	}
	return iovs;
}

static int64_t write_all(int fd, const struct iovec *given, int iovs, int64_t bytes, int64_t offset)
{
	struct iovec copy[IOVS_MAX], *iov = copy;
	int64_t done = 0;

	memcpy(copy, given, sizeof(*given) * (size_t)iovs);
	while (done < bytes) {
		int64_t room = bytes - done;
		int used = 0;
		size_t last_bytes = 0;
		for (; used < iovs && room > 0; used++) { /* shorten the last vector that is reached */
			last_bytes = iov[used].iov_len;
			if ((int64_t)last_bytes > room)
				iov[used].iov_len = (size_t)room;
			room -= (int64_t)iov[used].iov_len;
		}
		ssize_t n = pwritev(fd, iov, used, offset + done);
		iov[used - 1].iov_len = last_bytes;
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			int64_t rc = failed(fd, -errno);
			return done ? done : rc;
		}
		done += n;
		iovs = advance(&iov, iovs, (size_t)n);
	}
	return done;
}

int64_t sr_io_writev(int fd, const struct iovec *iov, int iovs, int64_t offset)
{
	int64_t bytes = 0;
	for (int i = 0; i < iovs; i++)
		bytes += (int64_t)iov[i].iov_len;
	int64_t verdict = ask(SR_IO_WRITE, fd, offset, bytes, iov, iovs);
	if (verdict < 0)
		return failed(fd, verdict);
	if (verdict >= SR_IO_DONE)
		return verdict - SR_IO_DONE;
	return write_all(fd, iov, iovs, verdict > 0 && verdict < bytes ? verdict : bytes, offset);
}

int64_t sr_io_write(int fd, const void *buf, int64_t bytes, int64_t offset)
{
	struct iovec whole = {.iov_base = (void *)buf, .iov_len = (size_t)bytes};
	int64_t done = 0, verdict = bytes ? ask(SR_IO_WRITE, fd, offset, bytes, &whole, 1) : 0;

	if (verdict < 0)
		return failed(fd, verdict);
	if (verdict >= SR_IO_DONE)
		return verdict - SR_IO_DONE;
	if (verdict > 0 && verdict < bytes)
		bytes = verdict;
	while (done < bytes) {
		size_t piece = (size_t)(bytes - done < SR_IO_PIECE_BYTES ? bytes - done : SR_IO_PIECE_BYTES);
		ssize_t n = pwrite(fd, (const char *)buf + done, piece, offset + done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			int64_t rc = failed(fd, -errno);
			return done ? done : rc;
		}
		done += n;
	}
	return done;
}

void sr_io_expect_random(int fd)
{
	(void)posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM); /* advice only */
}

static int without_sync;

void sr_io_forgo_sync(void)
{
	__atomic_store_n(&without_sync, 1, __ATOMIC_RELEASE);
}

static int forgoes_sync(void)
{
	return __atomic_load_n(&without_sync, __ATOMIC_ACQUIRE);
}

void sr_io_start_sync(int fd)
{
	if (forgoes_sync())
		return;
	(void)sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE); /* the sync reports errors */
}

int sr_io_sync(int fd)
{
	int64_t verdict = ask(SR_IO_SYNC, fd, 0, 0, NULL, 0);
	if (verdict < 0)
		return (int)failed(fd, verdict);
	while (!forgoes_sync() && fdatasync(fd) != 0)
		if (errno != EINTR)
			return (int)failed(fd, -errno);
	return 0;
}

int sr_io_resize(int fd, int64_t bytes)
{
	int64_t verdict = ask(SR_IO_RESIZE, fd, 0, bytes, NULL, 0);
	if (verdict < 0)
		return (int)failed(fd, verdict);
	while (ftruncate(fd, bytes) != 0)
		if (errno != EINTR)
			return (int)failed(fd, -errno);
	return 0;
}

static int write_zeros(int fd, int64_t offset, int64_t bytes)
{
	static char zeros[ZERO_STEP_BYTES]; /* not const: it takes no space in the program file */
	while (bytes > 0) {
		int64_t step = bytes < ZERO_STEP_BYTES ? bytes : ZERO_STEP_BYTES;
		int64_t done = sr_io_write(fd, zeros, step, offset);
		if (done < 0)
			return (int)done;
		if (done < step)
			return -ENOSPC;
		offset += done;
		bytes -= done;
	}
	return 0;
}

int sr_io_zero(int fd, int64_t offset, int64_t bytes)
{
	if (bytes == 0)
		return 0;
	int64_t verdict = ask(SR_IO_PUNCH, fd, offset, bytes, NULL, 0);
	if (verdict < 0)
		return (int)failed(fd, verdict);
	for (;;) {
		if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, bytes) == 0)
			return 0;
		if (errno == EOPNOTSUPP)
			return write_zeros(fd, offset, bytes);
		if (errno != EINTR)
			return (int)failed(fd, -errno);
	}
}
