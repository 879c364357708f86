/* What the kinds of layers share. */
#ifndef SITERIG_LAYERS_INTERNAL_H
#define SITERIG_LAYERS_INTERNAL_H

#include <pthread.h>

#include "base/edge.h"
#include "base/mapped.h"
#include "layers/layers.h"

enum kind { RAW, TOP, VIEW };

struct sr_layer {
	enum kind kind;         /* atomic: a top becomes a raw file while readers load it */
	uint64_t bytes;         /* atomic: resize stores it while readers load it */
	int fd;                 /* RAW, TOP */
	struct sr_edge edge;    /* of that file; of the one thread that writes */
	unsigned unlooked;      /* changes since that thread looked at the file itself */
	struct view *view;      /* VIEW */

	/* TOP, or made as one */
	struct sr_layer *lower;
	int map_fd, durable_fd;
	uint8_t *map;           /* one bit a block: the layer holds it */
	struct sr_map file_map; /* the same in file `map_fd`, which outlives a kill; never read */
	uint8_t *changed;       /* one bit a page of the map: it has bits that the durable one has not */
	pthread_mutex_t syncing;
	pthread_rwlock_t shape; /* read: somebody looks at `map` and `lower` */
	int has_locks;
	uint64_t adopted;       /* atomic: it holds all blocks below */
};

static inline enum kind kind_of(const struct sr_layer *layer)
{
	return __atomic_load_n(&layer->kind, __ATOMIC_ACQUIRE);
}

/* Of a lower layer; past its end are zeros, which are a hole.  sr_seek_...: the first offset from `offset` on, and below `end`,
 * that is data (or, `hole`, that is none); `end` if there is none. */
int sr_read_below(struct sr_layer *lower, char *buf, uint64_t bytes, uint64_t offset);
int64_t sr_seek_below(struct sr_layer *lower, uint64_t offset, uint64_t end, int hole);
int64_t sr_seek_file(const struct sr_layer *layer, uint64_t offset, uint64_t end, int hole);

/* Of the layer's own file; past the layer's end are zeros.  -ESTALE: see sr_layer_read. */
int sr_read_file(const struct sr_layer *layer, char *buf, uint64_t bytes, uint64_t offset);

/* layers/top.c */
void sr_top_free_maps(struct sr_layer *layer);
int sr_top_read(struct sr_layer *layer, char *buf, uint64_t bytes, uint64_t offset);
int64_t sr_top_seek(struct sr_layer *layer, uint64_t offset, uint64_t end, int hole);
int64_t sr_top_write(struct sr_layer *layer, const void *buf, uint64_t bytes, uint64_t offset);
int sr_top_zero(struct sr_layer *layer, uint64_t offset, uint64_t bytes);
int sr_top_make_room(struct sr_layer *layer, uint64_t bytes);
int sr_top_sync(struct sr_layer *layer);
int sr_top_lost_maps(const struct sr_layer *layer); /* see sr_layer_lost_maps */

/* layers/view.c */
int sr_view_read(struct view *view, char *buf, uint64_t bytes, uint64_t offset);
int64_t sr_view_seek(const struct view *view, uint64_t offset, uint64_t end, int hole);
int sr_view_known_sum(const struct view *view, uint64_t offset, uint32_t *sum);
void sr_view_free(struct view *view);

#endif
