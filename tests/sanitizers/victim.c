/* Creates the disks under stress with their logs and files, and injects faults. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/io.h"
#include "base/siterig.h"
#include "stress.h"
#include "layers/view.h"

enum { FDS_MAX = 1024 };
enum fd_class { FD_OTHER, FD_LOG, FD_DISK, FD_SNAPSHOT };

static _Atomic unsigned char fd_classes[FDS_MAX];

/* --- faults -------------------------------------------------------------------------------------------------- */

static int64_t torn_or(int error, int64_t bytes)
{
	return dice(2) && bytes > 1 ? 1 + (int64_t)dice((uint64_t)bytes - 1) : -error;
}

int64_t fault_hook(int op, int fd, int64_t offset, int64_t bytes, const struct iovec *iov, int iovs)
{
	(void)offset;
	(void)iovs;
	if (!is_seeded())
		seed_thread(99);
	if (dice(8) == 0)
		sched_yield();
	if (!the_round.faults_on || fd < 0 || fd >= FDS_MAX || dice(24) != 0)
		return 0;
	enum fd_class class = fd_classes[fd];
	/* A record that cannot be taken back counts after a kill.  The engine reports this, but the check would not know. */
	if (class == FD_LOG && op == SR_IO_WRITE && iov[0].iov_len >= 4 && memcmp(iov[0].iov_base, "\0\0\0", 4) == 0)
		return 0;
	if (the_round.fault == LOG_FAULT && class == FD_LOG && op == SR_IO_WRITE)
		return torn_or(dice(2) ? ENOSPC : EIO, bytes);
	if (the_round.fault == DISK_FAULT && class == FD_DISK && op == SR_IO_WRITE)
		return torn_or(dice(2) ? ENOSPC : EIO, bytes);
	if (the_round.fault == DISK_FAULT && class == FD_DISK && (op == SR_IO_READ || op == SR_IO_RESIZE))
		return -EIO;
	if (the_round.fault == ZERO_FAULT && class == FD_DISK && op == SR_IO_PUNCH && dice(32) == 0)
		return -EIO;
	if (the_round.fault == SYNC_FAULT && class != FD_OTHER && op == SR_IO_SYNC && dice(8) == 0)
		return -EIO;
	if (the_round.fault == SNAPSHOT_FAULT && class == FD_SNAPSHOT && (op == SR_IO_WRITE || op == SR_IO_READ))
		return -ENOSPC;
	return 0;
}

static int open_as(const char *path, int flags, enum fd_class class)
{
	int fd = open(path, flags | O_CLOEXEC, 0600);
	CHECK(fd >= 0 && fd < FDS_MAX, "%s: %s", path, strerror(errno));
	fd_classes[fd] = (unsigned char)class;
	return fd;
}

/* --- creating the disks -------------------------------------------------------------------------------------- */

void segment_path(const struct victim *victim, int generation, uint64_t number, char *path, size_t bytes)
{
	snprintf(path, bytes, "%s/%s.%d.%06" PRIu64 ".hrl", victim->folder, victim->name, generation, number);
}

static int file_of(const struct victim *victim, const char *suffix, uint64_t bytes, enum fd_class class)
{
	char path[300];
	snprintf(path, sizeof(path), "%s/%s.%s", victim->folder, victim->name, suffix);
	int fd = open_as(path, O_RDWR | O_CREAT | O_TRUNC, class);
	CHECK(ftruncate(fd, (off_t)bytes) == 0);
	return fd;
}

static void fill(uint8_t *data, uint64_t bytes)
{
	for (uint64_t at = 0; at < bytes; at++)
		data[at] = (uint8_t)(dice(8) ? 1 + dice(255) : 0);
}

static void add_sums(int sums, const uint8_t *data, uint64_t offset, uint64_t bytes, int times)
{
	while (bytes > 0) {
		uint64_t piece = SR_PIECE_BYTES - offset % SR_PIECE_BYTES;
		if (piece > bytes)
			piece = bytes;
		uint32_t sum = sr_crc32c(0, data, piece);
		for (int i = 0; i < times; i++)
			CHECK(write(sums, &sum, sizeof(sum)) == sizeof(sum));
		data += piece;
		offset += piece;
		bytes -= piece;
	}
}

/* Lays changes from another file over the base, and makes them in `initial` as well. */
static struct sr_layer *make_view(struct victim *victim, int base)
{
	static const struct sr_entry changes[] = {
		{.offset = 5000, .length = 65000, .payload_at = 123, .type = SR_WRITE},
		{.offset = 70000, .length = 20001, .type = SR_ZERO},
		{.offset = 300000, .length = 1, .payload_at = 7, .type = SR_WRITE},
		{.offset = 500000, .length = DISK_BYTES - 500000, .payload_at = 1000, .type = SR_WRITE},
	};
	struct sr_source sources[] = {{base, file_of(victim, "base.sums", 0, FD_OTHER), 1},
				      {file_of(victim, "other", 0, FD_OTHER), file_of(victim, "other.sums", 0, FD_OTHER), 0}};
	struct sr_faults *faults = sr_faults_new();
	struct sr_extents *map = sr_extents_new();
	uint8_t *data = malloc(DISK_BYTES);
	CHECK(data && map && faults);
	fill(data, DISK_BYTES);
	CHECK(pwrite(sources[1].fd, data, DISK_BYTES, 0) == DISK_BYTES);
	add_sums(sources[0].sums_fd, victim->initial, 0, DISK_BYTES, 2);
	CHECK(sr_extents_add_base(map, (uint64_t[]){0, DISK_BYTES}, 1) == 0);
	for (int i = 0; i < 4; i++) {
		const struct sr_entry *change = &changes[i];
		uint64_t piece = (uint64_t)lseek(sources[1].sums_fd, 0, SEEK_END) / sizeof(uint32_t);
		CHECK(sr_extents_add(map, 1, change, 1, 0, piece, -1, UINT64_MAX) == 0);
		memset(victim->initial + change->offset, 0, change->length);
		if (change->type == SR_WRITE) {
			memcpy(victim->initial + change->offset, data + change->payload_at, change->length);
			add_sums(sources[1].sums_fd, data + change->payload_at, change->offset, change->length, 1);
		}
	}
	CHECK(sr_extents_merge(map) == 0);
	struct sr_layer *view = sr_layer_view(map, sources, 2, DISK_BYTES, faults);
	sr_extents_free(map);
	sr_faults_put(faults);
	free(data);
	CHECK(view);
	return view;
}

