/* What the kinds of layers share. */
#ifndef SITERIG_LAYERS_INTERNAL_H
#define SITERIG_LAYERS_INTERNAL_H

#include <pthread.h>

#include "layers.h"

enum kind { RAW, EXTENTS, TOP, VIEW };

struct sr_layer {
	enum kind kind;         /* atomic: a top becomes a raw file while readers load it */
	uint64_t bytes;         /* atomic: resize stores it while readers load it */
	struct sr_layer *lower; /* EXTENTS, TOP */
	int fd;                 /* RAW, TOP */
	struct sr_extent *extents;
	size_t extent_count;
	int *fds;
	size_t fd_count;
	int map_fd, durable_fd;
	uint8_t *map;
	uint8_t *changed;       /* one bit a page of the map: it has bits that the durable one has not */
	pthread_mutex_t syncing;
	pthread_rwlock_t shape; /* of what was made as a TOP; read: somebody looks at `map` and `lower` */
	int has_locks;
	uint64_t adopted;       /* atomic: TOP: it holds all blocks below */
	struct view *view;
};

static inline enum kind kind_of(const struct sr_layer *layer)
{
	return __atomic_load_n(&layer->kind, __ATOMIC_ACQUIRE);
}

/* cext/view.c */
int sr_view_read(struct view *view, char *buf, uint64_t bytes, uint64_t offset);
int64_t sr_view_seek(const struct view *view, uint64_t offset, uint64_t end, int hole);
void sr_view_free(struct view *view);

#endif
