/* Unsynced writes of a disk, and their loss. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "disk/disk_internal.h"
#include "disk/faulty.h"
#include "disk/lock.h"
#include "disk/old_bytes.h"
#include "disk/still.h"

enum { WRITTEN_AT_ONCE = 65536, CHOOSES_LOSS = 1, CHOOSES_TEAR = 2 };

int sr_disk_keep_unsynced(struct sr_disk *disk, uint64_t bytes_max)
{
	struct sr_unsynced *fresh = bytes_max ? sr_unsynced_new(bytes_max) : NULL;

	if (bytes_max && !fresh)
		return -ENOMEM;
	pthread_mutex_lock(&disk->lock);
	struct sr_unsynced *before = disk->unsynced;
	disk->unsynced = fresh;
	disk->keeps_old = disk->stale || disk->unsynced;
	sr_unlock(disk);
	sr_unsynced_free(before);
	return 0;
}

void sr_disk_unsynced_info(struct sr_disk *disk, struct sr_unsynced_info *out)
{
	*out = (struct sr_unsynced_info){0};
	pthread_mutex_lock(&disk->lock);
	out->kept = disk->unsynced != NULL;
	for (const struct sr_unsynced_epoch *epoch = out->kept ? disk->unsynced->newest : NULL; epoch; epoch = epoch->older) {
		out->writes += epoch->count;
		out->bytes += epoch->undo.bytes + epoch->room * sizeof(*epoch->writes);
	}
	if (out->kept)
		out->written_back = disk->unsynced->written_back;
	sr_unlock(disk);
}

/* --- the sectors that are lost ---------------------------------------------------------------------------------- */

static uint64_t round_up(uint64_t offset)
{
	return (offset + SR_UNDO_SECTOR_BYTES - 1) / SR_UNDO_SECTOR_BYTES * SR_UNDO_SECTOR_BYTES;
}

/* The bytes that a sector had at the last flush, in the oldest epoch that changed it. Returns 0 if it did not change;
 * `data` NULL: zeros. */
static int old_sector(const struct sr_unsynced *unsynced, uint64_t sector, const uint8_t **data)
{
	uint64_t block = sector / SR_UNDO_SECTORS, inside = sector % SR_UNDO_SECTORS;
	int found = 0;

	for (const struct sr_unsynced_epoch *epoch = unsynced->newest; epoch; epoch = epoch->older) {
		const struct sr_undo_block *old = sr_undo_find(&epoch->undo, block);

		if (old && old->sectors >> inside & 1) {
			*data = old->data ? old->data + inside * SR_UNDO_SECTOR_BYTES : NULL;
			found = 1;
		}
	}
	return found;
}

/* Bytes that are put back with one write. */
struct run {
	struct sr_disk *disk;
	struct sr_lost_writes *out;
	uint64_t offset, bytes;
	int zeros;
	uint64_t end; /* of the run before */
	uint64_t *blocks; /* that have old bytes, ascending: a group may have the size of the disk */
	size_t block_count;
	uint8_t data[WRITTEN_AT_ONCE];
};

static void note_put(struct run *run, uint64_t bytes)
{
	struct sr_lost_writes *out = run->out;

	if (out->range_count == 0 || run->end != run->offset) {
		if (out->range_count < SR_LOST_RANGES_KEPT)
			out->ranges[out->range_count] = (struct sr_fault_range){.start = run->offset};
		out->range_count++;
	}
	if (out->range_count <= SR_LOST_RANGES_KEPT)
		out->ranges[out->range_count - 1].length += bytes;
	run->end = run->offset + bytes;
	out->bytes += bytes;
}

static int put_run(struct run *run)
{
	uint64_t size = sr_disk_bytes(run->disk);
	uint64_t bytes = run->bytes < size - run->offset ? run->bytes : size - run->offset;
	int64_t done = 0;

	if (run->bytes == 0)
		return 0;
	if (run->zeros)
		done = sr_disk_zero_back(run->disk, SR_ZERO, run->offset, bytes);
	else
		done = sr_disk_write_back(run->disk, run->data, bytes, run->offset);
	run->bytes = 0;
	if (done < 0)
		return (int)done;
	note_put(run, run->zeros ? bytes : (uint64_t)done);
	return run->zeros || (uint64_t)done == bytes ? 0 : -ENOSPC;
}

