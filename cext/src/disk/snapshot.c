/* Copy-before-write snapshot.  Fault contract: blockfs/disk/snapshot.py. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "disk/disk_internal.h"
#include "disk/lines.h"
#include "disk/lock.h"

struct snapshot {
	int fd;
	uint64_t bytes, store_bytes, store_bytes_max;
	uint64_t released;  /* atomic */
	uint8_t *preserved; /* one bit for each chunk, set after the chunk is in the store */
	int error;          /* atomic: errno of the failed preservation */
	char *chunk;        /* buffer for a chunk that is copied to the store */
};

static int is_preserved(const struct snapshot *snap, uint64_t chunk)
{
	return (__atomic_load_n(&snap->preserved[chunk / 8], __ATOMIC_ACQUIRE) >> (chunk % 8)) & 1;
}

static int keep_chunk(struct sr_disk *disk, struct snapshot *snap, uint64_t chunk)
{
	uint64_t start = chunk * SR_CHUNK_BYTES;
	uint64_t bytes = snap->bytes - start < SR_CHUNK_BYTES ? snap->bytes - start : SR_CHUNK_BYTES;

	if (snap->store_bytes + bytes > snap->store_bytes_max)
		return -ENOSPC;
	int rc = (int)sr_note_changed(disk, sr_layer_read(disk->layer, snap->chunk, bytes, start));
	if (rc)
		return rc;
	int64_t done = sr_io_write(snap->fd, snap->chunk, (int64_t)bytes, (int64_t)start);
	if (done < (int64_t)bytes)
		return done < 0 ? (int)done : -ENOSPC;
	snap->store_bytes += bytes;
	__atomic_fetch_or(&snap->preserved[chunk / 8], (uint8_t)(1u << (chunk % 8)), __ATOMIC_RELEASE);
	return 0;
}

/* Preserve a range before it changes. Without space for the old bytes the snapshot fails; the write continues. */
void sr_snapshot_keep(struct sr_disk *disk, uint64_t offset, uint64_t bytes)
{
	struct snapshot *snap = disk->snapshot;
	if (!snap || snap->error || bytes == 0)
		return;
	uint64_t end = offset + bytes < snap->bytes ? offset + bytes : snap->bytes;
	if (offset < snap->released)
		offset = snap->released;
	for (uint64_t chunk = offset / SR_CHUNK_BYTES; chunk * SR_CHUNK_BYTES < end; chunk++) {
		if (is_preserved(snap, chunk))
			continue;
		int rc = keep_chunk(disk, snap, chunk);
		if (rc) {
			__atomic_store_n(&snap->error, -rc, __ATOMIC_RELEASE);
			return;
		}
	}
}

static struct snapshot *new_snapshot(struct sr_disk *disk, int fd, uint64_t bytes_max)
{
	uint64_t bytes = sr_layer_bytes(disk->layer), chunks = (bytes + SR_CHUNK_BYTES - 1) / SR_CHUNK_BYTES;
	struct snapshot *snap = calloc(1, sizeof(*snap));
	if (!snap)
		return NULL;
	*snap = (struct snapshot){.fd = fd,
				  .bytes = bytes,
				  .store_bytes_max = bytes_max,
				  .preserved = calloc(chunks / 8 + 1, 1),
				  .chunk = malloc(SR_CHUNK_BYTES)};
	if (snap->preserved && snap->chunk)
		return snap;
	free(snap->preserved);
	free(snap->chunk);
	free(snap);
	return NULL;
}

static void free_snapshot(struct snapshot *snap)
{
	free(snap->preserved);
	free(snap->chunk);
	free(snap);
}

/* Check all disks, which are locked, before any snapshot begins. */
static int check_all(struct sr_disk **disks, struct snapshot **fresh, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		struct log *log = &disks[i]->log;
		if (disks[i]->snapshot)
			return -EEXIST;
		if (log->state != SR_LOGGED)
			return -ENOTCONN;
		if (log->spare_fd < 0 && log->current->info.end > SR_SEGMENT_HEADER_BYTES)
			return -EAGAIN;
		if (fresh[i]->bytes != sr_layer_bytes(disks[i]->layer)) /* the disk grew before it was locked */
			return -EAGAIN;
	}
	return 0;
}

int sr_snapshots_begin(struct sr_disk **disks, const int *fds, const uint64_t *bytes_max, size_t count,
		       uint64_t *first_seqs, uint64_t *position)
{
	struct snapshot **fresh = calloc(count, sizeof(struct snapshot *));
	int rc = fresh ? 0 : -ENOMEM;

	for (size_t i = 0; i < count && rc == 0; i++)
		if (!(fresh[i] = new_snapshot(disks[i], fds[i], bytes_max[i])))
			rc = -ENOMEM;
	if (rc == 0) {
		for (size_t i = 0; i < count; i++)
			pthread_mutex_lock(&disks[i]->lock);
		rc = check_all(disks, fresh, count);
		for (size_t i = 0; i < count && rc == 0; i++) /* an additional empty segment does no harm if a later disk fails */
			rc = sr_log_rotate_locked(disks[i]);
		if (rc == 0) {
			*position = sr_position_draw(disks[0]->positions);
			for (size_t i = 0; i < count; i++) {
				first_seqs[i] = disks[i]->log.next_seq;
				disks[i]->snapshot_serial++;
				__atomic_store_n(&disks[i]->snapshot, fresh[i], __ATOMIC_RELEASE); /* pairs with sr_snapshot_read */
				fresh[i] = NULL;
			}
		}
		for (size_t i = 0; i < count; i++)
			pthread_mutex_unlock(&disks[i]->lock);
	}
	for (size_t i = 0; fresh && i < count; i++)
		if (fresh[i])
			free_snapshot(fresh[i]);
	free(fresh);
	return rc;
}

