/* Two FUSE servers under stress, with a socket in place of /dev/fuse: requests on a disk, whose answers are checked;
 * requests on names, which a slow "Python" answers in another order; forgets; damaged requests; clean and other ends.
 *
* `server_stress FOLDER SECONDS SEED` runs rounds until the time is over.  The exit status is 0, or 1 with an error
 * message; a build with a sanitizer adds its reports.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common.h"
#include "disk/disk.h"
#include "layers/layer.h"
#include "fuse/server.h"

enum {
	SERVERS = 2,
	CLIENTS = 4, /* for each server */
	REGION_BYTES = 64 << 10,
	REQUEST_BYTES_MAX = 128 << 10,
	MESSAGE_BYTES_MAX = REQUEST_BYTES_MAX + 256,
	WAITING_MAX = 64, /* unanswered requests on names */
};

/* One request that waits for its answer. */
struct client {
	struct mount *mount;
	int number;
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t answered;
	uint64_t unique; /* 0: there is no request */
	uint8_t *answer; /* the answer of `answer_bytes`; 0: there is none yet */
	size_t answer_bytes;
	uint8_t expected[REGION_BYTES]; /* of the client's part of the disk */
	uint64_t done;
};

struct mount {
	int kernel_fd, python_fd;
	struct sr_server *server;
	uint64_t handle, read_only;
	_Atomic int ended;
	int ended_fd;
	pthread_t receiver, python;
	struct client clients[CLIENTS];
	_Atomic uint64_t forgotten, named;
};

static struct mount mounts[SERVERS];
static struct sr_disk *disk;
static _Atomic int stop;

/* --- the kernel's side --------------------------------------------------------------------------------------- */

/* An answer goes to the client whose number is in `unique`; that client must be waiting for it. */
static void *receive_answers(void *arg)
{
	struct mount *mount = arg;
	uint8_t *buf = malloc(MESSAGE_BYTES_MAX);
	ssize_t got;

	CHECK(buf);
	while ((got = recv(mount->kernel_fd, buf, MESSAGE_BYTES_MAX, 0)) > 0) {
		struct fuse_out_header out;
		CHECK((size_t)got >= sizeof(out));
		memcpy(&out, buf, sizeof(out));
		CHECK(out.len == (uint32_t)got && out.error <= 0 && out.error > -1000);
		struct client *client = &mount->clients[out.unique % CLIENTS];
		pthread_mutex_lock(&client->lock);
		CHECK(out.unique == client->unique && client->answer_bytes == 0);
		memcpy(client->answer, buf, (size_t)got);
		client->answer_bytes = (size_t)got;
		pthread_cond_signal(&client->answered);
		pthread_mutex_unlock(&client->lock);
	}
	mount->ended = 1;
	for (int i = 0; i < CLIENTS; i++) {
		pthread_mutex_lock(&mount->clients[i].lock);
		pthread_cond_signal(&mount->clients[i].answered);
		pthread_mutex_unlock(&mount->clients[i].lock);
	}
	free(buf);
	return NULL;
}