static int put_sector(struct run *run, uint64_t offset, const uint8_t *data)
{
	int rc = 0;

	if (run->bytes && (run->offset + run->bytes != offset || run->zeros != !data ||
			   (data && run->bytes == WRITTEN_AT_ONCE)))
		rc = put_run(run);
	if (run->bytes == 0) {
		run->offset = offset;
		run->zeros = !data;
	}
	if (data)
		memcpy(run->data + run->bytes, data, SR_UNDO_SECTOR_BYTES);
	run->bytes += SR_UNDO_SECTOR_BYTES;
	return rc;
}

/* --- the blocks that have old bytes ------------------------------------------------------------------------------ */

static int by_number(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;
	return *x < *y ? -1 : *x > *y;
}

static int gather_blocks(const struct sr_unsynced *unsynced, struct run *run)
{
	size_t count = 0, kept = 0;

	for (const struct sr_unsynced_epoch *epoch = unsynced->newest; epoch; epoch = epoch->older)
		count += epoch->undo.count;
	run->blocks = malloc((count ? count : 1) * sizeof(*run->blocks));
	if (!run->blocks)
		return -ENOMEM;
	count = 0;
	for (const struct sr_unsynced_epoch *epoch = unsynced->newest; epoch; epoch = epoch->older)
		for (size_t i = 0; i < epoch->undo.capacity; i++)
			if (epoch->undo.slots[i].sectors)
				run->blocks[count++] = epoch->undo.slots[i].block;
	qsort(run->blocks, count, sizeof(*run->blocks), by_number);
	for (size_t i = 0; i < count; i++)
		if (kept == 0 || run->blocks[kept - 1] != run->blocks[i])
			run->blocks[kept++] = run->blocks[i];
	run->block_count = kept;
	return 0;
}

/* The first sector from `offset` on, in bytes, that may have old bytes; UINT64_MAX: none. */
static uint64_t next_sector(const struct run *run, uint64_t offset)
{
	size_t low = 0, high = run->block_count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if ((run->blocks[middle] + 1) * SR_BLOCK_BYTES > offset)
			high = middle;
		else
			low = middle + 1;
	}
	if (low == run->block_count)
		return UINT64_MAX;
	uint64_t begin = run->blocks[low] * SR_BLOCK_BYTES;
	return begin > offset ? begin : offset;
}

/* --- groups of writes that overlap ------------------------------------------------------------------------------ */

