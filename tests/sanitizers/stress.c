/* Disks under stress: concurrent writes, reads, flushes, tags, snapshots, resizes, hydration, log maintenance and faults.
 *
* `stress FOLDER SECONDS SEED` runs rounds of two disks with one position counter until the time is over.  A round's
 * choices (layers, limits, faults) come from the seed and the round's number; the scheduling of threads does not.  At
 * the end of a round check.c replays the logs.  The exit status is 0, or 1 with an error message; a build with a
 * sanitizer adds its reports.
 */
#define _GNU_SOURCE
#include "stress.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/io.h"

static const char *const fault_names[] = {"none", "log", "disk", "zeroing", "sync", "snapshot"};
struct round the_round;

/* --- the threads --------------------------------------------------------------------------------------------- */

static struct victim *some_victim(void)
{
	return &the_round.victims[dice(VICTIMS)];
}

/* Accepts the wanted result, and those that a fault or the log's policy explains. */
static void expect(int64_t result, int64_t wanted, const char *what)
{
	atomic_fetch_add(&the_round.done, 1);
	if (result == wanted)
		return;
	CHECK(the_round.fault != NO_FAULT, "%s returned %" PRId64 ", not %" PRId64, what, result, wanted);
	CHECK(result == -ENOSPC || result == -EIO || (result > 0 && result < wanted), "%s returned %" PRId64, what, result);
}

static int64_t open_handle(struct victim *victim, int kind)
{
	static const uint8_t footer[512] = "conectix";
	const uint8_t *behind = kind == SR_HANDLE_VHD ? footer : NULL;
	int64_t handle = sr_handle_open(victim->disk, kind, kind == SR_HANDLE_DISK, behind, -1, 0);
	CHECK(handle > 0);
	return handle;
}

/* Changes mostly a part of the disk that moves with time, so that the last changes of other parts are old. */
static void change(const struct victim *victim, uint64_t handle, uint8_t *buf)
{
	uint64_t size = sr_disk_bytes(victim->disk);
	uint64_t offset = dice(16) ? the_round.done / 64 * 65536 + dice(2 * 65536) : dice(size);
	uint64_t bytes = 1 + dice(dice(4) ? 9000 : IO_BYTES_MAX);
	offset %= victim->abandoned ? 131072 : size; /* otherwise all chunks would become dirty */
	if (dice(2)) {
		offset = offset / 4096 * 4096;
		bytes = (bytes + 4095) / 4096 * 4096;
	}
	if (bytes > IO_BYTES_MAX)
		bytes = IO_BYTES_MAX;
	uint64_t inside = bytes < size - offset ? bytes : size - offset; /* it may be more if the disk grows meanwhile */
	switch (dice(8)) {
	case 0:
		expect(sr_handle_fallocate(handle, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, bytes), 0, "discard");
		break;
	case 1:
		expect(sr_handle_fallocate(handle, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, bytes), 0, "zero");
		break;
	default:
		memset(buf, (int)dice(256), bytes);
		buf[0] = (uint8_t)dice(256);
		int64_t done = sr_handle_write(handle, buf, bytes, offset);
		if (done > (int64_t)inside && done <= (int64_t)bytes)
			done = (int64_t)inside;
		expect(done, (int64_t)inside, "write");
	}
}

static void *write_much(void *number)
{
	seed_thread((uint64_t)(uintptr_t)number);
	uint8_t *buf = malloc(IO_BYTES_MAX);
	uint64_t handles[VICTIMS];
	CHECK(buf);
	for (int i = 0; i < VICTIMS; i++)
		handles[i] = (uint64_t)open_handle(&the_round.victims[i], SR_HANDLE_DISK);
	while (!the_round.stop) {
		uint64_t which = dice(VICTIMS);
		change(&the_round.victims[which], handles[which], buf);
		if (dice(16) == 0)
			expect(sr_handle_flush(handles[which]), 0, "flush");
	}
	for (int i = 0; i < VICTIMS; i++)
		sr_handle_close(handles[i]);
	free(buf);
	return NULL;
}

