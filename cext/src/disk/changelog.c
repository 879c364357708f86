/* The writer of the change log: records, segments, and dirty chunks after an abandoned log. Layout:
 * docs/reference/formats/hrl.md. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/clock_page.h"
#include "base/record.h"
#include "base/siterig.h"
#include "disk/disk_internal.h"
#include "disk/lock.h"

#define DIRTY_FILE_BYTES_MAX (SR_DIRTY_HEADER_BYTES + SR_DISK_BYTES_MAX / SR_CHUNK_BYTES / 8)
/* In the dirty file, after the part that its header's checksum covers: the state word; the number of the newest
 * segment with a header; the time of the last change of the disk's file at the last sync. */
#define STATE_OFFSET 64
#define NEWEST_OFFSET 72
#define MTIME_OFFSET 80

static uint64_t chunks_of(uint64_t disk_bytes)
{
	return (disk_bytes + SR_CHUNK_BYTES - 1) / SR_CHUNK_BYTES;
}

/* --- segments ------------------------------------------------------------------------------------------------ */

static struct segment *new_segment(int fd, uint64_t number, uint64_t first_seq, uint64_t last_position)
{
	struct segment *segment = calloc(1, sizeof(*segment));
	if (!segment)
		return NULL;
	segment->fd = fd;
	segment->info.number = number;
	segment->info.first_seq = first_seq;
	segment->info.last_seq = first_seq - 1;
	segment->info.last_position = last_position;
	segment->info.end = SR_SEGMENT_HEADER_BYTES;
	return segment;
}

/* Fill in the fields that only the writer knows, and write the header; returns the seed of the segment's records. */
static int write_header(struct log *log, int fd, uint64_t first_seq, uint32_t *seed)
{
	struct segment_header *header = &log->header;

	header->first_seq = first_seq;
	header->created_ns = sr_time_of_day_ns();
	header->crc = *seed = sr_crc32c(0, header, sizeof(*header) - sizeof(header->crc));
	int64_t done = sr_io_write(fd, header, sizeof(*header), 0);
	if (done < 0)
		return (int)done;
	return done == SR_SEGMENT_HEADER_BYTES ? 0 : -ENOSPC;
}

/* Record the newest segment's number, after its header: a kill leaves the number of an existing segment. Without it,
 * the deletion of the newest segment would not be detected. */
static void note_newest(struct log *log)
{
	__atomic_store_n((uint64_t *)(void *)(log->dirty.at + NEWEST_OFFSET), log->current->info.number, __ATOMIC_RELEASE);
}

void sr_log_note_mtime(struct sr_disk *disk, uint64_t mtime_ns)
{
	if (disk->log.dirty.at && mtime_ns)
		__atomic_store_n((uint64_t *)(void *)(disk->log.dirty.at + MTIME_OFFSET), mtime_ns, __ATOMIC_RELEASE);
}

static void free_segment(struct segment *segment)
{
	close(segment->fd);
	free(segment);
}

void sr_log_release(struct sr_disk *disk, struct segment *segment)
{
	(void)disk; /* its lock is held */
	if (--segment->users == 0 && segment->forgotten)
		free_segment(segment);
}

static void drop_segments(struct log *log)
{
	struct segment *next;
	for (struct segment *s = log->first; s; s = next) {
		next = s->next;
		s->forgotten = 1;
		if (s->users == 0)
			free_segment(s);
	}
	log->first = log->current = NULL;
	if (log->spare_fd >= 0)
		close(log->spare_fd);
	log->spare_fd = -1;
}

int sr_log_switch(struct sr_disk *disk)
{
	struct log *log = &disk->log;
	uint64_t began = sr_now_ns();
	uint32_t seed;

	if (log->spare_fd < 0)
		return -EAGAIN;
	struct segment *old = log->current;
	struct segment *fresh = new_segment(log->spare_fd, old->info.number + 1, log->next_seq, log->last_position);
	if (!fresh)
		return -ENOMEM;
	int rc = write_header(log, log->spare_fd, log->next_seq, &seed);
	if (rc) {
		free(fresh);
		return rc;
	}
	log->seed = seed;
	log->spare_fd = -1;
	old->info.closed = 1;
	old->next = fresh;
	log->current = fresh;
	log->older_bytes += old->info.end;
	note_newest(log);
	disk->changes++; /* the next flush must make the closed segment durable, even without other changes */
	disk->event_due = 1;

	uint64_t took = sr_now_ns() - began;
	sr_add(&disk->counters.segments_switched, 1);
	if (took > __atomic_load_n(&disk->counters.longest_switch_ns, __ATOMIC_RELAXED))
		__atomic_store_n(&disk->counters.longest_switch_ns, took, __ATOMIC_RELAXED);
	return 0;
}

