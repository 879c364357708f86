#define _GNU_SOURCE
#include "layers/base_update.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/io.h"
#include "base/siterig.h"

enum { RUN_BLOCKS = 256, RUN_BYTES = RUN_BLOCKS * SR_BLOCK_BYTES };
enum { PAGE_PAIRS = 512 }; /* pairs in a page of the file of sums: the unit in which that file is read */
enum { BRIDGE_BYTES = 2 * SR_BLOCK_BYTES }; /* measured: 1.2 s of writing become 0.8 (bench/RESULTS.md) */
enum { TRIES = 200, PAUSE_NS = 1000000 };

struct pair {
	uint32_t right, becomes;
};

/* The state of a step: a run of blocks, and the page with their sums. */
struct run {
	struct sr_layer *from;
	int fd, sums_fd;
	uint64_t offset, blocks;
	uint64_t gap;  /* bytes up to the next range if the run ends its range, otherwise 0 */
	uint8_t *data; /* RUN_BYTES */
	struct pair page[PAGE_PAIRS];
	uint64_t page_number, page_first, page_end; /* the part that must be written */
	int has_page, is_cold;
	struct sr_bad_block *bad;
	size_t bad_count, bad_room;
};

typedef int (*step_fn)(struct run *run);

static int write_whole(int fd, const void *data, int64_t bytes, int64_t offset)
{
	int64_t done = sr_io_write(fd, data, bytes, offset);
	if (done < 0)
		return (int)done;
	return done == bytes ? 0 : -ENOSPC;
}

static int write_page(struct run *run)
{
	uint64_t first = run->page_first, count = run->page_end - first;
	if (!run->has_page)
		return 0;
	return write_whole(run->sums_fd, run->page + first, (int64_t)(count * sizeof(struct pair)),
			   (int64_t)((run->page_number * PAGE_PAIRS + first) * sizeof(struct pair)));
}

/* Call `step` for each run; a run does not cross the range of one page of sums. */
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
			uint64_t most = PAGE_PAIRS - offset / SR_BLOCK_BYTES % PAGE_PAIRS;
			run->offset = offset;
			run->blocks = left < RUN_BLOCKS ? left : RUN_BLOCKS;
			if (run->blocks > most)
				run->blocks = most;
			offset += run->blocks * SR_BLOCK_BYTES;
			left -= run->blocks;
			run->gap = left == 0 && i + 1 < count ? ranges[2 * i + 2] - offset : 0;
			rc = step(run);
		}
	}
	if (rc == 0)
		rc = write_page(run);
	free(run->data);
	return rc;
}

/* --- the sums of a run --------------------------------------------------------------------------------------- */

static int64_t sums_at(const struct run *run)
{
	return (int64_t)(run->offset / SR_BLOCK_BYTES * sizeof(struct pair));
}

/* Return the pairs of the run in the page; changes are written together with the page. NULL: `rc` is the error. */
static struct pair *pairs_to_change(struct run *run, int *rc)
{
	uint64_t block = run->offset / SR_BLOCK_BYTES, first = block % PAGE_PAIRS;
	if (!run->has_page || run->page_number != block / PAGE_PAIRS) {
		*rc = write_page(run);
		run->has_page = 0;
		if (*rc)
			return NULL;
		run->page_number = block / PAGE_PAIRS;
		*rc = sr_io_read(run->sums_fd, run->page, sizeof(run->page), (int64_t)(run->page_number * sizeof(run->page)));
		if (*rc)
			return NULL;
		run->has_page = 1;
		run->page_first = first;
	}
	*rc = 0;
	run->page_end = first + run->blocks;
	return run->page + first;
}

static uint32_t sum_of(const struct run *run, uint64_t block)
{
	return sr_crc32c(0, run->data + block * SR_BLOCK_BYTES, SR_BLOCK_BYTES);
}

/* --- steps --------------------------------------------------------------------------------------------------- */

static int read_blocks(struct run *run, uint64_t first, uint64_t stop)
{
	const uint64_t at = first * SR_BLOCK_BYTES;
	return sr_layer_read(run->from, run->data + at, stop * SR_BLOCK_BYTES - at, run->offset + at);
}

