#define _GNU_SOURCE
#include "fill.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "io.h"
#include "siterig.h"

enum { RUN_BLOCKS = 256, RUN_BYTES = RUN_BLOCKS * SR_BLOCK_BYTES };
enum { TRIES = 200, PAUSE_NS = 1000000 };

struct pair {
	uint32_t right, becomes;
};

/* What a step works on: a run of blocks, and their sums. */
struct run {
	struct sr_layer *from;
	int fd, sums_fd;
	uint64_t offset, blocks;
	uint8_t *data; /* RUN_BYTES */
	struct pair sums[RUN_BLOCKS];
	struct sr_bad_block *bad;
	size_t bad_count, bad_room;
};

typedef int (*step_fn)(struct run *run);

static int for_each_run(struct run *run, const uint64_t *ranges, size_t count, step_fn step)
{
	int rc = 0;
	run->data = malloc(RUN_BYTES);
	if (!run->data)
		return -ENOMEM;
	for (size_t i = 0; i < count && rc == 0; i++) {
		uint64_t offset = ranges[2 * i], left = ranges[2 * i + 1] / SR_BLOCK_BYTES;
		if ((offset | ranges[2 * i + 1]) % SR_BLOCK_BYTES || offset > INT64_MAX - ranges[2 * i + 1])
			rc = -EINVAL;
		while (left > 0 && rc == 0) {
			run->offset = offset;
			run->blocks = left < RUN_BLOCKS ? left : RUN_BLOCKS;
			rc = step(run);
			offset += run->blocks * SR_BLOCK_BYTES;
			left -= run->blocks;
		}
	}
	free(run->data);
	return rc;
}

/* --- the sums of a run --------------------------------------------------------------------------------------- */

static int64_t sums_at(const struct run *run)
{
	return (int64_t)(run->offset / SR_BLOCK_BYTES * sizeof(struct pair));
}

static int read_sums(struct run *run)
{
	return sr_io_read(run->sums_fd, run->sums, (int64_t)(run->blocks * sizeof(struct pair)), sums_at(run));
}

static int write_whole(int fd, const void *data, int64_t bytes, int64_t offset)
{
	int64_t done = sr_io_write(fd, data, bytes, offset);
	if (done < 0)
		return (int)done;
	return done == bytes ? 0 : -ENOSPC;
}

static int write_sums(struct run *run)
{
	return write_whole(run->sums_fd, run->sums, (int64_t)(run->blocks * sizeof(struct pair)), sums_at(run));
}

static uint32_t sum_of(const struct run *run, uint64_t block)
{
	return sr_crc32c(0, run->data + block * SR_BLOCK_BYTES, SR_BLOCK_BYTES);
}

/* --- steps --------------------------------------------------------------------------------------------------- */

static int announce(struct run *run)
{
	int rc = sr_layer_read(run->from, run->data, run->blocks * SR_BLOCK_BYTES, run->offset);
	if (rc == 0)
		rc = read_sums(run);
	if (rc)
		return rc;
	for (uint64_t i = 0; i < run->blocks; i++)
		run->sums[i].becomes = sum_of(run, i);
	return write_sums(run);
}

static int copy(struct run *run)
{
	int rc = sr_layer_read(run->from, run->data, run->blocks * SR_BLOCK_BYTES, run->offset);
	uint64_t size = sr_layer_bytes(run->from), inside = size > run->offset ? size - run->offset : 0;
	uint64_t end = run->blocks * SR_BLOCK_BYTES < inside ? run->blocks * SR_BLOCK_BYTES : inside;

	for (uint64_t at = 0; at < end && rc == 0;) { /* runs of blocks that are alike */
		uint64_t stop = at;
		int zero = sr_is_zero(run->data + at, SR_BLOCK_BYTES);
		do
			stop += SR_BLOCK_BYTES;
		while (stop < end && sr_is_zero(run->data + stop, SR_BLOCK_BYTES) == zero);
		if (stop > end)
			stop = end;
		if (zero)
			rc = sr_io_zero(run->fd, (int64_t)(run->offset + at), (int64_t)(stop - at));
		else
			rc = write_whole(run->fd, run->data + at, (int64_t)(stop - at), (int64_t)(run->offset + at));
		at = stop;
	}
	return rc;
}

static int conclude(struct run *run)
{
	int rc = read_sums(run);
	for (uint64_t i = 0; i < run->blocks; i++)
		run->sums[i].right = run->sums[i].becomes;
	return rc ? rc : write_sums(run);
}

/* A block that has neither sum is read again: a fold may be writing it. */
static int is_bad(struct run *run, uint64_t block, uint32_t *found, int *rc)
{
	const struct timespec pause = {0, PAUSE_NS};
	uint8_t *data = run->data + block * SR_BLOCK_BYTES;
	struct pair *pair = &run->sums[block];
	int64_t at = (int64_t)(run->offset + block * SR_BLOCK_BYTES);

	for (int tries = 0;; tries++) {
		*found = sum_of(run, block);
		if (*found == pair->right || *found == pair->becomes)
			return 0;
		if (tries == (pair->right == pair->becomes ? 2 : TRIES))
			return 1;
		if (tries > 0 && pair->right != pair->becomes) /* else nothing is going on: there may be millions of them */
			nanosleep(&pause, NULL);
		*rc = sr_io_read(run->fd, data, SR_BLOCK_BYTES, at);
		if (*rc == 0)
			*rc = sr_io_read(run->sums_fd, pair, sizeof(*pair), sums_at(run) + (int64_t)(block * sizeof(*pair)));
		if (*rc)
			return 0;
	}
}

static int check(struct run *run)
{
	int rc = sr_io_read(run->fd, run->data, (int64_t)(run->blocks * SR_BLOCK_BYTES), (int64_t)run->offset);
	if (rc == 0)
		rc = read_sums(run);
	for (uint64_t i = 0; i < run->blocks && rc == 0 && run->bad_count < run->bad_room; i++) {
		uint32_t found;
		if (is_bad(run, i, &found, &rc))
			run->bad[run->bad_count++] = (struct sr_bad_block){
				run->offset + i * SR_BLOCK_BYTES, run->sums[i].right, run->sums[i].becomes, found};
	}
	return rc;
}

int sr_fill_announce(struct sr_layer *from, int sums_fd, const uint64_t *ranges, size_t count)
{
	struct run run = {.from = from, .sums_fd = sums_fd};
	return for_each_run(&run, ranges, count, announce);
}

int sr_fill_copy(struct sr_layer *from, int fd, const uint64_t *ranges, size_t count)
{
	struct run run = {.from = from, .fd = fd};
	return for_each_run(&run, ranges, count, copy);
}

int sr_fill_conclude(int sums_fd, const uint64_t *ranges, size_t count)
{
	struct run run = {.sums_fd = sums_fd};
	return for_each_run(&run, ranges, count, conclude);
}

int64_t sr_base_check(int fd, int sums_fd, const uint64_t *ranges, size_t count, struct sr_bad_block *bad, size_t room)
{
	struct run run = {.fd = fd, .sums_fd = sums_fd, .bad = bad, .bad_room = room};
	int rc = for_each_run(&run, ranges, count, check);
	return rc ? rc : (int64_t)run.bad_count;
}
