/* A writable top: a sparse file that takes the writes over a lower layer, with a map of the blocks that it holds.
 *
 * Fault contract: blockfs/layers/layer.py. */
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

/* The present map is believed in memory; its file is mapped for what is set to outlive a kill, and read when a layer is made
 * only: so whoever cuts it makes no block come from below that was written to.  Both have room for the largest disk there can
 * be, so that a growing disk never moves them under a reader; only the part that the file has is ever touched. */
#define MAP_BYTES_MAX (SR_DISK_BYTES_MAX / SR_BLOCK_BYTES / 8)
#define MAP_PAGE_BYTES 4096 /* of the present map: what the durable one is written in */

struct top {
	struct raw raw; /* the file that takes the writes */
	struct sr_layer *lower;
	int map_fd, durable_fd;
	uint8_t *map;           /* one bit a block: the layer holds it */
	struct sr_map file_map; /* the same in file `map_fd`, which outlives a kill; never read */
	uint8_t *changed;       /* one bit a page of the map: it has bits that the durable one has not */
	pthread_mutex_t syncing;
	pthread_rwlock_t shape; /* read: somebody looks at `map` and `lower` */
	uint64_t adopted;       /* atomic: it holds all blocks below */
};

static const struct sr_layer_ops top_ops;

/* `layer` is the first part of the first member. */
static struct top *top_of(struct sr_layer *layer)
{
	return (struct top *)layer;
}

static const struct top *const_top_of(const struct sr_layer *layer)
{
	return (const struct top *)layer;
}

/* Not yet a raw file. */
static int is_top(const struct top *top)
{
	return sr_ops_of(&top->raw.layer) == &top_ops;
}

/* --- blocks -------------------------------------------------------------------------------------------------- */

static int is_present(const struct top *top, uint64_t block)
{
	return (__atomic_load_n(&top->map[block / 8], __ATOMIC_ACQUIRE) >> (block % 8)) & 1;
}

