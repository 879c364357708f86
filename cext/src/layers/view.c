#define _GNU_SOURCE
#include "layers/view.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/io.h"
#include "base/mapped.h"
#include "base/siterig.h"
#include "index/extent_map_internal.h"
#include "layers/layer_internal.h"

/* Limits for reading a block of the base again that matches neither of its two sums. A compaction that is writing it
 * may be preempted within a page, so there is time while the two sums differ. If they are equal, one more try is
 * enough, in case the compaction finished between the reads of the block and of its sums. */
#define TRIES_DURING_COMPACTION 200
#define TRIES 4
#define PAUSE_NS 1000000

struct source {
	int fd, paired;
	const uint32_t *sums; /* mapped; NULL: the file is empty */
	uint64_t sum_count;
	size_t mapped_bytes;
};

struct view {
	struct sr_layer layer;
	struct rows *rows;
	uint32_t *firsts; /* for each 1 << shift bytes of the disk: the first extent that ends after their start */
	unsigned shift;
	uint64_t first_count;
	struct source *sources;
	size_t source_count;
	struct sr_faults *faults;
};

/* `layer` is the first member. */
static const struct view *view_of(const struct sr_layer *layer)
{
	return (const struct view *)layer;
}

/* --- faults -------------------------------------------------------------------------------------------------- */

struct sr_faults {
	int users; /* atomic */
	pthread_mutex_t lock;
	uint64_t count;
	struct sr_fault kept[SR_FAULTS_KEPT];
};

struct sr_faults *sr_faults_new(void)
{
	struct sr_faults *faults = calloc(1, sizeof(*faults));
	if (!faults)
		return NULL;
	faults->users = 1;
	pthread_mutex_init(&faults->lock, NULL);
	return faults;
}

void sr_faults_put(struct sr_faults *faults)
{
	if (!faults || __atomic_sub_fetch(&faults->users, 1, __ATOMIC_ACQ_REL))
		return;
	pthread_mutex_destroy(&faults->lock);
	free(faults);
}

uint64_t sr_faults_seen(struct sr_faults *faults, struct sr_fault *last)
{
	pthread_mutex_lock(&faults->lock);
	uint64_t count = faults->count, oldest = count > SR_FAULTS_KEPT ? count - SR_FAULTS_KEPT : 0;
	for (uint64_t i = oldest; i < count; i++)
		last[i - oldest] = faults->kept[i % SR_FAULTS_KEPT];
	pthread_mutex_unlock(&faults->lock);
	return count;
}

static void note(struct sr_faults *faults, const struct sr_fault *fault)
{
	pthread_mutex_lock(&faults->lock);
	faults->kept[faults->count++ % SR_FAULTS_KEPT] = *fault;
	pthread_mutex_unlock(&faults->lock);
}

/* --- making and freeing -------------------------------------------------------------------------------------- */

static int open_source(struct source *source, const struct sr_source *given)
{
	struct stat status;
	int sums_fd = given->sums_fd >= 0 ? given->sums_fd : given->fd;

	*source = (struct source){.fd = given->fd, .paired = given->paired};
	if (given->fd < 0)
		return 0;
	if (fstat(sums_fd, &status) != 0)
		return -errno;
	source->sum_count = (uint64_t)status.st_size / sizeof(*source->sums);
	if (source->sum_count == 0)
		return 0;
	source->mapped_bytes = (size_t)status.st_size;
	void *sums = mmap(NULL, source->mapped_bytes, PROT_READ, MAP_SHARED, sums_fd, 0);
	if (sums == MAP_FAILED) {
		source->mapped_bytes = 0;
		return -errno;
	}
	source->sums = sums;
	return 0;
}

/* Build a table that leads to within a step or two of each extent; a binary search over all extents would wait for
 * memory at each step. It has half as many entries as there are extents: measured, twice as many and an eighth are
 * both slower. Also checks that the source of each extent exists. */
static int make_firsts(struct view *view)
{
	const struct sr_extent_row *row = view->rows->row;
	const size_t count = view->rows->count;
	uint64_t end = count ? row[count - 1].end : 0, bucket = 0;

	if (count >= UINT32_MAX)
		return -E2BIG;
	view->shift = 12;
	while (end >> view->shift > count / 2 + 1)
		view->shift++;
	view->first_count = (end >> view->shift) + 2;
	view->firsts = malloc(view->first_count * sizeof(*view->firsts));
	if (!view->firsts)
		return -ENOMEM;
	sr_expect_lookups(view->firsts, view->first_count * sizeof(*view->firsts));
	for (size_t i = 0; i < count; i++) {
		int32_t source = row[i].source;
		if (source != SR_SOURCE_ZEROS && ((size_t)source >= view->source_count || view->sources[source].fd < 0))
			return -EINVAL;
		for (; bucket << view->shift < row[i].end; bucket++)
			view->firsts[bucket] = (uint32_t)i;
	}
	for (; bucket < view->first_count; bucket++)
		view->firsts[bucket] = (uint32_t)count;
	return 0;
}

