/* Disks under stress, and the check at the end: what the log says is what the disk holds.  See stress.c. */
#ifndef STRESS_H
#define STRESS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#include "disk.h"
#include "layers.h"

enum {
	DISK_BYTES = 1 << 20,
	DISK_BYTES_MAX = 2 << 20,
	SEGMENT_BYTES = 128 << 10,
	GENERATIONS = 2,
	SEGMENTS_MAX = 4096,
	SNAPSHOTS_MAX = 64,
	IO_BYTES_MAX = 96 << 10,
};

/* Names the place and ends the program. */
#define CHECK(what, ...)                                                        \
	do {                                                                    \
		if (!(what))                                                    \
			stress_failed(__FILE__, __LINE__, #what, " " __VA_ARGS__); \
	} while (0)
_Noreturn void stress_failed(const char *file, int line, const char *what, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

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
	_Atomic uint64_t spares;        /* segments of this generation whose file was made */
	_Atomic uint64_t oldest_number; /* of this generation, not yet applied */
	uint8_t *dirty;                 /* mapped: this generation's dirty file */
	int gave_up[GENERATIONS + 1];   /* whether the log of a generation was given up before the next one began */
	struct kept_snapshot snapshots[SNAPSHOTS_MAX];
	int snapshot_count;
};

/* FOLDER/NAME.GENERATION.NUMBER.hrl */
void segment_path(const struct victim *victim, int generation, uint64_t number, char *path, size_t bytes);

/* Replays all generations onto `initial` and compares: snapshots on the way, the disk at the end (or, where the log was given
 * up, the chunks that are not marked dirty).  No thread uses the disk. */
void check_victim(struct victim *victim);

#endif
