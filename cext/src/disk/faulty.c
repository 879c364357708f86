/* Fault rules applied to the guest's requests, and their change at one position over several disks. */
#define _GNU_SOURCE
#include "disk/faulty.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "disk/disk_internal.h"
#include "disk/lock.h"
#include "disk/old_bytes.h"
#include "disk/still.h"

/* --- judging ---------------------------------------------------------------------------------------------------- */

/* Bytes of the blocks of a range that are holes now: a part of a block fills the whole one. */
static uint64_t hole_bytes(struct sr_disk *disk, uint64_t offset, uint64_t bytes)
{
	uint64_t last = (offset + bytes - 1) / SR_BLOCK_BYTES, at = offset - offset % SR_BLOCK_BYTES, found = 0;
	uint64_t end = sr_disk_bytes(disk);

	if ((last + 1) * SR_BLOCK_BYTES < end)
		end = (last + 1) * SR_BLOCK_BYTES;
	while (at < end) {
		int64_t hole = sr_disk_seek(disk, at, SEEK_HOLE);
		if (hole < 0 || (uint64_t)hole >= end)
			break;
		int64_t data = sr_disk_seek(disk, (uint64_t)hole, SEEK_DATA);
		uint64_t upto = data < 0 || (uint64_t)data > end ? end : (uint64_t)data;
		if (upto <= (uint64_t)hole) /* it was filled meanwhile */
			break;
		found += upto - (uint64_t)hole;
		at = upto;
	}
	return found;
}

static void look_for_holes(struct sr_disk *disk, struct sr_verdict *verdict)
{
	if ((verdict->op & (SR_OP_WRITE | SR_OP_ZERO)) && sr_fault_set_have(disk->faults, SR_FULL))
		verdict->hole_bytes = hole_bytes(disk, verdict->offset, verdict->bytes);
}

/* Wait without `inflight_lock`. 0; or -EIO: the disk is ending, or lost its power. */
static int wait_out(struct sr_disk *disk, struct sr_verdict *verdict)
{
	pthread_rwlock_unlock(&disk->inflight_lock);
	int rc = sr_fault_set_wait(disk->faults, verdict);
	pthread_rwlock_rdlock(&disk->inflight_lock);
	return rc || disk->ended ? -EIO : 0;
}

/* The request fails before it is done: of what comes after it, only a rule that holds it waits. */
static int fail(struct sr_disk *disk, struct sr_verdict *verdict)
{
	for (int i = 0; i < verdict->late_wait_count; i++)
		if (verdict->late_waits[i].held)
			verdict->waits[verdict->wait_count++] = verdict->late_waits[i];
	int rc = verdict->wait_count ? wait_out(disk, verdict) : 0;
	return rc ? rc : -verdict->error;
}

/* Judge a request, and wait as long as its rules want. 0: proceed; SR_WOULD_WAIT; otherwise the error of the request. */
static int judge(struct sr_disk *disk, int may_wait, struct sr_verdict *verdict)
{
	look_for_holes(disk, verdict);
	if (!may_wait && sr_fault_set_may_wait(disk->faults, verdict))
		return SR_WOULD_WAIT;
	while (sr_fault_set_judge(disk->faults, verdict)) {
		int rc = wait_out(disk, verdict);
		if (rc)
			return rc;
		look_for_holes(disk, verdict); /* others have filled some, and rules have changed */
	}
	return verdict->error ? fail(disk, verdict) : 0;
}

/* Do what rules want after the operation, whose result is given. */
static int64_t finish(struct sr_disk *disk, struct sr_verdict *verdict, int64_t result)
{
	if (verdict->late_wait_count) {
		memcpy(verdict->waits, verdict->late_waits, (size_t)verdict->late_wait_count * sizeof(verdict->waits[0]));
		verdict->wait_count = verdict->late_wait_count;
		int rc = wait_out(disk, verdict);
		if (rc)
			return rc;
	}
	return result >= 0 && verdict->late_error ? -verdict->late_error : result;
}

