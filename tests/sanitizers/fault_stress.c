/* Two disks with fault rules under stress: guests' requests of all kinds, while rules of every effect come and go, both
 * disks are frozen at one position, lose their power, and are freed under waiting requests.
 *
 * `fault_stress FOLDER SECONDS SEED` runs rounds until the time is over.  The exit status is 0, or 1 with an error
 * message; a build with a sanitizer adds its reports.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common.h"
#include "disk/faulty.h"
#include "layers/layer.h"

enum { DISKS = 2, GUESTS = 6, DISK_BYTES = 1 << 20, IO_BYTES_MAX = 40000, RULES_MAX = 6, EFFECTS = SR_FREEZE };

static struct sr_positions *positions;
static struct sr_disk *disks[DISKS];
static struct sr_layer *layers[DISKS];
static _Atomic int stop, stop_guests;
static pthread_mutex_t frozen = PTHREAD_MUTEX_INITIALIZER; /* no power loss puts bytes back meanwhile */
static _Atomic uint64_t done, ids;

/* --- the guests ---------------------------------------------------------------------------------------------- */

static void check_result(int64_t result, int64_t wanted)
{
	CHECK(result == wanted || (result >= 0 && result <= wanted) || result == -EIO || result == -ENOSPC ||
		      result == SR_WOULD_WAIT,
	      "request returned %" PRId64 " of %" PRId64, result, wanted);
	atomic_fetch_add(&done, 1);
}

static void request(uint64_t handle, uint8_t *buf)
{
	uint64_t bytes = 1 + dice(dice(2) ? 4096 : IO_BYTES_MAX), offset = dice(DISK_BYTES - bytes);

	if (dice(4) == 0)
		handle |= SR_HANDLE_NO_WAIT;
	switch (dice(8)) {
	case 0:
		check_result(sr_handle_flush(handle), 0);
		break;
	case 1:
		check_result(sr_handle_fallocate(handle, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, bytes), 0);
		break;
	case 2:
		check_result(sr_handle_fallocate(handle, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, bytes), 0);
		break;
	case 3:
	case 4:
		check_result(sr_handle_read(handle, buf, bytes, offset), (int64_t)bytes);
		break;
	default:
		memset(buf, (int)dice(256), bytes);
		check_result(sr_handle_write(handle, buf, bytes, offset), (int64_t)bytes);
	}
}

/* Makes requests until after the disks are freed. */
static void *be_guest(void *number)
{
	seed_thread((uint64_t)(uintptr_t)number);
	uint8_t *buf = malloc(IO_BYTES_MAX);
	int64_t handles[DISKS];
	CHECK(buf);
	for (int i = 0; i < DISKS; i++) {
		handles[i] = sr_handle_open(disks[i], SR_HANDLE_DISK, 1, NULL, -1, 0);
		CHECK(handles[i] > 0);
	}
	atomic_fetch_add(&done, 1);
	while (!stop_guests)
		request((uint64_t)handles[dice(DISKS)], buf);
	for (int i = 0; i < DISKS; i++) {
		CHECK(sr_handle_read((uint64_t)handles[i], buf, 1, 0) == -EIO);
		sr_handle_close((uint64_t)handles[i]);
	}
	free(buf);
	return NULL;
}

/* --- the rules ----------------------------------------------------------------------------------------------- */

static struct sr_fault_rule some_rule(void)
{
	struct sr_fault_rule rule = {
		.id = ++ids,
		.enabled = dice(8) != 0,
		.ops = (int)dice(32),
		.start = dice(DISK_BYTES),
		.length = dice(2) ? 0 : dice(DISK_BYTES),
		.turns = {.stream = dice(UINT64_MAX), .threshold = dice(2) ? SR_FAULT_ALWAYS : SR_FAULT_ALWAYS / 8, .times = SR_FAULT_UNLIMITED},
		.effect = (int)(1 + dice(EFFECTS)),
		.error = EIO,
		.delay_ns = dice(1000000),
		.jitter_ns = dice(1000000),
		.distribution = (int)dice(3),
		.bytes_per_s = dice(2) ? 0 : 100000000,
		.ops_per_s = dice(2) ? 0 : 10000,
		.bytes = dice(8192),
		.keep = dice(UINT64_MAX),
		.keeps_random = (int)dice(2),
		.late = (int)dice(2),
		.parts = (uint32_t)dice(5),
		.unit = dice(2) ? 512 : 4096,
		.bits = (uint32_t)(1 + dice(20)),
		.shift = (int64_t)dice(65536) - 32768,
	};
	return rule;
}