static void unmake(struct view *view)
{
	for (size_t i = 0; view->sources && i < view->source_count; i++)
		if (view->sources[i].sums)
			munmap((void *)view->sources[i].sums, view->sources[i].mapped_bytes);
	sr_rows_put(view->rows);
	sr_faults_put(view->faults);
	free(view->firsts);
	free(view->sources);
	free(view);
}

/* --- reading ------------------------------------------------------------------------------------------------- */

/* Return the first extent that ends after `offset`. */
static size_t find(const struct view *view, uint64_t offset)
{
	uint64_t bucket = offset >> view->shift;
	if (bucket + 1 >= view->first_count)
		return view->rows->count;
	size_t low = view->firsts[bucket], high = view->firsts[bucket + 1];
	while (low < high) {
		size_t middle = low + (high - low) / 2;
		if (view->rows->row[middle].end <= offset)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

struct sums {
	int error; /* ENODATA: there is no sum */
	uint32_t right, becomes; /* different only in a base */
};

/* NULL: there is no sum. */
static const uint32_t *place_of_sums(const struct source *source, uint64_t piece)
{
	if (piece >= source->sum_count / (source->paired ? 2 : 1))
		return NULL;
	return source->sums + (source->paired ? 2 * piece : piece);
}

static struct sums sums_of(const struct source *source, uint64_t piece)
{
	const uint32_t *at = place_of_sums(source, piece);
	uint32_t pair[2] = {0};
	if (!at)
		return (struct sums){.error = ENODATA};
	int rc = sr_mapped_load(at, source->paired ? 2 : 1, pair);
	return (struct sums){-rc, pair[0], pair[source->paired ? 1 : 0]};
}

static int fits(const struct sums *sums, uint32_t found)
{
	return !sums->error && (found == sums->right || found == sums->becomes);
}

/* Read a wrong block of the base again, with its sums, because a compaction may have been writing it. */
static int read_again(const struct source *source, char *buf, uint64_t bytes, uint64_t at, uint64_t piece,
		      struct sums *sums, uint32_t *found)
{
	const struct timespec pause = {0, PAUSE_NS};
	for (int tries = 1; tries < (sums->right != sums->becomes ? TRIES_DURING_COMPACTION : TRIES); tries++) {
		if (tries > 1)
			nanosleep(&pause, NULL);
		int rc = sr_io_read(source->fd, buf, (int64_t)bytes, (int64_t)at);
		if (rc)
			return rc;
		*found = sr_crc32c(0, buf, bytes);
		*sums = sums_of(source, piece);
		if (fits(sums, *found))
			return 0;
	}
	return -EIO;
}

/* Read whole pieces of an extent, from .. to on the disk, and check them. */
static int read_pieces(const struct view *view, const struct sr_extent_row *row, char *buf, uint64_t from, uint64_t to)
{
	const struct source *source = &view->sources[row->source];
	uint64_t at = row->source_offset - row->start + from;
	uint64_t piece = row->first_piece + from / SR_PIECE_BYTES - row->start / SR_PIECE_BYTES;
	struct sr_fault fault = {.offset = from, .source_offset = at, .source = row->source};

	__builtin_prefetch(place_of_sums(source, piece)); /* loaded from memory while the kernel copies */
	int rc = source->paired ? sr_io_read(source->fd, buf, (int64_t)(to - from), (int64_t)at)
				: sr_io_read_whole(source->fd, buf, (int64_t)(to - from), (int64_t)at);
	if (rc) {
		fault.error = -rc;
		note(view->faults, &fault);
		return rc;
	}
	while (from < to) {
		uint64_t next = from - from % SR_PIECE_BYTES + SR_PIECE_BYTES, bytes = (next < to ? next : to) - from;
		uint32_t found = sr_crc32c(0, buf, bytes);
		struct sums sums = sums_of(source, piece);
		if (!fits(&sums, found)) {
			rc = -EIO;
			if (!sums.error && source->paired)
				rc = read_again(source, buf, bytes, at, piece, &sums, &found);
			if (rc) {
				fault = (struct sr_fault){from, at, row->source, sums.error ? sums.error : -rc, sums.becomes, found};
				note(view->faults, &fault);
				return rc;
			}
		}
		buf += bytes;
		from += bytes;
		at += bytes;
		piece++;
	}
	return 0;
}

/* Read bytes from .. to of an extent; a piece that they only touch is read completely, for the check. */
static int read_extent(const struct view *view, const struct sr_extent_row *row, char *buf, uint64_t from, uint64_t to)
{
	const uint64_t first = row->start - row->before, last = row->end + row->after;
	char whole_piece[SR_PIECE_BYTES];
	int rc = 0;

	while (from < to && rc == 0) {
		uint64_t block = from - from % SR_PIECE_BYTES, next = block + SR_PIECE_BYTES;
		uint64_t start = block > first ? block : first, end = next < last ? next : last, stop;
		if (start == from && end <= to) {
			stop = to == last ? to : to - to % SR_PIECE_BYTES;
			rc = read_pieces(view, row, buf, from, stop);
		} else {
			stop = end < to ? end : to;
			rc = read_pieces(view, row, whole_piece, start, end);
			if (rc == 0)
				memcpy(buf, whole_piece + (from - start), stop - from);
		}
		buf += stop - from;
		from = stop;
	}
	return rc;
}

static int read_view(struct sr_layer *layer, void *into, uint64_t bytes, uint64_t offset)
{
	const struct view *view = view_of(layer);
	const struct sr_extent_row *row = &view->rows->row[find(view, offset)];
	const struct sr_extent_row *last = view->rows->row + view->rows->count;
	uint64_t inside = offset >= view->layer.bytes ? 0 : view->layer.bytes - offset;
	uint64_t end = offset + (bytes < inside ? bytes : inside);
	char *buf = into;
	int rc = 0;

	memset(buf + (end - offset), 0, bytes - (end - offset));
	while (offset < end && rc == 0) {
		uint64_t stop = row == last || row->start >= end ? end : row->start;
		if (stop > offset) {
			memset(buf, 0, stop - offset);
		} else {
			stop = row->end < end ? row->end : end;
			if (row->source == SR_SOURCE_ZEROS)
				memset(buf, 0, stop - offset);
			else
				rc = read_extent(view, row, buf, offset, stop);
			row++;
		}
		buf += stop - offset;
		offset = stop;
	}
	return rc;
}

/* Return the known sum of zeros, and of a piece that is a whole block, whose sum is that of the block. */
static int known_sum(struct sr_layer *layer, uint64_t offset, uint32_t *sum)
{
	static const char zeros[SR_BLOCK_BYTES];
	const struct view *view = view_of(layer);
	const struct sr_extent_row *row = &view->rows->row[find(view, offset)];
	const struct sr_extent_row *last = view->rows->row + view->rows->count;
	const uint64_t end = offset + SR_BLOCK_BYTES;

	if (row < last && row->start < end) {
		if (row->start > offset || row->end < end)
			return 0;
		if (row->source != SR_SOURCE_ZEROS) {
			const struct source *source = &view->sources[row->source];
			uint64_t piece = row->first_piece + offset / SR_PIECE_BYTES - row->start / SR_PIECE_BYTES;
			const uint32_t *at = source->paired || end > view->layer.bytes ? NULL : place_of_sums(source, piece);
			return at && sr_mapped_load(at, 1, sum) == 0;
		}
	}
	*sum = sr_crc32c(0, zeros, sizeof(zeros));
	return 1;
}

static int64_t seek_view(struct sr_layer *layer, uint64_t offset, uint64_t end, int hole)
{
	const struct view *view = view_of(layer);
	const struct sr_extent_row *row = &view->rows->row[find(view, offset)];
	const struct sr_extent_row *last = view->rows->row + view->rows->count;

	for (; row < last && row->start < end; row++) {
		if (row->source == SR_SOURCE_ZEROS)
			continue;
		if (!hole)
			return (int64_t)(row->start > offset ? row->start : offset);
		if (row->start > offset)
			break;
		offset = row->end < end ? row->end : end;
	}
	return (int64_t)(hole ? offset : end);
}

/* --- the layer ----------------------------------------------------------------------------------------------- */

static void free_view(struct sr_layer *layer)
{
	struct view *view = (struct view *)layer;

	for (size_t i = 0; i < view->source_count; i++)
		if (view->sources[i].fd >= 0)
			close(view->sources[i].fd);
	unmake(view);
}

static const struct sr_layer_ops view_ops = {
	.free = free_view,
	.read = read_view,
	.seek = seek_view,
	.known_sum = known_sum,
};

struct sr_layer *sr_layer_view(struct sr_extents *map, const struct sr_source *sources, size_t count, uint64_t bytes,
			       struct sr_faults *faults)
{
	struct view *view = calloc(1, sizeof(*view));
	int rc = -ENOMEM;

	if (!view)
		goto fail;
	sr_mapped_prepare();
	__atomic_add_fetch(&faults->users, 1, __ATOMIC_RELAXED);
	*view = (struct view){.layer = {.ops = &view_ops, .bytes = bytes},
			      .rows = sr_extents_share(map),
			      .sources = calloc(count ? count : 1, sizeof(*view->sources)),
			      .source_count = count,
			      .faults = faults};
	rc = view->sources ? 0 : -ENOMEM;
	for (size_t i = 0; i < count && rc == 0; i++)
		rc = open_source(&view->sources[i], &sources[i]);
	if (rc == 0)
		rc = make_firsts(view);
	if (rc) {
		unmake(view);
		goto fail;
	}
	for (size_t i = 0; i < count; i++) {
		if (sources[i].sums_fd >= 0)
			close(sources[i].sums_fd);
		if (sources[i].paired && sources[i].fd >= 0)
			sr_io_expect_random(sources[i].fd);
	}
	return &view->layer;
fail:
	errno = -rc;
	return NULL;
}
