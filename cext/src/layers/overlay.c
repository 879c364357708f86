/* A writable overlay: a sparse file that takes the writes over a lower layer, with a map of the blocks that it holds.
 *
 * Fault contract: blockfs/layers/layer.py.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"
#include "base/mapped.h"
#include "layers/raw.h"

/* The present map in memory decides. Its file is mapped so that set bits survive a kill, and is read only when the
 * layer is created: truncating it cannot hide written blocks. Both mappings have space for the largest disk, so that
 * a growing disk never moves them under a reader; only the part that the file has is accessed. */
#define MAP_BYTES_MAX (SR_DISK_BYTES_MAX / SR_BLOCK_BYTES / 8)
#define MAP_PAGE_BYTES 4096 /* page of the present map: the unit in which the durable map is written */

struct overlay {
	struct raw raw; /* the file that takes the writes */
	struct sr_layer *lower;
	int map_fd, durable_fd;
	uint8_t *map;           /* one bit for each block that the layer holds */
	struct sr_map file_map; /* the same bits in file `map_fd`, which survive a kill; never read */
	uint8_t *changed;       /* one bit for each page of the map with bits that the durable map lacks */
	pthread_mutex_t syncing;
	pthread_rwlock_t map_lock; /* read-locked while `map` and `lower` are used */
	uint64_t hydrated_bytes;       /* atomic: the layer holds all blocks below this offset */
};

static const struct sr_layer_ops overlay_ops;

/* `layer` is the first member of the first member. */
static struct overlay *overlay_of(struct sr_layer *layer)
{
	return (struct overlay *)layer;
}

static const struct overlay *const_overlay_of(const struct sr_layer *layer)
{
	return (const struct overlay *)layer;
}

/* Return 1 until it has become a raw file. */
static int is_overlay(const struct overlay *overlay)
{
	return sr_ops_of(&overlay->raw.layer) == &overlay_ops;
}

/* --- blocks -------------------------------------------------------------------------------------------------- */

static int is_present(const struct overlay *overlay, uint64_t block)
{
	return (__atomic_load_n(&overlay->map[block / 8], __ATOMIC_ACQUIRE) >> (block % 8)) & 1;
}

/* Return the end of the run of equal blocks that begins at `offset`. */
static uint64_t run_end(const struct overlay *overlay, uint64_t offset, uint64_t end, int present)
{
	const uint8_t all = present ? 0xff : 0;
	uint64_t block = offset / SR_BLOCK_BYTES + 1, last = (end + SR_BLOCK_BYTES - 1) / SR_BLOCK_BYTES;

	while (block < last) {
		if (block % 8 == 0 && block + 8 <= last &&
		    __atomic_load_n(&overlay->map[block / 8], __ATOMIC_ACQUIRE) == all) {
			block += 8;
			continue;
		}
		if (is_present(overlay, block) != present)
			break;
		block++;
	}
	return block * SR_BLOCK_BYTES < end ? block * SR_BLOCK_BYTES : end;
}

/* --- maps ---------------------------------------------------------------------------------------------------- */

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

/* Read both maps; bits of the present map can be missing in the durable one, because of a kill before a sync. */
static int read_maps(struct overlay *overlay)
{
	static const uint8_t none[MAP_PAGE_BYTES];
	uint8_t durable[MAP_PAGE_BYTES], present[MAP_PAGE_BYTES];
	for (uint64_t page = 0; page < map_pages(overlay->raw.layer.bytes); page++) {
		uint64_t at = page * MAP_PAGE_BYTES;
		int rc = sr_io_read(overlay->durable_fd, durable, MAP_PAGE_BYTES, (int64_t)(SR_DURABLE_HEADER_BYTES + at));
		if (rc == 0)
			rc = sr_io_read(overlay->map_fd, present, MAP_PAGE_BYTES, (int64_t)at);
		if (rc)
			return rc;
		if (memcmp(present, none, MAP_PAGE_BYTES) != 0) /* untouched pages take no memory */
			memcpy(overlay->map + at, present, MAP_PAGE_BYTES);
		if (memcmp(durable, present, MAP_PAGE_BYTES) != 0)
			overlay->changed[page / 8] |= (uint8_t)(1u << (page % 8));
	}
	return 0;
}

