/* Handles: requests name them. Each request on a disk is counted and timed in its counters. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <linux/falloc.h>

#include "base/clock.h"
#include "disk/disk_internal.h"
#include "disk/faulty.h"
#include "disk/lock.h"

#define FOOTER_BYTES 512
#define SLOT_BITS 20 /* of a handle; above them a number that makes each use of a slot a different handle */
#define SLOTS_MAX (1u << SLOT_BITS)

struct handle {
	uint64_t name;
	int users; /* the table, and running requests */
	struct sr_disk *disk;
	int kind, writable, fd;
	uint64_t number; /* number of the segment, or serial of the snapshot */
	uint8_t footer[FOOTER_BYTES];
};

static struct {
	pthread_mutex_t lock;
	struct handle **slots;
	uint32_t count;
	uint64_t serial;
} table = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void put(struct handle *handle)
{
	if (__atomic_sub_fetch(&handle->users, 1, __ATOMIC_ACQ_REL) > 0)
		return;
	if (handle->fd >= 0)
		close(handle->fd);
	sr_disk_put(handle->disk);
	free(handle);
}

static struct handle *get(uint64_t name)
{
	struct handle *found = NULL;
	uint32_t slot = name & (SLOTS_MAX - 1);

	pthread_mutex_lock(&table.lock);
	if (slot < table.count && table.slots[slot] && table.slots[slot]->name == name) {
		found = table.slots[slot];
		__atomic_add_fetch(&found->users, 1, __ATOMIC_RELAXED);
	}
	pthread_mutex_unlock(&table.lock);
	return found;
}

/* Return an empty slot, or -errno; table.lock is held. */
static int64_t find_slot(void)
{
	for (uint32_t i = 0; i < table.count; i++)
		if (!table.slots[i])
			return i;
	uint32_t count = table.count ? table.count * 2 : 64;
	if (count > SLOTS_MAX)
		return -EMFILE;
	struct handle **slots = realloc(table.slots, count * sizeof(struct handle *));
	if (!slots)
		return -ENOMEM;
	memset(slots + table.count, 0, (count - table.count) * sizeof(struct handle *));
	table.slots = slots;
	uint32_t slot = table.count;
	table.count = count;
	return slot;
}

int64_t sr_handle_open(struct sr_disk *disk, int kind, int writable, const uint8_t *footer, int fd, uint64_t number)
{
	struct handle *handle = calloc(1, sizeof(*handle));
	if (!handle)
		return -ENOMEM;
	*handle = (struct handle){.users = 1, .disk = disk, .kind = kind, .writable = writable, .fd = fd, .number = number};
	if (kind == SR_HANDLE_VHD)
		memcpy(handle->footer, footer, FOOTER_BYTES);
	if (kind == SR_HANDLE_SNAPSHOT)
		handle->number = sr_snapshot_serial(disk);
	pthread_mutex_lock(&table.lock);
	int64_t slot = find_slot();
	if (slot >= 0) {
		handle->name = SR_HANDLE_BIT | (++table.serial << SLOT_BITS) | (uint64_t)slot;
		table.slots[slot] = handle;
		__atomic_add_fetch(&disk->users, 1, __ATOMIC_RELAXED);
	}
	pthread_mutex_unlock(&table.lock);
	if (slot < 0) {
		free(handle);
		return slot;
	}
	return (int64_t)handle->name;
}

void sr_handle_close(uint64_t name)
{
	struct handle *handle = NULL;
	uint32_t slot = name & (SLOTS_MAX - 1);

	pthread_mutex_lock(&table.lock);
	if (slot < table.count && table.slots[slot] && table.slots[slot]->name == name) {
		handle = table.slots[slot];
		table.slots[slot] = NULL;
	}
	pthread_mutex_unlock(&table.lock);
	if (handle)
		put(handle);
}

/* --- requests ------------------------------------------------------------------------------------------------ */

struct request {
	struct handle *handle;
	uint64_t began_ns;
	int may_wait; /* for a fault rule */
};

/* Begin a request; the disk cannot be freed until it ends. */
static int begin(struct request *request, uint64_t name)
{
	request->may_wait = !(name & SR_HANDLE_NO_WAIT);
	request->handle = get(name & ~(uint64_t)SR_HANDLE_NO_WAIT);
	if (!request->handle)
		return -EBADF;
	request->began_ns = sr_now_ns();
	pthread_rwlock_rdlock(&request->handle->disk->inflight_lock);
	if (!request->handle->disk->ended)
		return 0;
	pthread_rwlock_unlock(&request->handle->disk->inflight_lock);
	put(request->handle);
	return -EIO;
}

