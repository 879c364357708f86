/* The FUSE server: threads that take FUSE requests from the kernel and answer those on open disks (sr_handle_* of disk.h);
 * those on names and attributes go to Python and back (upcall.h).
 *
 * Fault contract: holds nothing.  No thread of it ever waits for Python.
 */
#ifndef SITERIG_SERVER_H
#define SITERIG_SERVER_H

#include <stdint.h>

struct sr_server;

enum { SR_SERVER_THREADS_MAX = 58 };

struct sr_server_setup {
	int device_fd; /* /dev/fuse, mounted; or a SOCK_SEQPACKET socket in its place, for one thread.  Owned */
	int upcall_fd;  /* one end of the SOCK_SEQPACKET pair whose other end libfuse has.  Owned */
	int ended_fd;  /* an eventfd that is raised when the mount is gone or a thread gave up; the caller's */
	int threads;                /* up to SR_SERVER_THREADS_MAX, that take requests; for each that waits for a disk, another takes its place */
	uint32_t request_bytes_max; /* whole pages */
	uint16_t queue;             /* requests that the kernel keeps under way on its own account, at least 1 */
	int over_io_uring;          /* if the kernel offers it; the threads do the rest */
};

/* Answer FUSE_INIT, which the kernel asks as soon as there is a mount, and begin.  0, or -errno, and then nothing is owned;
 * -EPROTO: the kernel is too old (before Linux 4.20). */
int sr_server_start(const struct sr_server_setup *setup, struct sr_server **out);

/* End all threads, answered or not what is under way, and close the descriptors: with the last one the kernel ends a mount
 * that is still there, and its users get ENOTCONN.  Returns what a thread gave up with (-errno), or 0. */
int sr_server_stop(struct sr_server *server);

struct sr_server_counters {
	uint64_t answered, forwarded;
	int over_io_uring; /* whether it is used: 1, or 0 where the kernel did not offer it, or -errno why not */
};
void sr_server_counters(struct sr_server *server, struct sr_server_counters *out);

#endif