/* Make the used part accessible; only that part counts as committed memory on hosts with strict accounting. */
static int use_memory(uint8_t *map, uint64_t disk_bytes)
{
	return mprotect(map, map_pages(disk_bytes) * MAP_PAGE_BYTES, PROT_READ | PROT_WRITE) == 0 ? 0 : -errno;
}

/* Allocate the blocks of both maps: a store to a mapped hole on a full file system would be a SIGBUS. */
static int allocate_maps(int map_fd, int durable_fd, uint64_t disk_bytes)
{
	int rc = posix_fallocate(map_fd, 0, map_bytes(disk_bytes));
	return rc ? rc : posix_fallocate(durable_fd, 0, SR_DURABLE_HEADER_BYTES + map_bytes(disk_bytes));
}

/* --- reading ------------------------------------------------------------------------------------------------- */

static int read_overlay(struct sr_layer *layer, void *into, uint64_t bytes, uint64_t offset)
{
	struct overlay *overlay = overlay_of(layer);
	uint64_t end = offset + bytes;
	char *buf = into;
	int rc = 0;

	pthread_rwlock_rdlock(&overlay->map_lock);
	if (!is_overlay(overlay)) {
		pthread_rwlock_unlock(&overlay->map_lock);
		return sr_raw_read(layer, buf, bytes, offset);
	}
	while (offset < end && rc == 0) {
		int present = is_present(overlay, offset / SR_BLOCK_BYTES);
		uint64_t stop = run_end(overlay, offset, end, present);
		if (present)
			rc = sr_raw_read(layer, buf, stop - offset, offset);
		else
			rc = sr_read_below(overlay->lower, buf, stop - offset, offset);
		buf += stop - offset;
		offset = stop;
	}
	pthread_rwlock_unlock(&overlay->map_lock);
	return rc;
}

static int64_t seek_blocks(struct overlay *overlay, uint64_t offset, uint64_t end, int hole)
{
	while (offset < end) {
		int present = is_present(overlay, offset / SR_BLOCK_BYTES);
		uint64_t stop = run_end(overlay, offset, end, present);
		int64_t found = present ? sr_raw_seek(&overlay->raw.layer, offset, stop, hole)
					: sr_seek_below(overlay->lower, offset, stop, hole);
		if (found < 0 || (uint64_t)found < stop)
			return found;
		offset = stop;
	}
	return (int64_t)end;
}

static int64_t seek_overlay(struct sr_layer *layer, uint64_t offset, uint64_t end, int hole)
{
	struct overlay *overlay = overlay_of(layer);
	pthread_rwlock_rdlock(&overlay->map_lock);
	int64_t found = is_overlay(overlay) ? seek_blocks(overlay, offset, end, hole) : sr_raw_seek(layer, offset, end, hole);
	pthread_rwlock_unlock(&overlay->map_lock);
	return found;
}

/* --- writing ------------------------------------------------------------------------------------------------- */

/* Copy one block from below, if it is absent and the write does not cover it completely. */
static int fill_block(struct overlay *overlay, uint64_t block, uint64_t offset, uint64_t end)
{
	char data[SR_BLOCK_BYTES];
	uint64_t start = block * SR_BLOCK_BYTES, stop = start + SR_BLOCK_BYTES;
	if (stop > overlay->raw.layer.bytes)
		stop = overlay->raw.layer.bytes;
	if ((offset <= start && stop <= end) || is_present(overlay, block))
		return 0;
	int rc = sr_read_below(overlay->lower, data, stop - start, start);
	if (rc)
		return rc;
	int64_t done = sr_io_write(overlay->raw.fd, data, (int64_t)(stop - start), (int64_t)start);
	if (done < 0)
		return (int)done;
	return done == (int64_t)(stop - start) ? 0 : -ENOSPC;
}

static int fill_edges(struct overlay *overlay, uint64_t offset, uint64_t end)
{
	uint64_t first = offset / SR_BLOCK_BYTES, last = (end - 1) / SR_BLOCK_BYTES;
	int rc = fill_block(overlay, first, offset, end);
	if (rc == 0 && last != first)
		rc = fill_block(overlay, last, offset, end);
	return rc;
}