static void count(struct request *request, int op, int64_t result, uint64_t bytes)
{
	struct sr_counters *counters = &request->handle->disk->counters;
	uint64_t ns = sr_now_ns() - request->began_ns, us = ns / 1000;
	int bucket = us ? 64 - __builtin_clzll(us) : 0;
	uint64_t longest = __atomic_load_n(&counters->longest_ns[op], __ATOMIC_RELAXED);

	if (bucket >= SR_LATENCY_BUCKETS)
		bucket = SR_LATENCY_BUCKETS - 1;
	sr_add(&counters->ops[op], 1);
	sr_add(&counters->latency[op][bucket], 1);
	while (longest < ns && !__atomic_compare_exchange_n(&counters->longest_ns[op], &longest, ns, 0, __ATOMIC_RELAXED,
							    __ATOMIC_RELAXED))
		;
	if (result < 0)
		sr_add(&counters->errors[op], 1);
	else
		sr_add(&counters->bytes[op], bytes);
}

static void finish(struct request *request)
{
	pthread_rwlock_unlock(&request->handle->disk->inflight_lock);
	put(request->handle);
}

/* End a request and count its `result`, which concerned so many bytes. */
static int64_t end(struct request *request, int op, int64_t result, uint64_t bytes)
{
	int kind = request->handle->kind;

	if ((kind == SR_HANDLE_DISK || kind == SR_HANDLE_VHD) && result != SR_WOULD_WAIT)
		count(request, op, result, bytes);
	finish(request);
	return result;
}

/* --- the bytes of the disk, through its fault rules if it has any. A disk without rules pays for one branch. ---- */

static int is_faulty(const struct request *request)
{
	return __builtin_expect(request->handle->disk->is_faulty, 0);
}

static int64_t read_disk(const struct request *request, void *buf, uint64_t bytes, uint64_t offset)
{
	struct sr_disk *disk = request->handle->disk;

	if (is_faulty(request))
		return sr_faulty_read(disk, request->may_wait, buf, bytes, offset);
	return sr_disk_read(disk, buf, bytes, offset);
}

static int64_t write_disk(const struct request *request, const void *buf, uint64_t bytes, uint64_t offset)
{
	struct sr_disk *disk = request->handle->disk;

	if (is_faulty(request))
		return sr_faulty_write(disk, request->may_wait, buf, bytes, offset);
	return sr_disk_write(disk, buf, bytes, offset);
}

static int flush_disk(const struct request *request)
{
	struct sr_disk *disk = request->handle->disk;

	return is_faulty(request) ? sr_faulty_flush(disk, request->may_wait) : sr_disk_flush(disk);
}

static int zero_disk(const struct request *request, int type, uint64_t offset, uint64_t bytes)
{
	struct sr_disk *disk = request->handle->disk;

	if (is_faulty(request))
		return sr_faulty_zero(disk, request->may_wait, type, offset, bytes);
	return sr_disk_zero(disk, type, offset, bytes);
}

/* --------------------------------------------------------------------------------------------------------------- */

static int64_t read_vhd(const struct request *request, char *buf, uint64_t bytes, uint64_t offset)
{
	struct handle *handle = request->handle;
	uint64_t size = sr_disk_bytes(handle->disk);
	int64_t done = read_disk(request, buf, bytes, offset);
	if (done < 0 || (uint64_t)done == bytes || offset + (uint64_t)done < size) /* the last: a fault */
		return done;
	uint64_t behind = offset + (uint64_t)done - size; /* offset in the footer */
	if (behind >= FOOTER_BYTES)
		return done;
	uint64_t rest = bytes - (uint64_t)done;
	if (rest > FOOTER_BYTES - behind)
		rest = FOOTER_BYTES - behind;
	memcpy(buf + done, handle->footer + behind, rest);
	return done + (int64_t)rest;
}

static int64_t read_file(struct handle *handle, char *buf, uint64_t bytes, uint64_t offset)
{
	ssize_t done = pread(handle->fd, buf, bytes, (off_t)offset);
	return done < 0 ? -errno : done;
}

/* Read a segment. After the records of the current segment there may be old bytes of a recycled file; they are not
 * returned. */