/* --- records ------------------------------------------------------------------------------------------------- */

static void touch(struct log *log, uint64_t number, uint64_t offset, uint64_t bytes)
{
	if (bytes == 0)
		return;
	uint64_t last = (offset + bytes - 1) / SR_CHUNK_BYTES;
	for (uint64_t chunk = offset / SR_CHUNK_BYTES; chunk <= last && chunk < log->touched_count; chunk++)
		log->touched[chunk] = (uint32_t)number;
}

static int append(struct sr_disk *disk, int type, int flags, uint64_t offset, uint64_t length, const void *payload,
		  uint32_t payload_bytes, struct mark *mark)
{
	struct log *log = &disk->log;
	struct segment *current = log->current;
	struct record record = {
		.magic = RECORD_MAGIC,
		.type = (uint8_t)type,
		.flags = (uint8_t)flags,
		.header_bytes = SR_RECORD_HEADER_BYTES,
		.seq = log->next_seq,
		.position = sr_position_draw(disk->positions),
		.time_ns = sr_time_of_day_ns(),
		.offset = offset,
		.length = length,
		.payload_bytes = payload_bytes,
	};
	record.crc = sr_crc32c(sr_crc32c(log->seed, &record, sizeof(record) - sizeof(record.crc)), payload, payload_bytes);
	struct iovec iov[2] = {{&record, sizeof(record)}, {(void *)payload, payload_bytes}};
	int64_t bytes = (int64_t)sizeof(record) + payload_bytes;
	int64_t done = sr_io_writev(current->fd, iov, payload_bytes ? 2 : 1, (int64_t)current->info.end);
	if (done < bytes) /* a partial record counts for nothing, and the next record overwrites it */
		return done < 0 ? (int)done : -ENOSPC;
	if (mark)
		*mark = (struct mark){.at = current->info.end, .last_position = log->last_position};
	current->info.end += (uint64_t)bytes;
	current->info.last_seq = log->next_seq++;
	current->info.last_position = log->last_position = record.position;
	sr_add(&disk->counters.log_bytes, (uint64_t)bytes);
	sr_add(&disk->counters.log_records, 1);
	return 0;
}

static int switch_if_full(struct sr_disk *disk)
{
	const struct log *log = &disk->log;
	return log->current->info.end >= log->segment_bytes && log->spare_fd >= 0 ? sr_log_switch(disk) : 0;
}

int sr_log_record(struct sr_disk *disk, int type, int flags, uint64_t offset, uint64_t length, const void *payload,
		  uint32_t payload_bytes, struct mark *mark)
{
	struct log *log = &disk->log;

	if (sr_map_lost(&log->dirty)) /* the reason for the abandoned log, and later changes, could not be recorded */
		return -ESTALE;
	if (log->state == SR_LOGGED) {
		int rc = switch_if_full(disk);
		if (rc == 0)
			rc = append(disk, type, flags, offset, length, payload, payload_bytes, mark);
		if (rc == 0) {
			if (type == SR_WRITE || type == SR_ZERO || type == SR_DISCARD)
				touch(log, log->current->info.number, offset, length);
			log->flush_due = 1;
			return 0;
		}
		if (!log->abandon_when_full || (rc != -ENOSPC && rc != -EDQUOT))
			return rc;
		sr_log_abandon(disk, SR_LOG_FULL);
	}
	if (type == SR_WRITE || type == SR_ZERO || type == SR_DISCARD)
		sr_log_mark_dirty(disk, offset, length);
	return sr_map_lost(&log->dirty) ? -ESTALE : 0;
}

int sr_log_check_dirty(struct sr_disk *disk)
{
	const struct log *log = &disk->log;
	return sr_map_check(&log->dirty, log->dirty_fd, SR_DIRTY_HEADER_BYTES + (log->touched_count + 7) / 8);
}

