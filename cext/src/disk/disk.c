/* A disk: creation and end, its bytes, hydration, counters. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "disk/disk_internal.h"
#include "disk/encrypted.h"
#include "disk/lines.h"
#include "disk/lock.h"
#include "disk/old_bytes.h"
#include "disk/stored.h"
#include "faults/rules.h"

struct sr_disk *sr_disk_new(struct sr_layer *layer, struct sr_positions *positions, int event_fd)
{
	struct sr_disk *disk = calloc(1, sizeof(*disk));
	if (!disk)
		return NULL;
	/* Otherwise continuous requests could delay the freeing of a disk for ever. No thread read-locks one of them
	 * twice. */
	pthread_rwlockattr_t prefer_writers;
	pthread_rwlockattr_init(&prefer_writers);
	pthread_rwlockattr_setkind_np(&prefer_writers, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&disk->inflight_lock, &prefer_writers);
	pthread_rwlock_init(&disk->snapshot_lock, &prefer_writers);
	pthread_rwlockattr_destroy(&prefer_writers);
	pthread_mutex_init(&disk->syncing, NULL);
	pthread_mutex_init(&disk->lock, NULL);
	disk->users = 1;
	disk->changes = 1; /* an earlier process may have left unsynced writes: the first flush syncs */
	disk->layer = layer;
	disk->positions = positions;
	disk->event_fd = event_fd;
	disk->log.state = SR_UNLOGGED;
	disk->log.spare_fd = disk->log.dirty_fd = -1;
	return disk;
}

void sr_disk_put(struct sr_disk *disk)
{
	if (__atomic_sub_fetch(&disk->users, 1, __ATOMIC_ACQ_REL) > 0)
		return;
	pthread_rwlock_destroy(&disk->inflight_lock);
	pthread_rwlock_destroy(&disk->snapshot_lock);
	pthread_mutex_destroy(&disk->syncing);
	pthread_mutex_destroy(&disk->lock);
	sr_fault_set_free(disk->faults);
	(void)sr_stale_set(disk, 0);
	sr_unsynced_free(disk->unsynced);
	sr_encrypted_end(disk);
	free(disk);
}

void sr_disk_end_requests(struct sr_disk *disk)
{
	pthread_rwlock_wrlock(&disk->inflight_lock);
	disk->ended = 1;
	pthread_rwlock_unlock(&disk->inflight_lock);
	pthread_mutex_lock(&disk->lock);
	struct sr_fault_set *faults = disk->faults;
	sr_unlock(disk);
	if (faults)
		sr_fault_set_end(faults); /* of requests that were judged before */
}

void sr_disk_free(struct sr_disk *disk)
{
	sr_disk_end_requests(disk);
	pthread_rwlock_wrlock(&disk->inflight_lock);
	pthread_mutex_lock(&disk->lock);
	sr_snapshot_end_locked(disk);
	sr_log_stop_locked(disk);
	sr_unlock(disk);
	pthread_rwlock_unlock(&disk->inflight_lock);
	sr_disk_put(disk);
}

/* --- bytes --------------------------------------------------------------------------------------------------- */

uint64_t sr_disk_bytes(struct sr_disk *disk)
{
	return sr_layer_bytes(disk->layer);
}

int64_t sr_disk_read(struct sr_disk *disk, void *buf, uint64_t bytes, uint64_t offset)
{
	uint64_t size = sr_disk_bytes(disk);
	if (offset >= size)
		return 0;
	if (bytes > size - offset)
		bytes = size - offset;
	int64_t rc = sr_noted(disk, sr_plain_read(disk, buf, bytes, offset));
	return rc ? rc : (int64_t)bytes;
}

static uint64_t block_begin(uint64_t offset)
{
	return offset - offset % SR_BLOCK_BYTES;
}

static int64_t seek_data(struct sr_disk *disk, uint64_t offset)
{
	int64_t found = sr_layer_seek(disk->layer, offset, SEEK_DATA);
	if (found < 0)
		return found;
	uint64_t begin = block_begin((uint64_t)found);
	return (int64_t)(begin > offset ? begin : offset);
}