/* Puts rules in force on both disks; `kept` has rules that stay from one change to the next. */
static void set_rules(struct sr_fault_rule rules[DISKS][RULES_MAX], const size_t *counts, uint64_t *position)
{
	const struct sr_fault_rule *rows[DISKS] = {rules[0], rules[1]};
	CHECK(sr_disks_set_faults(disks, rows, counts, DISKS, position) == 0);
}

/* Freezes both disks: nothing changes until they are released. */
static void freeze(struct sr_fault_rule rules[DISKS][RULES_MAX])
{
	size_t counts[DISKS] = {1, 1};
	uint64_t position, changes[DISKS];

	for (int i = 0; i < DISKS; i++) {
		rules[i][0] = some_rule();
		rules[i][0].effect = SR_FREEZE;
		rules[i][0].ops = SR_OP_READ | SR_OP_WRITE | SR_OP_FLUSH | SR_OP_DISCARD | SR_OP_ZERO;
		rules[i][0].start = rules[i][0].length = rules[i][0].late = 0;
		rules[i][0].turns.threshold = SR_FAULT_ALWAYS;
		rules[i][0].enabled = 1;
	}
	pthread_mutex_lock(&frozen);
	set_rules(rules, counts, &position);
	for (int i = 0; i < DISKS; i++)
		changes[i] = sr_disk_modifications(disks[i]);
	usleep((useconds_t)dice(3000));
	for (int i = 0; i < DISKS; i++)
		CHECK(sr_disk_modifications(disks[i]) == changes[i], "disk %d changed while it was frozen", i);
	pthread_mutex_unlock(&frozen);
}

static void *change_rules(void *number)
{
	struct sr_fault_rule rules[DISKS][RULES_MAX];
	uint64_t position;

	seed_thread((uint64_t)(uintptr_t)number);
	for (int i = 0; i < DISKS * RULES_MAX; i++)
		rules[i / RULES_MAX][i % RULES_MAX] = some_rule();
	while (!stop) {
		size_t counts[DISKS] = {dice(RULES_MAX + 1), dice(RULES_MAX + 1)};

		if (dice(5) == 0) {
			freeze(rules);
			continue;
		}
		for (int i = 0; i < DISKS; i++)
			for (size_t k = 0; k < counts[i]; k++)
				if (dice(2))
					rules[i][k] = some_rule();
				else
					rules[i][k].enabled = (int)dice(2);
		set_rules(rules, counts, &position);
		usleep((useconds_t)dice(3000));
	}
	return NULL;
}

static void *lose_power(void *number)
{
	struct sr_lost_writes lost[DISKS];
	struct sr_unsynced_info info;
	uint64_t position;

	seed_thread((uint64_t)(uintptr_t)number);
	while (!stop) {
		struct sr_power_loss how[DISKS];

		for (int i = 0; i < DISKS; i++)
			how[i] = (struct sr_power_loss){.stream = dice(UINT64_MAX), .keeps = (int)dice(2), .tear = dice(2) ? 512 : 0};
		usleep((useconds_t)dice(8000));
		CHECK(sr_disk_keep_unsynced(disks[dice(DISKS)], dice(4) ? 1 + dice(1 << 20) : 0) == 0);
		pthread_mutex_lock(&frozen);
		int rc = sr_disks_lose_power(disks, DISKS, how, lost, &position);
		pthread_mutex_unlock(&frozen);
		CHECK(rc == 0 || rc == -ENODATA, "power loss returned %d", rc);
		for (int i = 0; rc == 0 && i < DISKS; i++)
			CHECK(lost[i].error == 0, "putting bytes back returned %d", lost[i].error);
		sr_disk_unsynced_info(disks[dice(DISKS)], &info);
	}
	return NULL;
}

static void *look(void *number)
{
	struct sr_injection *rows = calloc(64, sizeof(*rows));
	struct sr_fault_counts counts;
	int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

	CHECK(rows && fd >= 0);
	seed_thread((uint64_t)(uintptr_t)number);
	while (!stop) {
		struct sr_disk *disk = disks[dice(DISKS)];
		uint64_t after = 0;

		for (size_t count; (count = sr_disk_injections(disk, after, rows, 64)) > 0; after = rows[count - 1].sequence)
			CHECK(rows[0].sequence > after && rows[0].effect >= SR_FAIL && rows[0].effect <= SR_FREEZE);
		(void)sr_disk_fault_counts(disk, ids - dice(4), &counts);
		if (sr_disk_tell_fired(disk, dice(2) ? 0 : ids, 1 + dice(100), fd) == 0) {
			usleep((useconds_t)dice(500));
			sr_disk_tell_no_more(disk, fd);
		}
		sched_yield();
	}
	close(fd);
	free(rows);
	return NULL;
}

