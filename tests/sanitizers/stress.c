/* Disks under stress: writers, readers, flushers, tags, snapshots, resizes, a keeper of segments, and faults, all at once.
 *
 * `stress FOLDER SECONDS SEED`: rounds of two disks with one counter of positions, until the time is over.  A round's
 * choices (layers, limits, faults) come from the seed and the round's number; how the threads meet does not.  At the end of a
 * round check.c replays the logs.  Exit status 0, or 1 and what is wrong; built with a sanitizer, its reports.
 */
#define _GNU_SOURCE
#include "stress.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "io.h"

enum { VICTIMS = 2, FDS_MAX = 1024, HANDLES = 8, STUCK_S = 300 };
enum fd_class { FD_OTHER, FD_LOG, FD_DISK, FD_SNAPSHOT };
enum fault { NO_FAULT, LOG_FAULT, DISK_FAULT, SYNC_FAULT, SNAPSHOT_FAULT, FAULTS };
static const char *const fault_names[] = {"none", "log", "disk", "sync", "snapshot"};

static struct {
	struct victim victims[VICTIMS];
	uint64_t *positions;
	int event_fd;
	enum fault fault;
	int over_extents; /* the disks are tops over extents; else raw */
	int full_gives_up;
	uint64_t kept_bytes_max, snapshot_bytes_max;
	_Atomic int stop, stop_requests, faults_on;
	_Atomic uint64_t done;
} round_;

static _Atomic unsigned char fd_classes[FDS_MAX];
static _Thread_local uint64_t rng;
static uint64_t seed_given, round_number;

_Noreturn void stress_failed(const char *file, int line, const char *what, const char *format, ...)
{
	va_list args;
	fprintf(stderr, "%s:%d: not so: %s:", file, line, what);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fprintf(stderr, "\nround %" PRIu64 " of seed %" PRIu64 "\n", round_number, seed_given);
	_exit(1);
}

static uint64_t dice(uint64_t sides)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return (rng * 0x2545F4914F6CDD1Du >> 33) % sides;
}

static void seed_thread(uint64_t number)
{
	rng = (seed_given + 1) * 0x9E3779B97F4A7C15u + round_number * 0xD1B54A32D192ED03u + number * 0x8CB92BA72F3D8DD7u;
	rng |= 1;
	for (int i = 0; i < 8; i++)
		dice(2);
}

