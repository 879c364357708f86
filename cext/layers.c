#define _GNU_SOURCE
#include "layers.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io.h"
#include "layers_internal.h"

/* The present map is mapped once for the largest disk there can be, so that a growing disk never moves it under a reader.
 * Only the part that the file has is ever touched. */
#define DISK_BYTES_MAX (64ull << 40)
#define MAP_BYTES_MAX (DISK_BYTES_MAX / SR_BLOCK_BYTES / 8)
#define MAP_PAGE_BYTES 4096 /* of the present map: what the durable one is written in */

/* --- making and freeing -------------------------------------------------------------------------------------- */

struct sr_layer *sr_layer_raw(int fd, uint64_t bytes)
{
	struct sr_layer *layer = calloc(1, sizeof(*layer));
	if (!layer)
		return NULL;
	sr_io_expect_random(fd);
	layer->kind = RAW;
	layer->fd = fd;
	layer->bytes = bytes;
	return layer;
}

struct sr_layer *sr_layer_extents(struct sr_layer *base, const struct sr_extent *extents, size_t count, const int *fds,
				  size_t fd_count, uint64_t bytes)
{
	struct sr_layer *layer = calloc(1, sizeof(*layer));
	struct sr_extent *map = calloc(count ? count : 1, sizeof(*map));
	int *sources = calloc(fd_count ? fd_count : 1, sizeof(*sources));

	if (!layer || !map || !sources) {
		free(layer);
		free(map);
		free(sources);
		return NULL;
	}
	if (count)
		memcpy(map, extents, count * sizeof(*map));
	if (fd_count)
		memcpy(sources, fds, fd_count * sizeof(*sources));
	*layer = (struct sr_layer){.kind = EXTENTS,
				   .bytes = bytes,
				   .lower = base,
				   .fd = -1,
				   .extents = map,
				   .extent_count = count,
				   .fds = sources,
				   .fd_count = fd_count};
	return layer;
}

static int64_t map_bytes(uint64_t disk_bytes)
{
	uint64_t blocks = (disk_bytes + SR_BLOCK_BYTES - 1) / SR_BLOCK_BYTES;
	uint64_t bytes = (blocks + 7) / 8;
	return bytes ? (int64_t)bytes : 1;
}

static uint64_t map_pages(uint64_t disk_bytes)
{
	return ((uint64_t)map_bytes(disk_bytes) + MAP_PAGE_BYTES - 1) / MAP_PAGE_BYTES;
}

/* A kill may have come before what it set was on stable storage. */
static int find_changed(struct sr_layer *layer)
{
	uint8_t durable[MAP_PAGE_BYTES];
	for (uint64_t page = 0; page < map_pages(layer->bytes); page++) {
		uint64_t at = page * MAP_PAGE_BYTES;
		int rc = sr_io_read(layer->durable_fd, durable, MAP_PAGE_BYTES, (int64_t)(SR_DURABLE_HEADER_BYTES + at));
		if (rc)
			return rc;
		if (memcmp(durable, layer->map + at, MAP_PAGE_BYTES) != 0)
			layer->changed[page / 8] |= (uint8_t)(1u << (page % 8));
	}
	return 0;
}

/* With their blocks: a store to a mapped hole of a full file system would be a SIGBUS. */
static int allocate_maps(int map_fd, int durable_fd, uint64_t disk_bytes)
{
	int rc = posix_fallocate(map_fd, 0, map_bytes(disk_bytes));
	return rc ? rc : posix_fallocate(durable_fd, 0, SR_DURABLE_HEADER_BYTES + map_bytes(disk_bytes));
}

