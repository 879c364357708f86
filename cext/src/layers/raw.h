/* A layer's own file: the whole raw layer, and the first part of an overlay, which becomes a raw layer. */
#ifndef SITERIG_RAW_H
#define SITERIG_RAW_H

#include "base/edge.h"
#include "layers/layer_internal.h"

struct raw {
	struct sr_layer layer;
	int fd;
	struct sr_edge edge; /* edge of that file, for the writing thread */
	unsigned unlooked;   /* changes since the last complete check of the file */
};

/* The operations of a raw layer, for any layer whose struct begins with struct raw. sr_raw_check_file checks only
 * its file. */
int sr_raw_read(struct sr_layer *layer, void *buf, uint64_t bytes, uint64_t offset);
int64_t sr_raw_seek(struct sr_layer *layer, uint64_t offset, uint64_t end, int hole);
int64_t sr_raw_write(struct sr_layer *layer, const void *buf, uint64_t bytes, uint64_t offset);
int sr_raw_zero(struct sr_layer *layer, uint64_t offset, uint64_t bytes);
int sr_raw_resize(struct sr_layer *layer, uint64_t bytes);
void sr_raw_start_sync(struct sr_layer *layer);
int sr_raw_sync(struct sr_layer *layer);
int sr_raw_check_file(const struct sr_layer *layer);
int64_t sr_raw_excess_bytes(const struct sr_layer *layer);
uint64_t sr_raw_mtime_ns(const struct sr_layer *layer);

/* Call sr_layer_check_file before a change up to `end`, unless the edge shows that it is not needed. */
int sr_raw_check_before_change(struct raw *raw, uint64_t end);

/* Change the size without a check of the file. */
int sr_raw_set_size(struct raw *raw, uint64_t bytes);

/* Close the file; frees no memory. */
void sr_raw_close(struct raw *raw);

#endif