static uint64_t now_ms(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* --- faults -------------------------------------------------------------------------------------------------- */

static int64_t torn_or(int error, int64_t bytes)
{
	return dice(2) && bytes > 1 ? 1 + (int64_t)dice((uint64_t)bytes - 1) : -error;
}

/* Also lets the threads meet in more ways than they would by themselves. */
static int64_t hook(int op, int fd, int64_t offset, int64_t bytes, const struct iovec *iov, int iovs)
{
	(void)offset;
	(void)iovs;
	if (rng == 0)
		seed_thread(99);
	if (dice(8) == 0)
		sched_yield();
	if (!round_.faults_on || fd < 0 || fd >= FDS_MAX || dice(24) != 0)
		return 0;
	enum fd_class class = fd_classes[fd];
	/* If a record cannot be taken back, a kill makes it count: the engine says so, and the check could not tell. */
	if (class == FD_LOG && op == SR_IO_WRITE && iov[0].iov_len >= 4 && memcmp(iov[0].iov_base, "\0\0\0", 4) == 0)
		return 0;
	if (round_.fault == LOG_FAULT && class == FD_LOG && op == SR_IO_WRITE)
		return torn_or(dice(2) ? ENOSPC : EIO, bytes);
	if (round_.fault == DISK_FAULT && class == FD_DISK && op == SR_IO_WRITE)
		return torn_or(dice(2) ? ENOSPC : EIO, bytes);
	if (round_.fault == DISK_FAULT && class == FD_DISK && (op == SR_IO_READ || op == SR_IO_RESIZE))
		return -EIO;
	if (round_.fault == DISK_FAULT && class == FD_DISK && op == SR_IO_PUNCH && dice(32) == 0)
		return -EIO;
	if (round_.fault == SYNC_FAULT && class != FD_OTHER && op == SR_IO_SYNC && dice(8) == 0)
		return -EIO;
	if (round_.fault == SNAPSHOT_FAULT && class == FD_SNAPSHOT && (op == SR_IO_WRITE || op == SR_IO_READ))
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

/* --- making the disks ---------------------------------------------------------------------------------------- */

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

static struct sr_layer *make_layer(struct victim *victim)
{
	int base = file_of(victim, "base", DISK_BYTES, FD_OTHER);
	fill(victim->initial, DISK_BYTES);
	CHECK(pwrite(base, victim->initial, DISK_BYTES, 0) == DISK_BYTES);
	if (!round_.over_extents) {
		fd_classes[base] = FD_DISK;
		return sr_layer_raw(base, DISK_BYTES);
	}
	int other = file_of(victim, "other", DISK_BYTES, FD_OTHER);
	uint8_t *data = malloc(DISK_BYTES);
	CHECK(data);
	fill(data, DISK_BYTES);
	CHECK(pwrite(other, data, DISK_BYTES, 0) == DISK_BYTES);
	struct sr_extent extents[] = {{5000, 70000, 123, 0}, {70000, 90001, 0, SR_ZEROS}, {300000, 300001, 7, 0},
				      {500000, DISK_BYTES, 1000, 0}};
	for (int i = 0; i < 4; i++)
		for (uint64_t at = extents[i].start; at < extents[i].end; at++)
			victim->initial[at] = extents[i].source == SR_ZEROS ? 0 : data[extents[i].source_offset + at - extents[i].start];
	free(data);
	struct sr_layer *lower = sr_layer_extents(sr_layer_raw(base, DISK_BYTES), extents, 4, &other, 1, DISK_BYTES);
	CHECK(lower);
	int top = file_of(victim, "top", DISK_BYTES, FD_DISK);
	return sr_layer_top(lower, top, file_of(victim, "present", 0, FD_OTHER), DISK_BYTES);
}

/* The files of a recycled segment hold old bytes behind their header; here: records of the segment before. */
static int segment_file(const struct victim *victim, int generation, uint64_t number)
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

static void start_log(struct victim *victim)
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
				     .kept_bytes_max = round_.kept_bytes_max,
				     .full_gives_up = round_.full_gives_up,
				     .fd = segment_file(victim, generation, 1),
				     .dirty_fd = dirty_fd};
	victim->gave_up[generation - 1] = generation > 1 && before.state != SR_LOGGED;
	CHECK(sr_log_start(victim->disk, &setup) == 0);
	victim->spares = 1;
	victim->oldest_number = 1;
	victim->generation = generation;
}

static void make_victim(struct victim *victim, const char *folder, int number)
{
	memset(victim, 0, sizeof(*victim));
	snprintf(victim->folder, sizeof(victim->folder), "%s", folder);
	snprintf(victim->name, sizeof(victim->name), "disk%d", number);
	victim->initial = calloc(1, DISK_BYTES_MAX);
	CHECK(victim->initial);
	victim->layer = make_layer(victim);
	CHECK(victim->layer);
	victim->disk = sr_disk_new(victim->layer, round_.positions, round_.event_fd);
	CHECK(victim->disk);
}

/* --- the threads --------------------------------------------------------------------------------------------- */

static struct victim *some_victim(void)
{
	return &round_.victims[dice(VICTIMS)];
}

/* Results that a fault, or the log's policy, explains; anything else is wrong. */
static void expect(int64_t result, int64_t wanted, const char *what)
{
	atomic_fetch_add(&round_.done, 1);
	if (result == wanted)
		return;
	CHECK(round_.fault != NO_FAULT, "%s returned %" PRId64 ", not %" PRId64, what, result, wanted);
	CHECK(result == -ENOSPC || result == -EIO || (result > 0 && result < wanted), "%s returned %" PRId64, what, result);
}