struct sr_layer *sr_layer_top(struct sr_layer *lower, int fd, int map_fd, int durable_fd, uint64_t bytes)
{
	struct sr_layer *layer = calloc(1, sizeof(*layer));
	uint8_t *changed = calloc(map_pages(DISK_BYTES_MAX) / 8 + 1, 1);
	if (!layer || !changed || bytes > DISK_BYTES_MAX || (errno = allocate_maps(map_fd, durable_fd, bytes)) != 0)
		goto fail;
	void *map = mmap(NULL, MAP_BYTES_MAX, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, map_fd, 0);
	if (map == MAP_FAILED)
		goto fail;
	*layer = (struct sr_layer){.kind = TOP,
				   .bytes = bytes,
				   .lower = lower,
				   .fd = fd,
				   .map_fd = map_fd,
				   .durable_fd = durable_fd,
				   .map = map,
				   .changed = changed};
	if ((errno = -find_changed(layer)) != 0) {
		munmap(map, MAP_BYTES_MAX);
		goto fail;
	}
	sr_io_expect_random(fd);
	pthread_rwlockattr_t in_turn; /* else readers without a pause would keep it from becoming a raw file for ever */
	pthread_rwlockattr_init(&in_turn);
	pthread_rwlockattr_setkind_np(&in_turn, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&layer->shape, &in_turn);
	pthread_rwlockattr_destroy(&in_turn);
	pthread_mutex_init(&layer->syncing, NULL);
	layer->has_locks = 1;
	return layer;
fail:
	free(changed);
	free(layer);
	return NULL;
}

static void free_maps(struct sr_layer *layer)
{
	munmap(layer->map, MAP_BYTES_MAX);
	close(layer->map_fd);
	close(layer->durable_fd);
	free(layer->changed);
}

void sr_layer_free(struct sr_layer *layer)
{
	if (!layer)
		return;
	sr_layer_free(layer->lower);
	for (size_t i = 0; i < layer->fd_count; i++)
		close(layer->fds[i]);
	if (layer->kind == TOP)
		free_maps(layer);
	if (layer->has_locks) {
		pthread_mutex_destroy(&layer->syncing);
		pthread_rwlock_destroy(&layer->shape);
	}
	if (layer->fd >= 0)
		close(layer->fd);
	sr_view_free(layer->view);
	free(layer->extents);
	free(layer->fds);
	free(layer);
}

static int is_read_only(const struct sr_layer *layer)
{
	enum kind kind = kind_of(layer);
	return kind == EXTENTS || kind == VIEW;
}

uint64_t sr_layer_bytes(const struct sr_layer *layer)
{
	return __atomic_load_n(&layer->bytes, __ATOMIC_ACQUIRE);
}

/* --- where bytes are ----------------------------------------------------------------------------------------- */

/* A run of a disk that is found in one place. */
struct piece {
	uint64_t end;     /* on the disk */
	int32_t source;   /* index into fds, SR_ZEROS, or SR_BELOW: the lower layer */
	uint64_t at;      /* offset in the source */
};

static struct piece extent_at(const struct sr_layer *layer, uint64_t offset, uint64_t end)
{
	size_t low = 0, high = layer->extent_count; /* the first extent that ends behind offset is in low .. high */
	while (low < high) {
		size_t middle = low + (high - low) / 2;
		if (layer->extents[middle].end <= offset)
			low = middle + 1;
		else
			high = middle;
	}
	if (low == layer->extent_count)
		return (struct piece){end, SR_BELOW, offset};
	const struct sr_extent *found = &layer->extents[low];
	if (found->start > offset)
		return (struct piece){found->start < end ? found->start : end, SR_BELOW, offset};
	return (struct piece){found->end < end ? found->end : end, found->source,
			      found->source_offset + (offset - found->start)};
}

static int is_present(const struct sr_layer *layer, uint64_t block)
{
	return (__atomic_load_n(&layer->map[block / 8], __ATOMIC_ACQUIRE) >> (block % 8)) & 1;
}

