/* The system calls that access a disk's bytes, with one hook for faults of the host's disk.
 *
 * All return bytes done or 0, or -errno; none is interrupted. Any thread.
 */
#ifndef SITERIG_IO_H
#define SITERIG_IO_H

#include <stdint.h>
#include <sys/uio.h>

enum sr_io_op { SR_IO_READ, SR_IO_WRITE, SR_IO_SYNC, SR_IO_PUNCH, SR_IO_RESIZE };

/* Called before each call below, with `iov` for SR_IO_WRITE (the bytes) and SR_IO_READ (the place for them), otherwise
 * NULL. 0: proceed; -errno: fail without the call; n > 0: process only the first n bytes (a torn write); sr_io_done(n):
 * the hook has read or written, and n bytes of it were done. NULL unless a fault is armed. */
typedef int64_t (*sr_io_hook_fn)(int op, int fd, int64_t offset, int64_t bytes, const struct iovec *iov, int iovs);
void sr_io_set_hook(sr_io_hook_fn hook);
int64_t sr_io_done(int64_t bytes);

/* The descriptor of the last failed call of this thread, if it failed with `error` (a positive errno); otherwise -1. */
int sr_io_failed_fd(int error);

/* Read exactly `bytes`; past the end of the file are zeros. */
int sr_io_read(int fd, void *buf, int64_t bytes, int64_t offset);

/* Read exactly `bytes`; -EIO if the file ends before. */
int sr_io_read_whole(int fd, void *buf, int64_t bytes, int64_t offset);

/* Read exactly `bytes` from the host's page cache: 1, or 0 if it has not all of them. */
int sr_io_read_cached(int fd, void *buf, int64_t bytes, int64_t offset);

/* Write all bytes, or as many as possible before an error; -errno if none was written. Writes are in pieces of
 * SR_IO_PIECE_BYTES: the page cache of some file systems stores the bytes of one call in one folio, and each small
 * write to a large folio walks all of it (measured: 10 us and more instead of 2 for 4 KiB in a folio of 1 MiB;
 * bench/RESULTS.md). */
enum { SR_IO_PIECE_BYTES = 65536 };
int64_t sr_io_write(int fd, const void *buf, int64_t bytes, int64_t offset);
int64_t sr_io_writev(int fd, const struct iovec *iov, int iovs, int64_t offset);

/* Declare random access to a disk's file: otherwise readahead caches it in large folios. */
void sr_io_expect_random(int fd);

/* Start writing dirty pages without waiting; a sync that follows is faster. */
void sr_io_start_sync(int fd);
/* From now on this process writes no file out to its medium: a sync returns at once.  For disks that are thrown away. */
void sr_io_forgo_sync(void);

int sr_io_sync(int fd);
int sr_io_resize(int fd, int64_t bytes);

/* Make the range read as zeros: a hole, or written zeros if the host's file system has no holes. */
int sr_io_zero(int fd, int64_t offset, int64_t bytes);

#endif