void sr_log_revoke(struct sr_disk *disk, const struct mark *mark)
{
	static const uint8_t nothing[SR_RECORD_HEADER_BYTES];
	struct log *log = &disk->log;

	if (log->state != SR_LOGGED)
		return;
	struct segment *current = log->current;
	current->info.end = mark->at;
	current->info.last_seq = --log->next_seq - 1;
	current->info.last_position = log->last_position = mark->last_position;
	/* If this fails and a kill follows, the record counts after all: recovery writes it to the disk. The write
	 * was reported as failed, so its effect is unknown to the writer anyway. */
	(void)sr_io_write(current->fd, nothing, sizeof(nothing), (int64_t)mark->at);
}

/* Shorten the newest record to the `bytes` that the disk took. */
int sr_log_shorten(struct sr_disk *disk, const struct mark *mark, const void *payload, uint32_t bytes)
{
	struct log *log = &disk->log;
	struct record record;

	if (log->state != SR_LOGGED)
		return 0;
	struct segment *current = log->current;
	int rc = sr_io_read_whole(current->fd, &record, sizeof(record), (int64_t)mark->at);
	if (rc)
		return rc;
	record.length = record.payload_bytes = bytes;
	record.crc = sr_crc32c(sr_crc32c(log->seed, &record, sizeof(record) - sizeof(record.crc)), payload, bytes);
	int64_t done = sr_io_write(current->fd, &record, sizeof(record), (int64_t)mark->at);
	if (done != (int64_t)sizeof(record))
		return done < 0 ? (int)done : -ENOSPC;
	current->info.end = mark->at + sizeof(record) + bytes;
	return 0;
}

/* --- the dirty bitmap ---------------------------------------------------------------------------------------- */

void sr_log_mark_dirty(struct sr_disk *disk, uint64_t offset, uint64_t bytes)
{
	uint8_t *bits = disk->log.dirty.at;
	if (!bits || bytes == 0)
		return;
	bits += SR_DIRTY_HEADER_BYTES;
	for (uint64_t c = offset / SR_CHUNK_BYTES; c <= (offset + bytes - 1) / SR_CHUNK_BYTES; c++)
		bits[c / 8] |= (uint8_t)(1u << (c % 8));
}

void sr_log_abandon(struct sr_disk *disk, int state)
{
	struct log *log = &disk->log;

	if (log->state != SR_LOGGED)
		return;
	/* The kernel does not report which pages are lost, nor which bytes another program wrote; they may be older
	 * than the log. With a lost log, the dirty file may be lost too. */
	if (state == SR_SYNC_FAILED || state == SR_IMAGE_CHANGED || state == SR_LOG_LOST)
		sr_log_mark_dirty(disk, 0, sr_layer_bytes(disk->layer));
	for (uint64_t c = 0; c < log->touched_count; c++)
		if (log->touched[c] && log->touched[c] >= (uint32_t)log->oldest_number)
			sr_log_mark_dirty(disk, c * SR_CHUNK_BYTES, 1);
	/* The state is in the file before the first write that is not logged: after a kill, the log never looks
	 * complete. */
	uint32_t word = (uint32_t)state;
	__atomic_store_n((uint32_t *)(void *)(log->dirty.at + STATE_OFFSET), word, __ATOMIC_RELEASE);
	log->state = state;
	drop_segments(log);
	disk->event_due = 1;
}

void sr_log_make_room(struct sr_disk *disk, uint64_t bytes)
{
	struct log *log = &disk->log;
	if (log->state != SR_LOGGED || log->kept_bytes_max == 0)
		return;
	if (log->older_bytes + log->current->info.end + SR_RECORD_HEADER_BYTES + bytes > log->kept_bytes_max)
		sr_log_abandon(disk, SR_LOG_OVERFLOW);
}

/* Make space for the chunks of a larger disk; -errno changes nothing. */
static int grow_maps(struct log *log, uint64_t disk_bytes)
{
	uint64_t chunks = chunks_of(disk_bytes);

	if (!log->dirty.at)
		return 0;
	if (disk_bytes > SR_DISK_BYTES_MAX)
		return -EFBIG;
	int rc = -posix_fallocate(log->dirty_fd, 0, (off_t)(SR_DIRTY_HEADER_BYTES + (chunks + 7) / 8));
	if (rc || chunks <= log->touched_count)
		return rc;
	uint32_t *touched = calloc(chunks, sizeof(*touched)); /* not realloc: untouched pages take no memory */
	if (!touched)
		return -ENOMEM;
	if (log->touched_count)
		memcpy(touched, log->touched, log->touched_count * sizeof(*touched));
	free(log->touched);
	log->touched = touched;
	log->touched_count = chunks;
	return 0;
}