/* The end of the run of blocks, from that of `offset`, that are alike. */
static uint64_t run_end(const struct sr_layer *layer, uint64_t offset, uint64_t end, int present)
{
	const uint8_t all = present ? 0xff : 0;
	uint64_t block = offset / SR_BLOCK_BYTES + 1, last = (end + SR_BLOCK_BYTES - 1) / SR_BLOCK_BYTES;

	while (block < last) {
		if (block % 8 == 0 && block + 8 <= last &&
		    __atomic_load_n(&layer->map[block / 8], __ATOMIC_ACQUIRE) == all) {
			block += 8;
			continue;
		}
		if (is_present(layer, block) != present)
			break;
		block++;
	}
	return block * SR_BLOCK_BYTES < end ? block * SR_BLOCK_BYTES : end;
}

/* --- reading ------------------------------------------------------------------------------------------------- */

/* What lies past the end of the lower layer is zeros. */
static int read_below(struct sr_layer *lower, char *buf, uint64_t bytes, uint64_t offset)
{
	uint64_t size = sr_layer_bytes(lower);
	uint64_t inside = offset >= size ? 0 : (bytes < size - offset ? bytes : size - offset);
	int rc = inside ? sr_layer_read(lower, buf, inside, offset) : 0;
	if (rc == 0 && inside < bytes)
		memset(buf + inside, 0, bytes - inside);
	return rc;
}

/* A journal's bytes were checked when they were applied: if the file is shorter now, say so, and serve no zeros. */
static int read_source(int fd, char *buf, uint64_t bytes, uint64_t at)
{
	while (bytes > 0) {
		ssize_t n = pread(fd, buf, bytes, (off_t)at);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return -EIO;
		buf += n;
		at += (uint64_t)n;
		bytes -= (uint64_t)n;
	}
	return 0;
}

static int read_extents(struct sr_layer *layer, char *buf, uint64_t bytes, uint64_t offset)
{
	uint64_t end = offset + bytes;
	int rc = 0;
	while (offset < end && rc == 0) {
		struct piece piece = extent_at(layer, offset, end);
		uint64_t n = piece.end - offset;
		if (piece.source == SR_BELOW)
			rc = read_below(layer->lower, buf, n, offset);
		else if (piece.source == SR_ZEROS)
			memset(buf, 0, n);
		else
			rc = read_source(layer->fds[piece.source], buf, n, piece.at);
		buf += n;
		offset = piece.end;
	}
	return rc;
}

static int read_top(struct sr_layer *layer, char *buf, uint64_t bytes, uint64_t offset)
{
	uint64_t end = offset + bytes;
	int rc = 0;

	pthread_rwlock_rdlock(&layer->shape);
	if (kind_of(layer) != TOP) {
		pthread_rwlock_unlock(&layer->shape);
		return sr_io_read(layer->fd, buf, (int64_t)bytes, (int64_t)offset);
	}
	while (offset < end && rc == 0) {
		int present = is_present(layer, offset / SR_BLOCK_BYTES);
		uint64_t stop = run_end(layer, offset, end, present);
		if (present)
			rc = sr_io_read(layer->fd, buf, (int64_t)(stop - offset), (int64_t)offset);
		else
			rc = read_below(layer->lower, buf, stop - offset, offset);
		buf += stop - offset;
		offset = stop;
	}
	pthread_rwlock_unlock(&layer->shape);
	return rc;
}

int sr_layer_read(struct sr_layer *layer, void *buf, uint64_t bytes, uint64_t offset)
{
	switch (kind_of(layer)) {
	case RAW:
		return sr_io_read(layer->fd, buf, (int64_t)bytes, (int64_t)offset);
	case EXTENTS:
		return read_extents(layer, buf, bytes, offset);
	case TOP:
		return read_top(layer, buf, bytes, offset);
	case VIEW:
		return sr_view_read(layer->view, buf, bytes, offset);
	}
	return -EINVAL;
}

/* --- writing ------------------------------------------------------------------------------------------------- */