/* The end of the run of blocks, from that of `offset`, that are alike. */
static uint64_t run_end(const struct top *top, uint64_t offset, uint64_t end, int present)
{
	const uint8_t all = present ? 0xff : 0;
	uint64_t block = offset / SR_BLOCK_BYTES + 1, last = (end + SR_BLOCK_BYTES - 1) / SR_BLOCK_BYTES;

	while (block < last) {
		if (block % 8 == 0 && block + 8 <= last &&
		    __atomic_load_n(&top->map[block / 8], __ATOMIC_ACQUIRE) == all) {
			block += 8;
			continue;
		}
		if (is_present(top, block) != present)
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

/* A kill may have come before what it set was on stable storage. */
static int read_maps(struct top *top)
{
	static const uint8_t none[MAP_PAGE_BYTES];
	uint8_t durable[MAP_PAGE_BYTES], present[MAP_PAGE_BYTES];
	for (uint64_t page = 0; page < map_pages(top->raw.layer.bytes); page++) {
		uint64_t at = page * MAP_PAGE_BYTES;
		int rc = sr_io_read(top->durable_fd, durable, MAP_PAGE_BYTES, (int64_t)(SR_DURABLE_HEADER_BYTES + at));
		if (rc == 0)
			rc = sr_io_read(top->map_fd, present, MAP_PAGE_BYTES, (int64_t)at);
		if (rc)
			return rc;
		if (memcmp(present, none, MAP_PAGE_BYTES) != 0) /* what is not touched takes no memory */
			memcpy(top->map + at, present, MAP_PAGE_BYTES);
		if (memcmp(durable, present, MAP_PAGE_BYTES) != 0)
			top->changed[page / 8] |= (uint8_t)(1u << (page % 8));
	}
	return 0;
}

/* Only what is used counts as taken, where the host counts that strictly. */
static int use_memory(uint8_t *map, uint64_t disk_bytes)
{
	return mprotect(map, map_pages(disk_bytes) * MAP_PAGE_BYTES, PROT_READ | PROT_WRITE) == 0 ? 0 : -errno;
}

/* With their blocks: a store to a mapped hole of a full file system would be a SIGBUS. */
static int allocate_maps(int map_fd, int durable_fd, uint64_t disk_bytes)
{
	int rc = posix_fallocate(map_fd, 0, map_bytes(disk_bytes));
	return rc ? rc : posix_fallocate(durable_fd, 0, SR_DURABLE_HEADER_BYTES + map_bytes(disk_bytes));
}

/* --- reading ------------------------------------------------------------------------------------------------- */

static int read_top(struct sr_layer *layer, void *into, uint64_t bytes, uint64_t offset)
{
	struct top *top = top_of(layer);
	uint64_t end = offset + bytes;
	char *buf = into;
	int rc = 0;

	pthread_rwlock_rdlock(&top->shape);
	if (!is_top(top)) {
		pthread_rwlock_unlock(&top->shape);
		return sr_raw_read(layer, buf, bytes, offset);
	}
	while (offset < end && rc == 0) {
		int present = is_present(top, offset / SR_BLOCK_BYTES);
		uint64_t stop = run_end(top, offset, end, present);
		if (present)
			rc = sr_raw_read(layer, buf, stop - offset, offset);
		else
			rc = sr_read_below(top->lower, buf, stop - offset, offset);
		buf += stop - offset;
		offset = stop;
	}
	pthread_rwlock_unlock(&top->shape);
	return rc;
}

static int64_t seek_blocks(struct top *top, uint64_t offset, uint64_t end, int hole)
{
	while (offset < end) {
		int present = is_present(top, offset / SR_BLOCK_BYTES);
		uint64_t stop = run_end(top, offset, end, present);
		int64_t found = present ? sr_raw_seek(&top->raw.layer, offset, stop, hole)
					: sr_seek_below(top->lower, offset, stop, hole);
		if (found < 0 || (uint64_t)found < stop)
			return found;
		offset = stop;
	}
	return (int64_t)end;
}

static int64_t seek_top(struct sr_layer *layer, uint64_t offset, uint64_t end, int hole)
{
	struct top *top = top_of(layer);
	pthread_rwlock_rdlock(&top->shape);
	int64_t found = is_top(top) ? seek_blocks(top, offset, end, hole) : sr_raw_seek(layer, offset, end, hole);
	pthread_rwlock_unlock(&top->shape);
	return found;
}

/* --- writing ------------------------------------------------------------------------------------------------- */

/* Bring one block up from below, if it is not there and the write does not cover it whole. */
static int fill_block(struct top *top, uint64_t block, uint64_t offset, uint64_t end)
{
	char data[SR_BLOCK_BYTES];
	uint64_t start = block * SR_BLOCK_BYTES, stop = start + SR_BLOCK_BYTES;
	if (stop > top->raw.layer.bytes)
		stop = top->raw.layer.bytes;
	if ((offset <= start && stop <= end) || is_present(top, block))
		return 0;
	int rc = sr_read_below(top->lower, data, stop - start, start);
	if (rc)
		return rc;
	int64_t done = sr_io_write(top->raw.fd, data, (int64_t)(stop - start), (int64_t)start);
	if (done < 0)
		return (int)done;
	return done == (int64_t)(stop - start) ? 0 : -ENOSPC;
}

static int fill_edges(struct top *top, uint64_t offset, uint64_t end)
{
	uint64_t first = offset / SR_BLOCK_BYTES, last = (end - 1) / SR_BLOCK_BYTES;
	int rc = fill_block(top, first, offset, end);
	if (rc == 0 && last != first)
		rc = fill_block(top, last, offset, end);
	return rc;
}

static void set_bit(uint8_t *map, uint64_t number)
{
	__atomic_fetch_or(&map[number / 8], (uint8_t)(1u << (number % 8)), __ATOMIC_RELEASE);
}

/* Only now, after the bytes: a kill between the two leaves the block as it was.  -ESTALE: after a kill it would not be there. */
static int mark_present(struct top *top, uint64_t offset, uint64_t end)
{
	for (uint64_t block = offset / SR_BLOCK_BYTES; block <= (end - 1) / SR_BLOCK_BYTES; block++) {
		if (is_present(top, block))
			continue;
		set_bit(top->file_map.at, block);
		set_bit(top->map, block);
		set_bit(top->changed, block / 8 / MAP_PAGE_BYTES);
	}
	return sr_map_lost(&top->file_map) ? -ESTALE : 0;
}

static int64_t write_top(struct sr_layer *layer, const void *buf, uint64_t bytes, uint64_t offset)
{
	struct top *top = top_of(layer);
	int rc = sr_raw_check_before_change(&top->raw, offset + bytes);
	if (rc == 0)
		rc = fill_edges(top, offset, offset + bytes);
	if (rc)
		return rc;
	int64_t done = sr_io_write(top->raw.fd, buf, (int64_t)bytes, (int64_t)offset);
	if (done <= 0)
		return done;
	uint64_t end = offset + (uint64_t)done, block = end / SR_BLOCK_BYTES;
	if ((uint64_t)done < bytes && end % SR_BLOCK_BYTES && !is_present(top, block)) {
		/* It broke off in a block that was to be covered whole, and so holds nothing of what lies below. */
		uint64_t start = block * SR_BLOCK_BYTES, stop = start + SR_BLOCK_BYTES;
		if (offset <= start && stop <= offset + bytes)
			end = start;
		if (end <= offset)
			return -ENOSPC;
	}
	rc = mark_present(top, offset, end);
	return rc ? rc : (int64_t)(end - offset);
}

static int zero_top(struct sr_layer *layer, uint64_t offset, uint64_t bytes)
{
	struct top *top = top_of(layer);
	int rc = sr_raw_check_before_change(&top->raw, offset + bytes);
	if (rc == 0)
		rc = fill_edges(top, offset, offset + bytes);
	if (rc == 0)
		rc = sr_io_zero(top->raw.fd, (int64_t)offset, (int64_t)bytes);
	if (rc == 0)
		rc = mark_present(top, offset, offset + bytes); /* present holes read as zeros */
	return rc;
}

static int make_room(struct top *top, uint64_t bytes)
{
	if (bytes < top->raw.layer.bytes) /* what lies below would be there again when it grew back */
		return -EINVAL;
	int rc = -allocate_maps(top->map_fd, top->durable_fd, bytes);
	return rc ? rc : use_memory(top->map, bytes);
}

static int resize_top(struct sr_layer *layer, uint64_t bytes)
{
	struct top *top = top_of(layer);
	int rc = sr_layer_check_file(layer);
	sr_edge_unmap(&top->raw.edge);
	if (rc == 0)
		rc = make_room(top, bytes);
	return rc ? rc : sr_raw_set_size(&top->raw, bytes);
}

static int lost_maps(const struct sr_layer *layer)
{
	const struct top *top = const_top_of(layer);
	struct stat found;
	uint64_t bytes = (uint64_t)map_bytes(sr_layer_bytes(layer));
	int lost = sr_map_check(&top->file_map, top->map_fd, bytes) ? SR_LOST_PRESENT : 0;

	if (fstat(top->durable_fd, &found) != 0 || (uint64_t)found.st_size < SR_DURABLE_HEADER_BYTES + bytes)
		lost |= SR_LOST_DURABLE;
	return lost;
}

static int check_top_file(const struct sr_layer *layer)
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

static void mark_changed(struct top *top, const struct map_page *pages)
{
	for (; pages; pages = pages->next)
		set_bit(top->changed, pages->number);
}

/* Copies of the pages that have changed; they count as unchanged from then on.  -ENOMEM: `taken` has some of them. */
static int take_changed(struct top *top, struct map_page **taken)
{
	for (uint64_t group = 0; group <= (map_pages(sr_layer_bytes(&top->raw.layer)) - 1) / 8; group++) {
		uint8_t changed = __atomic_exchange_n(&top->changed[group], 0, __ATOMIC_ACQ_REL);
		for (unsigned bit = 0; bit < 8; bit++) {
			if (!(changed >> bit & 1))
				continue;
			struct map_page *page = malloc(sizeof(*page));
			if (!page) {
				__atomic_fetch_or(&top->changed[group], (uint8_t)(changed & ~((1u << bit) - 1)), __ATOMIC_RELEASE);
				return -ENOMEM;
			}
			page->number = group * 8 + bit;
			const uint64_t *bits = (const uint64_t *)(const void *)(top->map + page->number * MAP_PAGE_BYTES);
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
	struct top *top = top_of(layer);
	struct map_page *taken = NULL;

	pthread_mutex_lock(&top->syncing);
	int rc = is_top(top) ? take_changed(top, &taken) : 0;
	if (rc == 0)
		rc = sr_io_sync(top->raw.fd);
	for (struct map_page *page = taken; page && rc == 0; page = page->next) {
		int64_t at = (int64_t)(SR_DURABLE_HEADER_BYTES + page->number * MAP_PAGE_BYTES);
		int64_t done = sr_io_write(top->durable_fd, page->bits, MAP_PAGE_BYTES, at);
		rc = done == MAP_PAGE_BYTES ? 0 : done < 0 ? (int)done : -ENOSPC;
	}
	if (rc == 0 && taken)
		rc = sr_io_sync(top->durable_fd);
	if (rc)
		mark_changed(top, taken);
	while (taken) {
		struct map_page *next = taken->next;
		free(taken);
		taken = next;
	}
	pthread_mutex_unlock(&top->syncing);
	return rc;
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

static uint64_t adopted(const struct sr_layer *layer)
{
	return __atomic_load_n(&const_top_of(layer)->adopted, __ATOMIC_ACQUIRE);
}

/* The first run that the top lacks, of one kind below, and short enough for one step. */
static int find_lacking(struct top *top, struct sr_adoption *run)
{
	uint64_t size = sr_layer_bytes(&top->raw.layer), start = round_down(adopted(&top->raw.layer));

	if (start < size && is_present(top, start / SR_BLOCK_BYTES))
		start = run_end(top, start, size, 1);
	if (start >= size)
		return 0;
	uint64_t end = run_end(top, start, smaller(size, start + HOLE_STEP_BYTES), 0);
	int64_t found = sr_seek_below(top->lower, start, end, 0);
	if (found < 0)
		return (int)found;
	if ((uint64_t)found == end || round_down((uint64_t)found) > start) {
		*run = (struct sr_adoption){start, (uint64_t)found == end ? end : round_down((uint64_t)found), 0};
		return 1;
	}
	end = smaller(end, start + SR_ADOPT_BYTES);
	found = sr_seek_below(top->lower, (uint64_t)found, end, 1);
	if (found < 0)
		return (int)found;
	*run = (struct sr_adoption){start, smaller(end, round_down((uint64_t)found + SR_BLOCK_BYTES - 1)), 1};
	return 1;
}

static int adopt_find(struct sr_layer *layer, char *buf, struct sr_adoption *run)
{
	struct top *top = top_of(layer);
	pthread_rwlock_rdlock(&top->shape);
	int rc = is_top(top) ? find_lacking(top, run) : 0;
	if (rc == 1 && run->is_data) {
		int failed = sr_read_below(top->lower, buf, run->end - run->start, run->start);
		rc = failed ? failed : 1;
	}
	pthread_rwlock_unlock(&top->shape);
	return rc;
}

/* Bytes of a block that it did not hold may be in its file all the same: of a write that broke off, or a power loss. */
static int put_hole(struct top *top, uint64_t start, uint64_t end)
{
	int64_t found = sr_raw_seek(&top->raw.layer, start, end, 0);
	int rc = found < 0 ? (int)found : 0;
	if (rc == 0 && (uint64_t)found < end)
		rc = sr_io_zero(top->raw.fd, (int64_t)start, (int64_t)(end - start));
	return rc ? rc : mark_present(top, start, end);
}

static int put_data(struct top *top, const char *buf, uint64_t start, uint64_t end)
{
	int64_t done = sr_io_write(top->raw.fd, buf, (int64_t)(end - start), (int64_t)start);
	if (done < 0)
		return (int)done;
	uint64_t upto = start + (uint64_t)done;
	if (upto < end)
		upto = round_down(upto);
	int rc = upto > start ? mark_present(top, start, upto) : 0;
	return rc == 0 && upto < end ? -ENOSPC : rc;
}

static int adopt_put(struct sr_layer *layer, const char *buf, const struct sr_adoption *run)
{
	struct top *top = top_of(layer);
	int whole = sr_layer_check_file(layer);
	if (whole)
		return whole;
	for (uint64_t at = run->start; at < run->end;) {
		int present = is_present(top, at / SR_BLOCK_BYTES), rc = 0;
		uint64_t stop = run_end(top, at, run->end, present);
		if (!present)
			rc = run->is_data ? put_data(top, buf + (at - run->start), at, stop) : put_hole(top, at, stop);
		if (rc)
			return rc;
		at = stop;
	}
	__atomic_store_n(&top->adopted, run->end, __ATOMIC_RELEASE);
	return 0;
}

static int is_full(struct sr_layer *layer)
{
	struct top *top = top_of(layer);
	uint64_t start = round_down(adopted(layer));
	if (start >= layer->bytes)
		return 1;
	return is_present(top, start / SR_BLOCK_BYTES) && run_end(top, start, layer->bytes, 1) == layer->bytes;
}

/* --- making and freeing -------------------------------------------------------------------------------------- */

static void free_maps(struct top *top)
{
	munmap(top->map, MAP_BYTES_MAX);
	sr_map_close(&top->file_map);
	close(top->map_fd);
	close(top->durable_fd);
	free(top->changed);
	top->map = top->changed = NULL;
}

static void free_top(struct sr_layer *layer)
{
	struct top *top = top_of(layer);

	sr_layer_free(top->lower);
	if (top->map)
		free_maps(top);
	pthread_mutex_destroy(&top->syncing);
	pthread_rwlock_destroy(&top->shape);
	sr_raw_close(&top->raw);
	free(top);
}

/* The operations of a top that has become a raw file. */
static const struct sr_layer_ops settled_ops = {
	.free = free_top,
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
	.adopted = adopted,
};

static struct sr_layer *settle(struct sr_layer *layer)
{
	struct top *top = top_of(layer);

	pthread_mutex_lock(&top->syncing);
	pthread_rwlock_wrlock(&top->shape);
	struct sr_layer *lower = top->lower;
	free_maps(top);
	top->lower = NULL;
	__atomic_store_n(&layer->ops, &settled_ops, __ATOMIC_RELEASE);
	pthread_rwlock_unlock(&top->shape);
	pthread_mutex_unlock(&top->syncing);
	return lower;
}

static const struct sr_layer_ops top_ops = {
	.free = free_top,
	.read = read_top,
	.seek = seek_top,
	.write = write_top,
	.zero = zero_top,
	.resize = resize_top,
	.start_sync = sr_raw_start_sync,
	.sync = sync_top,
	.check_file = check_top_file,
	.lost_maps = lost_maps,
	.excess_bytes = sr_raw_excess_bytes,
	.mtime_ns = sr_raw_mtime_ns,
	.adopt_find = adopt_find,
	.adopt_put = adopt_put,
	.adopted = adopted,
	.is_full = is_full,
	.settle = settle,
};

struct sr_layer *sr_layer_top(struct sr_layer *lower, int fd, int map_fd, int durable_fd, uint64_t bytes)
{
	struct top *top = calloc(1, sizeof(*top));
	uint8_t *changed = calloc(map_pages(SR_DISK_BYTES_MAX) / 8 + 1, 1);
	if (!top || !changed || bytes > SR_DISK_BYTES_MAX || (errno = allocate_maps(map_fd, durable_fd, bytes)) != 0)
		goto fail;
	void *map = mmap(NULL, MAP_BYTES_MAX, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (map == MAP_FAILED)
		goto fail;
	*top = (struct top){.raw = {.layer = {.ops = &top_ops, .bytes = bytes}, .fd = fd},
			    .lower = lower,
			    .map_fd = map_fd,
			    .durable_fd = durable_fd,
			    .map = map,
			    .changed = changed};
	int rc = use_memory(map, bytes);
	if (rc == 0)
		rc = read_maps(top);
	if (rc == 0)
		rc = sr_map_open(&top->file_map, map_fd, MAP_BYTES_MAX);
	if (rc) {
		munmap(map, MAP_BYTES_MAX);
		errno = -rc;
		goto fail;
	}
	sr_io_expect_random(fd);
	pthread_rwlockattr_t in_turn; /* else readers without a pause would keep it from becoming a raw file for ever */
	pthread_rwlockattr_init(&in_turn);
	pthread_rwlockattr_setkind_np(&in_turn, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&top->shape, &in_turn);
	pthread_rwlockattr_destroy(&in_turn);
	pthread_mutex_init(&top->syncing, NULL);
	if (bytes && is_present(top, 0))
		top->adopted = run_end(top, 0, bytes, 1); /* by an earlier process, or by writes */
	return &top->raw.layer;
fail:
	free(changed);
	free(top);
	return NULL;
}