static int64_t open_handle(struct victim *victim, int kind)
{
	static const uint8_t footer[512] = "conectix";
	int64_t handle = sr_handle_open(victim->disk, kind, kind == SR_HANDLE_DISK, kind == SR_HANDLE_VHD ? footer : NULL, -1, 0);
	CHECK(handle > 0);
	return handle;
}

static void change(uint64_t handle, uint8_t *buf, uint64_t size)
{
	uint64_t offset = dice(size), bytes = 1 + dice(dice(4) ? 9000 : IO_BYTES_MAX);
	if (dice(2)) {
		offset = offset / 4096 * 4096;
		bytes = (bytes + 4095) / 4096 * 4096;
	}
	if (bytes > size - offset)
		bytes = size - offset;
	if (bytes > IO_BYTES_MAX)
		bytes = IO_BYTES_MAX;
	switch (dice(8)) {
	case 0:
		expect(sr_handle_fallocate(handle, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, bytes), 0, "discard");
		break;
	case 1:
		expect(sr_handle_fallocate(handle, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, bytes), 0, "zero");
		break;
	default:
		memset(buf, (int)dice(256), bytes);
		memcpy(buf, &rng, bytes < 8 ? bytes : 8);
		expect(sr_handle_write(handle, buf, bytes, offset), (int64_t)bytes, "write");
	}
}

static void *write_much(void *number)
{
	seed_thread((uint64_t)(uintptr_t)number);
	uint8_t *buf = malloc(IO_BYTES_MAX);
	uint64_t handles[VICTIMS];
	CHECK(buf);
	for (int i = 0; i < VICTIMS; i++)
		handles[i] = (uint64_t)open_handle(&round_.victims[i], SR_HANDLE_DISK);
	while (!round_.stop) {
		uint64_t which = dice(VICTIMS);
		change(handles[which], buf, sr_disk_bytes(round_.victims[which].disk));
		if (dice(16) == 0)
			expect(sr_handle_flush(handles[which]), 0, "flush");
	}
	for (int i = 0; i < VICTIMS; i++)
		sr_handle_close(handles[i]);
	free(buf);
	return NULL;
}

/* Handles that come and go; a read of a closed one is refused, and of a disk gives what it asks for. */
static void *read_much(void *number)
{
	seed_thread((uint64_t)(uintptr_t)number);
	uint8_t *buf = malloc(IO_BYTES_MAX);
	CHECK(buf);
	while (!round_.stop) {
		struct victim *victim = some_victim();
		int kind = (int)dice(3);
		uint64_t handle = (uint64_t)open_handle(victim, kind);
		for (int i = 0; i < 20; i++) {
			uint64_t size = sr_disk_bytes(victim->disk), offset = dice(size + 600), bytes = dice(IO_BYTES_MAX);
			int64_t done = sr_handle_read(handle, buf, bytes, offset);
			int may_fail = kind == SR_HANDLE_SNAPSHOT ? done == -EIO : 0;
			CHECK(done >= 0 || may_fail || round_.fault != NO_FAULT, "read returned %" PRId64, done);
			int64_t found = sr_handle_seek(handle, offset, dice(2) ? SEEK_DATA : SEEK_HOLE);
			CHECK(found >= (int64_t)offset || found == -ENXIO || found == -EOPNOTSUPP, "seek returned %" PRId64, found);
		}
		sr_handle_close(handle);
		CHECK(sr_handle_read(handle, buf, 1, 0) == -EBADF);
	}
	free(buf);
	return NULL;
}

