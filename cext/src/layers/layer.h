/* Layers of a disk: a raw file; a writable overlay over a layer; and a read-only view of a managed disk (view.h).
 *
 * Any number of threads may read, concurrently with one thread that writes, zeroes or resizes. Functions return 0 (or
 * bytes done), or -errno.
 */
#ifndef SITERIG_LAYER_H
#define SITERIG_LAYER_H

#include <stddef.h>
#include <stdint.h>

/* The largest disk: the maps of its blocks, and of its chunks in the dirty file, have space for it. */
#define SR_DISK_BYTES_MAX (64ull << 40)

enum { SR_BLOCK_BYTES = 4096, SR_DURABLE_HEADER_BYTES = 4096, SR_HYDRATE_BYTES = 65536 };

struct sr_layer;

/* A raw file whose first `bytes` are the disk. The layer owns `fd`. NULL: errno is the reason; no constructor owns
 * anything then. */
struct sr_layer *sr_layer_raw(int fd, uint64_t bytes);

/* File `fd` takes the writes over `lower`. File `map_fd` has one bit for each 4 KiB block that `fd` holds; file
 * `durable_fd` has the same, after a header of SR_DURABLE_HEADER_BYTES, for the durable blocks. The layer owns all
 * of them. */
struct sr_layer *sr_layer_overlay(struct sr_layer *lower, int fd, int map_fd, int durable_fd, uint64_t bytes);

void sr_layer_free(struct sr_layer *layer);

uint64_t sr_layer_bytes(const struct sr_layer *layer);

/* Read exactly `bytes` bytes; past the layer's end are zeros. -ESTALE: the layer's file has lost that part. */
int sr_layer_read(struct sr_layer *layer, void *buf, uint64_t bytes, uint64_t offset);

/* 1 if the CRC32C of the block of SR_BLOCK_BYTES at `offset` is known without reading it, otherwise 0. A block
 * counts as whole: past the end are zeros. */
int sr_layer_known_sum(struct sr_layer *layer, uint64_t offset, uint32_t *sum);

/* 0, or -ESTALE: the file that takes the writes was truncated or has no name any more, or a map of an overlay was
 * truncated or is lost. Bytes that are written then would be lost. All functions that change or sync a layer check
 * this first: a write after a truncation would turn the lost bytes into a hole. A write, or a range of zeros, that ends
 * before the file's last page detects the truncation by that page; the complete check then runs only once in
 * SR_WRITES_UNLOOKED_MAX writes. */
enum { SR_WRITES_UNLOOKED_MAX = 16 };
int sr_layer_check_file(const struct sr_layer *layer);

/* The files describing the disk's bytes that were truncated, or whose medium fails: a bit mask of enum sr_lost_file. */
enum sr_lost_file { SR_LOST_PRESENT = 1, SR_LOST_DURABLE = 2, SR_LOST_DIRTY = 4 };
int sr_layer_lost_maps(const struct sr_layer *layer);

/* Excess of the file's size over the layer's; 0 if unknown. Not concurrently with a resize. */
int64_t sr_layer_excess_bytes(const struct sr_layer *layer);

/* Time of the last change of the file that takes the writes, in ns since 1970; 0 if unknown. */
uint64_t sr_layer_mtime_ns(const struct sr_layer *layer);

/* Return the number of bytes written: fewer than `bytes` only if an error stopped the rest. */
int64_t sr_layer_write(struct sr_layer *layer, const void *buf, uint64_t bytes, uint64_t offset);

/* Make the range read as zeros, and free space where possible. */
int sr_layer_zero(struct sr_layer *layer, uint64_t offset, uint64_t bytes);

/* Grow the layer; the new end reads as zeros. A raw file can also be truncated. */
int sr_layer_resize(struct sr_layer *layer, uint64_t bytes);

/* Start the writing that a sync waits for. */
void sr_layer_start_sync(struct sr_layer *layer);

/* Make all earlier writes durable. */
int sr_layer_sync(struct sr_layer *layer);

/* Hydration: an overlay becomes a raw file in steps. sr_layer_hydrate_find finds a run that it lacks and reads it
 * from below, concurrently with all others (one thread at a time). sr_layer_hydrate_put then stores it, with the
 * rules of a write; blocks that were written in between stay. */
struct sr_hydration_run {
	uint64_t start, end; /* a run of blocks; the last block of a disk may be partial */
	int is_data;         /* 0: it is a hole */
};

/* `buf` has SR_HYDRATE_BYTES. 1: found; 0: the overlay holds all blocks. */
int sr_layer_hydrate_find(struct sr_layer *layer, char *buf, struct sr_hydration_run *run);
int sr_layer_hydrate_put(struct sr_layer *layer, const char *buf, const struct sr_hydration_run *run);

/* The overlay holds all blocks below this offset. is_hydrated: it holds all blocks, also after a growth. */
uint64_t sr_layer_hydrated_bytes(const struct sr_layer *layer);
int sr_layer_is_hydrated(struct sr_layer *layer);

/* Turn a hydrated overlay into a raw file; returns the layer below, which the caller frees. It waits for running
 * reads, and has the rules of a write. */
struct sr_layer *sr_layer_detach_backing(struct sr_layer *layer);

/* Return the offset of the next data (whence SEEK_DATA) or hole (SEEK_HOLE; the end of the disk counts as one) from
 * `offset`; -ENXIO like lseek(2). */
int64_t sr_layer_seek(struct sr_layer *layer, uint64_t offset, int whence);

/* Return the number of bytes outside holes, or -errno. It visits each range of data. */
int64_t sr_layer_data_bytes(struct sr_layer *layer);

#endif
