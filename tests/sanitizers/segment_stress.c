/* Segments with encrypted payloads, good and damaged, in threads that share a key: the bytes come back as they were, and damage
 * is never more than a record that is not good.
 *
 * `segment_stress FOLDER SECONDS SEED` runs rounds until the time is over.  The exit status is 0, or 1 with an error message;
 * a build with a sanitizer adds its reports.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/record.h"
#include "base/siterig.h"
#include "base/xts.h"
#include "common.h"
#include "index/encrypted_segment.h"

enum { THREADS = 4, RECORDS_MAX = 8, PAYLOAD_MAX = 9216, SEGMENT_MAX = 128 + RECORDS_MAX * (64 + PAYLOAD_MAX), ROUND_MS = 300 };

static struct sr_xts *keys[2]; /* the same key; the second is used without vector instructions */
static _Thread_local struct sr_xts *key;
static _Atomic uint64_t good, damaged, refused;

/* A segment of format 1, and whether all of its records begin and end between lines. */
struct made {
	size_t bytes;
	int is_aligned;
	uint8_t at[SEGMENT_MAX];
};

static uint32_t crc_of(uint32_t seed, const struct record *record, const uint8_t *payload)
{
	return sr_crc32c(sr_crc32c(seed, record, offsetof(struct record, crc)), payload, record->payload_bytes);
}

static uint32_t seal_header(uint8_t *segment, int version)
{
	struct segment_header header;

	memcpy(&header, segment, sizeof(header));
	header.version = (uint16_t)version;
	memset(header.key_id, version == 2 ? 7 : 0, sizeof(header.key_id));
	header.crc = sr_crc32c(0, &header, offsetof(struct segment_header, crc));
	memcpy(segment, &header, sizeof(header));
	return header.crc;
}

/* Give the records of a segment the checksums for a seed, as far as they can be followed. */
static void seal_records(uint8_t *segment, size_t bytes, uint32_t seed)
{
	struct record record;

	for (size_t at = SR_SEGMENT_HEADER_BYTES; bytes - at >= sizeof(record); at += sizeof(record) + record.payload_bytes) {
		memcpy(&record, segment + at, sizeof(record));
		if (record.payload_bytes > bytes - at - sizeof(record))
			return;
		record.crc = crc_of(seed, &record, segment + at + sizeof(record));
		memcpy(segment + at, &record, sizeof(record));
	}
}

static void fill(uint8_t *payload, uint32_t bytes)
{
	for (uint32_t i = 0; i < bytes; i++)
		payload[i] = (uint8_t)dice(256);
	if (bytes && dice(2)) { /* lines, and perhaps blocks, of zeros */
		uint32_t from = (uint32_t)dice(bytes);
		memset(payload + from, 0, 1 + dice(bytes - from));
	}
}

static void make(struct made *segment)
{
	struct segment_header header = {.header_bytes = SR_SEGMENT_HEADER_BYTES, .first_seq = 1, .generation = dice(5)};
	int records = (int)dice(RECORDS_MAX + 1);

	memcpy(header.magic, "SRIGHRL", 8);
	memcpy(segment->at, &header, sizeof(header));
	segment->bytes = sizeof(header);
	segment->is_aligned = 1;
	for (int i = 0; i < records; i++) {
		struct record record = {.magic = RECORD_MAGIC, .header_bytes = SR_RECORD_HEADER_BYTES, .seq = (uint64_t)i + 1};
		uint8_t *payload = segment->at + segment->bytes + sizeof(record);

		record.type = (uint8_t)(1 + dice(6));
		record.offset = 16 * dice(4096) + (dice(16) ? 0 : dice(16));
		record.length = 16 * dice(PAYLOAD_MAX / 16) + (dice(16) ? 0 : dice(16));
		record.payload_bytes = record.type == SR_WRITE || record.type == SR_TAG ? (uint32_t)record.length : 0;
		if (record.type == SR_WRITE && record.payload_bytes && (record.offset | record.payload_bytes) % SR_XTS_LINE_BYTES)
			segment->is_aligned = 0;
		fill(payload, record.payload_bytes);
		memcpy(segment->at + segment->bytes, &record, sizeof(record));
		segment->bytes += sizeof(record) + record.payload_bytes;
	}
	seal_records(segment->at, segment->bytes, seal_header(segment->at, 1));
}

/* A copy in memory of exactly that size. */
static uint8_t *copy_of(const uint8_t *bytes, size_t count)
{
	uint8_t *copy = malloc(count ? count : 1);

	CHECK(copy != NULL);
	memcpy(copy, bytes, count);
	return copy;
}

/* Damage an encrypted segment: fields and bytes change, it is cut, and its checksums are perhaps corrected. Returns its new
 * length; the records before `*first` are as they were. */