static int64_t read_segment(struct handle *handle, char *buf, uint64_t bytes, uint64_t offset)
{
	pthread_mutex_lock(&handle->disk->lock);
	uint64_t size = sr_log_end_of(handle->disk, handle->number);
	sr_unlock(handle->disk);
	if (offset >= size)
		return 0;
	if (bytes > size - offset)
		bytes = size - offset;
	return read_file(handle, buf, bytes, offset);
}

int64_t sr_handle_read(uint64_t name, void *buf, uint64_t bytes, uint64_t offset)
{
	struct request request;
	int64_t done = begin(&request, name);
	if (done)
		return done;
	struct handle *handle = request.handle;
	switch (handle->kind) {
	case SR_HANDLE_DISK:
		done = read_disk(&request, buf, bytes, offset);
		break;
	case SR_HANDLE_VHD:
		done = read_vhd(&request, buf, bytes, offset);
		break;
	case SR_HANDLE_SNAPSHOT:
		done = sr_snapshot_read_one(handle->disk, handle->number, buf, bytes, offset);
		break;
	case SR_HANDLE_LOG:
		done = read_segment(handle, buf, bytes, offset);
		break;
	default:
		done = read_file(handle, buf, bytes, offset);
	}
	return end(&request, SR_COUNT_READ, done, (uint64_t)done);
}

int64_t sr_handle_write(uint64_t name, const void *buf, uint64_t bytes, uint64_t offset)
{
	struct request request;
	int64_t done = begin(&request, name);
	if (done)
		return done;
	done = request.handle->writable ? write_disk(&request, buf, bytes, offset) : -EBADF;
	return end(&request, SR_COUNT_WRITE, done, (uint64_t)done);
}

int sr_handle_flush(uint64_t name)
{
	struct request request;
	int rc = begin(&request, name);
	if (rc)
		return rc;
	if (request.handle->kind == SR_HANDLE_DISK)
		rc = flush_disk(&request);
	return (int)end(&request, SR_COUNT_FLUSH, rc, 0);
}

static int allocate(const struct request *request, int mode, uint64_t offset, uint64_t bytes)
{
	struct handle *handle = request->handle;
	int rc = 0;

	if (handle->kind != SR_HANDLE_DISK)
		return -EOPNOTSUPP;
	if (!handle->writable)
		return -EBADF;
	if (mode == (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE))
		return zero_disk(request, SR_DISCARD, offset, bytes);
	if (mode & ~(FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE))
		return -EOPNOTSUPP;
	if (offset + bytes < offset)
		return -EFBIG;
	if (!(mode & FALLOC_FL_KEEP_SIZE))
		rc = sr_disk_reach(handle->disk, offset + bytes);
	if (rc == 0 && (mode & FALLOC_FL_ZERO_RANGE))
		rc = zero_disk(request, SR_ZERO, offset, bytes);
	return rc;
}

int sr_handle_fallocate(uint64_t name, int mode, uint64_t offset, uint64_t bytes)
{
	struct request request;
	int rc = begin(&request, name);
	if (rc)
		return rc;
	rc = allocate(&request, mode, offset, bytes);
	if (mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE))
		return (int)end(&request, SR_COUNT_DISCARD, rc, bytes);
	finish(&request);
	return rc;
}

/* Seek in a disk or VHD, whose footer is data; the other kinds are data throughout. */
static int64_t seek(struct handle *handle, uint64_t offset, int whence)
{
	uint64_t disk_bytes = sr_disk_bytes(handle->disk);
	if (handle->kind == SR_HANDLE_DISK)
		return sr_disk_seek(handle->disk, offset, whence);
	if (handle->kind != SR_HANDLE_VHD)
		return -EOPNOTSUPP;
	if (offset >= disk_bytes + FOOTER_BYTES)
		return -ENXIO;
	int64_t found = offset < disk_bytes ? sr_disk_seek(handle->disk, offset, whence) : -ENXIO;
	if (whence == SEEK_DATA && found == -ENXIO)
		return (int64_t)(offset < disk_bytes ? disk_bytes : offset);
	if (whence == SEEK_HOLE && (found == -ENXIO || (uint64_t)found == disk_bytes))
		return (int64_t)(disk_bytes + FOOTER_BYTES);
	return found;
}

int64_t sr_handle_seek(uint64_t name, uint64_t offset, int whence)
{
	struct request request;
	int64_t found = begin(&request, name);
	if (found)
		return found;
	found = seek(request.handle, offset, whence);
	(void)end(&request, SR_COUNT_SEEK, found == -ENXIO ? 0 : found, 0); /* "no more data" is an answer */
	return found;
}
