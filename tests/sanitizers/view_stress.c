/* Several threads read a view while its changes are merged into its base in steps; and the readers of maps and segments
 * get damaged bytes. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common.h"
#include "index/extent_map.h"
#include "layers/base_update.h"
#include "base/record.h"
#include "base/siterig.h"
#include "layers/view.h"

enum { BLOCKS = 64, DISK_BYTES = BLOCKS * SR_BLOCK_BYTES - 512, CHANGES_MAX = 80, LONGEST_BYTES = 20000, READERS = 3 };
enum { VOLUME = 1, SOURCES = 2, GAP_BYTES = 64, PIECES_MAX = CHANGES_MAX * (LONGEST_BYTES / SR_PIECE_BYTES + 2) };

static struct {
	struct sr_entry changes[CHANGES_MAX];
	size_t count;
	uint8_t states[CHANGES_MAX + 1][BLOCKS * SR_BLOCK_BYTES]; /* the disk after each number of changes */
	uint32_t sums[PIECES_MAX];
	size_t sum_count;
	uint64_t volume_bytes;
	int base, base_sums, volume, volume_sums;
	int damaged;
	struct sr_layer *latest;
	int over;
} test;

static void fill_random(uint8_t *data, size_t bytes)
{
	const uint64_t start = dice(UINT32_MAX);
	for (size_t i = 0; i < bytes; i++)
		data[i] = (uint8_t)((start + i) * 0x9E3779B97F4A7C15u >> 40);
}

static void write_file(int fd, const void *data, size_t bytes, uint64_t at)
{
	CHECK(pwrite(fd, data, bytes, (off_t)at) == (ssize_t)bytes);
}

static int new_file(const char *folder, const char *name)
{
	char path[4096];
	snprintf(path, sizeof(path), "%s/%s", folder, name);
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	CHECK(fd >= 0, "%s", path);
	return fd;
}

/* --- a disk and its changes ---------------------------------------------------------------------------------- */

static void make_base(const char *folder)
{
	test.base = new_file(folder, "base");
	test.base_sums = new_file(folder, "base.sums");
	memset(test.states[0], 0, sizeof(test.states[0]));
	for (int i = 0; i < BLOCKS; i++)
		if (dice(4))
			fill_random(test.states[0] + i * SR_BLOCK_BYTES, SR_BLOCK_BYTES);
	memset(test.states[0] + DISK_BYTES, 0, sizeof(test.states[0]) - DISK_BYTES);
	write_file(test.base, test.states[0], DISK_BYTES, 0);
	for (uint64_t i = 0; i < BLOCKS; i++) {
		uint32_t sum = sr_crc32c(0, test.states[0] + i * SR_BLOCK_BYTES, SR_BLOCK_BYTES);
		write_file(test.base_sums, (uint32_t[]){sum, sum}, 8, 8 * i);
	}
}

static void make_change(size_t number)
{
	struct sr_entry *entry = &test.changes[number];
	uint8_t data[LONGEST_BYTES] = {0};
	uint64_t unit = dice(2) ? SR_BLOCK_BYTES : 1;
	uint64_t offset = dice(DISK_BYTES) / unit * unit, bytes = dice(LONGEST_BYTES / unit) * unit + unit;

	if (bytes > LONGEST_BYTES)
		bytes = LONGEST_BYTES;
	if (bytes > DISK_BYTES - offset)
		bytes = DISK_BYTES - offset;
	*entry = (struct sr_entry){.position = number + 1, .offset = offset, .length = bytes, .type = SR_ZERO};
	if (dice(4)) {
		entry->type = SR_WRITE;
		entry->payload_at = test.volume_bytes + GAP_BYTES;
		entry->first_piece = (uint32_t)test.sum_count;
		fill_random(data, bytes);
		write_file(test.volume, data, bytes, entry->payload_at);
		test.volume_bytes = entry->payload_at + bytes;
		for (uint64_t at = 0; at < bytes;) {
			uint64_t piece = SR_PIECE_BYTES - (offset + at) % SR_PIECE_BYTES;
			if (piece > bytes - at)
				piece = bytes - at;
			test.sums[test.sum_count++] = sr_crc32c(0, data + at, piece);
			at += piece;
		}
	}
	memcpy(test.states[number + 1], test.states[number], sizeof(test.states[0]));
	memcpy(test.states[number + 1] + offset, data, bytes);
}

