/* Upcalls: the channel to the Python side of the process, which answers requests on names and attributes. It is a
 * SOCK_SEQPACKET pair on which libfuse speaks the kernel's protocol as on /dev/fuse.
 *
 * A caller never waits for Python: requests are copied into a queue, one thread sends them, another receives the
 * answers.
 */
#ifndef SITERIG_UPCALL_H
#define SITERIG_UPCALL_H

#include <linux/fuse.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct sr_upcall;

/* Receives one answer (the whole message, `unique` as in the request) or, with `unique` 0, a notification. */
typedef void (*sr_upcall_answer_fn)(void *context, const struct fuse_out_header *out, size_t bytes);

/* Begin; `fd` is owned by the caller and must be open until sr_upcall_free. NULL: no memory or no thread. */
struct sr_upcall *sr_upcall_new(int fd, sr_upcall_answer_fn answer, void *context);

/* Send the first message: an INIT without the features that the pair cannot carry. Its answer is dropped. */
int sr_upcall_init(struct sr_upcall *upcall);

/* Queue a request: its header, then `parts` (one, for FUSE_BATCH_FORGET). -ENOMEM; -E2BIG: the pair cannot carry it. */
int sr_upcall_ask(struct sr_upcall *upcall, const struct fuse_in_header *in, const struct iovec *parts, int count);

/* End both threads: queued requests are dropped, and no more answers arrive. Later requests are accepted and
 * dropped. */
void sr_upcall_close(struct sr_upcall *upcall);
void sr_upcall_free(struct sr_upcall *upcall);

#endif