static int by_offset(const void *a, const void *b)
{
	const struct sr_unsynced_write *x = a, *y = b;
	return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* All unsynced writes as ranges of whole sectors, in the order of their offsets, those with common sectors as one. */
static int gather(const struct sr_unsynced *unsynced, struct sr_unsynced_write **out, size_t *out_count)
{
	struct sr_unsynced_write *all;
	size_t count = 0, kept = 0;

	for (const struct sr_unsynced_epoch *epoch = unsynced->newest; epoch; epoch = epoch->older)
		count += epoch->count;
	all = malloc((count ? count : 1) * sizeof(*all));
	if (!all)
		return -ENOMEM;
	count = 0;
	for (const struct sr_unsynced_epoch *epoch = unsynced->newest; epoch; epoch = epoch->older)
		for (size_t i = 0; i < epoch->count; i++) {
			uint64_t from = epoch->writes[i].offset / SR_UNDO_SECTOR_BYTES * SR_UNDO_SECTOR_BYTES;
			uint64_t end = round_up(epoch->writes[i].offset + epoch->writes[i].bytes);

			all[count++] = (struct sr_unsynced_write){.offset = from, .bytes = end - from};
		}
	qsort(all, count, sizeof(*all), by_offset);
	for (size_t i = 0; i < count; i++) {
		struct sr_unsynced_write *last = kept ? &all[kept - 1] : NULL;
		uint64_t end = all[i].offset + all[i].bytes;

		if (last && all[i].offset < last->offset + last->bytes) {
			if (end > last->offset + last->bytes)
				last->bytes = end - last->offset;
		} else {
			all[kept++] = all[i];
		}
	}
	*out = all;
	*out_count = kept;
	return 0;
}

/* --- writes that survive by their number ------------------------------------------------------------------------ */

struct survivor {
	uint64_t index; /* of the write among all unsynced ones, oldest first */
	struct sr_unsynced_write write;
};

/* All unsynced writes in their order, and those of them that survive. */
struct row {
	struct sr_unsynced_write *writes;
	size_t count;
	struct survivor *survivors;
	size_t survivor_count;
};

static int touches(const struct sr_unsynced_write *write, uint64_t offset, uint64_t end)
{
	return write->offset < end && write->offset + write->bytes > offset;
}

static int is_numbered(const struct sr_power_loss *how, const struct sr_unsynced_write *write)
{
	for (size_t i = 0; i < how->range_count; i++)
		if (touches(write, how->ranges[i].start, how->ranges[i].start + how->ranges[i].length))
			return 1;
	return how->range_count == 0;
}

static int survives(const struct sr_power_loss *how, uint64_t number)
{
	for (size_t i = 0; i < how->survivor_count; i++)
		if (how->survivors[i] == number)
			return 1;
	return 0;
}

static int make_row(const struct sr_unsynced *unsynced, const struct sr_power_loss *how, struct row *row)
{
	uint64_t number = 0;
	size_t at;

	for (const struct sr_unsynced_epoch *epoch = unsynced->newest; epoch; epoch = epoch->older)
		row->count += epoch->count;
	row->writes = calloc(row->count ? row->count : 1, sizeof(*row->writes));
	row->survivors = calloc(how->survivor_count, sizeof(*row->survivors));
	if (!row->writes || !row->survivors)
		return -ENOMEM;
	at = row->count;
	for (const struct sr_unsynced_epoch *epoch = unsynced->newest; epoch; epoch = epoch->older) {
		at -= epoch->count;
		memcpy(row->writes + at, epoch->writes, epoch->count * sizeof(*row->writes));
	}
	for (size_t i = 0; i < row->count; i++)
		if (is_numbered(how, &row->writes[i]) && survives(how, ++number) && row->survivor_count < how->survivor_count)
			row->survivors[row->survivor_count++] = (struct survivor){.index = i, .write = row->writes[i]};
	return 0;
}

/* 1 if the newest write of a sector survives. */
static int sector_survives(const struct row *row, uint64_t offset)
{
	uint64_t end = offset + SR_UNDO_SECTOR_BYTES;
	size_t newest = row->count;

	for (size_t i = 0; i < row->survivor_count; i++)
		if (touches(&row->survivors[i].write, offset, end))
			newest = row->survivors[i].index;
	if (newest == row->count)
		return 0;
	for (size_t i = newest + 1; i < row->count; i++)
		if (touches(&row->writes[i], offset, end))
			return 0;
	return 1;
}

static int lose_others(const struct sr_unsynced *unsynced, const struct sr_power_loss *how,
		       const struct sr_unsynced_write *groups, size_t count, struct run *run, struct sr_lost_writes *out)
{
	struct row row = {0};
	const uint8_t *data;
	int rc = make_row(unsynced, how, &row);

	for (size_t i = 0; i < count && rc == 0; i++) {
		const struct sr_unsynced_write *group = &groups[i];
		int survived = 0, lost = 0;

		for (uint64_t at = next_sector(run, group->offset); at < group->offset + group->bytes && rc == 0;
		     at = next_sector(run, at + SR_UNDO_SECTOR_BYTES)) {
			if (sector_survives(&row, at)) {
				survived = 1;
			} else if (old_sector(unsynced, at / SR_UNDO_SECTOR_BYTES, &data)) {
				lost = 1;
				rc = put_sector(run, at, data);
			}
		}
		out->lost += lost && !survived;
		out->torn += lost && survived;
	}
	free(row.writes);
	free(row.survivors);
	return rc;
}

/* --- writes that survive by chance ------------------------------------------------------------------------------ */

enum fate { KEPT, LOST, TORN };

/* The fate of the n-th group (1, 2, ...). */
static enum fate fate_of(const struct sr_power_loss *how, uint64_t n, uint64_t bytes)
{
	if (!how->keeps)
		return LOST;
	if (how->tear && bytes > how->tear && sr_fault_below(how->stream, n, CHOOSES_TEAR, 4) == 0)
		return TORN;
	return sr_fault_below(how->stream, n, CHOOSES_LOSS, 2) ? LOST : KEPT;
}

static int lose_group(const struct sr_unsynced *unsynced, const struct sr_power_loss *how, uint64_t n,
		      const struct sr_unsynced_write *group, struct run *run, struct sr_lost_writes *out)
{
	enum fate fate = fate_of(how, n, group->bytes);
	const uint8_t *data;
	int rc = 0;

	out->lost += fate == LOST;
	out->torn += fate == TORN;
	for (uint64_t at = next_sector(run, group->offset); fate != KEPT && at < group->offset + group->bytes && rc == 0;
	     at = next_sector(run, at + SR_UNDO_SECTOR_BYTES)) {
		uint64_t piece = fate == TORN ? at / how->tear - group->offset / how->tear : 0;

		if (fate == TORN && sr_fault_draw(how->stream, n, SR_FIRST_CHOICE + piece) & 1)
			continue;
		if (old_sector(unsynced, at / SR_UNDO_SECTOR_BYTES, &data))
			rc = put_sector(run, at, data);
	}
	return rc;
}

/* --- the loss ---------------------------------------------------------------------------------------------------- */

static void lose(struct sr_disk *disk, struct sr_unsynced *unsynced, const struct sr_power_loss *how, struct sr_lost_writes *out)
{
	struct run *run = calloc(1, sizeof(*run));
	struct sr_unsynced_write *groups = NULL;
	size_t count = 0;
	int rc = run ? gather(unsynced, &groups, &count) : -ENOMEM;

	out->writes = count;
	if (rc == 0) {
		run->disk = disk;
		run->out = out;
		rc = gather_blocks(unsynced, run);
	}
	if (rc == 0 && how->survivor_count && !how->keeps)
		rc = lose_others(unsynced, how, groups, count, run, out);
	else
		for (size_t i = 0; i < count && rc == 0; i++)
			rc = lose_group(unsynced, how, i + 1, &groups[i], run, out);
	if (rc == 0)
		rc = put_run(run);
	out->error = rc;
	free(groups);
	if (run)
		free(run->blocks);
	free(run);
}

/* Take the old bytes away from the disk: the writes that put them back are none of a guest. */
static struct sr_unsynced *take(struct sr_disk *disk)
{
	pthread_mutex_lock(&disk->lock);
	struct sr_unsynced *taken = disk->unsynced;
	disk->unsynced = NULL;
	disk->keeps_old = disk->stale != NULL;
	sr_unlock(disk);
	return taken;
}

static int are_kept(struct sr_disk **disks, size_t count)
{
	struct sr_unsynced_info info;

	for (size_t i = 0; i < count; i++) {
		sr_disk_unsynced_info(disks[i], &info);
		if (!info.kept)
			return 0;
	}
	return 1;
}

static void lose_of(struct sr_disk *disk, const struct sr_power_loss *how, struct sr_lost_writes *out)
{
	struct sr_unsynced *fresh = sr_unsynced_new(1);
	struct sr_unsynced *taken = fresh ? take(disk) : NULL;

	*out = (struct sr_lost_writes){0};
	if (!taken) {
		sr_unsynced_free(fresh);
		out->error = -ENOMEM;
		return;
	}
	pthread_mutex_lock(&disk->lock);
	struct sr_fault_set *faults = disk->faults;
	sr_unlock(disk);
	if (faults && !how->keeps_waits)
		sr_fault_set_fail_waits(faults);
	lose(disk, taken, how, out);
	fresh->bytes_max = taken->bytes_max;
	fresh->written_back = taken->written_back;
	sr_unsynced_free(taken);
	pthread_mutex_lock(&disk->lock);
	disk->unsynced = fresh;
	disk->keeps_old = 1;
	sr_unlock(disk);
}

int sr_disks_lose_power(struct sr_disk **disks, size_t count, const struct sr_power_loss *how, struct sr_lost_writes *out,
			uint64_t *position)
{
	for (size_t i = 0; i < count; i++)
		if (how[i].tear && how[i].tear != SR_UNDO_SECTOR_BYTES && how[i].tear != SR_BLOCK_BYTES)
			return -EINVAL;
	sr_disks_alone();
	sr_disks_still(disks, count);
	int rc = are_kept(disks, count) ? 0 : -ENODATA;
	if (rc == 0) {
		*position = count ? sr_position_value(disks[0]->positions) : 0;
		for (size_t i = 0; i < count; i++)
			lose_of(disks[i], &how[i], &out[i]);
	}
	sr_disks_go_on(disks, count);
	sr_disks_alone_no_more();
	return rc;
}