static int send_request(struct client *client, uint32_t opcode, uint64_t unique, const void *arg, size_t arg_bytes,
			const void *data, size_t data_bytes)
{
	struct fuse_in_header in = {.len = (uint32_t)(sizeof(in) + arg_bytes + data_bytes),
				    .opcode = opcode,
				    .unique = unique,
				    .nodeid = 1};
	struct iovec parts[3] = {{&in, sizeof(in)}, {(void *)arg, arg_bytes}, {(void *)data, data_bytes}};
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = 3};
	return sendmsg(client->mount->kernel_fd, &message, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

/* Sends a request and waits for its answer.  Returns the bytes of the answer after its header, the -errno of the request,
 * or -ENODEV if the mount ended. */
static int64_t ask(struct client *client, uint32_t opcode, const void *arg, size_t arg_bytes, const void *data,
		   size_t data_bytes)
{
	struct fuse_out_header out;
	int64_t result = -ENODEV;

	pthread_mutex_lock(&client->lock);
	client->unique = (++client->done + 1) * CLIENTS * 2 + (uint64_t)client->number;
	client->answer_bytes = 0;
	uint64_t unique = client->unique;
	pthread_mutex_unlock(&client->lock);
	int sent = send_request(client, opcode, unique, arg, arg_bytes, data, data_bytes);
	pthread_mutex_lock(&client->lock);
	while (sent == 0 && client->answer_bytes == 0 && !client->mount->ended)
		pthread_cond_wait(&client->answered, &client->lock);
	if (client->answer_bytes) {
		memcpy(&out, client->answer, sizeof(out));
		result = out.error ? out.error : (int64_t)(client->answer_bytes - sizeof(out));
	}
	client->unique = 0;
	pthread_mutex_unlock(&client->lock);
	return result;
}

static const uint8_t *answer_data(const struct client *client)
{
	return client->answer + sizeof(struct fuse_out_header);
}

/* The client must read the bytes that it wrote, because no other client writes to its part of the disk. */
static void use_disk(struct client *client, uint64_t base)
{
	uint64_t at = dice(REGION_BYTES), bytes = 1 + dice(REGION_BYTES - at);
	uint64_t fh = client->mount->handle;
	int64_t done;

	switch (dice(6)) {
	case 0:
	case 1: {
		struct fuse_write_in arg = {.fh = fh, .offset = base + at, .size = (uint32_t)bytes};
		memset(client->expected + at, (int)dice(256), bytes);
		client->expected[at] = (uint8_t)dice(256);
		done = ask(client, FUSE_WRITE, &arg, sizeof(arg), client->expected + at, bytes);
		CHECK(done == (int64_t)sizeof(struct fuse_write_out) || done == -ENODEV);
		break;
	}
	case 2: {
		struct fuse_fallocate_in arg = {
			.fh = fh, .offset = base + at, .length = bytes, .mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE};
		memset(client->expected + at, 0, bytes);
		done = ask(client, FUSE_FALLOCATE, &arg, sizeof(arg), NULL, 0);
		CHECK(done == 0 || done == -ENODEV);
		break;
	}
	case 3: {
		struct fuse_fsync_in arg = {.fh = fh};
		done = ask(client, FUSE_FSYNC, &arg, sizeof(arg), NULL, 0);
		CHECK(done == 0 || done == -ENODEV);
		break;
	}
	default: {
		struct fuse_read_in arg = {.offset = base + at, .size = (uint32_t)bytes};
		arg.fh = dice(2) ? fh : client->mount->read_only;
		done = ask(client, FUSE_READ, &arg, sizeof(arg), NULL, 0);
		CHECK(done == (int64_t)bytes || done == -ENODEV);
		CHECK(done < 0 || memcmp(answer_data(client), client->expected + at, bytes) == 0);
	}
	}
}

/* A request that the kernel would never send; it must be answered too. */
static void ask_nonsense(struct client *client)
{
	static const uint32_t opcodes[] = {FUSE_READ,  FUSE_FSYNC,    FUSE_FALLOCATE, FUSE_LSEEK,
					   FUSE_IOCTL, FUSE_GETXATTR, FUSE_FLUSH};
	if (dice(3) == 0) {
		struct fuse_write_in write = {.fh = client->mount->handle, .size = (uint32_t)(5 + dice(REGION_BYTES))};
		int64_t done = ask(client, FUSE_WRITE, &write, sizeof(write), "text", 4);
		CHECK(done == -EINVAL || done == -ENODEV);
	}
	uint64_t words[5];
	for (int i = 0; i < 5; i++)
		words[i] = dice(4) ? dice(1 << 20) : ~dice(1 << 20);
	words[0] = dice(2) ? client->mount->read_only : words[0];
	uint32_t opcode = opcodes[dice(sizeof(opcodes) / sizeof(opcodes[0]))];
	(void)ask(client, opcode, words, sizeof(words), words, dice(sizeof(words)));
}

static void use_names(struct client *client)
{
	struct fuse_getattr_in attr = {.fh = client->done};
	struct fuse_forget_in forget = {.nlookup = 1};
	int64_t done = ask(client, FUSE_GETATTR, &attr, sizeof(attr), NULL, 0);
	CHECK(done == (int64_t)sizeof(attr) || done == -ENODEV);
	CHECK(done < 0 || memcmp(answer_data(client), &attr, sizeof(attr)) == 0);
	(void)send_request(client, FUSE_FORGET, 0, &forget, sizeof(forget), NULL, 0);
}

static void *run_client(void *arg)
{
	struct client *client = arg;
	struct mount *mount = client->mount;
	uint64_t base = (uint64_t)(mount - mounts) * CLIENTS * REGION_BYTES + (uint64_t)client->number * REGION_BYTES;

	seed_thread((uint64_t)(mount - mounts) * 100 + (uint64_t)client->number + 1);
	while (!stop && !mount->ended) {
		switch (dice(8)) {
		case 0:
			use_names(client);
			break;
		case 1:
			ask_nonsense(client);
			break;
		default:
			use_disk(client, base);
		}
	}
	return NULL;
}

/* --- Python's side ------------------------------------------------------------------------------------------- */

struct waiting {
	struct fuse_in_header in;
	uint8_t arg[sizeof(struct fuse_getattr_in)];
};

static void answer_one(struct mount *mount, const struct waiting *one)
{
	struct fuse_out_header out = {.len = sizeof(out) + sizeof(one->arg), .unique = one->in.unique};
	struct iovec parts[2] = {{&out, sizeof(out)}, {(void *)one->arg, sizeof(one->arg)}};
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
	(void)sendmsg(mount->python_fd, &message, MSG_NOSIGNAL);
}

/* Delays some requests and answers them in another order.  It never delays all of them, since no more would come then. */
static void *run_python(void *arg)
{
	struct mount *mount = arg;
	struct waiting waiting[WAITING_MAX];
	size_t count = 0;
	uint8_t *buf = malloc(MESSAGE_BYTES_MAX);

	CHECK(buf);
	seed_thread((uint64_t)(mount - mounts) + 50);
	for (;;) {
		ssize_t got = recv(mount->python_fd, buf, MESSAGE_BYTES_MAX, count ? MSG_DONTWAIT : 0);
		if (got < 0 && errno == EAGAIN) {
			size_t which = dice(count);
			answer_one(mount, &waiting[which]);
			waiting[which] = waiting[--count];
			continue;
		}
		if (got <= 0)
			break;
		struct waiting one = {0};
		CHECK((size_t)got >= sizeof(one.in));
		memcpy(&one.in, buf, sizeof(one.in));
		CHECK(one.in.len == (uint32_t)got);
		if (one.in.opcode == FUSE_INIT) {
			struct fuse_out_header out = {.len = sizeof(out), .unique = one.in.unique};
			CHECK(send(mount->python_fd, &out, sizeof(out), MSG_NOSIGNAL) == sizeof(out));
		} else if (one.in.opcode == FUSE_FORGET) {
			mount->forgotten++;
		} else {
			CHECK(one.in.opcode == FUSE_GETATTR && (size_t)got == sizeof(one.in) + sizeof(one.arg));
			memcpy(one.arg, buf + sizeof(one.in), sizeof(one.arg));
			mount->named++;
			CHECK(count < WAITING_MAX);
			waiting[count++] = one;
		}
	}
	free(buf);
	return NULL;
}

/* --- rounds -------------------------------------------------------------------------------------------------- */

static void make_pair(int pair[2])
{
	int bytes = 4 << 20;
	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
	for (int i = 0; i < 2; i++)
		CHECK(setsockopt(pair[i], SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes)) == 0);
}

