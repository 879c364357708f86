/* The old bytes of one disk for fault rules (cext/src/disk/faulty.h): those from before a rule SR_STALE came into force,
 * and those of the writes since the last flush.
 *
 * Fault contract: in memory only. A block that cannot be kept is a current block for a stale read, and one that reached
 * its medium for a power loss.
 *
 * All functions need disk->lock.
 */
#ifndef SITERIG_OLD_BYTES_H
#define SITERIG_OLD_BYTES_H

#include "disk/disk_internal.h"
#include "disk/undo.h"

/* Memory for the old bytes of stale reads; when it is full, blocks that change later are read as they are. */
#define SR_STALE_BYTES_MAX (64ull << 20)

struct sr_unsynced_write {
	uint64_t offset, bytes;
};

/* The writes between the begins of two flushes. */
struct sr_unsynced_epoch {
	struct sr_unsynced_epoch *older;
	uint64_t number;
	struct sr_undo undo;
	struct sr_unsynced_write *writes;
	size_t count, room;
};

/* Like the volatile cache of a drive: when it is full, its contents reach the medium. */
struct sr_unsynced {
	struct sr_unsynced_epoch *newest; /* never NULL */
	uint64_t bytes_max;
	uint64_t written_back; /* number of writes that left it because it was full */
};

/* Keep or forget the old bytes of stale reads. 0, or -ENOMEM. */
int sr_stale_set(struct sr_disk *disk, int on);

/* Replace the bytes of a read by those of the time when sr_stale_set was called. */
void sr_stale_overlay(struct sr_disk *disk, char *buf, uint64_t bytes, uint64_t offset);

struct sr_unsynced *sr_unsynced_new(uint64_t bytes_max);
void sr_unsynced_free(struct sr_unsynced *unsynced);

#endif