static uint64_t smaller(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static void flip_bits(const struct sr_verdict *verdict, uint8_t *buf, uint64_t bytes)
{
	for (int i = 0; i < verdict->flip_count; i++)
		for (uint64_t k = 0; k < verdict->flips[i].bits; k++) {
			uint64_t bit = sr_flipped_bit(&verdict->flips[i], k), at = bit / 8 - verdict->offset;

			if (at < bytes)
				buf[at] ^= (uint8_t)(1u << bit % 8);
		}
}

/* Cut the part of a range at a shifted place that is on the disk: bytes before it, and bytes of it. */
static void cut(uint64_t size, int64_t place, uint64_t bytes, uint64_t *before, uint64_t *inside)
{
	*before = place < 0 ? smaller((uint64_t)-place, bytes) : 0;
	uint64_t from = (uint64_t)(place + (int64_t)*before);
	*inside = from < size ? smaller(bytes - *before, size - from) : 0;
}

/* --- requests --------------------------------------------------------------------------------------------------- */

static int64_t read_shifted(struct sr_disk *disk, uint8_t *buf, uint64_t bytes, int64_t place)
{
	uint64_t before, inside;

	cut(sr_disk_bytes(disk), place, bytes, &before, &inside);
	int64_t done = inside ? sr_disk_read(disk, buf + before, inside, (uint64_t)(place + (int64_t)before)) : 0;
	if (done < 0)
		return done;
	memset(buf, 0, before);
	memset(buf + before + inside, 0, bytes - before - inside);
	return (int64_t)bytes;
}

int64_t sr_faulty_read(struct sr_disk *disk, int may_wait, void *buf, uint64_t bytes, uint64_t offset)
{
	uint64_t size = sr_disk_bytes(disk);
	if (offset >= size || bytes == 0 || !sr_fault_set_concerns(disk->faults, SR_OP_READ, offset, smaller(bytes, size - offset)))
		return sr_disk_read(disk, buf, bytes, offset);

	struct sr_verdict verdict;
	sr_verdict_begin(&verdict, SR_OP_READ, offset, smaller(bytes, size - offset));
	int rc = judge(disk, may_wait, &verdict);
	if (rc)
		return rc;
	uint64_t wanted = verdict.is_short ? smaller(verdict.short_bytes, verdict.bytes) : verdict.bytes;
	int64_t done = verdict.shift ? read_shifted(disk, buf, wanted, (int64_t)offset + verdict.shift)
				     : sr_disk_read(disk, buf, wanted, offset);
	if (done <= 0)
		return finish(disk, &verdict, done);
	if (verdict.stale) {
		pthread_mutex_lock(&disk->lock);
		sr_stale_overlay(disk, buf, (uint64_t)done, offset);
		sr_unlock(disk);
	}
	flip_bits(&verdict, buf, (uint64_t)done);
	return finish(disk, &verdict, done);
}

/* Write bytes at their shifted place; the part outside the disk is lost. */
static int64_t write_shifted(struct sr_disk *disk, const uint8_t *buf, uint64_t bytes, int64_t place)
{
	uint64_t before, inside;

	cut(sr_disk_bytes(disk), place, bytes, &before, &inside);
	if (inside == 0)
		return (int64_t)bytes;
	uint64_t at = (uint64_t)(place + (int64_t)before);
	int64_t done = sr_disk_write(disk, buf + before, inside, at);
	if (done > 0)
		sr_fault_set_heal(disk->faults, at, (uint64_t)done);
	if (done < 0)
		return done;
	return (uint64_t)done == inside ? (int64_t)bytes : (int64_t)before + done;
}

static int64_t write_torn(struct sr_disk *disk, const struct sr_verdict *verdict, const uint8_t *buf, uint64_t bytes)
{
	uint64_t from = 0;

	for (uint64_t part = 0; from < bytes; part++) {
		uint64_t upto = sr_tear_end(verdict, part);

		if (!sr_tear_keeps(verdict, part)) {
			from = upto;
			continue;
		}
		while (upto < bytes && sr_tear_keeps(verdict, part + 1))
			upto = sr_tear_end(verdict, ++part);
		upto = smaller(upto, bytes);
		int64_t done = write_shifted(disk, buf + from, upto - from, (int64_t)(verdict->offset + from) + verdict->shift);
		if (done < 0)
			return done;
		from = upto;
	}
	return verdict->tear.error ? -verdict->tear.error : (int64_t)bytes;
}

static int64_t write_judged(struct sr_disk *disk, const struct sr_verdict *verdict, const uint8_t *buf)
{
	uint64_t bytes = verdict->is_short ? smaller(verdict->short_bytes, verdict->bytes) : verdict->bytes;
	uint8_t *flipped = NULL;
	int64_t done;

	if (verdict->flip_count) {
		flipped = malloc(bytes ? bytes : 1);
		if (!flipped)
			return -ENOMEM;
		memcpy(flipped, buf, bytes);
		flip_bits(verdict, flipped, bytes);
		buf = flipped;
	}
	if (verdict->is_torn)
		done = write_torn(disk, verdict, buf, bytes);
	else
		done = write_shifted(disk, buf, bytes, (int64_t)verdict->offset + verdict->shift);
	free(flipped);
	return done;
}

int64_t sr_faulty_write(struct sr_disk *disk, int may_wait, const void *buf, uint64_t bytes, uint64_t offset)
{
	uint64_t size = sr_disk_bytes(disk);
	if (offset >= size || bytes == 0 || bytes > SR_PAYLOAD_BYTES_MAX
	    || !sr_fault_set_concerns(disk->faults, SR_OP_WRITE, offset, smaller(bytes, size - offset)))
		return sr_disk_write(disk, buf, bytes, offset);

	struct sr_verdict verdict;
	sr_verdict_begin(&verdict, SR_OP_WRITE, offset, smaller(bytes, size - offset));
	int rc = judge(disk, may_wait, &verdict);
	if (rc)
		return rc;
	return finish(disk, &verdict, write_judged(disk, &verdict, buf));
}

int sr_faulty_flush(struct sr_disk *disk, int may_wait)
{
	struct sr_verdict verdict;
	sr_verdict_begin(&verdict, SR_OP_FLUSH, 0, 0);
	int rc = judge(disk, may_wait, &verdict);

	if (rc)
		return rc;
	return (int)finish(disk, &verdict, verdict.lies ? 0 : sr_disk_flush(disk));
}

int sr_faulty_zero(struct sr_disk *disk, int may_wait, int type, uint64_t offset, uint64_t bytes)
{
	uint64_t size = sr_disk_bytes(disk);
	if (offset >= size || bytes == 0)
		return sr_disk_zero(disk, type, offset, bytes);

	struct sr_verdict verdict;
	sr_verdict_begin(&verdict, type == SR_DISCARD ? SR_OP_DISCARD : SR_OP_ZERO, offset, smaller(bytes, size - offset));
	int rc = judge(disk, may_wait, &verdict);
	if (rc)
		return rc;
	rc = sr_disk_zero(disk, type, offset, verdict.bytes);
	if (rc == 0)
		sr_fault_set_heal(disk->faults, offset, verdict.bytes);
	return (int)finish(disk, &verdict, rc);
}

/* --- changes of rules ------------------------------------------------------------------------------------------- */

/* Make the disk ready for rules: what could fail comes before the change. */
static int prepare(struct sr_disk *disk, struct sr_fault_table *table)
{
	if (disk->faults || sr_fault_table_is_empty(table))
		return 0;
	struct sr_fault_set *faults = sr_fault_set_new(disk->positions);
	if (!faults)
		return -ENOMEM;
	pthread_mutex_lock(&disk->lock);
	disk->faults = faults;
	if (disk->waits_over)
		sr_fault_set_end_waits(faults);
	sr_unlock(disk);
	return 0;
}

/* The disk is still. Returns the table to free. */
static struct sr_fault_table *put_in_force(struct sr_disk *disk, struct sr_fault_table *table)
{
	if (!disk->faults)
		return table;
	int is_empty = sr_fault_table_is_empty(table);
	struct sr_fault_table *before = sr_fault_set_replace(disk->faults, table);

	disk->is_faulty = !is_empty;
	pthread_mutex_lock(&disk->lock);
	(void)sr_stale_set(disk, sr_fault_set_have(disk->faults, SR_STALE)); /* without memory the rule returns current bytes */
	disk->keeps_old = disk->stale || disk->unsynced;
	sr_unlock(disk);
	return before;
}

static int make_tables(struct sr_disk **disks, const struct sr_fault_rule *const *rules, const size_t *rule_counts,
		       size_t count, struct sr_fault_table **tables)
{
	for (size_t i = 0; i < count; i++) {
		tables[i] = sr_fault_table_new(rules[i], rule_counts[i], sr_disk_bytes(disks[i]));
		if (!tables[i] || prepare(disks[i], tables[i]))
			return -ENOMEM;
	}
	return 0;
}

int sr_disks_set_faults(struct sr_disk **disks, const struct sr_fault_rule *const *rules, const size_t *rule_counts,
			size_t count, uint64_t *position)
{
	struct sr_fault_table **tables = calloc(count ? count : 1, sizeof(struct sr_fault_table *));
	int rc = tables ? 0 : -ENOMEM;

	sr_disks_alone();
	if (rc == 0)
		rc = make_tables(disks, rules, rule_counts, count, tables);
	if (rc == 0) {
		sr_disks_still(disks, count);
		for (size_t i = 0; i < count; i++)
			tables[i] = put_in_force(disks[i], tables[i]);
		*position = count ? sr_position_value(disks[0]->positions) : 0;
		sr_disks_go_on(disks, count);
	}
	sr_disks_alone_no_more();
	for (size_t i = 0; tables && i < count; i++)
		sr_fault_table_free(tables[i]);
	free(tables);
	return rc;
}

/* --- reports ---------------------------------------------------------------------------------------------------- */

static struct sr_fault_set *faults_of(struct sr_disk *disk)
{
	pthread_mutex_lock(&disk->lock);
	struct sr_fault_set *faults = disk->faults;
	sr_unlock(disk);
	return faults;
}

void sr_disk_end_waits(struct sr_disk *disk)
{
	pthread_mutex_lock(&disk->lock);
	struct sr_fault_set *faults = disk->faults;
	disk->waits_over = 1;
	sr_unlock(disk);
	if (faults)
		sr_fault_set_end_waits(faults);
}

int sr_disk_fault_counts(struct sr_disk *disk, uint64_t rule, struct sr_fault_counts *out)
{
	struct sr_fault_set *faults = faults_of(disk);
	return faults ? sr_fault_set_counts(faults, rule, out) : -ENOENT;
}

void sr_disk_release(struct sr_disk *disk, uint64_t rule, uint64_t fired)
{
	struct sr_fault_set *faults = faults_of(disk);
	if (faults)
		sr_fault_set_release(faults, rule, fired);
}

size_t sr_disk_injections(struct sr_disk *disk, uint64_t after, struct sr_injection *out, size_t max)
{
	struct sr_fault_set *faults = faults_of(disk);
	return faults ? sr_fault_set_injections(faults, after, out, max) : 0;
}

int sr_disk_tell_fired(struct sr_disk *disk, uint64_t rule, uint64_t times, int fd)
{
	struct sr_fault_set *faults = faults_of(disk);
	return faults ? sr_fault_set_tell(faults, rule, times, fd) : -ENOENT;
}

void sr_disk_tell_no_more(struct sr_disk *disk, int fd)
{
	struct sr_fault_set *faults = faults_of(disk);
	if (faults)
		sr_fault_set_tell_no_more(faults, fd);
}
