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
	pthread_mutex_init(&layer->syncing, NULL);
	return layer;
fail:
	free(changed);
	free(layer);
	return NULL;
}

void sr_layer_free(struct sr_layer *layer)
{
	if (!layer)
		return;
	sr_layer_free(layer->lower);
	if (layer->kind == TOP) {
		munmap(layer->map, MAP_BYTES_MAX);
		close(layer->map_fd);
		close(layer->durable_fd);
		free(layer->changed);
		pthread_mutex_destroy(&layer->syncing);
	}
	if (layer->fd >= 0)
		close(layer->fd);
	sr_view_free(layer->view);
	free(layer);
}

uint64_t sr_layer_bytes(const struct sr_layer *layer)
{
	return __atomic_load_n(&layer->bytes, __ATOMIC_ACQUIRE);
}

/* --- where bytes are ----------------------------------------------------------------------------------------- */

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

static int read_top(struct sr_layer *layer, char *buf, uint64_t bytes, uint64_t offset)
{
	uint64_t end = offset + bytes;
	int rc = 0;
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
	return rc;
}

int sr_layer_read(struct sr_layer *layer, void *buf, uint64_t bytes, uint64_t offset)
{
	switch (layer->kind) {
	case RAW:
		return sr_io_read(layer->fd, buf, (int64_t)bytes, (int64_t)offset);
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
	if (layer->kind == VIEW)
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
	if (layer->kind == VIEW)
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
	if (layer->kind == VIEW)
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
	if (layer->kind != VIEW)
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
	int rc = take_changed(layer, &taken);
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
	if (layer->kind == VIEW)
		return 0;
	return layer->kind == TOP ? sync_top(layer) : sr_io_sync(layer->fd);
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

static int64_t seek_in(struct sr_layer *layer, uint64_t offset, uint64_t end, int hole)
{
	if (layer->kind == RAW)
		return seek_file(layer->fd, offset, end, hole);
	if (layer->kind == VIEW)
		return sr_view_seek(layer->view, offset, end, hole);
	while (offset < end) {
		int present = is_present(layer, offset / SR_BLOCK_BYTES);
		uint64_t stop = run_end(layer, offset, end, present);
		int64_t found = present ? seek_file(layer->fd, offset, stop, hole) : seek_below(layer->lower, offset, stop, hole);
		if (found < 0 || (uint64_t)found < stop)
			return found;
		offset = stop;
	}
	return (int64_t)end;
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