void sr_snapshot_release(struct sr_disk *disk, uint64_t upto)
{
	pthread_mutex_lock(&disk->lock);
	struct snapshot *snap = disk->snapshot;
	if (snap) {
		if (upto > snap->bytes)
			upto = snap->bytes;
		upto = upto / SR_CHUNK_BYTES * SR_CHUNK_BYTES;
		if (upto > snap->released)
			__atomic_store_n(&snap->released, upto, __ATOMIC_RELEASE);
	}
	sr_unlock(disk);
}

void sr_snapshot_end_locked(struct sr_disk *disk)
{
	if (!disk->snapshot)
		return;
	close(disk->snapshot->fd);
	free_snapshot(disk->snapshot);
	disk->snapshot = NULL;
}

void sr_snapshot_end(struct sr_disk *disk)
{
	pthread_rwlock_wrlock(&disk->snapshot_lock);
	pthread_mutex_lock(&disk->lock);
	sr_snapshot_end_locked(disk);
	sr_unlock(disk);
	pthread_rwlock_unlock(&disk->snapshot_lock);
}

static int read_piece(struct sr_disk *disk, struct snapshot *snap, char *buf, uint64_t bytes, uint64_t offset)
{
	uint64_t chunk = offset / SR_CHUNK_BYTES;
	if (!is_preserved(snap, chunk)) {
		int rc = (int)sr_noted(disk, sr_layer_read(disk->layer, buf, bytes, offset));
		/* If a write came in between, it preserved the old bytes before it changed any. */
		if (rc || !is_preserved(snap, chunk))
			return rc;
	}
	return sr_io_read_whole(snap->fd, buf, (int64_t)bytes, (int64_t)offset);
}

static int read_stored(struct sr_disk *disk, struct snapshot *snap, char *buf, uint64_t bytes, uint64_t offset)
{
	uint64_t first = offset, end = offset + bytes;
	if (!snap || end > snap->bytes)
		return -EIO;
	while (offset < end) {
		uint64_t stop = (offset / SR_CHUNK_BYTES + 1) * SR_CHUNK_BYTES;
		if (stop > end)
			stop = end;
		int rc = read_piece(disk, snap, buf, stop - offset, offset);
		if (rc)
			return rc;
		buf += stop - offset;
		offset = stop;
	}
	/* Checked last: bytes that were released or could not be preserved may have changed while they were read. */
	if (__atomic_load_n(&snap->error, __ATOMIC_ACQUIRE) || first < __atomic_load_n(&snap->released, __ATOMIC_ACQUIRE))
		return -EIO;
	return 0;
}

/* The store has the stored bytes of the chunks, like the layer; they are decrypted only here. */
static int read_snapshot(struct sr_disk *disk, struct snapshot *snap, char *buf, uint64_t bytes, uint64_t offset)
{
	struct sr_lines around = sr_lines_of(offset, bytes);

	if (!disk->xts || bytes == 0)
		return read_stored(disk, snap, buf, bytes, offset);
	char *lines = around.bytes == bytes ? buf : malloc(around.bytes);
	if (!lines)
		return -ENOMEM;
	int rc = read_stored(disk, snap, lines, around.bytes, around.offset);
	if (rc == 0)
		rc = sr_decrypt_lines(disk, lines, buf, bytes, offset);
	if (lines != buf)
		free(lines);
	return rc;
}

int sr_snapshot_read(struct sr_disk *disk, void *buf, uint64_t bytes, uint64_t offset)
{
	pthread_rwlock_rdlock(&disk->snapshot_lock);
	int rc = read_snapshot(disk, __atomic_load_n(&disk->snapshot, __ATOMIC_ACQUIRE), buf, bytes, offset);
	pthread_rwlock_unlock(&disk->snapshot_lock);
	return rc;
}

uint64_t sr_snapshot_serial(struct sr_disk *disk)
{
	pthread_mutex_lock(&disk->lock);
	uint64_t serial = disk->snapshot_serial;
	sr_unlock(disk);
	return serial;
}

int64_t sr_snapshot_read_one(struct sr_disk *disk, uint64_t serial, void *buf, uint64_t bytes, uint64_t offset)
{
	int64_t done = 0;

	pthread_rwlock_rdlock(&disk->snapshot_lock); /* from here on the snapshot cannot be replaced */
	pthread_mutex_lock(&disk->lock);
	struct snapshot *snap = disk->snapshot_serial == serial ? disk->snapshot : NULL;
	sr_unlock(disk);
	if (!snap) {
		done = -EIO;
	} else if (offset < snap->bytes) {
		if (bytes > snap->bytes - offset)
			bytes = snap->bytes - offset;
		int rc = read_snapshot(disk, snap, buf, bytes, offset);
		done = rc ? rc : (int64_t)bytes;
	}
	pthread_rwlock_unlock(&disk->snapshot_lock);
	return done;
}

void sr_snapshot_info(struct sr_disk *disk, struct sr_snapshot_info *out)
{
	*out = (struct sr_snapshot_info){0};
	pthread_mutex_lock(&disk->lock);
	struct snapshot *snap = disk->snapshot;
	if (snap)
		*out = (struct sr_snapshot_info){.exists = 1,
						 .error = snap->error,
						 .bytes = snap->bytes,
						 .store_bytes = snap->store_bytes,
						 .store_bytes_max = snap->store_bytes_max,
						 .released = snap->released,
						 .serial = disk->snapshot_serial};
	sr_unlock(disk);
}
