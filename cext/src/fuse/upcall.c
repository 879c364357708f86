/* Upcalls to Python and back, over a SOCK_SEQPACKET pair. */
#define _GNU_SOURCE
#include "fuse/upcall.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum {
	/* The most that an ordinary user may send on a socket (net.core.wmem_max is 212992), and that libfuse reads
	 * in one call. */
	MESSAGE_BYTES_MAX = 128 << 10,
	/* Limit for a listing; the reader of the folder asks for the rest. */
	LISTING_BYTES_MAX = 64 << 10,
	/* Forgotten inodes in one message. */
	FORGETS_MAX = 4096,
	/* Protocol 7.13 has no splicing, which a socket cannot do, and has today's layouts of attributes. */
	PROTOCOL_MINOR = 13,
};

#define INIT_UNIQUE (~0ull)
/* Bit in `unique` of a request that opens a file: it identifies answers to OPEN. */
#define OPEN_MARK (1ull << 51)
#define OPENED_FOR_PARALLEL_WRITES (1u << 6) /* FOPEN_PARALLEL_DIRECT_WRITES, missing in the headers of some systems */

struct message {
	struct message *next;
	size_t bytes;
	char data[];
};

struct sr_upcall {
	int fd;
	sr_upcall_answer_fn answer;
	void *context;
	pthread_mutex_t lock; /* protects the following fields */
	pthread_cond_t filled;
	struct message *first, **last;
	bool ending;
	pthread_t sender, receiver;
	char received[MESSAGE_BYTES_MAX];
};

static struct message *next_message(struct sr_upcall *upcall)
{
	struct message *message = NULL;

	pthread_mutex_lock(&upcall->lock);
	while (!upcall->first && !upcall->ending)
		pthread_cond_wait(&upcall->filled, &upcall->lock);
	if (!upcall->ending) {
		message = upcall->first;
		upcall->first = message->next;
		if (!upcall->first)
			upcall->last = &upcall->first;
	}
	pthread_mutex_unlock(&upcall->lock);
	return message;
}

static void *send_requests(void *arg)
{
	struct sr_upcall *upcall = arg;
	struct message *message;
	ssize_t sent = 0;

	pthread_setname_np(pthread_self(), "upcall-send");
	while (sent >= 0 && (message = next_message(upcall))) {
		do
			sent = send(upcall->fd, message->data, message->bytes, MSG_NOSIGNAL);
		while (sent < 0 && errno == EINTR);
		free(message); /* an unsent message means that Python closed the channel, and the mount is ending */
	}
	return NULL;
}

/* Allow the kernel to send the writes of an uncached open in parallel; libfuse cannot set this flag. */
static void allow_parallel_writes(struct fuse_out_header *out, size_t bytes)
{
	struct fuse_open_out *opened = (void *)(out + 1);

	if (out->error == 0 && bytes >= sizeof(*out) + sizeof(*opened) && (opened->open_flags & FOPEN_DIRECT_IO))
		opened->open_flags |= OPENED_FOR_PARALLEL_WRITES;
}

static void *receive_answers(void *arg)
{
	struct sr_upcall *upcall = arg;
	struct fuse_out_header *out = (void *)upcall->received;
	ssize_t got;

	pthread_setname_np(pthread_self(), "upcall-recv");
	for (;;) {
		got = recv(upcall->fd, upcall->received, sizeof(upcall->received), 0);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < (ssize_t)sizeof(*out)) /* the channel was closed */
			return NULL;
		if (out->unique == INIT_UNIQUE)
			continue;
		if (out->unique & OPEN_MARK) {
			out->unique &= ~OPEN_MARK;
			allow_parallel_writes(out, (size_t)got);
		}
		upcall->answer(upcall->context, out, (size_t)got);
	}
}

struct sr_upcall *sr_upcall_new(int fd, sr_upcall_answer_fn answer, void *context)
{
	struct sr_upcall *upcall = calloc(1, sizeof(*upcall));

	if (!upcall)
		return NULL;
	upcall->fd = fd;
	upcall->answer = answer;
	upcall->context = context;
	upcall->last = &upcall->first;
	pthread_mutex_init(&upcall->lock, NULL);
	pthread_cond_init(&upcall->filled, NULL);
	if (pthread_create(&upcall->sender, NULL, send_requests, upcall))
		goto no_sender;
	if (pthread_create(&upcall->receiver, NULL, receive_answers, upcall))
		goto no_receiver;
	return upcall;

no_receiver:
	pthread_mutex_lock(&upcall->lock);
	upcall->ending = true;
	pthread_cond_signal(&upcall->filled);
	pthread_mutex_unlock(&upcall->lock);
	pthread_join(upcall->sender, NULL);
no_sender:
	pthread_cond_destroy(&upcall->filled);
	pthread_mutex_destroy(&upcall->lock);
	free(upcall);
	return NULL;
}

