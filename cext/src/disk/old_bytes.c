#include "disk/old_bytes.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* --- stale reads ---------------------------------------------------------------------------------------------- */

int sr_stale_set(struct sr_disk *disk, int on)
{
	if (on && !disk->stale) {
		disk->stale = calloc(1, sizeof(*disk->stale));
		return disk->stale ? 0 : -ENOMEM;
	}
	if (!on && disk->stale) {
		sr_undo_clear(disk->stale);
		free(disk->stale);
		disk->stale = NULL;
	}
	return 0;
}

void sr_stale_overlay(struct sr_disk *disk, char *buf, uint64_t bytes, uint64_t offset)
{
	uint64_t end = offset + bytes;

	for (uint64_t at = offset; disk->stale && at < end;) {
		uint64_t block = at / SR_BLOCK_BYTES, inside = at % SR_BLOCK_BYTES;
		uint64_t part = SR_BLOCK_BYTES - inside < end - at ? SR_BLOCK_BYTES - inside : end - at;
		const struct sr_undo_block *old = sr_undo_find(disk->stale, block);

		if (old && old->data)
			memcpy(buf + (at - offset), old->data + inside, part);
		else if (old)
			memset(buf + (at - offset), 0, part);
		at += part;
	}
}

/* --- writes that are not flushed ------------------------------------------------------------------------------ */

static void free_epochs(struct sr_unsynced_epoch *epoch)
{
	while (epoch) {
		struct sr_unsynced_epoch *older = epoch->older;

		sr_undo_clear(&epoch->undo);
		free(epoch->writes);
		free(epoch);
		epoch = older;
	}
}

struct sr_unsynced *sr_unsynced_new(uint64_t bytes_max)
{
	struct sr_unsynced *unsynced = calloc(1, sizeof(*unsynced));

	if (!unsynced)
		return NULL;
	unsynced->bytes_max = bytes_max;
	unsynced->newest = calloc(1, sizeof(*unsynced->newest));
	if (unsynced->newest) {
		unsynced->newest->number = 1;
		return unsynced;
	}
	free(unsynced);
	return NULL;
}

void sr_unsynced_free(struct sr_unsynced *unsynced)
{
	if (unsynced)
		free_epochs(unsynced->newest);
	free(unsynced);
}

/* All writes reach the medium. */
static void write_back(struct sr_unsynced *unsynced)
{
	struct sr_unsynced_epoch *newest = unsynced->newest;

	for (const struct sr_unsynced_epoch *epoch = newest; epoch; epoch = epoch->older)
		unsynced->written_back += epoch->count;
	free_epochs(newest->older);
	newest->older = NULL;
	newest->count = 0;
	sr_undo_clear(&newest->undo);
}

static uint64_t bytes_of(const struct sr_unsynced_epoch *epoch)
{
	return epoch->undo.bytes + epoch->room * sizeof(*epoch->writes);
}

static int note_write(struct sr_unsynced_epoch *epoch, uint64_t offset, uint64_t bytes)
{
	if (epoch->count == epoch->room) {
		size_t room = epoch->room ? 2 * epoch->room : 256;
		struct sr_unsynced_write *writes = realloc(epoch->writes, room * sizeof(*writes));

		if (!writes)
			return -ENOMEM;
		epoch->writes = writes;
		epoch->room = room;
	}
	epoch->writes[epoch->count++] = (struct sr_unsynced_write){.offset = offset, .bytes = bytes};
	return 0;
}

static int keep_unsynced(struct sr_disk *disk, uint64_t offset, uint64_t bytes, int to_zeros)
{
	struct sr_unsynced *unsynced = disk->unsynced;
	uint64_t others = 0;

	for (const struct sr_unsynced_epoch *epoch = unsynced->newest; epoch; epoch = epoch->older)
		others += bytes_of(epoch);
	others -= unsynced->newest->undo.bytes;
	if (others >= unsynced->bytes_max)
		return -ENOSPC;
	int rc = sr_undo_keep(&unsynced->newest->undo, disk->layer, disk->xts, offset, bytes, to_zeros, unsynced->bytes_max - others);
	return rc ? rc : note_write(unsynced->newest, offset, bytes);
}

void sr_keep_old_bytes(struct sr_disk *disk, uint64_t offset, uint64_t bytes, int to_zeros)
{
	if (disk->stale)
		(void)sr_undo_keep(disk->stale, disk->layer, disk->xts, offset, bytes, to_zeros, SR_STALE_BYTES_MAX);
	if (!disk->unsynced || keep_unsynced(disk, offset, bytes, to_zeros) == 0)
		return;
	write_back(disk->unsynced);
	if (keep_unsynced(disk, offset, bytes, to_zeros) == 0)
		return;
	/* Larger than the cache, or its old bytes cannot be read: it reaches the medium at once. */
	write_back(disk->unsynced);
	disk->unsynced->written_back++;
}

uint64_t sr_unsynced_seal(struct sr_disk *disk)
{
	struct sr_unsynced_epoch *newest = disk->unsynced->newest, *fresh = calloc(1, sizeof(*fresh));
	uint64_t number = newest->number;

	if (newest->count == 0 || !fresh) { /* without memory this flush leaves the newest writes unsynced */
		free(fresh);
		return number - 1;
	}
	fresh->older = newest;
	fresh->number = number + 1;
	disk->unsynced->newest = fresh;
	return number;
}

void sr_unsynced_drop(struct sr_disk *disk, uint64_t upto)
{
	if (!disk->unsynced)
		return;
	/* The newest epoch is younger than every sealed one. */
	for (struct sr_unsynced_epoch *epoch = disk->unsynced->newest; epoch; epoch = epoch->older)
		if (epoch->older && epoch->older->number <= upto) {
			free_epochs(epoch->older);
			epoch->older = NULL;
		}
}
