/* Disks under stress, and the check at the end: the log must have the contents of the disk.  stress.c describes it. */
#ifndef STRESS_H
#define STRESS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/xts.h"
#include "common.h"
#include "disk/disk.h"
#include "layers/layer.h"

enum {
	DISK_BYTES = 1 << 20,
	DISK_BYTES_MAX = 2 << 20,
	SEGMENT_BYTES = 128 << 10,
	GENERATIONS = 2,
	SEGMENTS_MAX = 4096,
	SNAPSHOTS_MAX = 64,
	IO_BYTES_MAX = 96 << 10,
	VICTIMS = 2,
};

enum fault { NO_FAULT, LOG_FAULT, DISK_FAULT, ZERO_FAULT, SYNC_FAULT, SNAPSHOT_FAULT, FAULTS };

/* The bytes that were read from a snapshot; they are compared with the log later. */
struct kept_snapshot {
	int generation;
	uint64_t first_seq, position, bytes;
	uint8_t *data;
};

/* A disk, and its state as the test knows it. */
struct victim {
	struct sr_disk *disk;
	struct sr_layer *layer;
	char folder[200], name[16];
	uint8_t *initial; /* DISK_BYTES: the contents before the test */
	_Atomic int generation;
	_Atomic int abandoned;           /* the log was seen to be abandoned */
	_Atomic uint64_t spares;        /* segments of this generation whose file was created */
	_Atomic uint64_t oldest_number; /* the oldest segment of this generation that is not applied */
	uint8_t *dirty;                 /* this generation's dirty file, mapped */
	int was_abandoned[GENERATIONS + 1];   /* by generation: its log was abandoned before the next one began */
	struct kept_snapshot snapshots[SNAPSHOTS_MAX];
	int snapshot_count;
};

/* The current round. */
struct round {
	struct victim victims[VICTIMS];
	struct sr_positions *positions;
	int event_fd;
	enum fault fault;
	int over_view; /* the disks are overlays over a view; otherwise they are raw */
	struct sr_xts *xts; /* of encrypted disks; NULL: they are not encrypted */
	int abandon_when_full;
	uint64_t kept_bytes_max, snapshot_bytes_max;
	_Atomic int stop, stop_requests, faults_on;
	_Atomic uint64_t done;
};
extern struct round the_round;

/* --- victim.c ------------------------------------------------------------------------------------------------ */

/* Injects the round's faults, and varies the scheduling of threads. */
int64_t fault_hook(int op, int fd, int64_t offset, int64_t bytes, const struct iovec *iov, int iovs);

void make_victim(struct victim *victim, const char *folder, int number);
void free_victim(struct victim *victim);

/* Starts a new log, of the next generation, in place of the present one. */
void start_log(struct victim *victim);

/* Creates the file of a future segment: old records after an empty header, like a recycled file. */
int segment_file(const struct victim *victim, int generation, uint64_t number);
int snapshot_file(const struct victim *victim);

/* The path is FOLDER/NAME.GENERATION.NUMBER.hrl. */
void segment_path(const struct victim *victim, int generation, uint64_t number, char *path, size_t bytes);

/* --- check.c ------------------------------------------------------------------------------------------------- */

/* Replays all generations onto `initial`, and compares the result with each snapshot and at the end with the disk (after
 * an abandoned log only its chunks that are not marked dirty).  No thread uses the disk. */
void check_victim(struct victim *victim);

#endif
