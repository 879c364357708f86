/* The table of the host's files under stress: calls of the engine on some files, while the files are noted and forgotten,
 * and the function that decides comes and goes.
 *
 * `host_files_stress FOLDER SECONDS SEED` runs rounds until the time is over.  The exit status is 0, or 1 with an error
 * message; a build with a sanitizer adds its reports.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common.h"
#include "faults/host_files.h"

enum { FILES = 8, CALLERS = 4, CHANGERS = 2, FILE_BYTES = 64 << 10, IO_BYTES = 512, ROUND_MS = 300 };

static int fds[FILES];
static struct stat files[FILES];
static _Atomic int stop;
static _Atomic uint64_t calls, asked;

/* Fails some calls, and makes some itself, as the injector does. */
static int64_t decide(int op, int fd, int64_t offset, int64_t bytes, const struct iovec *iov, int iovs)
{
	atomic_fetch_add(&asked, 1);
	CHECK(offset >= 0 && bytes >= 0 && (op == SR_IO_SYNC || offset + bytes <= FILE_BYTES));
	switch (bytes % 3) {
	case 0:
		return -EIO;
	case 1:
		if (op == SR_IO_WRITE)
			return sr_io_done(pwritev(fd, iov, iovs, offset));
		return op == SR_IO_READ ? sr_io_done(preadv(fd, iov, iovs, offset)) : 0;
	default:
		return 0;
	}
}

static void *call(void *number)
{
	uint8_t buf[IO_BYTES];

	seed_thread((uint64_t)(uintptr_t)number);
	while (!stop) {
		int fd = fds[dice(FILES)];
		int64_t bytes = 1 + (int64_t)dice(IO_BYTES), offset = (int64_t)dice(FILE_BYTES - IO_BYTES), rc;
		switch (dice(4)) {
		case 0:
			rc = sr_io_sync(fd);
			break;
		case 1:
			rc = sr_io_read(fd, buf, bytes, offset);
			break;
		default:
			memset(buf, (int)dice(256), sizeof(buf));
			rc = sr_io_write(fd, buf, bytes, offset);
			rc = rc == bytes ? 0 : rc;
		}
		CHECK(rc == 0 || rc == -EIO, "a call returned %" PRId64, rc);
		atomic_fetch_add(&calls, 1);
	}
	return NULL;
}

static void *change(void *number)
{
	seed_thread((uint64_t)(uintptr_t)number + CALLERS);
	while (!stop) {
		const struct stat *file = &files[dice(FILES)];
		struct sr_host_file note = {.device = file->st_dev, .inode = file->st_ino, .ops = (uint32_t)dice(32),
					    .start = dice(FILE_BYTES), .end = dice(2) ? FILE_BYTES : INT64_MAX};
		switch (dice(40)) {
		case 0:
			sr_host_files_watch(dice(2) ? decide : NULL);
			break;
		case 1:
			sr_host_files_forget_all();
			break;
		case 2:
			sr_host_files_forget(note.device, note.inode);
			break;
		default:
			note.inode += dice(4) ? 0 : 1000 + dice(500); /* files that nobody has open */
			CHECK(sr_host_files_note(&note) == 0);
		}
	}
	return NULL;
}

static void run_round(const char *folder)
{
	pthread_t threads[CALLERS + CHANGERS];

	for (int i = 0; i < FILES; i++) {
		char path[512];
		snprintf(path, sizeof(path), "%s/file%d", folder, i);
		fds[i] = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
		CHECK(fds[i] >= 0 && ftruncate(fds[i], FILE_BYTES) == 0 && fstat(fds[i], &files[i]) == 0);
	}
	sr_host_files_watch(decide);
	stop = 0;
	for (uintptr_t i = 0; i < CALLERS + CHANGERS; i++)
		CHECK(pthread_create(&threads[i], NULL, i < CALLERS ? call : change, (void *)i) == 0);
	usleep(ROUND_MS * 1000);
	stop = 1;
	for (int i = 0; i < CALLERS + CHANGERS; i++)
		pthread_join(threads[i], NULL);
	sr_host_files_watch(NULL);
	for (int i = 0; i < FILES; i++) {
		uint8_t byte = 1;
		CHECK(sr_io_write(fds[i], &byte, 1, 0) == 1, "a call without rules met a fault");
		close(fds[i]);
	}
	CHECK(calls > 0 && asked > 0);
	printf("round %" PRIu64 ": %" PRIu64 " calls, %" PRIu64 " of them asked\n", round_number, calls, asked);
}

int main(int argc, char **argv)
{
	return run_rounds(argc, argv, run_round);
}
