/* A layer's own file: all of a raw layer, and the first part of an overlay, which becomes a raw one. */
#ifndef SITERIG_RAW_H
#define SITERIG_RAW_H

#include "base/edge.h"
#include "layers/layer_internal.h"

struct raw {
	struct sr_layer layer;
	int fd;
	struct sr_edge edge; /* of that file; of the one thread that writes */
	unsigned unlooked;   /* changes since that thread looked at the file itself */
};

/* The operations of a raw layer, for any layer whose struct begins with struct raw.  sr_raw_check_file looks at its file only. */
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

/* sr_layer_check_file before a change up to `end`. */
int sr_raw_check_before_change(struct raw *raw, uint64_t end);

/* Without a look at what the file is now. */
int sr_raw_set_size(struct raw *raw, uint64_t bytes);

/* Closes the file; frees no memory. */
void sr_raw_close(struct raw *raw);

#endif