static void *tag_and_look(void *number)
{
	seed_thread((uint64_t)(uintptr_t)number);
	struct sr_counters *counters = malloc(sizeof(*counters));
	CHECK(counters);
	while (!round_.stop) {
		struct victim *victim = some_victim();
		struct sr_log_info info;
		struct sr_snapshot_info snapshot;
		struct sr_segment_info segments[8];
		uint64_t position = 0;
		int rc = 0;
		switch (dice(6)) {
		case 0:
			rc = sr_log_append(victim->disk, SR_TAG, 0, "{\"tag\"}", 7, (int)dice(2), &position);
			break;
		case 1:
			rc = sr_log_rotate(victim->disk);
			break;
		case 2:
			rc = sr_disk_flush(victim->disk);
			break;
		case 3:
			sr_log_touch(victim->disk, 1, dice(DISK_BYTES), dice(DISK_BYTES));
			break;
		case 4:
			sr_disk_counters(victim->disk, counters);
			sr_snapshot_info(victim->disk, &snapshot);
			break;
		default:
			sr_log_info(victim->disk, &info);
			(void)sr_log_segments(victim->disk, segments, 8);
		}
		if (rc != -EAGAIN && rc != -ENOTCONN)
			expect(rc, 0, "append, rotate or flush");
		sched_yield();
	}
	free(counters);
	return NULL;
}

static void *resize_now_and_then(void *number)
{
	seed_thread((uint64_t)(uintptr_t)number);
	while (!round_.stop) {
		struct victim *victim = some_victim();
		uint64_t bytes = sr_disk_bytes(victim->disk) + 512 * (1 + dice(64));
		if (bytes <= DISK_BYTES_MAX)
			expect(sr_disk_resize(victim->disk, bytes), 0, "resize");
		CHECK(sr_disk_resize(victim->disk, 512) == -EINVAL);
		usleep(2000);
	}
	return NULL;
}

/* What Python does: spares, and taking over what is closed and durable; some of it is applied. */
static void *keep_segments(void *number)
{
	seed_thread((uint64_t)(uintptr_t)number);
	struct sr_segment_info *segments = calloc(SEGMENTS_MAX, sizeof(*segments));
	CHECK(segments);
	while (!round_.stop) {
		struct victim *victim = some_victim();
		struct sr_log_info info;
		sr_log_info(victim->disk, &info);
		if (info.state == SR_LOGGED && !info.has_spare && victim->spares < SEGMENTS_MAX - 2) {
			int fd = segment_file(victim, victim->generation, ++victim->spares);
			if (!sr_log_give_spare(victim->disk, fd)) {
				close(fd); /* given up meanwhile */
				victim->spares--;
			}
		}
		if (dice(4) == 0)
			expect(sr_log_sync_closed(victim->disk), 0, "sync of closed segments");
		size_t known = sr_log_segments(victim->disk, segments, SEGMENTS_MAX);
		for (size_t i = 0; i < known; i++) {
			if (!segments[i].durable)
				break;
			sr_log_forget(victim->disk, segments[i].number);
			if (segments[i].number != victim->oldest_number || dice(8) == 0)
				continue;
			sr_log_applied(victim->disk, segments[i].number + 1, segments[i].end);
			victim->oldest_number = segments[i].number + 1;
		}
		uint64_t raised;
		(void)!read(round_.event_fd, &raised, sizeof(raised));
		sched_yield();
	}
	free(segments);
	return NULL;
}

/* Reads a whole snapshot, piece by piece in another order each time; 0 if that failed as it may. */
static int read_snapshot(struct victim *victim, uint8_t *data, uint64_t bytes)
{
	enum { PIECE = 40000 };
	uint64_t pieces = (bytes + PIECE - 1) / PIECE, first = dice(pieces);
	for (uint64_t i = 0; i < pieces; i++) {
		uint64_t at = (first + i) % pieces * PIECE, n = bytes - at < PIECE ? bytes - at : PIECE;
		int rc = sr_snapshot_read(victim->disk, data + at, n, at);
		if (rc) {
			struct sr_snapshot_info info;
			sr_snapshot_info(victim->disk, &info);
			CHECK(rc == -EIO || round_.fault != NO_FAULT, "snapshot read returned %d", rc);
			CHECK(info.error || round_.fault != NO_FAULT, "snapshot read failed without cause");
			return 0;
		}
	}
	return 1;
}