/* Bring one block up from below, if it is not there and the write does not cover it whole. */
static int fill_block(struct sr_layer *layer, uint64_t block, uint64_t offset, uint64_t end)
{
	char data[SR_BLOCK_BYTES];
	uint64_t start = block * SR_BLOCK_BYTES, stop = start + SR_BLOCK_BYTES;
	if (stop > layer->bytes)
		stop = layer->bytes;
	if ((offset <= start && stop <= end) || is_present(layer, block))
		return 0;
	int rc = read_below(layer->lower, data, stop - start, start);
	if (rc)
		return rc;
	int64_t done = sr_io_write(layer->fd, data, (int64_t)(stop - start), (int64_t)start);
	if (done < 0)
		return (int)done;
	return done == (int64_t)(stop - start) ? 0 : -ENOSPC;
}

static int fill_edges(struct sr_layer *layer, uint64_t offset, uint64_t end)
{
	uint64_t first = offset / SR_BLOCK_BYTES, last = (end - 1) / SR_BLOCK_BYTES;
	int rc = fill_block(layer, first, offset, end);
	if (rc == 0 && last != first)
		rc = fill_block(layer, last, offset, end);
	return rc;
}

/* Only now, after the bytes: a kill between the two leaves the block as it was. */
static void mark_present(struct sr_layer *layer, uint64_t offset, uint64_t end)
{
	for (uint64_t block = offset / SR_BLOCK_BYTES; block <= (end - 1) / SR_BLOCK_BYTES; block++) {
		if (is_present(layer, block))
			continue;
		__atomic_fetch_or(&layer->map[block / 8], (uint8_t)(1u << (block % 8)), __ATOMIC_RELEASE);
		uint64_t page = block / 8 / MAP_PAGE_BYTES;
		__atomic_fetch_or(&layer->changed[page / 8], (uint8_t)(1u << (page % 8)), __ATOMIC_RELEASE);
	}
}

int64_t sr_layer_write(struct sr_layer *layer, const void *buf, uint64_t bytes, uint64_t offset)
{
	if (is_read_only(layer))
		return -EROFS;
	if (bytes == 0)
		return 0;
	if (layer->kind == RAW)
		return sr_io_write(layer->fd, buf, (int64_t)bytes, (int64_t)offset);
	int rc = fill_edges(layer, offset, offset + bytes);
	if (rc)
		return rc;
	int64_t done = sr_io_write(layer->fd, buf, (int64_t)bytes, (int64_t)offset);
	if (done <= 0)
		return done;
	uint64_t end = offset + (uint64_t)done, block = end / SR_BLOCK_BYTES;
	if ((uint64_t)done < bytes && end % SR_BLOCK_BYTES && !is_present(layer, block)) {
		/* It broke off in a block that was to be covered whole, and so holds nothing of what lies below. */
		uint64_t start = block * SR_BLOCK_BYTES, stop = start + SR_BLOCK_BYTES;
		if (offset <= start && stop <= offset + bytes)
			end = start;
		if (end <= offset)
			return -ENOSPC;
	}
	mark_present(layer, offset, end);
	return (int64_t)(end - offset);
}

int sr_layer_zero(struct sr_layer *layer, uint64_t offset, uint64_t bytes)
{
	if (is_read_only(layer))
		return -EROFS;
	if (bytes == 0)
		return 0;
	if (layer->kind == TOP) {
		int rc = fill_edges(layer, offset, offset + bytes);
		if (rc)
			return rc;
	}
	int rc = sr_io_zero(layer->fd, (int64_t)offset, (int64_t)bytes);
	if (rc == 0 && layer->kind == TOP)
		mark_present(layer, offset, offset + bytes); /* present holes read as zeros */
	return rc;
}

int sr_layer_resize(struct sr_layer *layer, uint64_t bytes)
{
	if (is_read_only(layer))
		return -EROFS;
	if (bytes > DISK_BYTES_MAX)
		return -EFBIG;
	if (layer->kind == TOP && bytes < layer->bytes) /* what lies below would be there again when it grew back */
		return -EINVAL;
	int rc = layer->kind == TOP ? -allocate_maps(layer->map_fd, layer->durable_fd, bytes) : 0;
	if (rc == 0)
		rc = sr_io_resize(layer->fd, (int64_t)bytes);
	if (rc == 0)
		__atomic_store_n(&layer->bytes, bytes, __ATOMIC_RELEASE);
	return rc;
}