static int64_t seek_hole(struct sr_disk *disk, uint64_t offset)
{
	uint64_t size = sr_disk_bytes(disk);
	while (offset < size) {
		uint64_t begin = block_begin(offset);
		int64_t data = sr_layer_seek(disk->layer, begin, SEEK_DATA);
		if (data == -ENXIO || (data >= 0 && block_begin((uint64_t)data) > begin))
			return (int64_t)offset; /* its block has no data */
		int64_t found = data < 0 ? data : sr_layer_seek(disk->layer, (uint64_t)data, SEEK_HOLE);
		if (found < 0)
			return found;
		uint64_t next = block_begin((uint64_t)found + SR_BLOCK_BYTES - 1);
		offset = next > begin ? next : begin + SR_BLOCK_BYTES; /* the data may have become a hole in between */
	}
	return (int64_t)size;
}

int64_t sr_disk_seek(struct sr_disk *disk, uint64_t offset, int whence)
{
	if (offset >= sr_disk_bytes(disk))
		return -ENXIO;
	if (whence == SEEK_DATA)
		return sr_noted(disk, seek_data(disk, offset));
	return whence == SEEK_HOLE ? sr_noted(disk, seek_hole(disk, offset)) : -EINVAL;
}

static int64_t write_disk(struct sr_disk *disk, const void *buf, uint64_t bytes, uint64_t offset, int may_pass_fence)
{
	int64_t done;
	if (bytes > SR_PAYLOAD_BYTES_MAX)
		return -EINVAL;
	if (bytes == 0)
		return 0;
	if (disk->xts)
		return sr_encrypted_write(disk, buf, bytes, offset, may_pass_fence);
	pthread_mutex_lock(&disk->lock);
	uint64_t size = sr_disk_bytes(disk);
	if (disk->fenced && !may_pass_fence)
		done = -EROFS;
	else if (offset >= size)
		done = -ENOSPC;
	else
		done = sr_write_stored(disk, buf, bytes < size - offset ? bytes : size - offset, offset);
	sr_unlock(disk);
	return done;
}

int64_t sr_disk_write(struct sr_disk *disk, const void *buf, uint64_t bytes, uint64_t offset)
{
	return write_disk(disk, buf, bytes, offset, 0);
}

int64_t sr_disk_write_back(struct sr_disk *disk, const void *buf, uint64_t bytes, uint64_t offset)
{
	return write_disk(disk, buf, bytes, offset, 1);
}

/* Log a long range that does not begin and end between lines as its two edges and the middle. The managed disk, whose
 * lines are encrypted, stores the edges as data, which a record of such a length cannot be. */
static int zero_long(struct sr_disk *disk, int type, uint64_t offset, uint64_t bytes)
{
	uint64_t before = -offset % SR_XTS_LINE_BYTES, after = (offset + bytes) % SR_XTS_LINE_BYTES;
	int rc = before ? sr_zero_stored(disk, type, offset, before) : 0;

	if (rc == 0)
		rc = sr_zero_stored(disk, type, offset + before, bytes - before - after);
	if (rc == 0 && after)
		rc = sr_zero_stored(disk, type, offset + (bytes - after), after);
	return rc;
}

static int zero_plain(struct sr_disk *disk, int type, uint64_t offset, uint64_t bytes)
{
	if (bytes > SR_CHUNK_BYTES && (offset | bytes) % SR_XTS_LINE_BYTES)
		return zero_long(disk, type, offset, bytes);
	return sr_zero_stored(disk, type, offset, bytes);
}

static int zero_disk(struct sr_disk *disk, int type, uint64_t offset, uint64_t bytes, int may_pass_fence)
{
	int rc = 0;
	if (type != SR_ZERO && type != SR_DISCARD)
		return -EINVAL;
	pthread_mutex_lock(&disk->lock);
	uint64_t size = sr_disk_bytes(disk);
	if (disk->fenced && !may_pass_fence) {
		rc = -EROFS;
	} else if (offset < size) {
		if (bytes > size - offset)
			bytes = size - offset;
		if (bytes > 0)
			rc = disk->xts ? sr_encrypted_zero(disk, type, offset, bytes) : zero_plain(disk, type, offset, bytes);
	}
	sr_unlock(disk);
	return rc;
}

int sr_disk_zero(struct sr_disk *disk, int type, uint64_t offset, uint64_t bytes)
{
	return zero_disk(disk, type, offset, bytes, 0);
}

int sr_disk_zero_back(struct sr_disk *disk, int type, uint64_t offset, uint64_t bytes)
{
	return zero_disk(disk, type, offset, bytes, 1);
}

