/* The way to the process's Python side, which answers requests on names and attributes: a SOCK_SEQPACKET pair on which
 * libfuse speaks the kernel's protocol as if it were /dev/fuse.
 *
 * A caller never waits for Python: requests are copied into a queue, one thread sends them, another brings the answers.
 */
#ifndef SITERIG_UPCALL_H
#define SITERIG_UPCALL_H

#include <linux/fuse.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct sr_upcall;

/* Takes one answer (whole message, `unique` as the request had it) or, with `unique` 0, a notification. */
typedef void (*sr_upcall_answer_fn)(void *context, const struct fuse_out_header *out, size_t bytes);

/* Begin; `fd` stays the caller's and must be open until sr_upcall_free.  NULL: no memory or no thread. */
struct sr_upcall *sr_upcall_new(int fd, sr_upcall_answer_fn answer, void *context);

/* The first message must be this: INIT, doctored so that libfuse keeps its hands off what the pair cannot do.  Its
 * answer is swallowed. */
int sr_upcall_init(struct sr_upcall *upcall);

/* Queue a request: its header, then `parts` (one, for FUSE_BATCH_FORGET).  -ENOMEM; -E2BIG: the pair does not carry it. */
int sr_upcall_ask(struct sr_upcall *upcall, const struct fuse_in_header *in, const struct iovec *parts, int count);

/* End both threads: what is queued is dropped, no answer comes any more.  It may still be asked, in vain. */
void sr_upcall_close(struct sr_upcall *upcall);
void sr_upcall_free(struct sr_upcall *upcall);

#endif