void sr_layer_start_sync(struct sr_layer *layer)
{
	if (!is_read_only(layer))
		sr_io_start_sync(layer->fd);
}

struct map_page {
	struct map_page *next;
	uint64_t number;
	uint64_t bits[MAP_PAGE_BYTES / 8];
};

static void mark_changed(struct sr_layer *layer, const struct map_page *pages)
{
	for (; pages; pages = pages->next)
		__atomic_fetch_or(&layer->changed[pages->number / 8], (uint8_t)(1u << (pages->number % 8)), __ATOMIC_RELEASE);
}

/* Copies of the pages that have changed; they count as unchanged from then on.  -ENOMEM: `taken` has some of them. */
static int take_changed(struct sr_layer *layer, struct map_page **taken)
{
	for (uint64_t group = 0; group <= (map_pages(sr_layer_bytes(layer)) - 1) / 8; group++) {
		uint8_t changed = __atomic_exchange_n(&layer->changed[group], 0, __ATOMIC_ACQ_REL);
		for (unsigned bit = 0; bit < 8; bit++) {
			if (!(changed >> bit & 1))
				continue;
			struct map_page *page = malloc(sizeof(*page));
			if (!page) {
				__atomic_fetch_or(&layer->changed[group], (uint8_t)(changed & ~((1u << bit) - 1)), __ATOMIC_RELEASE);
				return -ENOMEM;
			}
			page->number = group * 8 + bit;
			const uint64_t *bits = (const uint64_t *)(const void *)(layer->map + page->number * MAP_PAGE_BYTES);
			for (size_t i = 0; i < MAP_PAGE_BYTES / sizeof(*bits); i++)
				page->bits[i] = __atomic_load_n(&bits[i], __ATOMIC_ACQUIRE);
			page->next = *taken;
			*taken = page;
		}
	}
	return 0;
}

/* The bits are taken first, then the bytes are synced, then those bits are written: none is durable before its bytes. */
static int sync_top(struct sr_layer *layer)
{
	struct map_page *taken = NULL;

	pthread_mutex_lock(&layer->syncing);
	int rc = kind_of(layer) == TOP ? take_changed(layer, &taken) : 0;
	if (rc == 0)
		rc = sr_io_sync(layer->fd);
	for (struct map_page *page = taken; page && rc == 0; page = page->next) {
		int64_t at = (int64_t)(SR_DURABLE_HEADER_BYTES + page->number * MAP_PAGE_BYTES);
		int64_t done = sr_io_write(layer->durable_fd, page->bits, MAP_PAGE_BYTES, at);
		rc = done == MAP_PAGE_BYTES ? 0 : done < 0 ? (int)done : -ENOSPC;
	}
	if (rc == 0 && taken)
		rc = sr_io_sync(layer->durable_fd);
	if (rc)
		mark_changed(layer, taken);
	while (taken) {
		struct map_page *next = taken->next;
		free(taken);
		taken = next;
	}
	pthread_mutex_unlock(&layer->syncing);
	return rc;
}

int sr_layer_sync(struct sr_layer *layer)
{
	if (is_read_only(layer))
		return 0;
	return kind_of(layer) == TOP ? sync_top(layer) : sr_io_sync(layer->fd);
}

/* --- holes --------------------------------------------------------------------------------------------------- */

/* The first offset from `offset` on, and below `end`, that is data (or, `hole`, that is none); `end` if there is none. */
static int64_t seek_file(int fd, uint64_t offset, uint64_t end, int hole)
{
	off_t found = lseek(fd, (off_t)offset, hole ? SEEK_HOLE : SEEK_DATA);
	if (found < 0 && errno == ENXIO) /* past the file's end: a hole */
		return hole ? (int64_t)offset : (int64_t)end;
	if (found < 0)
		return -errno;
	return (uint64_t)found < end ? (int64_t)found : (int64_t)end;
}

