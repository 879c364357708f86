/* What the kinds of layers share. */
#ifndef SITERIG_LAYERS_INTERNAL_H
#define SITERIG_LAYERS_INTERNAL_H

#include <pthread.h>

#include "layers.h"

enum kind { RAW, TOP, VIEW };

struct sr_layer {
	enum kind kind;
	uint64_t bytes;         /* atomic: resize stores it while readers load it */
	struct sr_layer *lower; /* TOP */
	int fd;                 /* RAW, TOP */
	int map_fd, durable_fd;
	uint8_t *map;
	uint8_t *changed;       /* one bit a page of the map: it has bits that the durable one has not */
	pthread_mutex_t syncing;
	struct view *view;
};

/* cext/view.c */
int sr_view_read(struct view *view, char *buf, uint64_t bytes, uint64_t offset);
int64_t sr_view_seek(const struct view *view, uint64_t offset, uint64_t end, int hole);
void sr_view_free(struct view *view);

#endif
