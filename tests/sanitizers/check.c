/* The check after the stress.  It follows docs/reference/formats/hrl.md and uses only the CRC of the engine. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/siterig.h"
#include "stress.h"

struct logged {
	uint32_t magic;
	uint8_t type, flags;
	uint16_t header_bytes;
	uint64_t seq, position, time_ns, offset, length;
	uint32_t payload_bytes, zero[2], crc;
};

struct replay {
	struct victim *victim;
	uint8_t *image;
	uint64_t bytes; /* of the disk */
	uint64_t seq, position, records;
	int generation;
	int known; /* the image equals the disk; false after an abandoned log until the next snapshot */
};

static uint8_t *read_file(const char *path, size_t *bytes)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return NULL;
	struct stat stat;
	CHECK(fstat(fd, &stat) == 0);
	*bytes = (size_t)stat.st_size;
	uint8_t *data = malloc(*bytes + 1);
	CHECK(data && pread(fd, data, *bytes, 0) == (ssize_t)*bytes, "%s", path);
	close(fd);
	return data;
}

/* A snapshot has exactly the records below its first sequence number; these are the records up to its position. */
static void compare_snapshots(struct replay *replay)
{
	for (int i = 0; i < replay->victim->snapshot_count; i++) {
		const struct kept_snapshot *kept = &replay->victim->snapshots[i];
		if (kept->generation != replay->generation || kept->first_seq != replay->seq)
			continue;
		if (!replay->known) {
			memcpy(replay->image, kept->data, kept->bytes);
			replay->known = 1;
		}
		CHECK(kept->bytes == replay->bytes, "snapshot of %" PRIu64 " bytes, disk of %" PRIu64, kept->bytes, replay->bytes);
		CHECK(replay->position <= kept->position, "record at %" PRIu64, replay->position);
		CHECK(memcmp(kept->data, replay->image, kept->bytes) == 0, "snapshot at record %" PRIu64, kept->first_seq);
	}
}

static void check_cut(const struct replay *replay, const struct logged *record)
{
	for (int i = 0; i < replay->victim->snapshot_count; i++) {
		const struct kept_snapshot *kept = &replay->victim->snapshots[i];
		if (kept->generation == replay->generation)
			CHECK((record->seq < kept->first_seq) == (record->position < kept->position), "record %" PRIu64, record->seq);
	}
}

static void apply(struct replay *replay, const struct logged *record, uint8_t *payload)
{
	switch (record->type) {
	case SR_WRITE:
		CHECK(record->payload_bytes == record->length);
		CHECK(record->offset + record->length <= replay->bytes);
		if (the_round.xts)
			CHECK(sr_xts_decrypt(the_round.xts, payload, record->length, record->offset) == 0);
		memcpy(replay->image + record->offset, payload, record->length);
		break;
	case SR_ZERO:
	case SR_DISCARD:
		CHECK(record->payload_bytes == 0 && record->offset + record->length <= replay->bytes);
		memset(replay->image + record->offset, 0, record->length);
		break;
	case SR_RESIZE:
		CHECK(record->payload_bytes == 0 && record->length >= replay->bytes && record->length <= DISK_BYTES_MAX);
		replay->bytes = record->length;
		break;
	case SR_FLUSH:
		CHECK(record->payload_bytes == 0);
		break;
	default:
		CHECK(record->type == SR_TAG, "type %d", record->type);
	}
}

/* Replays the good records, as after a kill.  Returns their end, or 0 if there is no segment. */
static uint64_t replay_segment(struct replay *replay, uint64_t number)
{
	char path[300];
	size_t bytes = 0;
	segment_path(replay->victim, replay->generation, number, path, sizeof(path));
	uint8_t *raw = read_file(path, &bytes);
	uint32_t seed = 0;
	uint64_t first_seq, disk_bytes;
	if (raw && bytes >= SR_SEGMENT_HEADER_BYTES)
		memcpy(&seed, raw + 124, 4);
	if (seed == 0 || sr_crc32c(0, raw, 124) != seed) { /* an unused spare, or a torn header */
		free(raw);
		return 0;
	}
	memcpy(&first_seq, raw + 40, 8);
	memcpy(&disk_bytes, raw + 72, 8);
	CHECK(first_seq == replay->seq, "%s begins with %" PRIu64 ", not %" PRIu64, path, first_seq, replay->seq);
	if (!replay->known)
		replay->bytes = disk_bytes;
	CHECK(disk_bytes == replay->bytes, "%s: header of a disk of %" PRIu64 " bytes, not %" PRIu64, path, disk_bytes,
	      replay->bytes);

	uint64_t at = SR_SEGMENT_HEADER_BYTES;
	struct logged record;
	while (at + sizeof(record) <= bytes) {
		memcpy(&record, raw + at, sizeof(record));
		uint8_t *payload = raw + at + sizeof(record);
		if (record.magic != 0x52435253 || at + sizeof(record) + record.payload_bytes > bytes ||
		    sr_crc32c(sr_crc32c(seed, &record, sizeof(record) - 4), payload, record.payload_bytes) != record.crc)
			break;
		CHECK(record.header_bytes == 64 && record.zero[0] == 0 && record.zero[1] == 0);
		CHECK(record.seq == replay->seq, "%s at %" PRIu64 ": record %" PRIu64 ", not %" PRIu64, path, at, record.seq,
		      replay->seq);
		CHECK(record.position > replay->position, "record %" PRIu64, record.seq);
		check_cut(replay, &record);
		compare_snapshots(replay);
		apply(replay, &record, payload);
		replay->position = record.position;
		replay->seq++;
		replay->records++;
		at += sizeof(record) + record.payload_bytes;
	}
	free(raw);
	return at;
}