static int prepare_checksums(struct run *run)
{
	int rc;
	struct pair *pairs = pairs_to_change(run, &rc);
	for (uint64_t i = 0; i < run->blocks && rc == 0; i++) {
		uint64_t stop = i; /* the first block that need not be read */
		while (stop < run->blocks &&
		       !sr_layer_known_sum(run->from, run->offset + stop * SR_BLOCK_BYTES, &pairs[stop].becomes))
			stop++;
		if (stop > i)
			rc = read_blocks(run, i, stop);
		for (; i < stop && rc == 0; i++)
			pairs[i].becomes = sum_of(run, i);
	}
	return rc;
}

/* Write the blocks between two ranges again, unchanged, so that the medium gets one write. It reads them only from
 * the page cache, and fills no hole. */
static int bridge(struct run *run)
{
	int64_t at = (int64_t)(run->offset + run->blocks * SR_BLOCK_BYTES), bytes = (int64_t)run->gap;
	if (run->is_cold || run->gap == 0 || run->gap > BRIDGE_BYTES)
		return 0;
	run->is_cold = !sr_io_read_cached(run->fd, run->data, bytes, at);
	for (int64_t block = 0; block < bytes; block += SR_BLOCK_BYTES)
		if (run->is_cold || sr_is_zero(run->data + block, SR_BLOCK_BYTES))
			return 0;
	return write_whole(run->fd, run->data, bytes, at);
}

static int copy_blocks(struct run *run)
{
	int rc = read_blocks(run, 0, run->blocks);
	uint64_t size = sr_layer_bytes(run->from), inside = size > run->offset ? size - run->offset : 0;
	uint64_t end = run->blocks * SR_BLOCK_BYTES < inside ? run->blocks * SR_BLOCK_BYTES : inside;

	for (uint64_t at = 0; at < end && rc == 0;) { /* runs of equal kind */
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
	return rc ? rc : bridge(run);
}

static int commit_checksums(struct run *run)
{
	int rc;
	struct pair *pairs = pairs_to_change(run, &rc);
	for (uint64_t i = 0; i < run->blocks && rc == 0; i++)
		pairs[i].right = pairs[i].becomes;
	return rc;
}

/* Check a block; one that matches neither sum is read again, because a compaction may be writing it. */
static int is_bad(struct run *run, uint64_t block, uint32_t *found, int *rc)
{
	const struct timespec pause = {0, PAUSE_NS};
	uint8_t *data = run->data + block * SR_BLOCK_BYTES;
	struct pair *pair = &run->page[block];
	int64_t at = (int64_t)(run->offset + block * SR_BLOCK_BYTES);

	for (int tries = 0;; tries++) {
		*found = sum_of(run, block);
		if (*found == pair->right || *found == pair->becomes)
			return 0;
		if (tries == (pair->right == pair->becomes ? 2 : TRIES))
			return 1;
		if (tries > 0 && pair->right != pair->becomes) /* otherwise no compaction is writing, and there may be millions of bad blocks */
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
		rc = sr_io_read(run->sums_fd, run->page, (int64_t)(run->blocks * sizeof(struct pair)), sums_at(run));
	for (uint64_t i = 0; i < run->blocks && rc == 0 && run->bad_count < run->bad_room; i++) {
		uint32_t found;
		if (is_bad(run, i, &found, &rc))
			run->bad[run->bad_count++] = (struct sr_bad_block){
				run->offset + i * SR_BLOCK_BYTES, run->page[i].right, run->page[i].becomes, found};
	}
	return rc;
}

int sr_base_prepare_checksums(struct sr_layer *from, int sums_fd, const uint64_t *ranges, size_t count)
{
	struct run run = {.from = from, .sums_fd = sums_fd};
	return for_each_run(&run, ranges, count, prepare_checksums);
}

int sr_base_copy_blocks(struct sr_layer *from, int fd, const uint64_t *ranges, size_t count)
{
	struct run run = {.from = from, .fd = fd};
	return for_each_run(&run, ranges, count, copy_blocks);
}

int sr_base_commit_checksums(int sums_fd, const uint64_t *ranges, size_t count)
{
	struct run run = {.sums_fd = sums_fd};
	return for_each_run(&run, ranges, count, commit_checksums);
}

int64_t sr_base_check(int fd, int sums_fd, const uint64_t *ranges, size_t count, struct sr_bad_block *bad, size_t room)
{
	struct run run = {.fd = fd, .sums_fd = sums_fd, .bad = bad, .bad_room = room};
	int rc = for_each_run(&run, ranges, count, check);
	return rc ? rc : (int64_t)run.bad_count;
}
