#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"
#include "layers/layers_internal.h"

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
	sr_edge_unmap(&layer->edge);
	if (layer->fd >= 0)
		close(layer->fd);
	sr_view_free(layer->view);
	free(layer);
}

uint64_t sr_layer_bytes(const struct sr_layer *layer)
{
	return __atomic_load_n(&layer->bytes, __ATOMIC_ACQUIRE);
}

/* --- the file ------------------------------------------------------------------------------------------------ */

static int check_file(const struct sr_layer *layer, int needs_name)
{
	struct stat found;
	uint64_t bytes = sr_layer_bytes(layer); /* before the look: it never grows before its file */

	if (fstat(layer->fd, &found) != 0)
		return -errno;
	if (!S_ISREG(found.st_mode)) /* a block device has no size here, and keeps it */
		return 0;
	return (uint64_t)found.st_size < bytes || (needs_name && found.st_nlink == 0) ? -ESTALE : 0;
}

int sr_layer_check_file(const struct sr_layer *layer)
{
	if (kind_of(layer) == VIEW)
		return 0;
	int rc = check_file(layer, 1);
	return rc ? rc : sr_layer_lost_maps(layer) ? -ESTALE : 0;
}

int sr_layer_lost_maps(const struct sr_layer *layer)
{
	return kind_of(layer) == TOP ? sr_top_lost_maps(layer) : 0;
}

/* sr_layer_check_file before a change up to `end`. */
static int check_before_change(struct sr_layer *layer, uint64_t end)
{
	if (layer->unlooked < SR_WRITES_UNLOOKED_MAX && sr_edge_is_there(&layer->edge, end)) {
		layer->unlooked++;
		return 0;
	}
	int rc = sr_layer_check_file(layer);
	layer->unlooked = 0;
	if (rc == 0)
		sr_edge_map(&layer->edge, layer->fd, sr_layer_bytes(layer));
	return rc;
}

int64_t sr_layer_excess_bytes(const struct sr_layer *layer)
{
	struct stat found;

	if (kind_of(layer) == VIEW || fstat(layer->fd, &found) != 0 || !S_ISREG(found.st_mode))
		return 0;
	return found.st_size - (int64_t)sr_layer_bytes(layer);
}

uint64_t sr_layer_mtime_ns(const struct sr_layer *layer)
{
	struct stat found;

	if (kind_of(layer) == VIEW || fstat(layer->fd, &found) != 0)
		return 0;
	return (uint64_t)found.st_mtim.tv_sec * 1000000000u + (uint64_t)found.st_mtim.tv_nsec;
}

/* --- reading ------------------------------------------------------------------------------------------------- */

/* The file has the whole layer: we made it so long.  Where it ends earlier now, somebody else has cut it. */
int sr_read_file(const struct sr_layer *layer, char *buf, uint64_t bytes, uint64_t offset)
{
	uint64_t size = sr_layer_bytes(layer);
	uint64_t inside = offset >= size ? 0 : (bytes < size - offset ? bytes : size - offset);
	int rc = inside ? sr_io_read_whole(layer->fd, buf, (int64_t)inside, (int64_t)offset) : 0;

	if (rc == 0 && inside < bytes)
		memset(buf + inside, 0, bytes - inside);
	return rc == -EIO && check_file(layer, 0) == -ESTALE ? -ESTALE : rc;
}

int sr_layer_read(struct sr_layer *layer, void *buf, uint64_t bytes, uint64_t offset)
{
	switch (kind_of(layer)) {
	case RAW:
		return sr_read_file(layer, buf, bytes, offset);
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
	int rc = check_before_change(layer, offset + bytes);
	if (rc)
		return rc;
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
	int rc = check_before_change(layer, offset + bytes);
	if (rc)
		return rc;
	return kind_of(layer) == TOP ? sr_top_zero(layer, offset, bytes) : sr_io_zero(layer->fd, (int64_t)offset, (int64_t)bytes);
}

int sr_layer_resize(struct sr_layer *layer, uint64_t bytes)
{
	if (kind_of(layer) == VIEW)
		return -EROFS;
	if (bytes > SR_DISK_BYTES_MAX)
		return -EFBIG;
	int rc = sr_layer_check_file(layer);
	sr_edge_unmap(&layer->edge);
	if (rc == 0 && kind_of(layer) == TOP)
		rc = sr_top_make_room(layer, bytes);
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
	int rc = sr_layer_check_file(layer);
	if (rc)
		return rc;
	return kind_of(layer) == TOP ? sr_top_sync(layer) : sr_io_sync(layer->fd);
}

/* --- holes --------------------------------------------------------------------------------------------------- */

/* The first offset from `offset` on, and below `end`, that is data (or, `hole`, that is none); `end` if there is none.
 * The end of the file may look like a hole: it is none if the layer goes on behind it (-ESTALE). */
int64_t sr_seek_file(const struct sr_layer *layer, uint64_t offset, uint64_t end, int hole)
{
	off_t found = lseek(layer->fd, (off_t)offset, hole ? SEEK_HOLE : SEEK_DATA);
	if (found < 0 && errno != ENXIO)
		return -errno;
	if (found < 0 || (hole && (uint64_t)found < end)) {
		int rc = check_file(layer, 0);
		if (rc)
			return rc;
	}
	if (found < 0)
		return hole ? (int64_t)offset : (int64_t)end;
	return (uint64_t)found < end ? (int64_t)found : (int64_t)end;
}

static int64_t seek_in(struct sr_layer *layer, uint64_t offset, uint64_t end, int hole)
{
	switch (kind_of(layer)) {
	case RAW:
		return sr_seek_file(layer, offset, end, hole);
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

int64_t sr_layer_data_bytes(struct sr_layer *layer)
{
	int64_t bytes = 0, end = 0, start;

	while ((start = sr_layer_seek(layer, (uint64_t)end, SEEK_DATA)) >= 0) {
		end = sr_layer_seek(layer, (uint64_t)start, SEEK_HOLE);
		if (end <= start)
			return end < 0 ? end : bytes; /* it became a hole in between */
		bytes += end - start;
	}
	return start == -ENXIO ? bytes : start;
}