static int64_t seek_in(struct sr_layer *layer, uint64_t offset, uint64_t end, int hole);

static int64_t seek_below(struct sr_layer *lower, uint64_t offset, uint64_t end, int hole)
{
	uint64_t size = sr_layer_bytes(lower), inside = end < size ? end : size;
	if (offset < inside) {
		int64_t found = seek_in(lower, offset, inside, hole);
		if (found < 0 || (uint64_t)found < inside)
			return found;
		offset = inside;
	}
	return hole ? (int64_t)offset : (int64_t)end; /* past the lower layer: a hole */
}

static int64_t seek_extents(struct sr_layer *layer, uint64_t offset, uint64_t end, int hole)
{
	while (offset < end) {
		struct piece piece = extent_at(layer, offset, end);
		int64_t found;
		if (piece.source == SR_BELOW)
			found = seek_below(layer->lower, offset, piece.end, hole);
		else
			found = (piece.source == SR_ZEROS) == hole ? (int64_t)offset : (int64_t)piece.end;
		if (found < 0 || (uint64_t)found < piece.end)
			return found;
		offset = piece.end;
	}
	return (int64_t)end;
}

static int64_t seek_top(struct sr_layer *layer, uint64_t offset, uint64_t end, int hole)
{
	while (offset < end) {
		int present = is_present(layer, offset / SR_BLOCK_BYTES);
		uint64_t stop = run_end(layer, offset, end, present);
		int64_t found = present ? seek_file(layer->fd, offset, stop, hole)
					: seek_below(layer->lower, offset, stop, hole);
		if (found < 0 || (uint64_t)found < stop)
			return found;
		offset = stop;
	}
	return (int64_t)end;
}

static int64_t seek_in(struct sr_layer *layer, uint64_t offset, uint64_t end, int hole)
{
	enum kind kind = kind_of(layer);
	if (kind == VIEW)
		return sr_view_seek(layer->view, offset, end, hole);
	if (kind == EXTENTS)
		return seek_extents(layer, offset, end, hole);
	if (kind == TOP) {
		pthread_rwlock_rdlock(&layer->shape);
		int is_top = kind_of(layer) == TOP;
		int64_t found = is_top ? seek_top(layer, offset, end, hole) : 0;
		pthread_rwlock_unlock(&layer->shape);
		if (is_top)
			return found;
	}
	return seek_file(layer->fd, offset, end, hole);
}

int64_t sr_layer_seek(struct sr_layer *layer, uint64_t offset, int whence)
{
	uint64_t size = sr_layer_bytes(layer);
	if (whence != SEEK_DATA && whence != SEEK_HOLE)
		return -EINVAL;
	if (offset >= size)
		return -ENXIO;
	int64_t found = seek_in(layer, offset, size, whence == SEEK_HOLE);
	if (whence == SEEK_DATA && found == (int64_t)size)
		return -ENXIO;
	return found;
}

/* --- becoming a raw file ------------------------------------------------------------------------------------- */

enum { HOLE_STEP_BYTES = 64 << 20 }; /* as much as can be marked within 0.1 ms or so */

static uint64_t round_down(uint64_t offset)
{
	return offset / SR_BLOCK_BYTES * SR_BLOCK_BYTES;
}