/* Returns a map of the changes after `after` up to `upto`, over the base. */
static struct sr_extents *map_of(uint64_t after, uint64_t upto, int with_base)
{
	struct sr_extents *map = sr_extents_new();
	CHECK(map);
	size_t cut = dice(test.count + 1);
	CHECK(sr_extents_add(map, VOLUME, test.changes, cut, 0, 0, (int64_t)after, upto) == 0);
	if (dice(2))
		CHECK(sr_extents_merge(map) == 0);
	CHECK(sr_extents_add(map, VOLUME, test.changes + cut, test.count - cut, 0, 0, (int64_t)after, upto) == 0);
	if (with_base)
		CHECK(sr_extents_add_base(map, (uint64_t[]){0, DISK_BYTES}, 1) == 0);
	CHECK(sr_extents_merge(map) == 0);
	return map;
}

static struct sr_layer *view_of(struct sr_extents *map, struct sr_faults *faults)
{
	const struct sr_source sources[SOURCES] = {
		{dup(test.base), dup(test.base_sums), 1},
		{dup(test.volume), dup(test.volume_sums), 0},
	};
	struct sr_layer *view = sr_layer_view(map, sources, SOURCES, DISK_BYTES, faults);
	CHECK(view, "errno %d", errno);
	return view;
}

/* --- readers during a compaction ----------------------------------------------------------------------------- */

static void *reader(void *number)
{
	uint8_t data[8 * SR_BLOCK_BYTES];
	seed_thread((uint64_t)(uintptr_t)number);
	while (!__atomic_load_n(&test.over, __ATOMIC_ACQUIRE)) {
		uint64_t unit = dice(3) ? SR_BLOCK_BYTES : 1;
		uint64_t offset = dice(DISK_BYTES) / unit * unit, bytes = dice(sizeof(data) / unit) * unit + unit;
		if (bytes > DISK_BYTES - offset)
			bytes = DISK_BYTES - offset;
		int rc = sr_layer_read(test.latest, data, bytes, offset);
		if (rc == -EIO && test.damaged)
			continue;
		CHECK(rc == 0, "%d at %" PRIu64 "+%" PRIu64, rc, offset, bytes);
		CHECK(memcmp(data, test.states[test.count] + offset, bytes) == 0, "%" PRIu64 "+%" PRIu64, offset, bytes);
	}
	return NULL;
}

struct copying {
	struct sr_layer *from;
	const uint64_t *ranges;
	size_t count;
	int rc;
};

static void *copy_some(void *given)
{
	struct copying *copying = given;
	copying->rc = sr_base_copy_blocks(copying->from, test.base, copying->ranges, copying->count);
	return NULL;
}

/* Copies with two threads. */
static int copy(struct sr_layer *from, const uint64_t *ranges, size_t count)
{
	size_t half = dice(count + 1);
	struct copying first = {from, ranges, half, 0}, second = {from, ranges + 2 * half, count - half, 0};
	pthread_t other;
	CHECK(pthread_create(&other, NULL, copy_some, &first) == 0);
	copy_some(&second);
	pthread_join(other, NULL);
	return first.rc ? first.rc : second.rc;
}