static size_t damage(uint8_t *segment, size_t bytes, size_t *first)
{
	*first = bytes;
	for (uint64_t changes = dice(3); changes > 0; changes--) {
		size_t at = dice(bytes), width = 1 + dice(8);

		for (size_t i = at; i < at + width && i < bytes; i++)
			segment[i] = dice(4) ? (uint8_t)dice(256) : (uint8_t)(dice(2) ? 255 : 0);
		*first = at < *first ? at : *first;
	}
	if (dice(3) == 0) {
		bytes = dice(bytes + 1);
		*first = bytes < *first ? bytes : *first;
	}
	if (dice(2) && bytes >= SR_SEGMENT_HEADER_BYTES)
		seal_records(segment, bytes, seal_header(segment, 2));
	return bytes;
}

/* The number of bytes in whole records that end at or before `upto`. */
static size_t whole_records(const uint8_t *segment, size_t bytes, size_t upto)
{
	struct record record;
	size_t at = SR_SEGMENT_HEADER_BYTES;

	while (bytes - at >= sizeof(record)) {
		memcpy(&record, segment + at, sizeof(record));
		if (at + sizeof(record) + record.payload_bytes > upto)
			break;
		at += sizeof(record) + record.payload_bytes;
	}
	return at;
}

static void check_damaged(const struct made *plain, const uint8_t *encrypted)
{
	size_t first;
	uint8_t *bad = copy_of(encrypted, plain->bytes);
	size_t bytes = damage(bad, plain->bytes, &first);
	uint8_t *copy = copy_of(bad, bytes);
	int64_t end = sr_decrypt_segment(key, copy, bytes);

	if (end < 0) {
		CHECK(end == -EINVAL && first < SR_SEGMENT_HEADER_BYTES, "it returned %" PRId64 " for %zu bytes", end, bytes);
		atomic_fetch_add(&refused, 1);
	} else {
		CHECK((size_t)end <= bytes && end >= SR_SEGMENT_HEADER_BYTES);
		CHECK(memcmp(copy + end, bad + end, bytes - (size_t)end) == 0, "bytes after the last good record changed");
		if (first >= SR_SEGMENT_HEADER_BYTES) {
			size_t same = whole_records(plain->at, plain->bytes, first);
			CHECK((size_t)end >= same && memcmp(copy, plain->at, same) == 0, "a record before the damage differs");
		}
		atomic_fetch_add(&damaged, 1);
	}
	free(copy);
	free(bad);
}

static void check_one(void)
{
	static _Thread_local struct made plain;

	make(&plain);
	uint8_t *copy = copy_of(plain.at, plain.bytes);
	int rc = sr_encrypt_segment(key, copy, plain.bytes);
	CHECK(rc == (plain.is_aligned ? 0 : -EINVAL), "it returned %d", rc);
	if (rc == 0) {
		seal_records(copy, plain.bytes, seal_header(copy, 2));
		uint8_t *again = copy_of(copy, plain.bytes);
		CHECK(sr_decrypt_segment(key, again, plain.bytes) == (int64_t)plain.bytes);
		CHECK(memcmp(again, plain.at, plain.bytes) == 0, "other bytes came back");
		free(again);
		atomic_fetch_add(&good, 1);
		check_damaged(&plain, copy);
	}
	free(copy);
	/* what a damaged part of another program may be */
	size_t bytes = dice(plain.bytes + 1);
	copy = copy_of(plain.at, bytes);
	for (uint64_t changes = dice(4); changes > 0 && bytes; changes--)
		copy[dice(bytes)] = (uint8_t)dice(256);
	rc = sr_encrypt_segment(key, copy, bytes);
	CHECK(rc == 0 || rc == -EINVAL, "it returned %d", rc);
	free(copy);
}

static void *work(void *number)
{
	uint64_t end_ms = now_ms() + ROUND_MS;

	seed_thread((uint64_t)(uintptr_t)number);
	key = keys[(uintptr_t)number % 2];
	while (now_ms() < end_ms)
		check_one();
	return NULL;
}

static void run_round(const char *folder)
{
	pthread_t threads[THREADS];
	uint8_t secret[SR_XTS_KEY_BYTES];

	(void)folder;
	seed_thread(THREADS);
	for (size_t i = 0; i < sizeof(secret); i++)
		secret[i] = (uint8_t)dice(256);
	for (int i = 0; i < 2; i++) {
		keys[i] = sr_xts_new(secret);
		CHECK(keys[i] != NULL);
	}
	CHECK(sr_xts_use_vector(keys[1], 0) == 0);
	for (uintptr_t i = 0; i < THREADS; i++)
		CHECK(pthread_create(&threads[i], NULL, work, (void *)i) == 0);
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	for (int i = 0; i < 2; i++)
		sr_xts_put(keys[i]);
	printf("round %" PRIu64 ": %" PRIu64 " good segments, %" PRIu64 " damaged, %" PRIu64 " refused\n", round_number,
	       atomic_load(&good), atomic_load(&damaged), atomic_load(&refused));
}

int main(int argc, char **argv)
{
	return run_rounds(argc, argv, run_round);
}
