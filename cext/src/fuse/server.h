/* The FUSE server: threads that read FUSE requests from the kernel and answer those on open disks (sr_handle_* of
 * disk.h). Requests on names and attributes go to Python and back (upcall.h).
 *
 * Fault contract: it holds no data. None of its threads ever waits for Python.
 */
#ifndef SITERIG_SERVER_H
#define SITERIG_SERVER_H

#include <stdint.h>

struct sr_server;

enum { SR_SERVER_THREADS_MAX = 58 };

struct sr_server_setup {
	int device_fd; /* /dev/fuse, mounted; or a SOCK_SEQPACKET socket in its place, for one thread. Owned */
	int upcall_fd;  /* one end of the SOCK_SEQPACKET pair; libfuse has the other end. Owned */
	int ended_fd;  /* an eventfd that is raised when the mount is gone or a thread failed; owned by the caller */
	int threads;                /* up to SR_SERVER_THREADS_MAX threads that read requests; a standby thread replaces one
				     * that waits for a disk */
	uint32_t request_bytes_max; /* whole pages */
	uint16_t queue;             /* requests in progress without a waiting caller, at least 1 */
	int over_io_uring;          /* use it if the kernel offers it; the threads do the rest */
};

/* Answer FUSE_INIT, which the kernel sends as soon as there is a mount, and begin. 0, or -errno, and then nothing is
 * owned; -EPROTO: the kernel is too old (before Linux 4.20). */
int sr_server_start(const struct sr_server_setup *setup, struct sr_server **out);

/* End all threads, also with requests in progress, and close the descriptors. The disks' waits for fault rules must have
 * been ended (sr_disk_end_waits): with the last one the kernel ends a
 * remaining mount, and its users get ENOTCONN. Returns the error with which a thread failed (-errno), or 0. */
int sr_server_stop(struct sr_server *server);

struct sr_server_counters {
	uint64_t answered, forwarded;
	int over_io_uring; /* 1 if it is used, 0 if the kernel did not offer it, -errno if it failed */
};
void sr_server_counters(struct sr_server *server, struct sr_server_counters *out);

#endif
