/* Layers of a disk: a raw file; a view of a managed disk (view.h); a writable top over either.
 *
 * Reads may run in any number of threads, beside one thread that writes, zeroes or resizes.
 * Functions return 0 (or bytes done), or -errno.
 */
#ifndef SITERIG_LAYERS_H
#define SITERIG_LAYERS_H

#include <stddef.h>
#include <stdint.h>

enum { SR_BLOCK_BYTES = 4096, SR_DURABLE_HEADER_BYTES = 4096 };

struct sr_layer;

/* A raw file of which the first `bytes` are the disk.  The layer owns `fd`.  NULL: errno says why (all
 * constructors); nothing is owned then. */
struct sr_layer *sr_layer_raw(int fd, uint64_t bytes);

/* File `fd` takes the writes over `lower`; one bit a 4 KiB block in file `map_fd` tells which it holds, and behind a header of
 * SR_DURABLE_HEADER_BYTES in file `durable_fd`, which of them are on stable storage.  Owns all. */
struct sr_layer *sr_layer_top(struct sr_layer *lower, int fd, int map_fd, int durable_fd, uint64_t bytes);

void sr_layer_free(struct sr_layer *layer);

uint64_t sr_layer_bytes(const struct sr_layer *layer);

/* Exactly `bytes` bytes; zeros past the end of the layer. */
int sr_layer_read(struct sr_layer *layer, void *buf, uint64_t bytes, uint64_t offset);

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

/* Offset of the next data (whence SEEK_DATA) or hole (SEEK_HOLE; the end of the disk counts as one) from `offset`;
 * -ENXIO as lseek(2). */
int64_t sr_layer_seek(struct sr_layer *layer, uint64_t offset, int whence);

#endif