int sr_log_grow(struct sr_disk *disk, uint64_t disk_bytes)
{
	int rc = sr_log_check_dirty(disk); /* otherwise the file would get its length back, without its contents */
	return rc ? rc : grow_maps(&disk->log, disk_bytes);
}

void sr_log_grown(struct sr_disk *disk, uint64_t disk_bytes)
{
	disk->log.header.disk_size_bytes = disk_bytes;
}

/* --- what Python calls --------------------------------------------------------------------------------------- */

void sr_log_stop_locked(struct sr_disk *disk)
{
	struct log *log = &disk->log;
	drop_segments(log);
	free(log->touched);
	log->touched = NULL;
	log->touched_count = 0;
	sr_map_close(&log->dirty);
	if (log->dirty_fd >= 0)
		close(log->dirty_fd);
	log->dirty_fd = -1;
	log->state = SR_UNLOGGED;
}

void sr_log_stop(struct sr_disk *disk)
{
	pthread_mutex_lock(&disk->lock);
	sr_log_stop_locked(disk);
	sr_unlock(disk);
}

static void free_new(struct log *log)
{
	free(log->first);
	free(log->touched);
	sr_map_close(&log->dirty);
}

/* The header is durable before the first write is logged. Otherwise a power loss could leave writes of this log on
 * the disk, and only the previous log, which may have ended cleanly. */
static int make_log(const struct sr_log_setup *setup, struct log *log)
{
	*log = (struct log){.next_seq = setup->next_seq,
			    .last_position = setup->last_position,
			    .older_bytes = setup->kept_bytes,
			    .oldest_number = setup->oldest_number,
			    .segment_bytes = setup->segment_bytes,
			    .kept_bytes_max = setup->kept_bytes_max,
			    .abandon_when_full = setup->abandon_when_full,
			    .spare_fd = -1,
			    .dirty_fd = setup->dirty_fd};

	uint32_t state;
	int rc = sr_io_read_whole(setup->dirty_fd, &state, sizeof(state), STATE_OFFSET);
	if (rc == 0)
		rc = sr_map_open(&log->dirty, setup->dirty_fd, DIRTY_FILE_BYTES_MAX);
	if (rc)
		return rc;
	log->state = (int)state;
	/* Without a segment the caller expects an abandoned log, but the file says otherwise. */
	rc = log->state == SR_LOGGED && setup->fd < 0 ? -EINVAL : 0;
	if (log->state == SR_LOGGED && rc == 0) {
		memcpy(&log->header, setup->header, sizeof(log->header));
		log->first = log->current = new_segment(setup->fd, setup->number, setup->next_seq, setup->last_position);
		rc = log->first ? write_header(log, setup->fd, setup->next_seq, &log->seed) : -ENOMEM;
		if (rc == 0)
			rc = sr_io_sync(setup->fd);
	}
	if (rc)
		free_new(log);
	return rc;
}

/* The new log is complete before the old one is released: an error leaves the old one in use. */
int sr_log_start(struct sr_disk *disk, const struct sr_log_setup *setup)
{
	struct log log;
	int rc = make_log(setup, &log);
	if (rc)
		return rc;
	pthread_mutex_lock(&disk->lock);
	rc = grow_maps(&log, sr_layer_bytes(disk->layer));
	if (rc == 0) {
		sr_log_stop_locked(disk);
		disk->log = log;
		if (log.current)
			note_newest(&disk->log);
		sr_log_note_mtime(disk, sr_layer_mtime_ns(disk->layer));
		disk->changes++;
		disk->event_due = 1; /* the log needs its first spare */
	}
	sr_unlock(disk);
	if (rc)
		free_new(&log);
	return rc;
}

int sr_log_give_spare(struct sr_disk *disk, int fd)
{
	pthread_mutex_lock(&disk->lock);
	int taken = disk->log.state == SR_LOGGED && disk->log.spare_fd < 0;
	if (taken)
		disk->log.spare_fd = fd;
	sr_unlock(disk);
	return taken;
}