static void enqueue(struct sr_upcall *upcall, struct message *message)
{
	message->next = NULL;
	pthread_mutex_lock(&upcall->lock);
	*upcall->last = message;
	upcall->last = &message->next;
	pthread_cond_signal(&upcall->filled);
	pthread_mutex_unlock(&upcall->lock);
}

static struct message *new_message(const struct fuse_in_header *in, size_t bytes)
{
	struct message *message = malloc(sizeof(*message) + bytes);
	struct fuse_in_header head = *in;

	if (!message)
		return NULL;
	message->bytes = bytes;
	head.len = (uint32_t)bytes;
	if (in->opcode == FUSE_OPEN)
		head.unique |= OPEN_MARK;
	memcpy(message->data, &head, sizeof(head));
	return message;
}

/* A list of forgotten inodes can be as long as the longest write: it is sent in pieces. */
static int ask_to_forget(struct sr_upcall *upcall, const struct fuse_in_header *in, const struct iovec *list)
{
	struct fuse_batch_forget_in arg;
	const size_t one = sizeof(struct fuse_forget_one), head = sizeof(*in) + sizeof(arg);
	const char *from = (const char *)list->iov_base + sizeof(arg);
	size_t left = (list->iov_len - sizeof(arg)) / one;

	while (left > 0) {
		size_t part = left < FORGETS_MAX ? left : FORGETS_MAX;
		struct message *message = new_message(in, head + part * one);

		if (!message)
			return -ENOMEM;
		arg = (struct fuse_batch_forget_in){.count = (uint32_t)part};
		memcpy(message->data + sizeof(*in), &arg, sizeof(arg));
		memcpy(message->data + head, from, part * one);
		enqueue(upcall, message);
		from += part * one;
		left -= part;
	}
	return 0;
}

static void shorten_listing(struct message *message)
{
	struct fuse_read_in *arg = (void *)(message->data + sizeof(struct fuse_in_header));

	if (arg->size > LISTING_BYTES_MAX)
		arg->size = LISTING_BYTES_MAX;
}

int sr_upcall_ask(struct sr_upcall *upcall, const struct fuse_in_header *in, const struct iovec *parts, int count)
{
	size_t bytes = sizeof(*in), at = sizeof(*in);
	struct message *message;

	if (in->opcode == FUSE_BATCH_FORGET)
		return ask_to_forget(upcall, in, parts);
	for (int i = 0; i < count; i++)
		bytes += parts[i].iov_len;
	if (bytes > MESSAGE_BYTES_MAX)
		return -E2BIG;
	message = new_message(in, bytes);
	if (!message)
		return -ENOMEM;
	for (int i = 0; i < count; i++) {
		memcpy(message->data + at, parts[i].iov_base, parts[i].iov_len);
		at += parts[i].iov_len;
	}
	if (in->opcode == FUSE_READDIR || in->opcode == FUSE_READDIRPLUS)
		shorten_listing(message);
	enqueue(upcall, message);
	return 0;
}

int sr_upcall_init(struct sr_upcall *upcall)
{
	/* The flags that pyfuse3 requires or would request; the kernel gets those of sr_request_init. */
	struct fuse_init_in arg = {
		.major = FUSE_KERNEL_VERSION,
		.minor = PROTOCOL_MINOR,
		.flags = FUSE_DO_READDIRPLUS | FUSE_EXPORT_SUPPORT,
	};
	struct fuse_in_header in = {.opcode = FUSE_INIT, .unique = INIT_UNIQUE};
	struct iovec part = {&arg, sizeof(arg)};

	return sr_upcall_ask(upcall, &in, &part, 1);
}

void sr_upcall_close(struct sr_upcall *upcall)
{
	pthread_mutex_lock(&upcall->lock);
	upcall->ending = true;
	pthread_cond_signal(&upcall->filled);
	pthread_mutex_unlock(&upcall->lock);
	shutdown(upcall->fd, SHUT_RDWR); /* wakes both threads if they wait for Python */
	pthread_join(upcall->sender, NULL);
	pthread_join(upcall->receiver, NULL);
}

void sr_upcall_free(struct sr_upcall *upcall)
{
	struct message *message;

	while ((message = upcall->first)) {
		upcall->first = message->next;
		free(message);
	}
	pthread_cond_destroy(&upcall->filled);
	pthread_mutex_destroy(&upcall->lock);
	free(upcall);
}
