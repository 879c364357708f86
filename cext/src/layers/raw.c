/* A raw file whose first bytes are the layer.
 *
 * Fault contract: blockfs/layers/layer.py.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"
#include "layers/raw.h"

/* `layer` is the first member. */
static struct raw *raw_of(struct sr_layer *layer)
{
	return (struct raw *)layer;
}

static int fd_of(const struct sr_layer *layer)
{
	return ((const struct raw *)layer)->fd;
}

/* --- the file ------------------------------------------------------------------------------------------------ */

static int check(const struct sr_layer *layer, int needs_name)
{
	struct stat found;
	uint64_t bytes = sr_layer_bytes(layer); /* read before fstat: it never grows before its file */

	if (fstat(fd_of(layer), &found) != 0)
		return -errno;
	if (!S_ISREG(found.st_mode)) /* st_size of a block device is 0, and its size does not change */
		return 0;
	return (uint64_t)found.st_size < bytes || (needs_name && found.st_nlink == 0) ? -ESTALE : 0;
}

int sr_raw_check_file(const struct sr_layer *layer)
{
	return check(layer, 1);
}

int sr_raw_check_before_change(struct raw *raw, uint64_t end)
{
	if (raw->unlooked < SR_WRITES_UNLOOKED_MAX && sr_edge_is_there(&raw->edge, end)) {
		raw->unlooked++;
		return 0;
	}
	int rc = sr_layer_check_file(&raw->layer);
	raw->unlooked = 0;
	if (rc == 0)
		sr_edge_map(&raw->edge, raw->fd, sr_layer_bytes(&raw->layer));
	return rc;
}

int64_t sr_raw_excess_bytes(const struct sr_layer *layer)
{
	struct stat found;

	if (fstat(fd_of(layer), &found) != 0 || !S_ISREG(found.st_mode))
		return 0;
	return found.st_size - (int64_t)sr_layer_bytes(layer);
}

uint64_t sr_raw_mtime_ns(const struct sr_layer *layer)
{
	struct stat found;

	if (fstat(fd_of(layer), &found) != 0)
		return 0;
	return (uint64_t)found.st_mtim.tv_sec * 1000000000u + (uint64_t)found.st_mtim.tv_nsec;
}

/* --- reading ------------------------------------------------------------------------------------------------- */

/* The file was created with the whole layer. If it is shorter now, another program has truncated it. */
int sr_raw_read(struct sr_layer *layer, void *buf, uint64_t bytes, uint64_t offset)
{
	uint64_t size = sr_layer_bytes(layer);
	uint64_t inside = offset >= size ? 0 : (bytes < size - offset ? bytes : size - offset);
	int rc = inside ? sr_io_read_whole(fd_of(layer), buf, (int64_t)inside, (int64_t)offset) : 0;

	if (rc == 0 && inside < bytes)
		memset((char *)buf + inside, 0, bytes - inside);
	return rc == -EIO && check(layer, 0) == -ESTALE ? -ESTALE : rc;
}

/* The end of the file can look like a hole. If the layer continues after it, the file was truncated (-ESTALE). */
int64_t sr_raw_seek(struct sr_layer *layer, uint64_t offset, uint64_t end, int hole)
{
	off_t found = lseek(fd_of(layer), (off_t)offset, hole ? SEEK_HOLE : SEEK_DATA);
	if (found < 0 && errno != ENXIO)
		return -errno;
	if (found < 0 || (hole && (uint64_t)found < end)) {
		int rc = check(layer, 0);
		if (rc)
			return rc;
	}
	if (found < 0)
		return hole ? (int64_t)offset : (int64_t)end;
	return (uint64_t)found < end ? (int64_t)found : (int64_t)end;
}

/* --- writing ------------------------------------------------------------------------------------------------- */

int64_t sr_raw_write(struct sr_layer *layer, const void *buf, uint64_t bytes, uint64_t offset)
{
	int rc = sr_raw_check_before_change(raw_of(layer), offset + bytes);
	return rc ? rc : sr_io_write(fd_of(layer), buf, (int64_t)bytes, (int64_t)offset);
}

int sr_raw_zero(struct sr_layer *layer, uint64_t offset, uint64_t bytes)
{
	int rc = sr_raw_check_before_change(raw_of(layer), offset + bytes);
	return rc ? rc : sr_io_zero(fd_of(layer), (int64_t)offset, (int64_t)bytes);
}

int sr_raw_set_size(struct raw *raw, uint64_t bytes)
{
	int rc = sr_io_resize(raw->fd, (int64_t)bytes);
	if (rc == 0)
		__atomic_store_n(&raw->layer.bytes, bytes, __ATOMIC_RELEASE);
	return rc;
}

int sr_raw_resize(struct sr_layer *layer, uint64_t bytes)
{
	int rc = sr_layer_check_file(layer);
	sr_edge_unmap(&raw_of(layer)->edge);
	return rc ? rc : sr_raw_set_size(raw_of(layer), bytes);
}

void sr_raw_start_sync(struct sr_layer *layer)
{
	sr_io_start_sync(fd_of(layer));
}

int sr_raw_sync(struct sr_layer *layer)
{
	return sr_io_sync(fd_of(layer));
}

/* --- making and freeing -------------------------------------------------------------------------------------- */

void sr_raw_close(struct raw *raw)
{
	sr_edge_unmap(&raw->edge);
	close(raw->fd);
}

static void free_raw(struct sr_layer *layer)
{
	sr_raw_close(raw_of(layer));
	free(layer);
}

static const struct sr_layer_ops raw_ops = {
	.free = free_raw,
	.read = sr_raw_read,
	.seek = sr_raw_seek,
	.write = sr_raw_write,
	.zero = sr_raw_zero,
	.resize = sr_raw_resize,
	.start_sync = sr_raw_start_sync,
	.sync = sr_raw_sync,
	.check_file = sr_raw_check_file,
	.excess_bytes = sr_raw_excess_bytes,
	.mtime_ns = sr_raw_mtime_ns,
};

struct sr_layer *sr_layer_raw(int fd, uint64_t bytes)
{
	struct raw *raw = calloc(1, sizeof(*raw));
	if (!raw)
		return NULL;
	sr_io_expect_random(fd);
	*raw = (struct raw){.layer = {.ops = &raw_ops, .bytes = bytes}, .fd = fd};
	return &raw->layer;
}
