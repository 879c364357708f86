/* Shared parts of the disk engine. Locking order: `inflight_lock` (read: a request is running; write: requests are
 * being ended, or fault rules change), then `snapshot_lock` or `syncing`, then `lock`. Only sr_snapshots_begin takes the
 * locks `lock` of several disks, and one thread calls it; only faulty.c takes `inflight_lock` of several disks, under a
 * lock of its own. A request that waits for a fault rule holds none of them. */
#ifndef SITERIG_DISK_INTERNAL_H
#define SITERIG_DISK_INTERNAL_H

#include <pthread.h>
#include <stdint.h>

#include "base/io.h"
#include "base/mapped.h"
#include "base/record.h"
#include "base/xts.h"
#include "disk/disk.h"

struct segment {
	struct segment *next;
	struct sr_segment_info info;
	int fd;
	int users; /* flushes that are syncing it */
	int forgotten;
};

struct log {
	int state; /* enum sr_log_state */
	struct segment_header header; /* of the current segment */
	uint32_t seed; /* of the current segment's records: the checksum of its header */
	uint64_t next_seq, last_position;
	uint64_t older_bytes;   /* of all kept segments except the current one */
	uint64_t oldest_number; /* of the kept segments */
	uint64_t segment_bytes, kept_bytes_max;
	int abandon_when_full;
	int flush_due; /* set by each record after the last FLUSH record */
	struct segment *first, *current;
	int spare_fd;
	uint32_t *touched; /* for each chunk the number of the newest segment with a record of it; 0: none */
	uint64_t touched_count;
	struct sr_map dirty; /* the dirty file */
	int dirty_fd;
};

struct snapshot;
struct sr_fault_set;
struct sr_undo;
struct sr_unsynced;

struct sr_disk {
	pthread_rwlock_t inflight_lock;
	int ended; /* no request begins any more */
	int is_faulty; /* there are fault rules; written with `inflight_lock` */
	struct sr_fault_set *faults; /* NULL until the first rule; freed with the disk */
	int users; /* handles, and the owner: the last one frees the memory */
	pthread_mutex_t syncing;
	pthread_mutex_t lock; /* protects log append and disk write, and the following fields */
	struct sr_layer *layer;
	struct sr_xts *xts; /* NULL: the layer's bytes are not encrypted */
	struct sr_cipher_buffers *buffers; /* encrypted.c */
	struct sr_positions *positions;
	int event_fd;
	struct log log;
	pthread_rwlock_t snapshot_lock; /* read-locked while the snapshot is read */
	struct snapshot *snapshot;
	uint64_t snapshot_serial;
	int keeps_old; /* `stale` or `unsynced` is not NULL */
	struct sr_undo *stale;          /* old_bytes.h */
	struct sr_unsynced *unsynced;
	int waits_over; /* see sr_disk_end_waits */
	uint64_t changes, synced; /* number of changes, and number of durable changes */
	int sync_error;
	int file_changed; /* by another program: see sr_note_changed */
	int event_due;
	int event_raised; /* atomic: see sr_disk_take_event */
	uint64_t growth_step_bytes; /* see sr_disk_allow_growth */
	int fenced;                 /* see sr_disk_fence */
	uint64_t modifications;     /* atomic: see sr_disk_modifications */
	struct sr_counters counters;
};

/* The data to revoke a record. */
struct mark {
	uint64_t at, last_position;
};

static inline void sr_add(uint64_t *counter, uint64_t n)
{
	__atomic_fetch_add(counter, n, __ATOMIC_RELAXED);
}

/* Count a modification. disk->lock is held, so no locked addition is needed. */
static inline void sr_modified(struct sr_disk *disk)
{
	__atomic_store_n(&disk->modifications, disk->modifications + 1, __ATOMIC_RELEASE);
}

void sr_disk_put(struct sr_disk *disk);

/* As sr_disk_write and sr_disk_zero, but a fence does not refuse them: they bring back bytes that a power loss takes. */
int64_t sr_disk_write_back(struct sr_disk *disk, const void *buf, uint64_t bytes, uint64_t offset);
int sr_disk_zero_back(struct sr_disk *disk, int type, uint64_t offset, uint64_t bytes);

/* The functions below need disk->lock. */
int sr_log_record(struct sr_disk *disk, int type, int flags, uint64_t offset, uint64_t length, const void *payload,
		  uint32_t payload_bytes, struct mark *mark);
/* -ESTALE, also from sr_log_record: the dirty file was truncated, or its medium failed. No change can be recorded
 * until a new log begins. */
int sr_log_check_dirty(struct sr_disk *disk);
void sr_log_revoke(struct sr_disk *disk, const struct mark *mark);
int sr_log_shorten(struct sr_disk *disk, const struct mark *mark, const void *payload, uint32_t bytes);
int sr_log_switch(struct sr_disk *disk);
int sr_log_rotate_locked(struct sr_disk *disk);
void sr_log_abandon(struct sr_disk *disk, int state);
/* Call before a write of so many bytes: abandons the log if it would become too long. */
void sr_log_make_room(struct sr_disk *disk, uint64_t bytes);
/* Prepare the log for a growth of the disk; record the new size for later segments after the growth. */
int sr_log_grow(struct sr_disk *disk, uint64_t disk_bytes);
void sr_log_grown(struct sr_disk *disk, uint64_t disk_bytes);
void sr_log_mark_dirty(struct sr_disk *disk, uint64_t offset, uint64_t bytes);
void sr_log_release(struct sr_disk *disk, struct segment *segment);
void sr_log_stop_locked(struct sr_disk *disk);
/* Record the time of the last change of the disk's file at a sync: after a kill, a later time without a record shows
 * a change by another program. */
void sr_log_note_mtime(struct sr_disk *disk, uint64_t mtime_ns);
uint64_t sr_log_end_of(struct sr_disk *disk, uint64_t number);
void sr_snapshot_keep(struct sr_disk *disk, uint64_t offset, uint64_t bytes);
/* Call before a change, if `keeps_old`; `to_zeros` if the range becomes zeros. */
void sr_keep_old_bytes(struct sr_disk *disk, uint64_t offset, uint64_t bytes, int to_zeros);
/* Begin a new epoch of unsynced writes, and return the number of the last one that a flush makes durable; then drop the
 * epochs up to that number. */
uint64_t sr_unsynced_seal(struct sr_disk *disk);
void sr_unsynced_drop(struct sr_disk *disk, uint64_t upto);
void sr_snapshot_end_locked(struct sr_disk *disk);

/* Convert a layer's result for a guest. -ESTALE (its file was truncated, or has no name any more) is recorded, ends
 * the log (SR_IMAGE_CHANGED), and becomes -EIO. */
int64_t sr_note_changed(struct sr_disk *disk, int64_t result);
/* The same without holding disk->lock. */
int64_t sr_noted(struct sr_disk *disk, int64_t result);

/* Return the number of the newest snapshot; read up to `bytes` bytes of the snapshot with that number, -EIO if it
 * has ended. */
uint64_t sr_snapshot_serial(struct sr_disk *disk);
int64_t sr_snapshot_read_one(struct sr_disk *disk, uint64_t serial, void *buf, uint64_t bytes, uint64_t offset);

#endif