/* Compacts some changes.  Returns 1, or 0 if the data that it reads is damaged. */
static int compact(uint64_t from, uint64_t to)
{
	uint64_t ranges[2 * BLOCKS + 2];
	struct sr_bad_block bad[1];
	struct sr_extents *changed = map_of(from, to, 0), *map = map_of(from, to, 1);
	struct sr_faults *faults = sr_faults_new();
	struct sr_layer *target = view_of(map, faults);
	uint64_t *all = malloc((2 * sr_extents_count(changed) + 2) * sizeof(*all));

	CHECK(faults && all);
	int64_t count = sr_extents_ranges(changed, 1, SR_BLOCK_BYTES, all);
	CHECK(count >= 0 && count <= BLOCKS);
	memcpy(ranges, all, 2 * (size_t)count * sizeof(*all));
	int rc = sr_base_prepare_checksums(target, test.base_sums, ranges, (size_t)count);
	CHECK(rc == 0 || (rc == -EIO && test.damaged), "%d", rc);
	if (rc == 0) {
		CHECK(sr_base_check(test.base, test.base_sums, ranges, (size_t)count, bad, 1) == 0);
		rc = copy(target, ranges, (size_t)count);
		CHECK(rc == 0 || (rc == -EIO && test.damaged), "%d", rc);
	}
	if (rc == 0) {
		CHECK(sr_base_check(test.base, test.base_sums, ranges, (size_t)count, bad, 1) == 0);
		CHECK(sr_base_commit_checksums(test.base_sums, ranges, (size_t)count) == 0);
		CHECK(sr_base_check(test.base, test.base_sums, ranges, (size_t)count, bad, 1) == 0);
	}
	free(all);
	sr_layer_free(target);
	sr_faults_put(faults);
	sr_extents_free(changed);
	sr_extents_free(map);
	return rc == 0;
}

static void compact_all(void)
{
	static uint8_t base[sizeof(test.states[0])];
	uint64_t at = 0;
	while (at < test.count) {
		uint64_t next = at + 1 + dice(8);
		if (next > test.count)
			next = test.count;
		if (!compact(at, next))
			return;
		at = next;
	}
	CHECK(pread(test.base, base, sizeof(base), 0) == DISK_BYTES);
	CHECK(memcmp(base, test.states[test.count], DISK_BYTES) == 0);
}

/* --- damaged bytes ------------------------------------------------------------------------------------------- */

static void damage(uint8_t *data, size_t bytes)
{
	for (uint64_t i = dice(4); bytes && i < 4; i++)
		data[dice(bytes)] = (uint8_t)(dice(2) ? dice(256) : 0xffu << dice(8));
}

/* A damaged map that is accepted is a valid map: it can be merged, and read through a view. */
static void load_damaged(void)
{
	struct sr_extents *map = map_of(0, test.count, 0), *loaded = sr_extents_new();
	size_t count = sr_extents_count(map);
	struct sr_extent_row *rows = malloc((count + 1) * sizeof(*rows));
	static uint8_t data[DISK_BYTES + 5000];

	CHECK(rows && loaded);
	count = sr_extents_dump(map, rows);
	damage((uint8_t *)rows, count * sizeof(*rows));
	if (sr_extents_load(loaded, rows, count, SOURCES) == (int64_t)count) {
		struct sr_faults *faults = sr_faults_new();
		CHECK(sr_extents_add(loaded, VOLUME, test.changes, test.count, 0, 0, (int64_t)dice(test.count), UINT64_MAX) == 0);
		CHECK(sr_extents_add_base(loaded, (uint64_t[]){0, DISK_BYTES}, 1) == 0);
		CHECK(sr_extents_merge(loaded) == 0);
		struct sr_layer *view = view_of(loaded, faults);
		for (uint64_t i = 0; i < 20; i++)
			(void)sr_layer_read(view, data, 1 + dice(sizeof(data)), dice(DISK_BYTES));
		for (int64_t at = 0; at >= 0 && at < DISK_BYTES;)
			at = sr_layer_seek(view, (uint64_t)at, dice(2) ? SEEK_HOLE : SEEK_DATA) + 1;
		sr_layer_free(view);
		sr_faults_put(faults);
	}
	free(rows);
	sr_extents_free(map);
	sr_extents_free(loaded);
}

