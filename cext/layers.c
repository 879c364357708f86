#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io.h"
#include "layers_internal.h"

/* --- making and freeing -------------------------------------------------------------------------------------- */

struct sr_layer *sr_layer_raw(int fd, uint64_t bytes)
{
	struct sr_layer *layer = calloc(1, sizeof(*layer));
	if (!layer)
		return NULL;
	sr_io_expect_random(fd);
	layer->kind = RAW;
	layer->fd = fd;
	layer->bytes = bytes;
	return layer;
}

void sr_layer_free(struct sr_layer *layer)
{
	if (!layer)
		return;
	sr_layer_free(layer->lower);
	if (layer->kind == TOP)
		sr_top_free_maps(layer);
	if (layer->has_locks) {
		pthread_mutex_destroy(&layer->syncing);
		pthread_rwlock_destroy(&layer->shape);
	}
	if (layer->fd >= 0)
		close(layer->fd);
	sr_view_free(layer->view);
	free(layer);
}

uint64_t sr_layer_bytes(const struct sr_layer *layer)
{
	return __atomic_load_n(&layer->bytes, __ATOMIC_ACQUIRE);
}

/* --- reading ------------------------------------------------------------------------------------------------- */

int sr_layer_read(struct sr_layer *layer, void *buf, uint64_t bytes, uint64_t offset)
{
	switch (kind_of(layer)) {
	case RAW:
		return sr_io_read(layer->fd, buf, (int64_t)bytes, (int64_t)offset);
	case TOP:
		return sr_top_read(layer, buf, bytes, offset);
	case VIEW:
		return sr_view_read(layer->view, buf, bytes, offset);
	}
	return -EINVAL;
}

int sr_layer_known_sum(struct sr_layer *layer, uint64_t offset, uint32_t *sum)
{
	return kind_of(layer) == VIEW && sr_view_known_sum(layer->view, offset, sum);
}

/* What lies past the end of the lower layer is zeros. */
int sr_read_below(struct sr_layer *lower, char *buf, uint64_t bytes, uint64_t offset)
{
	uint64_t size = sr_layer_bytes(lower);
	uint64_t inside = offset >= size ? 0 : (bytes < size - offset ? bytes : size - offset);
	int rc = inside ? sr_layer_read(lower, buf, inside, offset) : 0;
	if (rc == 0 && inside < bytes)
		memset(buf + inside, 0, bytes - inside);
	return rc;
}

/* --- writing ------------------------------------------------------------------------------------------------- */

int64_t sr_layer_write(struct sr_layer *layer, const void *buf, uint64_t bytes, uint64_t offset)
{
	if (kind_of(layer) == VIEW)
		return -EROFS;
	if (bytes == 0)
		return 0;
	if (kind_of(layer) == TOP)
		return sr_top_write(layer, buf, bytes, offset);
	return sr_io_write(layer->fd, buf, (int64_t)bytes, (int64_t)offset);
}

int sr_layer_zero(struct sr_layer *layer, uint64_t offset, uint64_t bytes)
{
	if (kind_of(layer) == VIEW)
		return -EROFS;
	if (bytes == 0)
		return 0;
	return kind_of(layer) == TOP ? sr_top_zero(layer, offset, bytes) : sr_io_zero(layer->fd, (int64_t)offset, (int64_t)bytes);
}

int sr_layer_resize(struct sr_layer *layer, uint64_t bytes)
{
	if (kind_of(layer) == VIEW)
		return -EROFS;
	if (bytes > DISK_BYTES_MAX)
		return -EFBIG;
	int rc = kind_of(layer) == TOP ? sr_top_make_room(layer, bytes) : 0;
	if (rc == 0)
		rc = sr_io_resize(layer->fd, (int64_t)bytes);
	if (rc == 0)
		__atomic_store_n(&layer->bytes, bytes, __ATOMIC_RELEASE);
	return rc;
}

void sr_layer_start_sync(struct sr_layer *layer)
{
	if (kind_of(layer) != VIEW)
		sr_io_start_sync(layer->fd);
}

int sr_layer_sync(struct sr_layer *layer)
{
	if (kind_of(layer) == VIEW)
		return 0;
	return kind_of(layer) == TOP ? sr_top_sync(layer) : sr_io_sync(layer->fd);
}

/* --- holes --------------------------------------------------------------------------------------------------- */

/* The first offset from `offset` on, and below `end`, that is data (or, `hole`, that is none); `end` if there is none. */
int64_t sr_seek_file(int fd, uint64_t offset, uint64_t end, int hole)
{
	off_t found = lseek(fd, (off_t)offset, hole ? SEEK_HOLE : SEEK_DATA);
	if (found < 0 && errno == ENXIO) /* past the file's end: a hole */
		return hole ? (int64_t)offset : (int64_t)end;
	if (found < 0)
		return -errno;
	return (uint64_t)found < end ? (int64_t)found : (int64_t)end;
}

static int64_t seek_in(struct sr_layer *layer, uint64_t offset, uint64_t end, int hole)
{
	switch (kind_of(layer)) {
	case RAW:
		return sr_seek_file(layer->fd, offset, end, hole);
	case TOP:
		return sr_top_seek(layer, offset, end, hole);
	case VIEW:
		return sr_view_seek(layer->view, offset, end, hole);
	}
	return -EINVAL;
}

int64_t sr_seek_below(struct sr_layer *lower, uint64_t offset, uint64_t end, int hole)
{
	uint64_t size = sr_layer_bytes(lower), inside = end < size ? end : size;
	if (offset < inside) {
		int64_t found = seek_in(lower, offset, inside, hole);
		if (found < 0 || (uint64_t)found < inside)
			return found;
		offset = inside;
	}
	return hole ? (int64_t)offset : (int64_t)end; /* past the lower layer: a hole */
}

int64_t sr_layer_seek(struct sr_layer *layer, uint64_t offset, int whence)
{
	uint64_t size = sr_layer_bytes(layer);
	if (whence != SEEK_DATA && whence != SEEK_HOLE)
		return -EINVAL;
	if (offset >= size)
		return -ENXIO;
	int64_t found = seek_in(layer, offset, size, whence == SEEK_HOLE);
	if (whence == SEEK_DATA && found == (int64_t)size)
		return -ENXIO;
	return found;
}
