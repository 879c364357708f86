/* Changes of a disk as they are logged and stored.  Fault contract: blockfs/disk/disk.py. */
#define _GNU_SOURCE
#include "disk/stored.h"

#include <errno.h>

/* Only `done` of the bytes could be written, and those of an encrypted disk may end within a line: try to complete it.
 * Returns the number of bytes in whole lines. If the line cannot be completed, its bytes are lost, and the log is
 * abandoned. */
static int64_t complete_line(struct sr_disk *disk, const void *buf, int64_t done, uint64_t offset)
{
	int64_t begun = done % SR_XTS_LINE_BYTES, rest = SR_XTS_LINE_BYTES - begun;

	if (begun == 0)
		return done;
	/* Its page has space, because a part of the line is there. */
	if (sr_layer_write(disk->layer, (const char *)buf + done, (uint64_t)rest, offset + (uint64_t)done) == rest)
		return done + rest;
	sr_log_abandon(disk, SR_WRITE_FAILED);
	return done - begun;
}

int64_t sr_write_stored(struct sr_disk *disk, const void *buf, uint64_t bytes, uint64_t offset)
{
	struct mark mark;
	int64_t done;

	sr_snapshot_keep(disk, offset, bytes);
	if (disk->keeps_old)
		sr_keep_old_bytes(disk, offset, bytes, 0);
	sr_log_make_room(disk, bytes);
	int rc = sr_log_record(disk, SR_WRITE, 0, offset, bytes, buf, (uint32_t)bytes, &mark);
	if (rc)
		return sr_note_changed(disk, rc);
	disk->changes++;
	done = sr_layer_write(disk->layer, buf, bytes, offset);
	if (done > 0)
		sr_modified(disk);
	if (disk->xts && done > 0 && done < (int64_t)bytes)
		done = complete_line(disk, buf, done, offset);
	if (done == (int64_t)bytes)
		return done;
	if (done > 0) {
		rc = sr_log_shorten(disk, &mark, buf, (uint32_t)done);
		if (rc == 0)
			return done;
		sr_log_abandon(disk, SR_WRITE_FAILED);
		return rc;
	}
	sr_log_revoke(disk, &mark);
	return done ? sr_note_changed(disk, done) : -EIO;
}

int sr_zero_stored(struct sr_disk *disk, int type, uint64_t offset, uint64_t bytes)
{
	struct mark mark;

	sr_snapshot_keep(disk, offset, bytes);
	if (disk->keeps_old)
		sr_keep_old_bytes(disk, offset, bytes, 1);
	sr_log_make_room(disk, 0);
	int rc = sr_log_record(disk, type, 0, offset, bytes, NULL, 0, &mark);
	if (rc)
		return (int)sr_note_changed(disk, rc);
	disk->changes++;
	rc = sr_layer_zero(disk->layer, offset, bytes);
	sr_modified(disk); /* a part of it may have been done */
	if (rc == 0)
		return 0;
	rc = (int)sr_note_changed(disk, rc);
	/* It is unknown how much of the range reads as zeros now. */
	sr_log_abandon(disk, SR_WRITE_FAILED);
	return rc;
}
