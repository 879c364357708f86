/* A kind of layer: a table of its operations, and a struct of its own that begins with struct sr_layer.
 *
 * A new kind is one new file with both and a constructor. The functions of layer.h know no kind, and a layer accesses
 * the layer below through them. The comments here state the conditions that these functions have checked; errors are as
 * in layer.h.
 */
#ifndef SITERIG_LAYER_INTERNAL_H
#define SITERIG_LAYER_INTERNAL_H

#include "layers/layer.h"

/* Every kind has `free`, `read` and `seek`. A kind without `write`, `zero` and `resize` is read-only (-EROFS). For
 * each other operation the comment states the meaning of its absence. */
struct sr_layer_ops {
	/* Free the layer, its files and the layers below. */
	void (*free)(struct sr_layer *layer);

	int (*read)(struct sr_layer *layer, void *buf, uint64_t bytes, uint64_t offset);
	/* Return the first offset in `offset` .. `end` that is data (with `hole`: that is none), or `end`. `offset`
	 * < `end` <= the layer's bytes. */
	int64_t (*seek)(struct sr_layer *layer, uint64_t offset, uint64_t end, int hole);
	/* Absent: no sum is known. */
	int (*known_sum)(struct sr_layer *layer, uint64_t offset, uint32_t *sum);

	/* `bytes` > 0, within the layer; the operation itself calls sr_layer_check_file. */
	int64_t (*write)(struct sr_layer *layer, const void *buf, uint64_t bytes, uint64_t offset);
	int (*zero)(struct sr_layer *layer, uint64_t offset, uint64_t bytes);
	/* `bytes` <= SR_DISK_BYTES_MAX. The operation stores the layer's new size last. */
	int (*resize)(struct sr_layer *layer, uint64_t bytes);

	/* Absent: there is nothing to sync. */
	void (*start_sync)(struct sr_layer *layer);
	int (*sync)(struct sr_layer *layer); /* the file has been checked */

	/* Absent: the layer has no file that can be truncated, no maps, no excess bytes and no time of change. */
	int (*check_file)(const struct sr_layer *layer);
	int (*lost_maps)(const struct sr_layer *layer);
	int64_t (*excess_bytes)(const struct sr_layer *layer);
	uint64_t (*mtime_ns)(const struct sr_layer *layer);

	/* Absent: the layer holds all blocks, and there is nothing below to free. */
	int (*hydrate_find)(struct sr_layer *layer, char *buf, struct sr_hydration_run *run);
	int (*hydrate_put)(struct sr_layer *layer, const char *buf, const struct sr_hydration_run *run);
	uint64_t (*hydrated_bytes)(const struct sr_layer *layer);
	int (*is_hydrated)(struct sr_layer *layer);
	struct sr_layer *(*detach_backing)(struct sr_layer *layer);
};

struct sr_layer {
	const struct sr_layer_ops *ops; /* atomic: an overlay becomes a raw file while readers load it */
	uint64_t bytes;                 /* atomic: resize stores it while readers load it */
};

static inline const struct sr_layer_ops *sr_ops_of(const struct sr_layer *layer)
{
	return __atomic_load_n(&layer->ops, __ATOMIC_ACQUIRE);
}

/* Read or seek in a lower layer; past its end are zeros, which are a hole. */
int sr_read_below(struct sr_layer *lower, char *buf, uint64_t bytes, uint64_t offset);
int64_t sr_seek_below(struct sr_layer *lower, uint64_t offset, uint64_t end, int hole);

#endif