int sr_log_append(struct sr_disk *disk, int type, int flags, const void *payload, uint32_t bytes, int rotate,
		  uint64_t *position)
{
	int rc = -ENOTCONN;

	pthread_mutex_lock(&disk->lock);
	uint64_t began = sr_now_ns();
	if (disk->log.state == SR_LOGGED) {
		/* To rotate, a full segment takes the record too: the spare is for the switch that follows. */
		if (rotate)
			rc = disk->log.spare_fd < 0 ? -EAGAIN : 0;
		else
			rc = switch_if_full(disk);
		if (rc == 0)
			rc = append(disk, type, flags, 0, 0, payload, bytes, NULL);
		if (rc == 0) {
			disk->changes++;
			*position = disk->log.last_position;
			if (rotate)
				rc = sr_log_switch(disk);
		}
	}
	uint64_t took = sr_now_ns() - began;
	if (took > __atomic_load_n(&disk->counters.longest_append_ns, __ATOMIC_RELAXED))
		__atomic_store_n(&disk->counters.longest_append_ns, took, __ATOMIC_RELAXED);
	sr_unlock(disk);
	return rc;
}

int sr_log_rotate_locked(struct sr_disk *disk)
{
	if (disk->log.state != SR_LOGGED)
		return -ENOTCONN;
	return disk->log.current->info.end == SR_SEGMENT_HEADER_BYTES ? 0 : sr_log_switch(disk);
}

int sr_log_rotate(struct sr_disk *disk)
{
	pthread_mutex_lock(&disk->lock);
	int rc = sr_log_rotate_locked(disk);
	sr_unlock(disk);
	return rc;
}

void sr_log_touch(struct sr_disk *disk, uint64_t number, uint64_t offset, uint64_t bytes)
{
	pthread_mutex_lock(&disk->lock);
	/* A record of this process is newer than this record of an older segment. */
	struct log *log = &disk->log;
	if (bytes > 0)
		for (uint64_t c = offset / SR_CHUNK_BYTES; c <= (offset + bytes - 1) / SR_CHUNK_BYTES; c++)
			if (c < log->touched_count && log->touched[c] < (uint32_t)number)
				log->touched[c] = (uint32_t)number;
	sr_unlock(disk);
}

void sr_log_trim(struct sr_disk *disk, uint64_t oldest_number, uint64_t bytes)
{
	pthread_mutex_lock(&disk->lock);
	disk->log.oldest_number = oldest_number;
	disk->log.older_bytes -= bytes;
	sr_unlock(disk);
}

void sr_log_limit(struct sr_disk *disk, uint64_t kept_bytes_max)
{
	pthread_mutex_lock(&disk->lock);
	disk->log.kept_bytes_max = kept_bytes_max;
	sr_unlock(disk);
}

size_t sr_log_segments(struct sr_disk *disk, struct sr_segment_info *out, size_t max)
{
	size_t count = 0;
	pthread_mutex_lock(&disk->lock);
	for (struct segment *s = disk->log.first; s; s = s->next, count++)
		if (count < max)
			out[count] = s->info;
	sr_unlock(disk);
	return count;
}

void sr_log_forget(struct sr_disk *disk, uint64_t number)
{
	pthread_mutex_lock(&disk->lock);
	for (struct segment **at = &disk->log.first; *at; at = &(*at)->next) {
		struct segment *s = *at;
		if (s->info.number == number && s->info.durable) {
			*at = s->next;
			s->forgotten = 1;
			if (s->users == 0)
				free_segment(s);
			break;
		}
	}
	sr_unlock(disk);
}

uint64_t sr_log_end_of(struct sr_disk *disk, uint64_t number)
{
	for (struct segment *s = disk->log.first; s; s = s->next)
		if (s->info.number == number)
			return s->info.end;
	return UINT64_MAX;
}

void sr_log_info(struct sr_disk *disk, struct sr_log_info *out)
{
	pthread_mutex_lock(&disk->lock);
	struct log *log = &disk->log;
	*out = (struct sr_log_info){.state = log->state,
				    .next_seq = log->next_seq,
				    .last_position = log->last_position,
				    .kept_bytes = log->older_bytes + (log->current ? log->current->info.end : 0),
				    .has_spare = log->spare_fd >= 0};
	if (log->dirty.at && log->state != SR_LOGGED) {
		const uint8_t *bits = log->dirty.at + SR_DIRTY_HEADER_BYTES;
		for (uint64_t i = 0; i < (log->touched_count + 7) / 8; i++)
			out->dirty_chunks += (uint64_t)__builtin_popcount(bits[i]);
		if (sr_map_lost(&log->dirty)) /* possibly all chunks */
			out->dirty_chunks = chunks_of(sr_layer_bytes(disk->layer));
	}
	sr_unlock(disk);
}