static void begin_mount(struct mount *mount)
{
	int device[2], names[2];
	memset(mount, 0, sizeof(*mount));
	make_pair(device);
	make_pair(names);
	mount->kernel_fd = device[0];
	mount->python_fd = names[0];
	mount->ended_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	mount->handle = (uint64_t)sr_handle_open(disk, SR_HANDLE_DISK, 1, NULL, -1, 0);
	mount->read_only = (uint64_t)sr_handle_open(disk, SR_HANDLE_DISK, 0, NULL, -1, 0);
	for (int i = 0; i < CLIENTS; i++) {
		struct client *client = &mount->clients[i];
		client->mount = mount;
		client->number = i;
		pthread_mutex_init(&client->lock, NULL);
		pthread_cond_init(&client->answered, NULL);
		client->answer = malloc(MESSAGE_BYTES_MAX);
		CHECK(client->answer);
	}
	struct fuse_init_in arg = {.major = FUSE_KERNEL_VERSION, .minor = FUSE_KERNEL_MINOR_VERSION, .flags = FUSE_MAX_PAGES};
	struct client *first = &mount->clients[0];
	first->unique = CLIENTS * 2;
	CHECK(send_request(first, FUSE_INIT, first->unique, &arg, sizeof(arg), NULL, 0) == 0);
	CHECK(pthread_create(&mount->receiver, NULL, receive_answers, mount) == 0);
	CHECK(pthread_create(&mount->python, NULL, run_python, mount) == 0);
	struct sr_server_setup setup = {.device_fd = device[1],
				      .upcall_fd = names[1],
				      .ended_fd = mount->ended_fd,
				      .threads = 1,
				      .queue = 1,
				      .request_bytes_max = REQUEST_BYTES_MAX};
	CHECK(sr_server_start(&setup, &mount->server) == 0);
	pthread_mutex_lock(&first->lock);
	while (first->answer_bytes == 0)
		pthread_cond_wait(&first->answered, &first->lock);
	CHECK(first->answer_bytes == sizeof(struct fuse_out_header) + sizeof(struct fuse_init_out));
	pthread_mutex_unlock(&first->lock);
	for (int i = 0; i < CLIENTS; i++)
		CHECK(pthread_create(&mount->clients[i].thread, NULL, run_client, &mount->clients[i]) == 0);
}

