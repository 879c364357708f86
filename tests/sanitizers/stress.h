/* Disks under stress, and the check at the end: what the log says is what the disk holds.  See stress.c. */
#ifndef STRESS_H
#define STRESS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/uio.h>

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

/* What a snapshot was read to be, to be compared with the log later. */
struct kept_snapshot {
	int generation;
	uint64_t first_seq, position, bytes;
	uint8_t *data;
};

/* A disk, and all that is known of it from outside. */
struct victim {
	struct sr_disk *disk;
	struct sr_layer *layer;
	char folder[200], name[16];
	uint8_t *initial; /* DISK_BYTES of what it held before */
	_Atomic int generation;
	_Atomic int abandoned;           /* seen that the log was */
	_Atomic uint64_t spares;        /* segments of this generation whose file was made */
	_Atomic uint64_t oldest_number; /* of this generation, not yet applied */
	uint8_t *dirty;                 /* mapped: this generation's dirty file */
	int gave_up[GENERATIONS + 1];   /* whether the log of a generation was given up before the next one began */
	struct kept_snapshot snapshots[SNAPSHOTS_MAX];
	int snapshot_count;
};

/* The round that runs. */
struct round {
	struct victim victims[VICTIMS];
	struct sr_positions *positions;
	int event_fd;
	enum fault fault;
	int over_view; /* the disks are tops over a view; else raw */
	int abandon_when_full;
	uint64_t kept_bytes_max, snapshot_bytes_max;
	_Atomic int stop, stop_requests, faults_on;
	_Atomic uint64_t done;
};
extern struct round the_round;

/* --- victim.c ------------------------------------------------------------------------------------------------ */

/* Puts the round's faults in, where and as often as they are to be, and lets threads meet in more ways. */
int64_t fault_hook(int op, int fd, int64_t offset, int64_t bytes, const struct iovec *iov, int iovs);

void make_victim(struct victim *victim, const char *folder, int number);
void free_victim(struct victim *victim);

/* A new log, of the next generation, in place of the one there is. */
void start_log(struct victim *victim);

/* The file of a segment that is to come: old records behind an empty header, as where a file is used again. */
int segment_file(const struct victim *victim, int generation, uint64_t number);
int snapshot_file(const struct victim *victim);

/* FOLDER/NAME.GENERATION.NUMBER.hrl */
void segment_path(const struct victim *victim, int generation, uint64_t number, char *path, size_t bytes);

/* --- check.c ------------------------------------------------------------------------------------------------- */

/* Replays all generations onto `initial` and compares: snapshots on the way, the disk at the end (or, where the log was
 * given up, the chunks that are not marked dirty).  No thread uses the disk. */
void check_victim(struct victim *victim);

#endif