static uint64_t smaller(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* The first run that the top lacks, of one kind below, and short enough for one step. */
static int find_lacking(struct sr_layer *layer, struct sr_adoption *run)
{
	uint64_t size = sr_layer_bytes(layer), start = round_down(sr_layer_adopted(layer));

	if (start < size && is_present(layer, start / SR_BLOCK_BYTES))
		start = run_end(layer, start, size, 1);
	if (start >= size)
		return 0;
	uint64_t end = run_end(layer, start, smaller(size, start + HOLE_STEP_BYTES), 0);
	int64_t found = seek_below(layer->lower, start, end, 0);
	if (found < 0)
		return (int)found;
	if ((uint64_t)found == end || round_down((uint64_t)found) > start) {
		*run = (struct sr_adoption){start, (uint64_t)found == end ? end : round_down((uint64_t)found), 0};
		return 1;
	}
	end = smaller(end, start + SR_ADOPT_BYTES);
	found = seek_below(layer->lower, (uint64_t)found, end, 1);
	if (found < 0)
		return (int)found;
	*run = (struct sr_adoption){start, smaller(end, round_down((uint64_t)found + SR_BLOCK_BYTES - 1)), 1};
	return 1;
}

int sr_layer_adopt_find(struct sr_layer *layer, char *buf, struct sr_adoption *run)
{
	if (kind_of(layer) != TOP)
		return 0;
	pthread_rwlock_rdlock(&layer->shape);
	int rc = find_lacking(layer, run);
	if (rc == 1 && run->is_data) {
		int failed = read_below(layer->lower, buf, run->end - run->start, run->start);
		rc = failed ? failed : 1;
	}
	pthread_rwlock_unlock(&layer->shape);
	return rc;
}

/* Bytes of a block that it did not hold may be in its file all the same: of a write that broke off, or a power loss. */
static int put_hole(struct sr_layer *layer, uint64_t start, uint64_t end)
{
	int64_t found = seek_file(layer->fd, start, end, 0);
	int rc = found < 0 ? (int)found : 0;
	if (rc == 0 && (uint64_t)found < end)
		rc = sr_io_zero(layer->fd, (int64_t)start, (int64_t)(end - start));
	if (rc == 0)
		mark_present(layer, start, end);
	return rc;
}

static int put_data(struct sr_layer *layer, const char *buf, uint64_t start, uint64_t end)
{
	int64_t done = sr_io_write(layer->fd, buf, (int64_t)(end - start), (int64_t)start);
	if (done < 0)
		return (int)done;
	uint64_t upto = start + (uint64_t)done;
	if (upto < end)
		upto = round_down(upto);
	if (upto > start)
		mark_present(layer, start, upto);
	return upto < end ? -ENOSPC : 0;
}

int sr_layer_adopt_put(struct sr_layer *layer, const char *buf, const struct sr_adoption *run)
{
	for (uint64_t at = run->start; at < run->end;) {
		int present = is_present(layer, at / SR_BLOCK_BYTES), rc = 0;
		uint64_t stop = run_end(layer, at, run->end, present);
		if (!present)
			rc = run->is_data ? put_data(layer, buf + (at - run->start), at, stop) : put_hole(layer, at, stop);
		if (rc)
			return rc;
		at = stop;
	}
	__atomic_store_n(&layer->adopted, run->end, __ATOMIC_RELEASE);
	return 0;
}

uint64_t sr_layer_adopted(const struct sr_layer *layer)
{
	return __atomic_load_n(&layer->adopted, __ATOMIC_ACQUIRE);
}

int sr_layer_is_full(struct sr_layer *layer)
{
	uint64_t start = round_down(sr_layer_adopted(layer));
	if (kind_of(layer) != TOP || start >= layer->bytes)
		return 1;
	return is_present(layer, start / SR_BLOCK_BYTES) && run_end(layer, start, layer->bytes, 1) == layer->bytes;
}

struct sr_layer *sr_layer_settle(struct sr_layer *layer)
{
	if (kind_of(layer) != TOP)
		return NULL;
	pthread_mutex_lock(&layer->syncing);
	pthread_rwlock_wrlock(&layer->shape);
	struct sr_layer *lower = layer->lower;
	free_maps(layer);
	layer->lower = NULL;
	layer->map = layer->changed = NULL;
	__atomic_store_n(&layer->kind, RAW, __ATOMIC_RELEASE);
	pthread_rwlock_unlock(&layer->shape);
	pthread_mutex_unlock(&layer->syncing);
	return lower;
}
