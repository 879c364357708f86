/* What the files of the disk engine share.  Locking: `inflight_lock` (read: a request is running; write: requests are being ended),
 * then `snapshot_lock` or `syncing`, then `lock`; several disks' locks only by sr_snapshots_begin, which one thread calls. */
#ifndef SITERIG_DISK_INTERNAL_H
#define SITERIG_DISK_INTERNAL_H

#include <pthread.h>
#include <stdint.h>

#include "base/io.h"
#include "base/mapped.h"
#include "base/record.h"
#include "disk/disk.h"

struct segment {
	struct segment *next;
	struct sr_segment_info info;
	int fd;
	int users; /* flushes that sync it right now */
	int forgotten;
};

struct log {
	int state; /* enum sr_log_state */
	struct segment_header header; /* of the current segment */
	uint32_t seed; /* of the current segment's records: its header's checksum */
	uint64_t next_seq, last_position;
	uint64_t older_bytes;   /* of all kept segments but the current one */
	uint64_t oldest_number; /* of the kept segments */
	uint64_t segment_bytes, kept_bytes_max;
	int abandon_when_full;
	int flush_due; /* something was logged since the last FLUSH record */
	struct segment *first, *current;
	int spare_fd;
	uint32_t *touched; /* for each chunk the number of the newest segment that has a record of it; 0: none */
	uint64_t touched_count;
	struct sr_map dirty; /* the dirty file */
	int dirty_fd;
};

struct snapshot;

struct sr_disk {
	pthread_rwlock_t inflight_lock;
	int ended; /* no request begins any more */
	int users; /* handles, and the owner: the memory goes with the last */
	pthread_mutex_t syncing;
	pthread_mutex_t lock; /* over log append and disk write, and all that follows */
	struct sr_layer *layer;
	struct sr_positions *positions;
	int event_fd;
	struct log log;
	pthread_rwlock_t snapshot_lock; /* read: somebody reads the snapshot */
	struct snapshot *snapshot;
	uint64_t snapshot_serial;
	uint64_t changes, synced; /* how many changes there were, and how many of them are on stable storage */
	int sync_error;
	int file_changed; /* by somebody else: see sr_note_changed */
	int event_due;
	uint64_t growth_step_bytes; /* see sr_disk_allow_growth */
	uint64_t modifications;     /* atomic: see sr_disk_modifications */
	struct sr_counters counters;
};

/* What is needed to take a record back. */
struct mark {
	uint64_t at, last_position;
};

static inline void sr_add(uint64_t *counter, uint64_t n)
{
	__atomic_fetch_add(counter, n, __ATOMIC_RELAXED);
}

void sr_disk_put(struct sr_disk *disk);

/* All of these: with disk->lock held. */
int sr_log_record(struct sr_disk *disk, int type, int flags, uint64_t offset, uint64_t length, const void *payload,
		  uint32_t payload_bytes, struct mark *mark);
/* -ESTALE, as of sr_log_record: the dirty file was cut, or its medium failed.  No change can be noted until a new log begins. */
int sr_log_check_dirty(struct sr_disk *disk);
void sr_log_revoke(struct sr_disk *disk, const struct mark *mark);
int sr_log_shorten(struct sr_disk *disk, const struct mark *mark, const void *payload, uint32_t bytes);
int sr_log_switch(struct sr_disk *disk);
int sr_log_rotate_locked(struct sr_disk *disk);
void sr_log_abandon(struct sr_disk *disk, int state);
/* Before a write of so many bytes: gives the log up if it would become too long. */
void sr_log_make_room(struct sr_disk *disk, uint64_t bytes);
/* The disk is about to be so large; it has become so large: what segments that begin later say of it. */
int sr_log_grow(struct sr_disk *disk, uint64_t disk_bytes);
void sr_log_grown(struct sr_disk *disk, uint64_t disk_bytes);
void sr_log_mark_dirty(struct sr_disk *disk, uint64_t offset, uint64_t bytes);
void sr_log_release(struct sr_disk *disk, struct segment *segment);
void sr_log_stop_locked(struct sr_disk *disk);
/* When the disk's file was last changed, as of a sync: after a kill, a later time that no record explains is another's. */
void sr_log_note_mtime(struct sr_disk *disk, uint64_t mtime_ns);
uint64_t sr_log_end_of(struct sr_disk *disk, uint64_t number);
void sr_snapshot_keep(struct sr_disk *disk, uint64_t offset, uint64_t bytes);
void sr_snapshot_end_locked(struct sr_disk *disk);

/* What a layer returned, for a guest.  -ESTALE (its file was cut, or has no name any more) is noted, ends the log
 * (SR_IMAGE_CHANGED), and becomes -EIO. */
int64_t sr_note_changed(struct sr_disk *disk, int64_t result);
/* The same without disk->lock. */
int64_t sr_noted(struct sr_disk *disk, int64_t result);

/* The number of the newest snapshot; and up to `bytes` bytes of the one of that number, -EIO if it is no more. */
uint64_t sr_snapshot_serial(struct sr_disk *disk);
int64_t sr_snapshot_read_one(struct sr_disk *disk, uint64_t serial, void *buf, uint64_t bytes, uint64_t offset);

#endif