static void keep_snapshot(struct victim *victim, int generation, uint64_t first_seq, uint64_t position)
{
	struct sr_snapshot_info info;
	sr_snapshot_info(victim->disk, &info);
	CHECK(info.exists);
	uint8_t *data = malloc(info.bytes), *again = malloc(info.bytes);
	CHECK(data && again);
	if (read_snapshot(victim, data, info.bytes) && read_snapshot(victim, again, info.bytes)) {
		CHECK(memcmp(data, again, info.bytes) == 0, "a snapshot changed");
		if (victim->snapshot_count < SNAPSHOTS_MAX) {
			victim->snapshots[victim->snapshot_count++] = (struct kept_snapshot){
				.generation = generation, .first_seq = first_seq, .position = position, .bytes = info.bytes, .data = data};
			data = NULL;
		}
		uint64_t upto = dice(info.bytes + 1);
		sr_snapshot_release(victim->disk, upto);
		CHECK(upto < 65536 || sr_snapshot_read(victim->disk, again, 1, 0) != 0);
	}
	free(data);
	free(again);
}

/* Snapshots of both disks at one position. */
static void *take_snapshots(void *number)
{
	seed_thread((uint64_t)(uintptr_t)number);
	while (!round_.stop) {
		struct sr_disk *disks[VICTIMS];
		int fds[VICTIMS], generations[VICTIMS];
		uint64_t bytes_max[VICTIMS], first_seqs[VICTIMS], position;
		for (int i = 0; i < VICTIMS; i++) {
			struct victim *victim = &round_.victims[i];
			generations[i] = victim->generation;
			disks[i] = victim->disk;
			bytes_max[i] = round_.snapshot_bytes_max;
			fds[i] = file_of(victim, "snapshot", 0, FD_SNAPSHOT);
		}
		int rc = sr_snapshots_begin(disks, fds, bytes_max, VICTIMS, first_seqs, &position);
		if (rc == 0) {
			CHECK(sr_snapshots_begin(disks, fds, bytes_max, VICTIMS, first_seqs, &position) == -EEXIST);
			for (int i = 0; i < VICTIMS; i++)
				keep_snapshot(&round_.victims[i], generations[i], first_seqs[i], position);
			for (int i = 0; i < VICTIMS; i++)
				sr_snapshot_end(disks[i]);
		} else {
			CHECK(rc == -EAGAIN || rc == -ENOTCONN || round_.fault == LOG_FAULT, "snapshots returned %d", rc);
			for (int i = 0; i < VICTIMS; i++)
				close(fds[i]);
		}
		usleep(1000);
	}
	return NULL;
}

/* Requests that go on while their disk is freed. */
static void *request_to_the_end(void *number)
{
	seed_thread((uint64_t)(uintptr_t)number);
	uint8_t *buf = calloc(1, 8192);
	uint64_t handles[VICTIMS];
	int64_t result[4];
	CHECK(buf);
	for (int i = 0; i < VICTIMS; i++)
		handles[i] = (uint64_t)open_handle(&round_.victims[i], SR_HANDLE_DISK);
	atomic_fetch_add(&round_.done, 1);
	while (!round_.stop_requests) {
		uint64_t handle = handles[dice(VICTIMS)];
		result[0] = sr_handle_write(handle, buf, 4096, dice(64) * 4096);
		result[1] = sr_handle_read(handle, buf, 4096, dice(64) * 4096);
		result[2] = sr_handle_flush(handle);
		result[3] = sr_handle_seek(handle, 0, SEEK_HOLE);
		for (int i = 0; i < 4; i++)
			CHECK(result[i] >= 0 || result[i] == -EIO || round_.fault != NO_FAULT, "request returned %" PRId64, result[i]);
	}
	for (int i = 0; i < VICTIMS; i++) {
		CHECK(sr_handle_read(handles[i], buf, 4096, 0) == -EIO);
		sr_handle_close(handles[i]);
	}
	free(buf);
	return NULL;
}