static void set_bit(uint8_t *map, uint64_t number)
{
	__atomic_fetch_or(&map[number / 8], (uint8_t)(1u << (number % 8)), __ATOMIC_RELEASE);
}

/* Set the bits only after the bytes: a kill between the two leaves the old block. -ESTALE: the bits would not
 * survive a kill. */
static int mark_present(struct overlay *overlay, uint64_t offset, uint64_t end)
{
	for (uint64_t block = offset / SR_BLOCK_BYTES; block <= (end - 1) / SR_BLOCK_BYTES; block++) {
		if (is_present(overlay, block))
			continue;
		set_bit(overlay->file_map.at, block);
		set_bit(overlay->map, block);
		set_bit(overlay->changed, block / 8 / MAP_PAGE_BYTES);
	}
	return sr_map_lost(&overlay->file_map) ? -ESTALE : 0;
}

static int64_t write_overlay(struct sr_layer *layer, const void *buf, uint64_t bytes, uint64_t offset)
{
	struct overlay *overlay = overlay_of(layer);
	int rc = sr_raw_check_before_change(&overlay->raw, offset + bytes);
	if (rc == 0)
		rc = fill_edges(overlay, offset, offset + bytes);
	if (rc)
		return rc;
	int64_t done = sr_io_write(overlay->raw.fd, buf, (int64_t)bytes, (int64_t)offset);
	if (done <= 0)
		return done;
	uint64_t end = offset + (uint64_t)done, block = end / SR_BLOCK_BYTES;
	if ((uint64_t)done < bytes && end % SR_BLOCK_BYTES && !is_present(overlay, block)) {
		/* The write stopped in a block that it should have covered completely, so the file lacks the rest of
		 * that block from below. */
		uint64_t start = block * SR_BLOCK_BYTES, stop = start + SR_BLOCK_BYTES;
		if (offset <= start && stop <= offset + bytes)
			end = start;
		if (end <= offset)
			return -ENOSPC;
	}
	rc = mark_present(overlay, offset, end);
	return rc ? rc : (int64_t)(end - offset);
}

static int zero_overlay(struct sr_layer *layer, uint64_t offset, uint64_t bytes)
{
	struct overlay *overlay = overlay_of(layer);
	int rc = sr_raw_check_before_change(&overlay->raw, offset + bytes);
	if (rc == 0)
		rc = fill_edges(overlay, offset, offset + bytes);
	if (rc == 0)
		rc = sr_io_zero(overlay->raw.fd, (int64_t)offset, (int64_t)bytes);
	if (rc == 0)
		rc = mark_present(overlay, offset, offset + bytes); /* present holes read as zeros */
	return rc;
}

static int make_room(struct overlay *overlay, uint64_t bytes)
{
	if (bytes < overlay->raw.layer.bytes) /* a later growth would uncover the bytes of the lower layer */
		return -EINVAL;
	int rc = -allocate_maps(overlay->map_fd, overlay->durable_fd, bytes);
	return rc ? rc : use_memory(overlay->map, bytes);
}

static int resize_overlay(struct sr_layer *layer, uint64_t bytes)
{
	struct overlay *overlay = overlay_of(layer);
	int rc = sr_layer_check_file(layer);
	sr_edge_unmap(&overlay->raw.edge);
	if (rc == 0)
		rc = make_room(overlay, bytes);
	return rc ? rc : sr_raw_set_size(&overlay->raw, bytes);
}

static int lost_maps(const struct sr_layer *layer)
{
	const struct overlay *overlay = const_overlay_of(layer);
	struct stat found;
	uint64_t bytes = (uint64_t)map_bytes(sr_layer_bytes(layer));
	int lost = sr_map_check(&overlay->file_map, overlay->map_fd, bytes) ? SR_LOST_PRESENT : 0;

	if (fstat(overlay->durable_fd, &found) != 0 || (uint64_t)found.st_size < SR_DURABLE_HEADER_BYTES + bytes)
		lost |= SR_LOST_DURABLE;
	return lost;
}