/* Opens and closes handles: reads of an open handle must succeed, reads of a closed one must be refused. */
static void *read_much(void *number)
{
	seed_thread((uint64_t)(uintptr_t)number);
	uint8_t *buf = malloc(IO_BYTES_MAX);
	CHECK(buf);
	while (!the_round.stop) {
		struct victim *victim = some_victim();
		int kind = (int)dice(3);
		uint64_t handle = (uint64_t)open_handle(victim, kind);
		for (int i = 0; i < 20; i++) {
			uint64_t size = sr_disk_bytes(victim->disk), offset = dice(size + 600), bytes = dice(IO_BYTES_MAX);
			int64_t done = sr_handle_read(handle, buf, bytes, offset);
			int may_fail = kind == SR_HANDLE_SNAPSHOT ? done == -EIO : 0;
			CHECK(done >= 0 || may_fail || the_round.fault != NO_FAULT, "read returned %" PRId64, done);
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
	while (!the_round.stop) {
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
	while (!the_round.stop) {
		struct victim *victim = some_victim();
		uint64_t bytes = sr_disk_bytes(victim->disk) + 512 * (1 + dice(64));
		if (bytes <= DISK_BYTES_MAX)
			expect(dice(2) ? sr_disk_resize(victim->disk, bytes) : sr_disk_reach(victim->disk, bytes), 0, "resize");
		CHECK(sr_disk_resize(victim->disk, 512) == -EINVAL);
		usleep(2000);
	}
	return NULL;
}

/* Does the work of Python: provides spares, and takes over closed durable segments, of which it applies some. */
static void *keep_segments(void *number)
{
	seed_thread((uint64_t)(uintptr_t)number);
	struct sr_segment_info *segments = calloc(SEGMENTS_MAX, sizeof(*segments));
	CHECK(segments);
	while (!the_round.stop) {
		struct victim *victim = some_victim();
		struct sr_log_info info;
		sr_log_info(victim->disk, &info);
		victim->abandoned = info.state != SR_LOGGED;
		if (info.state == SR_LOGGED && !info.has_spare && victim->spares < SEGMENTS_MAX - 2) {
			int fd = segment_file(victim, victim->generation, ++victim->spares);
			if (!sr_log_give_spare(victim->disk, fd)) {
				close(fd); /* the log was abandoned meanwhile */
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
			sr_log_trim(victim->disk, segments[i].number + 1, segments[i].end);
			victim->oldest_number = segments[i].number + 1;
		}
		uint64_t raised;
		(void)!read(the_round.event_fd, &raised, sizeof(raised));
		sched_yield();
	}
	free(segments);
	return NULL;
}

/* Reads a whole snapshot in pieces, in another order each time.  Returns 0 if this failed for an allowed reason. */
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
			CHECK(rc == -EIO || the_round.fault != NO_FAULT, "snapshot read returned %d", rc);
			CHECK(info.error || the_round.fault != NO_FAULT, "snapshot read failed without cause");
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

/* Takes snapshots of both disks at one position. */
static void *take_snapshots(void *number)
{
	seed_thread((uint64_t)(uintptr_t)number);
	while (!the_round.stop) {
		struct sr_disk *disks[VICTIMS];
		int fds[VICTIMS], generations[VICTIMS];
		uint64_t bytes_max[VICTIMS], first_seqs[VICTIMS], position;
		for (int i = 0; i < VICTIMS; i++) {
			struct victim *victim = &the_round.victims[i];
			generations[i] = victim->generation;
			disks[i] = victim->disk;
			bytes_max[i] = the_round.snapshot_bytes_max;
			fds[i] = snapshot_file(victim);
		}
		int rc = sr_snapshots_begin(disks, fds, bytes_max, VICTIMS, first_seqs, &position);
		if (rc == 0) {
			CHECK(sr_snapshots_begin(disks, fds, bytes_max, VICTIMS, first_seqs, &position) == -EEXIST);
			for (int i = 0; i < VICTIMS; i++)
				keep_snapshot(&the_round.victims[i], generations[i], first_seqs[i], position);
			for (int i = 0; i < VICTIMS; i++)
				sr_snapshot_end(disks[i]);
		} else {
			CHECK(rc == -EAGAIN || rc == -ENOTCONN || the_round.fault == LOG_FAULT, "snapshots returned %d", rc);
			for (int i = 0; i < VICTIMS; i++)
				close(fds[i]);
		}
		usleep(1000);
	}
	return NULL;
}

/* Hydrates disks in steps until all is copied, and detaches their backings while the other threads continue. */
static void *hydrate(void *number)
{
	seed_thread((uint64_t)(uintptr_t)number);
	while (!the_round.stop) {
		struct victim *victim = some_victim();
		uint64_t before = sr_disk_hydrated_bytes(victim->disk);
		int rc = sr_disk_hydrate(victim->disk, 1 + dice(3 * 65536));
		CHECK(rc == 0 || rc == 1 || the_round.fault != NO_FAULT, "hydrating returned %d", rc);
		CHECK(sr_disk_hydrated_bytes(victim->disk) >= before);
		if (rc == 1) {
			expect(sr_disk_sync(victim->disk), 0, "sync after hydration");
			rc = sr_disk_detach_backing(victim->disk);
			CHECK(rc == 0 || rc == -EAGAIN, "detaching returned %d", rc);
		}
		usleep((useconds_t)dice(8) * 1000);
	}
	return NULL;
}

/* Sends requests until after their disk is freed. */
static void *request_to_the_end(void *number)
{
	seed_thread((uint64_t)(uintptr_t)number);
	uint8_t *buf = calloc(1, 8192);
	uint64_t handles[VICTIMS];
	int64_t result[4];
	CHECK(buf);
	for (int i = 0; i < VICTIMS; i++)
		handles[i] = (uint64_t)open_handle(&the_round.victims[i], SR_HANDLE_DISK);
	atomic_fetch_add(&the_round.done, 1);
	while (!the_round.stop_requests) {
		uint64_t handle = handles[dice(VICTIMS)];
		result[0] = sr_handle_write(handle, buf, 4096, dice(64) * 4096);
		result[1] = sr_handle_read(handle, buf, 4096, dice(64) * 4096);
		result[2] = sr_handle_flush(handle);
		result[3] = sr_handle_seek(handle, 0, SEEK_HOLE);
		for (int i = 0; i < 4; i++)
			CHECK(result[i] >= 0 || result[i] == -EIO || the_round.fault != NO_FAULT, "request returned %" PRId64, result[i]);
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

static void run_threads(const work_fn *work, uint64_t count, uint64_t time_ms)
{
	pthread_t threads[16];
	the_round.stop = 0;
	for (uint64_t i = 0; i < count; i++)
		CHECK(pthread_create(&threads[i], NULL, work[i], (void *)(uintptr_t)(i + 1)) == 0);
	usleep((useconds_t)(time_ms * 1000));
	the_round.stop = 1;
	for (uint64_t i = 0; i < count; i++)
		CHECK(pthread_join(threads[i], NULL) == 0);
}

static void free_while_used(void)
{
	pthread_t threads[2];
	the_round.stop_requests = 0;
	the_round.done = 0;
	for (uint64_t i = 0; i < 2; i++)
		CHECK(pthread_create(&threads[i], NULL, request_to_the_end, (void *)(uintptr_t)(i + 50)) == 0);
	while (the_round.done < 2)
		sched_yield();
	usleep(20000);
	for (int i = 0; i < VICTIMS; i++)
		sr_disk_free(the_round.victims[i].disk);
	the_round.stop_requests = 1;
	for (int i = 0; i < 2; i++)
		CHECK(pthread_join(threads[i], NULL) == 0);
}

static struct sr_xts *cipher(void)
{
	uint8_t key[SR_XTS_KEY_BYTES];

	for (size_t i = 0; i < sizeof(key); i++)
		key[i] = (uint8_t)(i + 1);
	struct sr_xts *made = sr_xts_new(key);
	CHECK(made);
	return made;
}

static void run_round(const char *folder)
{
	static const work_fn work[] = {write_much, write_much, write_much, read_much,    read_much,
				       tag_and_look, keep_segments, take_snapshots, resize_now_and_then, hydrate};
	seed_thread(0);
	the_round.fault = (enum fault)((seed_given + round_number) % FAULTS);
	the_round.over_view = (int)dice(2);
	the_round.xts = dice(2) ? cipher() : NULL;
	the_round.abandon_when_full = (int)dice(2);
	the_round.kept_bytes_max = dice(3) ? 0 : SEGMENT_BYTES * (8 + dice(80));
	the_round.snapshot_bytes_max = dice(4) ? DISK_BYTES_MAX : DISK_BYTES / 4;
	for (int i = 0; i < VICTIMS; i++) {
		make_victim(&the_round.victims[i], folder, i);
		start_log(&the_round.victims[i]);
	}
	the_round.done = 0;
	for (int generation = 1; generation <= GENERATIONS; generation++) {
		the_round.faults_on = the_round.fault != NO_FAULT;
		run_threads(work, sizeof(work) / sizeof(work[0]), 150);
		the_round.faults_on = 0; /* a log that could not be started could not be checked */
		if (generation < GENERATIONS)
			for (int i = 0; i < VICTIMS; i++)
				start_log(&the_round.victims[i]);
	}
	printf("round %" PRIu64 ": %s, %s, faults %s, a full log is %s, limits: log %" PRIu64 ", snapshot %" PRIu64
	       "; %" PRIu64 " requests\n",
	       round_number, the_round.over_view ? "top over a view" : "raw", the_round.xts ? "encrypted" : "plain", fault_names[the_round.fault],
	       the_round.abandon_when_full ? "abandoned" : "refused", the_round.kept_bytes_max, the_round.snapshot_bytes_max,
	       the_round.done);
	for (int i = 0; i < VICTIMS; i++)
		check_victim(&the_round.victims[i]);
	free_while_used();
	for (int i = 0; i < VICTIMS; i++)
		free_victim(&the_round.victims[i]);
	sr_xts_put(the_round.xts);
}

int main(int argc, char **argv)
{
	the_round.positions = sr_positions_new(-1);
	the_round.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	CHECK(the_round.positions && the_round.event_fd >= 0);
	sr_io_set_hook(fault_hook);
	int status = run_rounds(argc, argv, run_round);
	sr_positions_free(the_round.positions);
	close(the_round.event_fd);
	return status;
}