static struct sr_layer *make_layer(struct victim *victim)
{
	int base = file_of(victim, "base", DISK_BYTES, FD_OTHER);
	fill(victim->initial, DISK_BYTES);
	CHECK(pwrite(base, victim->initial, DISK_BYTES, 0) == DISK_BYTES);
	if (!the_round.over_view) {
		fd_classes[base] = FD_DISK;
		return sr_layer_raw(base, DISK_BYTES);
	}
	struct sr_layer *lower = make_view(victim, base);
	int top = file_of(victim, "top", DISK_BYTES, FD_DISK);
	int durable = file_of(victim, "durable", SR_DURABLE_HEADER_BYTES, FD_OTHER);
	return sr_layer_overlay(lower, top, file_of(victim, "present", 0, FD_OTHER), durable, DISK_BYTES);
}

int segment_file(const struct victim *victim, int generation, uint64_t number)
{
	char path[300], old[300];
	static const uint8_t nothing[SR_SEGMENT_HEADER_BYTES];
	segment_path(victim, generation, number, path, sizeof(path));
	int fd = open_as(path, O_RDWR | O_CREAT | O_EXCL, FD_LOG);
	if (number > 1) {
		segment_path(victim, generation, number - 1, old, sizeof(old));
		uint8_t *data = malloc(SEGMENT_BYTES);
		int from = open(old, O_RDONLY | O_CLOEXEC);
		CHECK(data && from >= 0);
		ssize_t bytes = pread(from, data, SEGMENT_BYTES, 0);
		CHECK(bytes >= 0 && pwrite(fd, data, (size_t)bytes, 0) == bytes);
		close(from);
		free(data);
	}
	CHECK(pwrite(fd, nothing, sizeof(nothing), 0) == sizeof(nothing));
	return fd;
}

void start_log(struct victim *victim)
{
	uint8_t header[SR_SEGMENT_HEADER_BYTES] = "SRIGHRL";
	struct sr_log_info before;
	sr_log_info(victim->disk, &before);
	int generation = victim->generation + 1;
	uint64_t disk_bytes = sr_disk_bytes(victim->disk);
	header[8] = 1;
	header[10] = SR_SEGMENT_HEADER_BYTES;
	header[32] = (uint8_t)generation;
	memcpy(header + 72, &disk_bytes, 8);
	if (victim->dirty)
		munmap(victim->dirty, SR_DIRTY_HEADER_BYTES + 4096);
	int dirty_fd = file_of(victim, generation == 1 ? "dirty1" : "dirty2", SR_DIRTY_HEADER_BYTES + 4096, FD_OTHER);
	victim->dirty = mmap(NULL, SR_DIRTY_HEADER_BYTES + 4096, PROT_READ, MAP_SHARED, dirty_fd, 0);
	CHECK(victim->dirty != MAP_FAILED);
	struct sr_log_setup setup = {.header = header,
				     .number = 1,
				     .next_seq = 1,
				     .last_position = 0,
				     .oldest_number = 1,
				     .segment_bytes = SEGMENT_BYTES,
				     .kept_bytes_max = the_round.kept_bytes_max,
				     .abandon_when_full = the_round.abandon_when_full,
				     .fd = segment_file(victim, generation, 1),
				     .dirty_fd = dirty_fd};
	victim->was_abandoned[generation - 1] = generation > 1 && before.state != SR_LOGGED;
	CHECK(sr_log_start(victim->disk, &setup) == 0);
	victim->spares = 1;
	victim->oldest_number = 1;
	victim->generation = generation;
}

void make_victim(struct victim *victim, const char *folder, int number)
{
	memset(victim, 0, sizeof(*victim));
	snprintf(victim->folder, sizeof(victim->folder), "%s", folder);
	snprintf(victim->name, sizeof(victim->name), "disk%d", number);
	victim->initial = calloc(1, DISK_BYTES_MAX);
	CHECK(victim->initial);
	victim->layer = make_layer(victim);
	CHECK(victim->layer);
	victim->disk = sr_disk_new(victim->layer, the_round.positions, the_round.event_fd);
	CHECK(victim->disk);
	if (the_round.xts) { /* the bytes of the layer, which may be any, are encrypted ones */
		sr_disk_set_cipher(victim->disk, the_round.xts);
		CHECK(sr_xts_decrypt(the_round.xts, victim->initial, DISK_BYTES, 0) == 0);
	}
	sr_disk_allow_growth(victim->disk, 512);
}

int snapshot_file(const struct victim *victim)
{
	return file_of(victim, "snapshot", 0, FD_SNAPSHOT);
}

void free_victim(struct victim *victim)
{
	char command[300];
	sr_layer_free(victim->layer);
	munmap(victim->dirty, SR_DIRTY_HEADER_BYTES + 4096);
	for (int i = 0; i < victim->snapshot_count; i++)
		free(victim->snapshots[i].data);
	free(victim->initial);
	snprintf(command, sizeof(command), "rm -f %s/%s.*", victim->folder, victim->name);
	CHECK(system(command) == 0);
}