/* --- held requests -------------------------------------------------------------------------------------------- */

static void *be_held(void *of)
{
	struct sr_fault_set *faults = of;
	struct sr_verdict verdict;

	sr_verdict_begin(&verdict, SR_OP_WRITE, 0, 512);
	CHECK(sr_fault_set_judge(faults, &verdict) == 1);
	CHECK(sr_fault_set_wait(faults, &verdict) == 0, "a request that a rule holds failed");
	return NULL;
}

/* A power loss comes as soon as a fault is recorded: the request that its rule holds does not fail, though it may not wait
 * yet. */
static void hold_requests(void)
{
	const struct sr_fault_rule rule = {
		.id = 1,
		.enabled = 1,
		.ops = SR_OP_WRITE,
		.turns = {.threshold = SR_FAULT_ALWAYS, .times = SR_FAULT_UNLIMITED},
		.effect = SR_NOTE,
		.holds = SR_HOLD_BEFORE,
	};
	struct sr_fault_set *faults = sr_fault_set_new(positions);
	struct sr_fault_table *table = sr_fault_table_new(&rule, 1, DISK_BYTES);
	struct sr_injection row;
	pthread_t thread;

	CHECK(faults && table);
	CHECK(!sr_fault_set_replace(faults, table));
	for (uint64_t n = 1; n <= 100; n++) {
		CHECK(pthread_create(&thread, NULL, be_held, faults) == 0);
		while (sr_fault_set_injections(faults, n - 1, &row, 1) == 0)
			;
		sr_fault_set_fail_waits(faults);
		sr_fault_set_release(faults, rule.id, n);
		CHECK(pthread_join(thread, NULL) == 0);
	}
	sr_fault_set_free(faults);
}

/* --- rounds -------------------------------------------------------------------------------------------------- */

static void make_disk(const char *folder, int number)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/faulty%d.img", folder, number);
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	CHECK(fd >= 0 && ftruncate(fd, DISK_BYTES) == 0);
	layers[number] = sr_layer_raw(fd, DISK_BYTES);
	CHECK(layers[number]);
	disks[number] = sr_disk_new(layers[number], positions, -1);
	CHECK(disks[number]);
	CHECK(sr_disk_keep_unsynced(disks[number], 1 << 20) == 0);
}

static void run_round(const char *folder)
{
	static void *(*const others[])(void *) = {change_rules, lose_power, look};
	struct sr_fault_rule rules[DISKS][RULES_MAX];
	pthread_t guests[GUESTS], threads[3];

	seed_thread(0);
	hold_requests();
	stop = stop_guests = 0;
	done = 0;
	for (int i = 0; i < DISKS; i++)
		make_disk(folder, i);
	for (uint64_t i = 0; i < GUESTS; i++)
		CHECK(pthread_create(&guests[i], NULL, be_guest, (void *)(uintptr_t)(i + 10)) == 0);
	while (done < GUESTS)
		sched_yield();
	for (uint64_t i = 0; i < 3; i++)
		CHECK(pthread_create(&threads[i], NULL, others[i], (void *)(uintptr_t)(i + 1)) == 0);
	usleep(300000);
	stop = 1;
	for (int i = 0; i < 3; i++)
		CHECK(pthread_join(threads[i], NULL) == 0);
	freeze(rules);
	printf("round %" PRIu64 ": %" PRIu64 " requests, %" PRIu64 " rules\n", round_number, done, ids);
	if (dice(2))
		sr_disk_end_waits(disks[0]);
	for (int i = 0; i < DISKS; i++)
		sr_disk_free(disks[i]);
	stop_guests = 1;
	for (int i = 0; i < GUESTS; i++)
		CHECK(pthread_join(guests[i], NULL) == 0);
	for (int i = 0; i < DISKS; i++)
		sr_layer_free(layers[i]);
}

int main(int argc, char **argv)
{
	positions = sr_positions_new(-1);
	CHECK(positions);
	int status = run_rounds(argc, argv, run_round);
	sr_positions_free(positions);
	return status;
}