/* --- rounds -------------------------------------------------------------------------------------------------- */

typedef void *(*work_fn)(void *);

static void run_threads(const work_fn *work, uint64_t count, uint64_t tenths)
{
	pthread_t threads[16];
	round_.stop = 0;
	for (uint64_t i = 0; i < count; i++)
		CHECK(pthread_create(&threads[i], NULL, work[i], (void *)(uintptr_t)(i + 1)) == 0);
	usleep((useconds_t)(tenths * 100000));
	round_.stop = 1;
	for (uint64_t i = 0; i < count; i++)
		CHECK(pthread_join(threads[i], NULL) == 0);
}

static void free_while_used(void)
{
	pthread_t threads[2];
	round_.stop_requests = 0;
	round_.done = 0;
	for (uint64_t i = 0; i < 2; i++)
		CHECK(pthread_create(&threads[i], NULL, request_to_the_end, (void *)(uintptr_t)(i + 50)) == 0);
	while (round_.done < 2)
		sched_yield();
	usleep(20000);
	for (int i = 0; i < VICTIMS; i++)
		sr_disk_free(round_.victims[i].disk);
	round_.stop_requests = 1;
	for (int i = 0; i < 2; i++)
		CHECK(pthread_join(threads[i], NULL) == 0);
}

static void free_victim(struct victim *victim)
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

static void run_round(const char *folder)
{
	static const work_fn work[] = {write_much, write_much, write_much, read_much,    read_much,
				       tag_and_look, keep_segments, take_snapshots, resize_now_and_then};
	seed_thread(0);
	round_.fault = (enum fault)(round_number % 2 ? 1 + dice(FAULTS - 1) : NO_FAULT);
	round_.over_extents = (int)dice(2);
	round_.full_gives_up = (int)dice(2);
	round_.kept_bytes_max = dice(3) ? 0 : SEGMENT_BYTES * (8 + dice(80));
	round_.snapshot_bytes_max = dice(4) ? DISK_BYTES_MAX : DISK_BYTES / 4;
	for (int i = 0; i < VICTIMS; i++) {
		make_victim(&round_.victims[i], folder, i);
		start_log(&round_.victims[i]);
	}
	round_.faults_on = round_.fault != NO_FAULT;
	round_.done = 0;
	for (int generation = 1; generation <= GENERATIONS; generation++) {
		run_threads(work, sizeof(work) / sizeof(work[0]), 3);
		if (generation < GENERATIONS)
			for (int i = 0; i < VICTIMS; i++)
				start_log(&round_.victims[i]);
	}
	round_.faults_on = 0;
	printf("round %" PRIu64 ": %s, faults %s, full: %s, log limit %" PRIu64 ", snapshot limit %" PRIu64 ": %" PRIu64 " requests\n",
	       round_number, round_.over_extents ? "top over extents" : "raw", fault_names[round_.fault],
	       round_.full_gives_up ? "given up" : "refused", round_.kept_bytes_max, round_.snapshot_bytes_max, round_.done);
	for (int i = 0; i < VICTIMS; i++)
		check_victim(&round_.victims[i]);
	free_while_used();
	for (int i = 0; i < VICTIMS; i++)
		free_victim(&round_.victims[i]);
}

int main(int argc, char **argv)
{
	if (argc != 4) {
		fprintf(stderr, "usage: stress FOLDER SECONDS SEED\n");
		return 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	seed_given = strtoull(argv[3], NULL, 10);
	uint64_t end_ms = now_ms() + strtoull(argv[2], NULL, 10) * 1000;
	round_.positions = calloc(1, sizeof(uint64_t));
	round_.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	CHECK(round_.positions && round_.event_fd >= 0);
	sr_io_set_hook(hook);
	do {
		alarm(STUCK_S);
		run_round(argv[1]);
		round_number++;
	} while (now_ms() < end_ms);
	free(round_.positions);
	close(round_.event_fd);
	return 0;
}
