/* The system calls that touch a disk's bytes, with one place where a test can put a fault.
 *
 * All return bytes done or 0, or -errno; none is interrupted.  Any thread.
 */
#ifndef SITERIG_IO_H
#define SITERIG_IO_H

#include <stdint.h>
#include <sys/uio.h>

enum sr_io_op { SR_IO_READ, SR_IO_WRITE, SR_IO_SYNC, SR_IO_PUNCH, SR_IO_RESIZE };

/* Called before each call below, with `iov` for SR_IO_WRITE (else NULL).  0: go on; -errno: fail without doing it;
 * n > 0: do only the first n bytes (a torn write).  NULL in production. */
typedef int64_t (*sr_io_hook_fn)(int op, int fd, int64_t offset, int64_t bytes, const struct iovec *iov, int iovs);
void sr_io_set_hook(sr_io_hook_fn hook);

/* The descriptor whose call failed last in this thread, if it failed with `error` (a positive errno); else -1. */
int sr_io_failed_fd(int error);

/* Exactly `bytes`: what lies past the end of the file is zeros. */
int sr_io_read(int fd, void *buf, int64_t bytes, int64_t offset);

/* Exactly `bytes`: -EIO if the file ends before. */
int sr_io_read_whole(int fd, void *buf, int64_t bytes, int64_t offset);

/* The same, but only what the host has in memory: 1, or 0 if it has not all of it. */
int sr_io_read_cached(int fd, void *buf, int64_t bytes, int64_t offset);

/* All bytes, or as many as could be written before an error; -errno if none could.  In pieces of SR_IO_PIECE_BYTES: the page
 * cache of some file systems keeps what one call writes in one folio, and then each small write to a large folio walks
 * all of it (measured: 10 us and more instead of 2 for 4 KiB in a folio of 1 MiB; bench/RESULTS.md). */
enum { SR_IO_PIECE_BYTES = 65536 };
int64_t sr_io_write(int fd, const void *buf, int64_t bytes, int64_t offset);
int64_t sr_io_writev(int fd, const struct iovec *iov, int iovs, int64_t offset);

/* A disk's file will be read and written here and there: without this, what readahead caches is in large folios. */
void sr_io_expect_random(int fd);

/* Start writing what is dirty, without waiting for it: a sync that follows finds the work under way. */
void sr_io_start_sync(int fd);

int sr_io_sync(int fd);
int sr_io_resize(int fd, int64_t bytes);

/* Make the range read as zeros: a hole, or zeros written where the host's file system has no holes. */
int sr_io_zero(int fd, int64_t offset, int64_t bytes);

#endif