/* The good records of each segment end where the engine reports its end. */
static void compare_ends(const struct replay *replay, const uint64_t *ends, uint64_t count)
{
	struct sr_segment_info *told = calloc(SEGMENTS_MAX, sizeof(*told));
	CHECK(told);
	size_t known = sr_log_segments(replay->victim->disk, told, SEGMENTS_MAX);
	CHECK(known >= 1 && known <= SEGMENTS_MAX);
	for (size_t i = 0; i < known; i++) {
		CHECK(told[i].number <= count, "segment %" PRIu64 " has no file", told[i].number);
		CHECK(told[i].end == ends[told[i].number], "segment %" PRIu64 " ends at %" PRIu64 ", its records at %" PRIu64,
		      told[i].number, told[i].end, ends[told[i].number]);
	}
	CHECK(told[known - 1].last_seq == replay->seq - 1 && !told[known - 1].closed);
	free(told);
}

static int is_dirty(const struct victim *victim, uint64_t chunk)
{
	return victim->dirty[SR_DIRTY_HEADER_BYTES + chunk / 8] >> (chunk % 8) & 1;
}

/* A chunk that is not marked is the same as at the start of the oldest kept segment. */
static void compare_clean_chunks(struct victim *victim, const uint8_t *applied, const uint8_t *now, uint64_t bytes)
{
	for (uint64_t at = 0; at < bytes; at += SR_CHUNK_BYTES) {
		uint64_t n = bytes - at < SR_CHUNK_BYTES ? bytes - at : SR_CHUNK_BYTES;
		if (is_dirty(victim, at / SR_CHUNK_BYTES))
			continue;
		CHECK(memcmp(applied + at, now + at, n) == 0, "chunk %" PRIu64 " changed and is not marked",
		      at / SR_CHUNK_BYTES);
	}
}

void check_victim(struct victim *victim)
{
	struct replay replay = {.victim = victim, .bytes = DISK_BYTES, .known = 1};
	int applied_known = 1;
	uint64_t *ends = calloc(SEGMENTS_MAX, sizeof(*ends));
	uint8_t *now = malloc(DISK_BYTES_MAX), *applied = calloc(1, DISK_BYTES_MAX);
	replay.image = calloc(1, DISK_BYTES_MAX);
	CHECK(ends && now && applied && replay.image);
	memcpy(replay.image, victim->initial, DISK_BYTES);
	memcpy(applied, victim->initial, DISK_BYTES);

	for (int generation = 1; generation <= victim->generation; generation++) {
		uint64_t number = 1;
		replay.generation = generation;
		replay.seq = 1;
		replay.known = replay.known && !victim->was_abandoned[generation - 1];
		for (; number < SEGMENTS_MAX; number++) {
			if (generation == victim->generation && number == victim->oldest_number) {
				memcpy(applied, replay.image, DISK_BYTES_MAX);
				applied_known = replay.known;
			}
			ends[number] = replay_segment(&replay, number);
			if (ends[number] == 0)
				break;
		}
		compare_snapshots(&replay);
		struct sr_log_info info;
		sr_log_info(victim->disk, &info);
		if (generation == victim->generation && info.state == SR_LOGGED) {
			compare_ends(&replay, ends, number - 1);
			CHECK(info.next_seq == replay.seq && info.last_position == replay.position);
		}
	}
	uint64_t bytes = sr_disk_bytes(victim->disk);
	CHECK(sr_disk_read(victim->disk, now, bytes, 0) == (int64_t)bytes);
	struct sr_log_info info;
	sr_log_info(victim->disk, &info);
	if (info.state == SR_LOGGED && replay.known) {
		CHECK(bytes == replay.bytes, "disk of %" PRIu64 " bytes, log of one of %" PRIu64, bytes, replay.bytes);
		for (uint64_t at = 0; at < bytes; at++)
			CHECK(now[at] == replay.image[at], "byte %" PRIu64 " of %s", at, victim->name);
	} else if (info.state != SR_LOGGED && applied_known) {
		compare_clean_chunks(victim, applied, now, bytes);
	}
	printf("  %s: %" PRIu64 " records, %d generations, %d snapshots, ended in state %d\n", victim->name, replay.records,
	       victim->generation, victim->snapshot_count, info.state);
	free(ends);
	free(now);
	free(applied);
	free(replay.image);
}