static int resize_locked(struct sr_disk *disk, uint64_t bytes)
{
	struct mark mark;
	uint64_t size = sr_disk_bytes(disk);

	if (bytes < size)
		return -EINVAL;
	if (bytes == size)
		return 0;
	if (disk->fenced)
		return -EROFS;
	sr_log_make_room(disk, 0);
	int rc = sr_log_grow(disk, bytes);
	if (rc == 0)
		rc = sr_log_record(disk, SR_RESIZE, 0, 0, bytes, NULL, 0, &mark);
	if (rc)
		return (int)sr_note_changed(disk, rc);
	disk->changes++;
	rc = sr_layer_resize(disk->layer, bytes);
	if (rc) {
		sr_log_revoke(disk, &mark);
	} else {
		sr_log_grown(disk, bytes);
		sr_modified(disk);
	}
	return (int)sr_note_changed(disk, rc);
}

uint64_t sr_disk_modifications(const struct sr_disk *disk)
{
	return __atomic_load_n(&disk->modifications, __ATOMIC_ACQUIRE);
}

int sr_disk_resize(struct sr_disk *disk, uint64_t bytes)
{
	pthread_mutex_lock(&disk->lock);
	int rc = resize_locked(disk, bytes);
	sr_unlock(disk);
	return rc;
}

void sr_disk_fence(struct sr_disk *disk, int fenced)
{
	pthread_mutex_lock(&disk->lock);
	disk->fenced = fenced;
	sr_unlock(disk);
}

void sr_disk_allow_growth(struct sr_disk *disk, uint64_t step_bytes)
{
	pthread_mutex_lock(&disk->lock);
	disk->growth_step_bytes = step_bytes;
	sr_unlock(disk);
}

int sr_disk_reach(struct sr_disk *disk, uint64_t bytes)
{
	int rc = 0;

	pthread_mutex_lock(&disk->lock);
	if (bytes > sr_disk_bytes(disk)) {
		uint64_t step = disk->growth_step_bytes;

		if (step == 0)
			rc = -EFBIG;
		else
			rc = bytes % step ? -EINVAL : resize_locked(disk, bytes);
		disk->event_due |= rc == 0; /* the disk's state does not have the new size yet */
	}
	sr_unlock(disk);
	return rc;
}

/* --- promotion ------------------------------------------------------------------------------------------------- */

int sr_disk_hydrate(struct sr_disk *disk, uint64_t bytes_max)
{
	char *buf = malloc(SR_HYDRATE_BYTES);
	struct sr_hydration_run run;
	uint64_t done = 0;
	int rc = buf ? 0 : -ENOMEM;

	while (rc == 0 && done < bytes_max) {
		rc = sr_layer_hydrate_find(disk->layer, buf, &run); /* without the lock: it may wait for the host's disk */
		if (rc <= 0) {
			rc = rc == 0 ? 1 : rc;
			break;
		}
		pthread_mutex_lock(&disk->lock);
		disk->changes++;
		rc = (int)sr_note_changed(disk, sr_layer_hydrate_put(disk->layer, buf, &run));
		sr_unlock(disk);
		done += run.is_data ? run.end - run.start : SR_HYDRATE_BYTES / 4; /* a step over a hole costs something, too */
	}
	sr_layer_start_sync(disk->layer); /* otherwise the guest's next flush would wait for all of it */
	free(buf);
	return rc;
}

uint64_t sr_disk_hydrated_bytes(struct sr_disk *disk)
{
	return sr_layer_hydrated_bytes(disk->layer);
}

int sr_disk_is_hydrated(struct sr_disk *disk)
{
	pthread_mutex_lock(&disk->lock);
	int full = sr_layer_is_hydrated(disk->layer);
	sr_unlock(disk);
	return full;
}

int sr_disk_detach_backing(struct sr_disk *disk)
{
	struct sr_layer *lower = NULL;

	pthread_mutex_lock(&disk->syncing); /* no flush is running: writers would wait for it below */
	pthread_mutex_lock(&disk->lock);
	int full = sr_layer_is_hydrated(disk->layer);
	if (full)
		lower = sr_layer_detach_backing(disk->layer);
	sr_unlock(disk);
	pthread_mutex_unlock(&disk->syncing);
	sr_layer_free(lower);
	return full ? 0 : -EAGAIN;
}

void sr_disk_counters(struct sr_disk *disk, struct sr_counters *out)
{
	uint64_t *from = (uint64_t *)&disk->counters, *to = (uint64_t *)out;
	for (size_t i = 0; i < sizeof(*out) / sizeof(*to); i++)
		to[i] = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
}