static size_t put_record(uint8_t *at, uint32_t seed, uint64_t seq)
{
	struct record record = {
		.magic = RECORD_MAGIC,
		.type = (uint8_t)(1 + dice(6)),
		.header_bytes = sizeof(record),
		.seq = seq,
		.position = seq / 2,
		.offset = dice(DISK_BYTES / 2),
		.length = dice(9000),
	};
	uint8_t *payload = at + sizeof(record);
	if (record.type == SR_WRITE || record.type == SR_TAG)
		record.payload_bytes = (uint32_t)record.length;
	if (record.type == SR_RESIZE)
		record.length = DISK_BYTES + seq * 512;
	fill_random(payload, record.payload_bytes);
	if (dice(20) == 0)
		damage((uint8_t *)&record + 4, 52);
	if (record.payload_bytes > 9000)
		record.payload_bytes = 9000;
	record.crc = sr_crc32c(sr_crc32c(seed, &record, sizeof(record) - 4), payload, record.payload_bytes);
	memcpy(at, &record, sizeof(record));
	return sizeof(record) + record.payload_bytes;
}

static void index_damaged(void)
{
	enum { RECORDS = 12 };
	uint8_t *segment = calloc(1, SR_SEGMENT_HEADER_BYTES + RECORDS * (sizeof(struct record) + 9000));
	size_t bytes = SR_SEGMENT_HEADER_BYTES;
	struct sr_index index;

	CHECK(segment);
	for (uint64_t seq = 1; seq <= RECORDS; seq++)
		bytes += put_record(segment + bytes, 7, seq);
	if (dice(2))
		damage(segment, bytes);
	bytes -= dice(3) ? 0 : dice(bytes);
	uint8_t *tight = malloc(bytes ? bytes : 1); /* so that the sanitizer finds an access after the end */
	CHECK(tight);
	memcpy(tight, segment, bytes);
	CHECK(sr_index_segment(&index, tight, bytes, 7, 1, DISK_BYTES) == 0);
	CHECK(index.records <= RECORDS && index.entry_count <= index.records);
	CHECK(!index.is_bad || (index.records < RECORDS && index.bad_at < bytes));
	struct sr_extents *map = sr_extents_new();
	(void)sr_extents_add(map, VOLUME, index.entries, index.entry_count, 0, 0, -1, UINT64_MAX);
	CHECK(sr_extents_merge(map) == 0);
	sr_extents_free(map);
	sr_index_free(&index);
	free(tight);
	free(segment);
}

static void run_round(const char *folder)
{
	pthread_t readers[READERS];
	struct sr_fault kept[SR_FAULTS_KEPT];

	seed_thread(0);
	test.count = 1 + dice(CHANGES_MAX);
	test.sum_count = test.volume_bytes = 0;
	test.damaged = test.over = 0;
	make_base(folder);
	test.volume = new_file(folder, "volume");
	test.volume_sums = new_file(folder, "volume.sums");
	for (size_t i = 0; i < test.count; i++)
		make_change(i);
	write_file(test.volume_sums, test.sums, test.sum_count * sizeof(test.sums[0]), 0);
	if (test.volume_bytes && dice(3) == 0) {
		test.damaged = 1;
		write_file(test.volume, "?", 1, dice(test.volume_bytes));
	}
	struct sr_faults *faults = sr_faults_new();
	struct sr_extents *map = map_of(0, test.count, 1);
	test.latest = view_of(map, faults);
	sr_extents_free(map);
	for (int i = 0; i < READERS; i++)
		CHECK(pthread_create(&readers[i], NULL, reader, (void *)(uintptr_t)(i + 1)) == 0);
	if (test.damaged && dice(2)) /* while the file is mapped for views that are read */
		CHECK(ftruncate(test.volume_sums, (off_t)dice(2)) == 0);
	compact_all();
	for (int i = 0; i < 20; i++) {
		load_damaged();
		index_damaged();
	}
	__atomic_store_n(&test.over, 1, __ATOMIC_RELEASE);
	for (int i = 0; i < READERS; i++)
		pthread_join(readers[i], NULL);
	uint64_t seen = sr_faults_seen(faults, kept);
	CHECK(test.damaged || seen == 0);
	sr_layer_free(test.latest);
	sr_faults_put(faults);
	close(test.base);
	close(test.base_sums);
	close(test.volume);
	close(test.volume_sums);
	printf("round %" PRIu64 ": %zu changes, %" PRIu64 " reads refused%s\n", round_number, test.count, seen,
	       test.damaged ? ", a payload is damaged" : "");
}

int main(int argc, char **argv)
{
	return run_rounds(argc, argv, run_round);
}