static int check_overlay_file(const struct sr_layer *layer)
{
	int rc = sr_raw_check_file(layer);
	return rc ? rc : lost_maps(layer) ? -ESTALE : 0;
}

/* --- syncing ------------------------------------------------------------------------------------------------- */

struct map_page {
	struct map_page *next;
	uint64_t number;
	uint64_t bits[MAP_PAGE_BYTES / 8];
};

static void mark_changed(struct overlay *overlay, const struct map_page *pages)
{
	for (; pages; pages = pages->next)
		set_bit(overlay->changed, pages->number);
}

/* Copy the pages that have changed, and mark them unchanged. -ENOMEM: `taken` has some of them. */
static int take_changed(struct overlay *overlay, struct map_page **taken)
{
	for (uint64_t group = 0; group <= (map_pages(sr_layer_bytes(&overlay->raw.layer)) - 1) / 8; group++) {
		uint8_t changed = __atomic_exchange_n(&overlay->changed[group], 0, __ATOMIC_ACQ_REL);
		for (unsigned bit = 0; bit < 8; bit++) {
			if (!(changed >> bit & 1))
				continue;
			struct map_page *page = malloc(sizeof(*page));
			if (!page) {
				__atomic_fetch_or(&overlay->changed[group], (uint8_t)(changed & ~((1u << bit) - 1)), __ATOMIC_RELEASE);
				return -ENOMEM;
			}
			page->number = group * 8 + bit;
			const uint64_t *bits = (const uint64_t *)(const void *)(overlay->map + page->number * MAP_PAGE_BYTES);
			for (size_t i = 0; i < MAP_PAGE_BYTES / sizeof(*bits); i++)
				page->bits[i] = __atomic_load_n(&bits[i], __ATOMIC_ACQUIRE);
			page->next = *taken;
			*taken = page;
		}
	}
	return 0;
}

/* The bits are copied first, then the bytes are synced, then these bits are written: no bit is durable before its
 * bytes. */
static int sync_overlay(struct sr_layer *layer)
{
	struct overlay *overlay = overlay_of(layer);
	struct map_page *taken = NULL;

	pthread_mutex_lock(&overlay->syncing);
	int rc = is_overlay(overlay) ? take_changed(overlay, &taken) : 0;
	if (rc == 0)
		rc = sr_io_sync(overlay->raw.fd);
	for (struct map_page *page = taken; page && rc == 0; page = page->next) {
		int64_t at = (int64_t)(SR_DURABLE_HEADER_BYTES + page->number * MAP_PAGE_BYTES);
		int64_t done = sr_io_write(overlay->durable_fd, page->bits, MAP_PAGE_BYTES, at);
		rc = done == MAP_PAGE_BYTES ? 0 : done < 0 ? (int)done : -ENOSPC;
	}
	if (rc == 0 && taken)
		rc = sr_io_sync(overlay->durable_fd);
	if (rc)
		mark_changed(overlay, taken);
	while (taken) {
		struct map_page *next = taken->next;
		free(taken);
		taken = next;
	}
	pthread_mutex_unlock(&overlay->syncing);
	return rc;
}

/* --- becoming a raw file ------------------------------------------------------------------------------------- */

enum { HOLE_STEP_BYTES = 64 << 20 }; /* as much as can be marked within about 0.1 ms */

static uint64_t round_down(uint64_t offset)
{
	return offset / SR_BLOCK_BYTES * SR_BLOCK_BYTES;
}

