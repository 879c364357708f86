/* Operations on layers of any kind: the checks that all kinds share, then the operation of the kind. */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "layers/layer_internal.h"

void sr_layer_free(struct sr_layer *layer)
{
	if (layer)
		layer->ops->free(layer);
}

uint64_t sr_layer_bytes(const struct sr_layer *layer)
{
	return __atomic_load_n(&layer->bytes, __ATOMIC_ACQUIRE);
}

/* --- the file ------------------------------------------------------------------------------------------------ */

int sr_layer_check_file(const struct sr_layer *layer)
{
	const struct sr_layer_ops *ops = sr_ops_of(layer);
	return ops->check_file ? ops->check_file(layer) : 0;
}

int sr_layer_lost_maps(const struct sr_layer *layer)
{
	const struct sr_layer_ops *ops = sr_ops_of(layer);
	return ops->lost_maps ? ops->lost_maps(layer) : 0;
}

int64_t sr_layer_excess_bytes(const struct sr_layer *layer)
{
	const struct sr_layer_ops *ops = sr_ops_of(layer);
	return ops->excess_bytes ? ops->excess_bytes(layer) : 0;
}

uint64_t sr_layer_mtime_ns(const struct sr_layer *layer)
{
	const struct sr_layer_ops *ops = sr_ops_of(layer);
	return ops->mtime_ns ? ops->mtime_ns(layer) : 0;
}

/* --- reading ------------------------------------------------------------------------------------------------- */

int sr_layer_read(struct sr_layer *layer, void *buf, uint64_t bytes, uint64_t offset)
{
	return sr_ops_of(layer)->read(layer, buf, bytes, offset);
}

int sr_layer_known_sum(struct sr_layer *layer, uint64_t offset, uint32_t *sum)
{
	const struct sr_layer_ops *ops = sr_ops_of(layer);
	return ops->known_sum ? ops->known_sum(layer, offset, sum) : 0;
}

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
	const struct sr_layer_ops *ops = sr_ops_of(layer);
	if (!ops->write)
		return -EROFS;
	return bytes ? ops->write(layer, buf, bytes, offset) : 0;
}

int sr_layer_zero(struct sr_layer *layer, uint64_t offset, uint64_t bytes)
{
	const struct sr_layer_ops *ops = sr_ops_of(layer);
	if (!ops->zero)
		return -EROFS;
	return bytes ? ops->zero(layer, offset, bytes) : 0;
}

int sr_layer_resize(struct sr_layer *layer, uint64_t bytes)
{
	const struct sr_layer_ops *ops = sr_ops_of(layer);
	if (!ops->resize)
		return -EROFS;
	return bytes > SR_DISK_BYTES_MAX ? -EFBIG : ops->resize(layer, bytes);
}

void sr_layer_start_sync(struct sr_layer *layer)
{
	const struct sr_layer_ops *ops = sr_ops_of(layer);
	if (ops->start_sync)
		ops->start_sync(layer);
}

int sr_layer_sync(struct sr_layer *layer)
{
	int rc = sr_layer_check_file(layer);
	const struct sr_layer_ops *ops = sr_ops_of(layer);
	return rc == 0 && ops->sync ? ops->sync(layer) : rc;
}

/* --- holes --------------------------------------------------------------------------------------------------- */

int64_t sr_seek_below(struct sr_layer *lower, uint64_t offset, uint64_t end, int hole)
{
	uint64_t size = sr_layer_bytes(lower), inside = end < size ? end : size;
	if (offset < inside) {
		int64_t found = sr_ops_of(lower)->seek(lower, offset, inside, hole);
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
	int64_t found = sr_ops_of(layer)->seek(layer, offset, size, whence == SEEK_HOLE);
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
			return end < 0 ? end : bytes; /* the data became a hole in between */
		bytes += end - start;
	}
	return start == -ENXIO ? bytes : start;
}

/* --- an overlay that becomes a raw file --------------------------------------------------------------------------- */

int sr_layer_hydrate_find(struct sr_layer *layer, char *buf, struct sr_hydration_run *run)
{
	const struct sr_layer_ops *ops = sr_ops_of(layer);
	return ops->hydrate_find ? ops->hydrate_find(layer, buf, run) : 0;
}

int sr_layer_hydrate_put(struct sr_layer *layer, const char *buf, const struct sr_hydration_run *run)
{
	const struct sr_layer_ops *ops = sr_ops_of(layer);
	return ops->hydrate_put ? ops->hydrate_put(layer, buf, run) : 0;
}

uint64_t sr_layer_hydrated_bytes(const struct sr_layer *layer)
{
	const struct sr_layer_ops *ops = sr_ops_of(layer);
	return ops->hydrated_bytes ? ops->hydrated_bytes(layer) : 0;
}

int sr_layer_is_hydrated(struct sr_layer *layer)
{
	const struct sr_layer_ops *ops = sr_ops_of(layer);
	return ops->is_hydrated ? ops->is_hydrated(layer) : 1;
}

struct sr_layer *sr_layer_detach_backing(struct sr_layer *layer)
{
	const struct sr_layer_ops *ops = sr_ops_of(layer);
	return ops->detach_backing ? ops->detach_backing(layer) : NULL;
}
