/* Layers of a disk: a raw file; a writable overlay over a layer; and, read-only, a view of a managed disk (view.h).
 *
 * Reads may run in any number of threads, beside one thread that writes, zeroes or resizes.
 * Functions return 0 (or bytes done), or -errno.
 */
#ifndef SITERIG_LAYER_H
#define SITERIG_LAYER_H

#include <stddef.h>
#include <stdint.h>

/* The largest disk there can be: the maps of its blocks, and of its chunks in the dirty file, have room for it. */
#define SR_DISK_BYTES_MAX (64ull << 40)

enum { SR_BLOCK_BYTES = 4096, SR_DURABLE_HEADER_BYTES = 4096, SR_HYDRATE_BYTES = 65536 };

struct sr_layer;

/* A raw file of which the first `bytes` are the disk.  The layer owns `fd`.  NULL: errno says why (all
 * constructors); nothing is owned then. */
struct sr_layer *sr_layer_raw(int fd, uint64_t bytes);

/* File `fd` takes the writes over `lower`; one bit a 4 KiB block in file `map_fd` tells which it holds, and behind a header of
 * SR_DURABLE_HEADER_BYTES in file `durable_fd`, which of them are on stable storage.  Owns all. */
struct sr_layer *sr_layer_overlay(struct sr_layer *lower, int fd, int map_fd, int durable_fd, uint64_t bytes);

void sr_layer_free(struct sr_layer *layer);

uint64_t sr_layer_bytes(const struct sr_layer *layer);

/* Exactly `bytes` bytes within the layer; what lies past its end is zeros.  -ESTALE: the layer's file has lost that part. */
int sr_layer_read(struct sr_layer *layer, void *buf, uint64_t bytes, uint64_t offset);

/* 1 if the CRC32C of the block of SR_BLOCK_BYTES at `offset` is known without reading it, else 0.  A block counts as
 * whole: past the end are zeros. */
int sr_layer_known_sum(struct sr_layer *layer, uint64_t offset, uint32_t *sum);

/* 0, or -ESTALE: the file that takes the writes was cut short, or no name is left for it, or one of an overlay's maps was cut or is
 * lost, so what is written would be lost.  All functions that change or sync a layer check this first: a write behind a cut
 * would make a hole of what was lost.  But a write, or a range of zeros, that ends before the file's last page finds out the
 * cut by that page (SR_WRITES_UNLOOKED_MAX), and the rest by a look at each that many writes only. */
enum { SR_WRITES_UNLOOKED_MAX = 16 };
int sr_layer_check_file(const struct sr_layer *layer);

/* Which files that tell what the disk's bytes are were cut, or are on a medium that fails: a bit mask of enum sr_lost_file. */
enum sr_lost_file { SR_LOST_PRESENT = 1, SR_LOST_DURABLE = 2, SR_LOST_DIRTY = 4 };
int sr_layer_lost_maps(const struct sr_layer *layer);

/* How many more bytes that file has than the layer; 0 if that cannot be told.  Not beside a resize. */
int64_t sr_layer_excess_bytes(const struct sr_layer *layer);

/* When the file that takes the writes was last changed, in ns since 1970; 0 if that cannot be told. */
uint64_t sr_layer_mtime_ns(const struct sr_layer *layer);

/* Bytes written, which are fewer than `bytes` only if an error stopped the rest. */
int64_t sr_layer_write(struct sr_layer *layer, const void *buf, uint64_t bytes, uint64_t offset);

/* Make the range read as zeros, giving space back where possible. */
int sr_layer_zero(struct sr_layer *layer, uint64_t offset, uint64_t bytes);

/* Grow; the new end reads as zeros.  A raw file can be cut, too. */
int sr_layer_resize(struct sr_layer *layer, uint64_t bytes);

/* Start writing what a sync will wait for. */
void sr_layer_start_sync(struct sr_layer *layer);

/* Everything written so far is on stable storage. */
int sr_layer_sync(struct sr_layer *layer);

/* An overlay becomes a raw file in steps: find what it lacks and read that from below, beside all others (but one thread at a time);
 * then put it in, as a write.  What was written in between is left alone. */
struct sr_hydration_run {
	uint64_t start, end; /* of a run of blocks; the last one of a disk may be a part of a block */
	int is_data;         /* or else a hole */
};

/* `buf` has SR_HYDRATE_BYTES.  1: found; 0: it holds all blocks. */
int sr_layer_hydrate_find(struct sr_layer *layer, char *buf, struct sr_hydration_run *run);
int sr_layer_hydrate_put(struct sr_layer *layer, const char *buf, const struct sr_hydration_run *run);

/* It holds all blocks below this offset; after a growth, all blocks. */
uint64_t sr_layer_hydrated_bytes(const struct sr_layer *layer);
int sr_layer_is_hydrated(struct sr_layer *layer);

/* A full overlay is a raw file from now on; returns the layer below, to be freed.  Waits for reads that run; as a write. */
struct sr_layer *sr_layer_detach_backing(struct sr_layer *layer);

/* Offset of the next data (whence SEEK_DATA) or hole (SEEK_HOLE; the end of the disk counts as one) from `offset`;
 * -ENXIO as lseek(2). */
int64_t sr_layer_seek(struct sr_layer *layer, uint64_t offset, int whence);

/* How many bytes are not in holes; -errno.  It looks at each range of data. */
int64_t sr_layer_data_bytes(struct sr_layer *layer);

#endif
