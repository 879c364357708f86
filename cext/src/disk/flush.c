/* Durability: the log's segments first, then the disk.  Fault contract: blockfs/disk/disk.py. */
#define _GNU_SOURCE
#include <errno.h>

#include "base/io.h"
#include "disk/disk_internal.h"
#include "disk/lock.h"

enum { SYNCED_AT_ONCE = 64 };

/* Hold the segments that are not durable yet, oldest first, until they are released. */
static size_t hold_unsynced(struct sr_disk *disk, struct segment **held, int closed_only)
{
	size_t count = 0;
	for (struct segment *s = disk->log.first; s && count < SYNCED_AT_ONCE; s = s->next)
		if (!s->info.durable && (s->info.closed || !closed_only)) {
			s->users++;
			held[count++] = s;
		}
	return count;
}

static int sync_held(struct segment **held, size_t count)
{
	int rc = 0;
	for (size_t i = 0; i < count && rc == 0; i++)
		rc = sr_io_sync(held[i]->fd);
	return rc;
}

/* Record the result of a sync, with disk->lock held: the first `closed` held segments were closed when they were
 * synced; `rc` is the error of the sync. */
static void note_synced(struct sr_disk *disk, struct segment **held, size_t count, size_t closed, int rc)
{
	for (size_t i = 0; i < closed && rc == 0; i++)
		held[i]->info.durable = 1;
	if (rc) {
		disk->sync_error = (int)sr_note_changed(disk, rc);
		sr_log_abandon(disk, SR_SYNC_FAILED);
	}
	for (size_t i = 0; i < count; i++)
		sr_log_release(disk, held[i]);
}

/* One pass: sync the log, then the disk. `syncing` is held. */
static int sync_pass(struct sr_disk *disk, int *more)
{
	struct segment *held[SYNCED_AT_ONCE];

	pthread_mutex_lock(&disk->lock);
	uint64_t upto = disk->changes;
	size_t count = hold_unsynced(disk, held, 0), closed = 0;
	for (size_t i = 0; i < count; i++)
		closed += held[i]->info.closed != 0; /* a segment that is closed later has records that this pass may miss */
	sr_unlock(disk);

	if (count > 0)
		sr_layer_start_sync(disk->layer); /* start it while the log is synced */
	int rc = sync_held(held, count);
	if (rc == 0)
		rc = sr_layer_sync(disk->layer);
	uint64_t mtime_ns = rc == 0 ? sr_layer_mtime_ns(disk->layer) : 0;

	pthread_mutex_lock(&disk->lock);
	*more = rc == 0 && count == SYNCED_AT_ONCE;
	if (rc == 0 && !*more)
		disk->synced = upto;
	if (rc == 0)
		sr_log_note_mtime(disk, mtime_ns);
	note_synced(disk, held, count, closed, rc);
	sr_unlock(disk);
	return rc == -ESTALE ? -EIO : rc;
}

int sr_log_sync_closed(struct sr_disk *disk)
{
	struct segment *held[SYNCED_AT_ONCE];
	size_t count;
	int rc = 0;

	do {
		pthread_mutex_lock(&disk->lock);
		count = hold_unsynced(disk, held, 1);
		sr_unlock(disk);
		rc = sync_held(held, count);
		pthread_mutex_lock(&disk->lock);
		note_synced(disk, held, count, count, rc);
		sr_unlock(disk);
	} while (rc == 0 && count == SYNCED_AT_ONCE);
	return rc;
}

uint64_t sr_disk_changes(struct sr_disk *disk)
{
	pthread_mutex_lock(&disk->lock);
	uint64_t changes = disk->changes;
	sr_unlock(disk);
	return changes;
}

/* Sync until this many changes are durable. */
static int sync_upto(struct sr_disk *disk, uint64_t wanted)
{
	int rc = 0, more = 1;

	pthread_mutex_lock(&disk->syncing);
	while (more && rc == 0) {
		pthread_mutex_lock(&disk->lock);
		/* After a failed sync the kernel reports success, although pages are lost: from then on every flush
		 * fails. */
		rc = disk->sync_error;
		int done = disk->synced >= wanted; /* done by another flush, while this one waited */
		sr_unlock(disk);
		if (rc || done)
			break;
		rc = sync_pass(disk, &more);
	}
	pthread_mutex_unlock(&disk->syncing);
	return rc;
}

int sr_disk_flush(struct sr_disk *disk)
{
	pthread_mutex_lock(&disk->lock);
	int rc = (int)sr_note_changed(disk, sr_log_check_dirty(disk));
	if (rc) {
		sr_unlock(disk);
		return rc;
	}
	/* A full log cannot take the mark; the written bytes are made durable all the same. */
	if (disk->log.flush_due && sr_log_record(disk, SR_FLUSH, 0, 0, 0, NULL, 0, NULL) == 0) {
		disk->changes++;
		disk->log.flush_due = 0;
	}
	uint64_t wanted = disk->changes, sealed = disk->unsynced ? sr_unsynced_seal(disk) : 0;
	sr_unlock(disk);
	rc = sync_upto(disk, wanted);
	if (sealed && rc == 0) {
		pthread_mutex_lock(&disk->lock);
		sr_unsynced_drop(disk, sealed);
		sr_unlock(disk);
	}
	return rc;
}

int sr_disk_sync(struct sr_disk *disk)
{
	pthread_mutex_lock(&disk->lock);
	uint64_t wanted = disk->changes;
	sr_unlock(disk);
	return sync_upto(disk, wanted);
}