/* Cleanly: the clients end first.  Otherwise Python closes its end, or the server is stopped, during requests. */
static void end_mount(struct mount *mount, int cleanly, uint64_t *done)
{
	if (!cleanly && dice(2))
		shutdown(mount->python_fd, SHUT_RDWR);
	if (cleanly)
		for (int i = 0; i < CLIENTS; i++)
			pthread_join(mount->clients[i].thread, NULL);
	CHECK(sr_server_stop(mount->server) == 0);
	pthread_join(mount->receiver, NULL);
	pthread_join(mount->python, NULL);
	for (int i = 0; i < CLIENTS; i++) {
		struct client *client = &mount->clients[i];
		if (!cleanly)
			pthread_join(client->thread, NULL);
		*done += client->done;
		pthread_mutex_destroy(&client->lock);
		pthread_cond_destroy(&client->answered);
		free(client->answer);
	}
	sr_handle_close(mount->handle);
	sr_handle_close(mount->read_only);
	close(mount->kernel_fd);
	close(mount->python_fd);
	close(mount->ended_fd);
}

static void run_round(const char *folder)
{
	char path[300];
	uint64_t done = 0, named = 0, forwarded = 0;
	int cleanly[SERVERS];

	seed_thread(0);
	snprintf(path, sizeof(path), "%s/image", folder);
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	CHECK(fd >= 0 && ftruncate(fd, SERVERS * CLIENTS * REGION_BYTES) == 0);
	struct sr_layer *layer = sr_layer_raw(fd, SERVERS * CLIENTS * REGION_BYTES);
	CHECK(layer);
	struct sr_positions *positions = sr_positions_new(-1);
	CHECK(positions);
	disk = sr_disk_new(layer, positions, -1);
	CHECK(disk);
	stop = 0;
	for (int i = 0; i < SERVERS; i++)
		begin_mount(&mounts[i]);
	uint64_t end_ms = now_ms() + 100 + dice(300);
	while (now_ms() < end_ms) {
		for (int i = 0; i < SERVERS; i++) {
			struct sr_server_counters counters;
			sr_server_counters(mounts[i].server, &counters);
			forwarded += counters.forwarded;
		}
		usleep(1000);
	}
	for (int i = 0; i < SERVERS; i++)
		cleanly[i] = (int)dice(2);
	for (int i = 0; i < SERVERS; i++)
		if (!cleanly[i])
			end_mount(&mounts[i], 0, &done);
	stop = 1;
	for (int i = 0; i < SERVERS; i++)
		if (cleanly[i])
			end_mount(&mounts[i], 1, &done);
	for (int i = 0; i < SERVERS; i++)
		named += mounts[i].named;
	CHECK(forwarded > 0 && named > 0);
	sr_disk_free(disk);
	sr_layer_free(layer);
	sr_positions_free(positions);
	unlink(path);
	printf("round %" PRIu64 ": %" PRIu64 " requests, %" PRIu64 " on names, ended %s\n", round_number, done, named,
	       cleanly[0] && cleanly[1] ? "cleanly" : "during requests");
}

int main(int argc, char **argv)
{
	return run_rounds(argc, argv, run_round);
}