static uint64_t smaller(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static uint64_t hydrated_bytes(const struct sr_layer *layer)
{
	return __atomic_load_n(&const_overlay_of(layer)->hydrated_bytes, __ATOMIC_ACQUIRE);
}

/* Find the first run that the overlay lacks; it is all data or all hole below, and short enough for one step. */
static int find_lacking(struct overlay *overlay, struct sr_hydration_run *run)
{
	uint64_t size = sr_layer_bytes(&overlay->raw.layer), start = round_down(hydrated_bytes(&overlay->raw.layer));

	if (start < size && is_present(overlay, start / SR_BLOCK_BYTES))
		start = run_end(overlay, start, size, 1);
	if (start >= size)
		return 0;
	uint64_t end = run_end(overlay, start, smaller(size, start + HOLE_STEP_BYTES), 0);
	int64_t found = sr_seek_below(overlay->lower, start, end, 0);
	if (found < 0)
		return (int)found;
	if ((uint64_t)found == end || round_down((uint64_t)found) > start) {
		*run = (struct sr_hydration_run){start, (uint64_t)found == end ? end : round_down((uint64_t)found), 0};
		return 1;
	}
	end = smaller(end, start + SR_HYDRATE_BYTES);
	found = sr_seek_below(overlay->lower, (uint64_t)found, end, 1);
	if (found < 0)
		return (int)found;
	*run = (struct sr_hydration_run){start, smaller(end, round_down((uint64_t)found + SR_BLOCK_BYTES - 1)), 1};
	return 1;
}

static int hydrate_find(struct sr_layer *layer, char *buf, struct sr_hydration_run *run)
{
	struct overlay *overlay = overlay_of(layer);
	pthread_rwlock_rdlock(&overlay->map_lock);
	int rc = is_overlay(overlay) ? find_lacking(overlay, run) : 0;
	if (rc == 1 && run->is_data) {
		int failed = sr_read_below(overlay->lower, buf, run->end - run->start, run->start);
		rc = failed ? failed : 1;
	}
	pthread_rwlock_unlock(&overlay->map_lock);
	return rc;
}

/* Store a hole. The file may have bytes of an absent block, from an interrupted write or a power loss; they are
 * zeroed. */
static int put_hole(struct overlay *overlay, uint64_t start, uint64_t end)
{
	int64_t found = sr_raw_seek(&overlay->raw.layer, start, end, 0);
	int rc = found < 0 ? (int)found : 0;
	if (rc == 0 && (uint64_t)found < end)
		rc = sr_io_zero(overlay->raw.fd, (int64_t)start, (int64_t)(end - start));
	return rc ? rc : mark_present(overlay, start, end);
}

static int put_data(struct overlay *overlay, const char *buf, uint64_t start, uint64_t end)
{
	int64_t done = sr_io_write(overlay->raw.fd, buf, (int64_t)(end - start), (int64_t)start);
	if (done < 0)
		return (int)done;
	uint64_t upto = start + (uint64_t)done;
	if (upto < end)
		upto = round_down(upto);
	int rc = upto > start ? mark_present(overlay, start, upto) : 0;
	return rc == 0 && upto < end ? -ENOSPC : rc;
}

static int hydrate_put(struct sr_layer *layer, const char *buf, const struct sr_hydration_run *run)
{
	struct overlay *overlay = overlay_of(layer);
	int whole = sr_layer_check_file(layer);
	if (whole)
		return whole;
	for (uint64_t at = run->start; at < run->end;) {
		int present = is_present(overlay, at / SR_BLOCK_BYTES), rc = 0;
		uint64_t stop = run_end(overlay, at, run->end, present);
		if (!present)
			rc = run->is_data ? put_data(overlay, buf + (at - run->start), at, stop) : put_hole(overlay, at, stop);
		if (rc)
			return rc;
		at = stop;
	}
	__atomic_store_n(&overlay->hydrated_bytes, run->end, __ATOMIC_RELEASE);
	return 0;
}

static int is_hydrated(struct sr_layer *layer)
{
	struct overlay *overlay = overlay_of(layer);
	uint64_t start = round_down(hydrated_bytes(layer));
	if (start >= layer->bytes)
		return 1;
	return is_present(overlay, start / SR_BLOCK_BYTES) && run_end(overlay, start, layer->bytes, 1) == layer->bytes;
}

/* --- making and freeing -------------------------------------------------------------------------------------- */

static void free_maps(struct overlay *overlay)
{
	munmap(overlay->map, MAP_BYTES_MAX);
	sr_map_close(&overlay->file_map);
	close(overlay->map_fd);
	close(overlay->durable_fd);
	free(overlay->changed);
	overlay->map = overlay->changed = NULL;
}

static void free_overlay(struct sr_layer *layer)
{
	struct overlay *overlay = overlay_of(layer);

	sr_layer_free(overlay->lower);
	if (overlay->map)
		free_maps(overlay);
	pthread_mutex_destroy(&overlay->syncing);
	pthread_rwlock_destroy(&overlay->map_lock);
	sr_raw_close(&overlay->raw);
	free(overlay);
}

/* The operations of an overlay that has become a raw file. */
static const struct sr_layer_ops detached_ops = {
	.free = free_overlay,
	.read = sr_raw_read,
	.seek = sr_raw_seek,
	.write = sr_raw_write,
	.zero = sr_raw_zero,
	.resize = sr_raw_resize,
	.start_sync = sr_raw_start_sync,
	.sync = sr_raw_sync,
	.check_file = sr_raw_check_file,
	.excess_bytes = sr_raw_excess_bytes,
	.mtime_ns = sr_raw_mtime_ns,
	.hydrated_bytes = hydrated_bytes,
};

static struct sr_layer *detach_backing(struct sr_layer *layer)
{
	struct overlay *overlay = overlay_of(layer);

	pthread_mutex_lock(&overlay->syncing);
	pthread_rwlock_wrlock(&overlay->map_lock);
	struct sr_layer *lower = overlay->lower;
	free_maps(overlay);
	overlay->lower = NULL;
	__atomic_store_n(&layer->ops, &detached_ops, __ATOMIC_RELEASE);
	pthread_rwlock_unlock(&overlay->map_lock);
	pthread_mutex_unlock(&overlay->syncing);
	return lower;
}

static const struct sr_layer_ops overlay_ops = {
	.free = free_overlay,
	.read = read_overlay,
	.seek = seek_overlay,
	.write = write_overlay,
	.zero = zero_overlay,
	.resize = resize_overlay,
	.start_sync = sr_raw_start_sync,
	.sync = sync_overlay,
	.check_file = check_overlay_file,
	.lost_maps = lost_maps,
	.excess_bytes = sr_raw_excess_bytes,
	.mtime_ns = sr_raw_mtime_ns,
	.hydrate_find = hydrate_find,
	.hydrate_put = hydrate_put,
	.hydrated_bytes = hydrated_bytes,
	.is_hydrated = is_hydrated,
	.detach_backing = detach_backing,
};

struct sr_layer *sr_layer_overlay(struct sr_layer *lower, int fd, int map_fd, int durable_fd, uint64_t bytes)
{
	struct overlay *overlay = calloc(1, sizeof(*overlay));
	uint8_t *changed = calloc(map_pages(SR_DISK_BYTES_MAX) / 8 + 1, 1);
	if (!overlay || !changed || bytes > SR_DISK_BYTES_MAX || (errno = allocate_maps(map_fd, durable_fd, bytes)) != 0)
		goto fail;
	void *map = mmap(NULL, MAP_BYTES_MAX, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (map == MAP_FAILED)
		goto fail;
	*overlay = (struct overlay){.raw = {.layer = {.ops = &overlay_ops, .bytes = bytes}, .fd = fd},
			    .lower = lower,
			    .map_fd = map_fd,
			    .durable_fd = durable_fd,
			    .map = map,
			    .changed = changed};
	int rc = use_memory(map, bytes);
	if (rc == 0)
		rc = read_maps(overlay);
	if (rc == 0)
		rc = sr_map_open(&overlay->file_map, map_fd, MAP_BYTES_MAX);
	if (rc) {
		munmap(map, MAP_BYTES_MAX);
		errno = -rc;
		goto fail;
	}
	sr_io_expect_random(fd);
	pthread_rwlockattr_t prefer_writers; /* otherwise continuous readers could delay the detaching for ever */
	pthread_rwlockattr_init(&prefer_writers);
	pthread_rwlockattr_setkind_np(&prefer_writers, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&overlay->map_lock, &prefer_writers);
	pthread_rwlockattr_destroy(&prefer_writers);
	pthread_mutex_init(&overlay->syncing, NULL);
	if (bytes && is_present(overlay, 0))
		overlay->hydrated_bytes = run_end(overlay, 0, bytes, 1); /* hydrated by an earlier process, or by writes */
	return &overlay->raw.layer;
fail:
	free(changed);
	free(overlay);
	return NULL;
}
